"""The notebooks: each runs from top to bottom, offline, in the package's own words."""

import ast
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def cells_of(file: Path, kind: str) -> list[dict]:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def run_cell(source: str, name: str, namespace: dict) -> list[str]:
    """Runs a cell as Jupyter does; returns what is shown: figures, and what its last line evaluates to, if drawn."""
    from matplotlib import pyplot

    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    value = None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    shown = ["picture"] if getattr(value, "_repr_png_", lambda: None)() else []
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
        pyplot.close(number)
        shown.append("figure")
    return shown


def test_there_is_one_for_each_system():
    assert [file.stem for file in NOTEBOOKS] == ["gvt", "setok", "vtlmm"]


@pytest.mark.real_weights
@every_notebook
def test_it_runs_from_top_to_bottom_and_shows_pictures(file, tmp_path, monkeypatch):
    pytest.importorskip("skimage.data", reason="notebooks show photographs of scikit-image: extra demo")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    shown = [
        kind
        for number, cell in enumerate(cells_of(file, "code"), start=1)
        for kind in run_cell("".join(cell["source"]), f"{file.name}, cell {number}", namespace)
    ]
    assert "figure" in shown and len(shown) >= 2


@every_notebook
def test_it_is_kept_without_outputs(file):
    for cell in cells_of(file, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), "jupyter nbconvert --clear-output --inplace"


@every_notebook
def test_every_recipe_that_it_names_exists(file):
    text = "".join("".join(cell["source"]) for cell in cells_of(file, "markdown"))
    named = set(re.findall(r"recipes/[\w/.*-]+\.yaml", text))
    assert {name for name in named if not list(FOLDER.parent.glob(name))} == set()
