"""shipped_path: recipes and adapters are found wherever vistok was installed."""

import pytest

from vistok.configuration import shipped
from vistok.configuration.shipped import shipped_path


def test_a_shipped_folder_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = shipped_path("checkpoints")
    assert path.is_absolute()
    assert (path / "README.md").is_file()


def test_an_unknown_name_is_answered_with_what_ships(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "gvt").mkdir(parents=True)
    (tmp_path / "recipes" / "gvt" / "planted.yaml").touch()
    (tmp_path / "checkpoints" / "planted-demo").mkdir(parents=True)
    monkeypatch.setattr(shipped, "_SHIPPED_IN", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"checkpoints/planted-demo, recipes/gvt/planted\.yaml"):
        shipped_path("recipes/gvt/absent.yaml")


@pytest.mark.parametrize("name", ["pyproject.toml", "modeling/__init__.py", "recipes/../modeling", "/", ""])
def test_nothing_beside_recipes_and_checkpoints_is_handed_out(name):
    with pytest.raises(FileNotFoundError, match="ships nothing named"):
        shipped_path(name)
