"""The package as a whole: its folders, its imports, its public names and its promises about dependencies."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest where the standard library has none

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = sorted(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name != "vistok")
DATA_FOLDERS = ["checkpoints", "metrics", "recipes"]
# Which rooms a room may import from, itself aside.
MAY_IMPORT = {
    "configuration": set(),
    "modeling": {"configuration"},
    "processing": {"configuration", "modeling"},
    "evaluation": {"configuration", "modeling", "processing"},
    "hub_cards": {"configuration", "modeling"},
    "trainer": {"configuration", "modeling", "processing", "evaluation", "hub_cards"},
}
HEAVY_PACKAGES = {
    *("bitsandbytes", "datasets", "diffusers", "evaluate", "gguf", "gradio"),
    *("matplotlib", "onnx", "peft", "sklearn", "tensorboard"),
}
# Distribution → what it is imported as, where that differs.
IMPORTED_AS = {
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
# Required for what others import of it: transformers for Trainer and device_map, and for report_to="tensorboard".
USED_BY_TRANSFORMERS = {"accelerate", "tensorboard"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".json", ".jsonl", ".jinja", ".in", ".csv", ".ipynb", ""}


def tracked_files() -> list[Path]:
    """Files of the repository: what git knows, or everything but caches and environments where there is no git."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        own = re.compile(r"[\w-]+$|\.ci$")
        folders = [path for path in ROOT.iterdir() if path.is_dir() and own.match(path.name)]
        folders = [folder for folder in folders if folder.name not in ("build", "dist", "runs", "__pycache__")]
        files = [*ROOT.glob("*"), *(file for folder in folders for file in folder.rglob("*"))]
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


TRACKED = tracked_files()
PYTHON_FILES = [file for file in TRACKED if file.suffix == ".py"]
ROOM_FILES = [file for file in PYTHON_FILES if file.parent.parent == ROOT and file.parent.name in ROOMS]


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported_names(source: str, package: str) -> set[str]:
    """What a module imports of vistok, at its top or anywhere below, as full dotted names."""
    parents = package.split(".")
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "vistok"}


def forbidden_imports(source: str, room: str) -> list[str]:
    """Imports by which a module of `room` goes against the direction between rooms."""
    allowed = {room, *MAY_IMPORT[room]}
    return sorted(
        name
        for name in imported_names(source, f"vistok.{room}")
        if len(name.split(".")) < 2 or name.split(".")[1] not in allowed
    )


class TestFolders:
    def test_every_room_is_packaged_and_linked_under_its_own_name(self):
        expected = ["vistok", *(f"vistok.{room}" for room in [*ROOMS, *DATA_FOLDERS])]
        setuptools = PYPROJECT["tool"]["setuptools"]
        assert sorted(setuptools["packages"]) == sorted(expected)
        assert setuptools["package-dir"] == {name: name.removeprefix("vistok.") for name in expected}

    @pytest.mark.parametrize("folder", [*ROOMS, *DATA_FOLDERS])
    def test_the_symlink_of_a_folder_leads_to_it(self, folder):
        link = ROOT / "vistok" / folder
        # A clone without symlinks has a file that holds where the link leads.
        target = link.readlink().as_posix() if link.is_symlink() else link.read_text(encoding="utf-8")
        assert target == f"../{folder}"

    def test_every_room_has_its_rule_of_what_it_may_import(self):
        assert set(MAY_IMPORT) == set(ROOMS)

    def test_file_names_are_unique_across_rooms(self):
        # A model is flattened into one folder when it is exported with its code.
        names = [file.name for file in ROOM_FILES if file.name != "__init__.py"]
        assert sorted(names) == sorted(set(names))

    def test_a_room_holds_no_further_folders_of_code(self):
        nested = [relative(file) for file in PYTHON_FILES if file.relative_to(ROOT).parts[0] in ROOMS]
        assert [name for name in nested if name.count("/") > 1] == []

    @pytest.mark.parametrize("room", ROOMS)
    def test_the_init_file_of_a_room_is_a_docstring_only(self, room):
        body = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body
        assert [type(node) for node in body] == [ast.Expr]

    def test_no_python_file_is_longer_than_a_reader_bears(self):
        lengths = {relative(file): len(file.read_text(encoding="utf-8").splitlines()) for file in PYTHON_FILES}
        assert {name: length for name, length in lengths.items() if length > 420} == {}


class TestImportDirection:
    @pytest.mark.parametrize("file", ROOM_FILES, ids=relative)
    def test_a_room_imports_only_from_the_rooms_before_it(self, file):
        assert forbidden_imports(file.read_text(encoding="utf-8"), file.parent.name) == []

    def test_losses_import_no_model(self):
        losses = [file for file in ROOM_FILES if file.name.startswith("losses_")]
        names = {
            relative(file): imported_names(file.read_text(encoding="utf-8"), "vistok.modeling") for file in losses
        }
        assert {file: found for file, found in names.items() if any(".modeling_" in name for name in found)} == {}

    @pytest.mark.parametrize(
        ("room", "source"),
        [
            ("configuration", "from ..modeling.modeling_gvt import GVTModel"),
            ("configuration", "from .. import GVTModel"),
            ("modeling", "def late():\n    from vistok.processing import images"),
            ("processing", "import vistok.trainer.freezing"),
            ("hub_cards", "from ..evaluation import metrics"),
            ("evaluation", "from ..trainer import freezing"),
            ("trainer", "from ..cli import main"),
            ("trainer", "from vistok import GVTModel"),
        ],
    )
    def test_an_import_against_the_direction_is_found(self, room, source):
        assert len(forbidden_imports(source, room)) == 1

    @pytest.mark.parametrize(
        ("room", "source"),
        [
            ("modeling", "from ..configuration.configuration_gvt import GVTConfig\nfrom . import registry"),
            ("trainer", "from vistok.evaluation.metrics import accuracy\nimport torch"),
        ],
    )
    def test_an_import_along_the_direction_passes(self, room, source):
        assert forbidden_imports(source, room) == []


def run_python(code: str) -> dict:
    """What a fresh interpreter prints as JSON."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


class TestPublicNames:
    def test_importing_vistok_loads_no_optional_or_heavy_package(self):
        modules = run_python("import sys, json, vistok; print(json.dumps(list(sys.modules)))")
        # What generation brings along: older versions of transformers load sklearn where it is installed.
        brought = run_python("import sys, json, transformers.generation.utils; print(json.dumps(list(sys.modules)))")
        loaded, of_others = ({name.partition(".")[0] for name in names} for names in (modules, brought))
        assert HEAVY_PACKAGES & loaded - of_others == set()
        assert not any(name.startswith(("vistok.trainer", "vistok.cli")) for name in modules)

    def test_every_public_name_is_importable_and_documented(self):
        import vistok

        assert vistok.__all__ == sorted(set(vistok.__all__))
        undocumented = [name for name in vistok.__all__ if not (getattr(vistok, name).__doc__ or "").strip()]
        assert undocumented == []
        assert set(vistok.__all__) <= set(dir(vistok))

    def test_type_checkers_see_the_same_names_as_python(self):
        import vistok

        body = ast.parse((ROOT / "vistok" / "__init__.py").read_text(encoding="utf-8")).body
        guarded = [node for node in body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
        seen = {alias.name for guard in guarded for node in guard.body for alias in node.names}
        assert seen == set(vistok.__all__)

    def test_an_unknown_name_is_an_attribute_error(self):
        import vistok

        with pytest.raises(AttributeError, match="NoSuchModel"):
            vistok.NoSuchModel  # noqa: B018

    def test_the_version_is_that_of_pyproject(self):
        import vistok

        assert vistok.__version__ == PYPROJECT["project"]["version"]

    def test_no_model_type_is_one_that_transformers_has(self):
        from transformers import PreTrainedConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        modules = [
            importlib.import_module(f"vistok.configuration.{file.stem}")
            for file in sorted((ROOT / "configuration").glob("configuration_*.py"))
        ]
        ours = {
            value.model_type
            for module in modules
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, PreTrainedConfig) and value.__module__ == module.__name__
        }
        assert "gvt" in ours
        assert ours & set(CONFIG_MAPPING_NAMES) == set()


class TestDependencies:
    REQUIREMENTS = [
        Requirement(text)
        for group in [
            PYPROJECT["project"]["dependencies"],
            *PYPROJECT["project"]["optional-dependencies"].values(),
        ]
        for text in group
    ]

    def test_nothing_requires_torchvision_or_what_brings_it(self):
        bring_it = {"torchvision", "timm", "lmms-eval", "torch-fidelity", "clean-fid"}
        assert bring_it & {requirement.name.lower() for requirement in self.REQUIREMENTS} == set()

    def test_every_requirement_is_used(self):
        files = [*ROOM_FILES, *(ROOT / "vistok").glob("*.py"), *(ROOT / "metrics").rglob("*.py")]
        source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        development = PYPROJECT["project"]["optional-dependencies"]["dev"]
        names = {item.name for item in self.REQUIREMENTS if str(item) not in map(str, map(Requirement, development))}
        unused = {
            name
            for name in names - {"vistok"} - USED_BY_TRANSFORMERS
            if not re.search(rf"(?:import |from |require\(\")(?:{IMPORTED_AS.get(name, name)})\b", source)
        }
        assert unused == set()

    def test_the_lowest_constraints_are_the_lower_bounds(self):
        bounds = {
            (requirement.name, specifier.version)
            for requirement in self.REQUIREMENTS
            for specifier in requirement.specifier
            if specifier.operator == ">="
        }
        lines = (ROOT / "constraints" / "lowest.txt").read_text(encoding="utf-8").splitlines()
        pins = {tuple(line.split("==")) for line in lines if line and not line.startswith("#")}
        assert pins == bounds

    def test_every_requirement_says_from_which_version_on(self):
        unbounded = [str(item) for item in self.REQUIREMENTS if not item.specifier and item.name != "vistok"]
        assert unbounded == []

    def test_the_cpu_constraint_fits_the_bound_on_torch(self):
        pin = Requirement((ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").strip().splitlines()[-1])
        torch = next(requirement for requirement in self.REQUIREMENTS if requirement.name == "torch")
        assert pin.name == "torch"
        assert torch.specifier.contains(next(iter(pin.specifier)).version)


def lines_that(tells, files: list[Path]) -> list[str]:
    return [
        f"{relative(file)}:{number}"
        for file in files
        if file.suffix in TEXT_SUFFIXES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if tells(line)
    ]


def test_no_file_names_a_path_of_somebodys_machine():
    machine_path = re.compile(r"(?<![\w.~$}/>-])/(?:root|home|work|opt|mnt)/\w")
    assert lines_that(machine_path.search, TRACKED) == []


def test_what_ships_beside_weights_holds_nothing_that_may_not_be_published():
    from vistok.hub_cards.published_text import published_text

    # A vocabulary is no text: its tokens are pieces of other people's paths.
    shipped = [file for file in TRACKED if file.is_relative_to(ROOT / "checkpoints") and file.name != "tokenizer.json"]
    assert any(file.suffix == ".jsonl" for file in shipped)
    assert lines_that(lambda line: published_text(line) != line, shipped) == []
    assert published_text('{"output_dir": "/tmp/runs/try"}') != '{"output_dir": "/tmp/runs/try"}'
