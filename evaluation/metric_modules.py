"""The metrics as modules of Hugging Face evaluate: where they lie, and as folders of their own to push as Spaces."""

import ast
import os
import re
import shutil
import tempfile
from pathlib import Path

from ..configuration.shipped import shipped_path

METRICS = ("cider_d", "gvtbench_mci", "gvtbench_oc", "pope", "seed_bench", "vqa_accuracy")

_ROOMS_FOLDER = Path(__file__).absolute().parents[1]
_REQUIREMENTS = {"nltk": "nltk>=3.9.4", "transformers": "transformers>=5.20.2"}


def metric_path(name: str) -> Path:
    """
    The folder of a metric, which `evaluate.load` takes, offline, too: `evaluate.load(str(metric_path("pope")))`.

    Args:
        name (`str`): one of `METRICS`.

    Returns:
        `Path`: where it lies on this machine.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"{name!r} is no metric of vistok: choose {', '.join(METRICS)}.")
    return shipped_path(f"metrics/{name}")


def export_metric(name: str, folder: str | os.PathLike) -> Path:
    """
    Writes a metric as a folder that needs no vistok: its module, the code that it scores with, its card, its widget.

    The folder is a Space: `huggingface_hub.upload_folder(repo_id="user/pope", repo_type="space", folder_path=folder)`.
    The repository has to be called as the metric is; `evaluate.load("user/pope")` then loads it from there.

    Args:
        name (`str`): one of `METRICS`.
        folder (`str`): must not exist, or be empty.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if there is no such metric.
        FileExistsError: if the folder holds anything.
    """
    source, folder = metric_path(name), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder for the metric {name}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        shutil.copytree(source, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        _make_self_contained(work / f"{name}.py")
        work.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder


def _make_self_contained(script: Path) -> None:
    """Puts the modules that a metric's script imports of vistok, and those that they import, beside it."""
    text = script.read_text(encoding="utf-8")
    (room, module), *_ = re.findall(r"^from vistok\.(\w+)\.(\w+) import", text, re.MULTILINE)
    modules = _closure(_ROOMS_FOLDER / room / f"{module}.py")
    packages = set()
    for file in modules:
        code = file.read_text(encoding="utf-8")
        packages |= {name for name in _REQUIREMENTS if re.search(rf'(from |import |require\("){name}\b', code)}
        flat = re.sub(r"^from \.+(?:\w+\.)*(\w+) import", r"from .vistok_\1 import", code, flags=re.MULTILINE)
        (script.parent / f"vistok_{file.name}").write_text(flat, encoding="utf-8")
    # evaluate fetches what the script imports itself, and not what that imports: the script imports all of it.
    others = "".join(f"from .vistok_{file.stem} import __name__ as _{file.stem}\n" for file in modules[1:])
    text = re.sub(r"^from vistok\.\w+\.(\w+) import", r"from .vistok_\1 import", text, flags=re.MULTILINE)
    head, found, tail = text.partition("\n_DESCRIPTION")
    script.write_text(f"{head}{others}{found}{tail}", encoding="utf-8")
    requirements = ["evaluate>=0.4.6", *(_REQUIREMENTS[name] for name in sorted(packages))]
    (script.parent / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def _closure(module: Path) -> list[Path]:
    """A module of a room and all that it imports of vistok, itself first."""
    found = [module]
    for file in found:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                imported = file.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
                if imported not in found:
                    found.append(imported)
    return found


__all__ = ["METRICS", "export_metric", "metric_path"]
