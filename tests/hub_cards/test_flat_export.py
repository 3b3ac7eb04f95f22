"""Models that load with their code, where vistok is not installed and where it is not imported."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlavaProcessor

from tests.hub_client import client_environment, turned_to
from tests.hub_folders import KINDS, auto_map, features_of, save_kind, write_files
from tests.hub_server import running_hub
from tests.tiny import tiny_gvt
from vistok import GVTModel, GVTProcessor
from vistok.cli import main
from vistok.hub_cards import flat_export
from vistok.hub_cards.flat_export import MANIFEST_NAME, ExportError, closure, flat_files, flat_source
from vistok.hub_cards.remote_code import (
    STUB_NAME,
    auto_classes,
    load_config,
    model_types_within,
    save_stub,
    stub_files,
)

ROOT = Path(__file__).parents[2]
WITHOUT_VISTOK = ROOT / "tests" / "load_without_vistok.py"
# A process that has vistok and does not import it: with the code of a model, then with its stub, then with vistok.
WITH_VISTOK = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
exported, stub, again, saved = sys.argv[1:]
model = AutoModel.from_pretrained(exported, trust_remote_code=True)
found = {"exported": type(model).__module__.split(".")[0], "imported_by_export": "vistok" in sys.modules}
processor = AutoProcessor.from_pretrained(again, trust_remote_code=True)
loaded = AutoModelForImageTextToText.from_pretrained(stub, trust_remote_code=True)
found["stub"] = [type(loaded).__module__, type(processor).__module__]
loaded.save_pretrained(saved)
processor.save_pretrained(saved)
import vistok
found["again"] = type(vistok.GVTForConditionalGeneration.from_pretrained(saved)).__name__
found["both"] = type(vistok.GVTModel.from_pretrained(exported)).__module__
print()
print(json.dumps(found))
"""

# The same with a folder of a processor.
ALONE = """
import json, sys
from transformers import AutoProcessor
found = {"imported": "vistok" in sys.modules}
found["processor"] = type(AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)).__module__
print()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every kind, with its code."""
    top = tmp_path_factory.mktemp("exported")
    for kind in KINDS:
        save_kind(kind, top / kind)
        write_files(top / kind, flat_files(top / kind, load_config(top / kind)))
    return top


@pytest.fixture(scope="module")
def again(folders, tmp_path_factory):
    """A tiny GVT that was loaded with code beside it and saved, the processor before the model and after it."""
    loaded = GVTModel.from_pretrained(folders / "gvt"), GVTProcessor.from_pretrained(folders / "gvt")
    top = tmp_path_factory.mktemp("again")
    for name, order in (("again", loaded), ("processor-first", loaded[::-1])):
        for part in order:
            part.save_pretrained(top / name)
    return top / "again"


@pytest.fixture(scope="module")
def hub(folders, tmp_path_factory):
    """A Hub with a tiny GVT, once with its code and once with the stub."""
    home = tmp_path_factory.mktemp("home")
    with running_hub() as server, pytest.MonkeyPatch.context() as patch:
        with turned_to(server, home / "unused", patch):
            assert main(["push", str(folders / "gvt"), "org/gvt-tiny", "--self-contained"]) == 0
            assert main(["push", str(folders / "gvt"), "org/gvt-stub"]) == 0
        yield server


def last_line(command: list[str], environment: dict[str, str], cwd: Path) -> dict:
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def elsewhere(folders, hub, again, tmp_path_factory):
    """What a process without vistok makes of all of them, and of one that it has from the Hub."""
    home = tmp_path_factory.mktemp("elsewhere")
    environment = {**client_environment(hub, home), "PYTHONPATH": ""}
    named = [*(str(folders / kind) for kind in KINDS), str(again), "org/gvt-tiny", "org/gvt-stub"]
    return last_line([sys.executable, str(WITHOUT_VISTOK), *named], environment, home)


class TestWithoutVistok:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_loads_and_is_the_same_model(self, kind, folders, elsewhere):
        found, classes = elsewhere[kind], auto_classes(kind)
        assert "error" not in found, found["error"]
        assert found["config"] == classes["AutoConfig"].__name__
        assert found["features"] == features_of(classes["AutoModel"].from_pretrained(folders / kind))

    @pytest.mark.parametrize("kind", ["gvt", "vtlmm", "setokim", "setok_llava"])
    def test_processor_head_and_pipeline_load_too(self, kind, elsewhere):
        found, classes = elsewhere[kind], auto_classes(kind)
        assert found["whole"] == classes["AutoModelForImageTextToText"].__name__
        assert found["processor"] == classes.get("AutoProcessor", LlavaProcessor).__name__
        assert isinstance(found["answer"], str)

    def test_vistok_was_not_there(self, elsewhere):
        assert elsewhere["vistok"] is False

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_was_loaded_is_saved_with_its_code(self, kind, elsewhere):
        assert elsewhere[kind]["saved_again"] is True

    def test_it_loads_from_the_hub_by_its_name(self, elsewhere):
        assert elsewhere["gvt-tiny"]["features"] == elsewhere["gvt"]["features"]
        assert elsewhere["gvt-tiny"]["answer"] == elsewhere["gvt"]["answer"]

    @pytest.mark.parametrize("name", ["gvt-stub", "again"])
    def test_the_stub_says_what_to_install(self, name, elsewhere):
        assert "Run `pip install vistok`" in elsewhere[name]["error"]


def test_what_was_loaded_with_code_beside_it_is_saved_with_the_stub(again):
    for folder in (again, again.parent / "processor-first"):
        assert [path.name for path in folder.glob("*.py")] == [STUB_NAME]
        assert set(auto_map(folder).values()) == {
            f"vistok_classes.{name}" for name in ("GVTConfig", "GVTModel", "GVTForConditionalGeneration")
        }
        assert auto_map(folder, "processor_config.json") == {"AutoProcessor": "vistok_classes.GVTProcessor"}
        assert "GVTProcessor" in (folder / STUB_NAME).read_text()


def test_a_processor_that_was_loaded_with_code_beside_it_is_saved_alone_with_the_stub(again, tmp_path):
    GVTProcessor.from_pretrained(again).save_pretrained(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "alone").glob("*.py")] == [STUB_NAME]
    assert auto_map(tmp_path / "alone", "processor_config.json") == {"AutoProcessor": "vistok_classes.GVTProcessor"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    found = last_line([sys.executable, "-c", ALONE, str(tmp_path / "alone")], environment, tmp_path)
    assert found == {"imported": False, "processor": "vistok.processing.processing_gvt"}


def test_what_no_code_lay_beside_is_saved_without(tmp_path):
    save_kind("gvt", tmp_path)
    assert not list(tmp_path.glob("*.py")) and not auto_map(tmp_path)
    GVTProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path / "alone")
    assert not list((tmp_path / "alone").glob("*.py"))
    assert not auto_map(tmp_path / "alone", "processor_config.json")


def test_the_code_of_a_users_own_model_stays_named(tmp_path):
    model = tiny_gvt().model
    model.config.auto_map = {"AutoModel": "modeling_mine.MyGVT"}
    model.save_pretrained(tmp_path)
    assert auto_map(tmp_path) == {"AutoModel": "modeling_mine.MyGVT"} and not list(tmp_path.glob("*.py"))


def test_a_model_that_fsdp_divides_has_the_stub_of_its_own_class(tmp_path):
    model = tiny_gvt()
    model.__class__ = type("FSDPGVT", (type(model),), {"__module__": "torch.distributed.fsdp._fully_shard"})
    model.config.save_pretrained(tmp_path)
    save_stub(model, tmp_path, published=True)
    assert [path.name for path in tmp_path.glob("*.py")] == [STUB_NAME]
    assert auto_map(tmp_path)["AutoModelForImageTextToText"] == "vistok_classes.GVTForConditionalGeneration"


def test_with_vistok_code_stub_and_package_live_side_by_side(folders, hub, again, tmp_path):
    environment = {**client_environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    named = [str(folders / "gvt"), "org/gvt-stub", str(again), str(tmp_path / "saved")]
    found = last_line([sys.executable, "-c", WITH_VISTOK, *named], environment, tmp_path)
    assert found == {
        "exported": "transformers_modules",
        "imported_by_export": False,
        "stub": ["vistok.modeling.modeling_gvt", "vistok.processing.processing_gvt"],
        "again": "GVTForConditionalGeneration",
        "both": "vistok.modeling.modeling_gvt",
    }


class TestModules:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_module_imports_only_what_lies_beside_it_or_what_everybody_has(self, kind, folders):
        modules = {path.stem: path.read_text(encoding="utf-8") for path in (folders / kind).glob("*.py")}
        for name, source in modules.items():
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert (node.level, node.module in modules) == (1, True), (name, node.module)
                elif isinstance(node, ast.ImportFrom | ast.Import) and not node.col_offset:
                    imported = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                    assert imported.partition(".")[0] in flat_export._ALWAYS_THERE, (name, imported)

    def test_the_same_model_gives_the_same_bytes_and_a_manifest_of_them(self, folders):
        config = load_config(folders / "gvt")
        first, second = (flat_files(folders / "gvt", config) for _ in range(2))
        assert first == second
        manifest = json.loads(first[MANIFEST_NAME])
        assert set(manifest["sha256"]) == {name for name in first if name.endswith(".py")}

    def test_every_module_has_its_licence_and_origin(self, folders):
        for path in (folders / "gvt").glob("*.py"):
            assert "SPDX-License-Identifier: Apache-2.0" in path.read_text(encoding="utf-8").splitlines()[0], path

    def test_fetching_of_base_weights_stays_in_vistok(self):
        needed = closure(["modeling_gvt", "processing_gvt", "modeling_setokim", "processing_setokim"])
        assert not {"convert_base_weights", "registry_packages", "safe_archives"} & set(needed)
        offered = {
            name.name for name in ast.parse(flat_source("base_weights")).body if isinstance(name, ast.FunctionDef)
        }
        wanted = {
            alias.name
            for name in needed
            for node in ast.walk(ast.parse(flat_source(name)))
            if isinstance(node, ast.ImportFrom) and node.level and node.module == "base_weights"
            for alias in node.names
        }
        assert wanted and wanted <= offered

    def test_base_weights_of_vistok_are_told_of_elsewhere(self):
        from vistok.hub_cards.unfetched_base_weights import resolve_checkpoint

        assert resolve_checkpoint("org/model") == "org/model"
        for name in ("vistok:dinov2-small", "vistok:gvt-demo"):
            with pytest.raises(ValueError, match=rf"{name} is a name of vistok's: .*then `vistok fetch` for base"):
                resolve_checkpoint(name)

    def test_packages_that_not_everybody_has_are_asked_for_where_they_are_needed(self):
        source = flat_source("lora_adapters")
        assert "        from peft import LoraConfig\n    except ImportError" in source
        from transformers.dynamic_module_utils import get_imports

        assert "peft" not in get_imports(_written(source))

    def test_parts_are_those_of_the_model_and_those_of_defaults(self, folders):
        types = model_types_within(load_config(folders / "gvt"))
        assert types == ["gvt", "eva_vision", "perceiver_resampler_vistok"]

    def test_a_module_that_is_imported_as_a_whole_is_refused(self, monkeypatch, tmp_path):
        (tmp_path / "modeling").mkdir()
        (tmp_path / "modeling" / "whole.py").write_text("from . import other\n")
        monkeypatch.setattr(flat_export, "_PACKAGE", tmp_path)
        with pytest.raises(ExportError, match=r"whole\.py, line 1, imports a module as a whole"):
            closure(["whole"])
        with pytest.raises(ExportError, match=r"no module none\.py"):
            closure(["none"])

    def test_models_of_transformers_need_no_code(self, tmp_path):
        from tests.tiny import tiny_dinov2_config

        tiny_dinov2_config().save_pretrained(tmp_path)
        config = load_config(tmp_path)
        assert flat_files(tmp_path, config) == stub_files(tmp_path, config) == {}


def _written(source: str) -> str:
    import tempfile

    handle, path = tempfile.mkstemp(suffix=".py")
    with os.fdopen(handle, "w") as file:
        file.write(source)
    return path
