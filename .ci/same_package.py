"""Checks that vistok is the same package in every form in which it can be had.

Builds a source archive and wheels from a copy of the repository and compares what is in them with the folders. Then
puts each form into an environment of its own, which borrows the dependencies of the one that runs this, and compares
what Python finds there: the modules, their public names, the data files, and whether the command `vistok` starts.

    python .ci/same_package.py
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["configuration", "modeling", "processing", "trainer", "hub_cards", "evaluation"]
DATA_FOLDERS = ["recipes", "checkpoints", "metrics"]
NOT_SOURCE = [".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", "build", "dist", "runs", "vistok-demo"]

# Runs in each form, from an empty folder; prints what that form exposes.
PROBE = """
import importlib, json, pkgutil, sys
from pathlib import Path
import vistok
from vistok.configuration.shipped import shipped_path

rooms, data_folders = json.loads(sys.argv[1])
packages = [vistok, *(importlib.import_module(f"vistok.{room}") for room in rooms)]
names = {package.__name__ for package in packages}
for package in packages:
    names |= {f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)}
modules = {name: importlib.import_module(name) for name in sorted(names - {"vistok.__main__"})}
data = []
for package in packages:
    folder = Path(package.__file__).parent
    files = [path.name for path in folder.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc")]
    data += [f"{folder.name}/{name}" for name in files if name not in rooms + data_folders]
for folder in map(shipped_path, data_folders):
    # pip compiles what ends in .py there, too.
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    data += [path.relative_to(folder.parent).as_posix() for path in files]
print(json.dumps([vistok.__file__, {
    "version": vistok.__version__,
    "public names": {name: getattr(vistok, name).__module__ for name in vistok.__all__},
    "modules": {
        name: sorted(getattr(module, "__all__", [key for key in vars(module) if not key.startswith("_")]))
        for name, module in modules.items()
    },
    "data files": sorted(data),
}]))
"""


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Runs a command and returns what it printed; ends this check, with all that it said, if it fails."""
    parts = [str(part) for part in command]
    result = subprocess.run(parts, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise SystemExit(f"{result.stdout}{result.stderr}\nexit code {result.returncode}: {' '.join(parts)[:200]}")
    return result.stdout


def copy_repository(destination: Path, symlinks: bool = True) -> Path:
    """Copies the sources; without symlinks, as git then clones them: files that say where the links lead."""
    shutil.copytree(ROOT, destination, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    for link in [] if symlinks else list((destination / "vistok").iterdir()):
        if link.is_symlink():
            target = os.readlink(link)
            link.unlink()
            link.write_text(target, encoding="utf-8")
    return destination


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files_of_the_package(repository: Path) -> dict[str, str]:
    """Path in an installed package → sha256, read off the folders of a repository."""
    files = {f"vistok/{path.name}": path for path in (repository / "vistok").iterdir() if path.is_file()}
    for folder in [*ROOMS, *DATA_FOLDERS]:
        found = [path for path in (repository / folder).rglob("*") if path.is_file()]
        files |= {f"vistok/{path.relative_to(repository).as_posix()}": path for path in found}
    return {name: sha256(path.read_bytes()) for name, path in files.items()}


def files_of_a_wheel(wheel: Path) -> dict[str, str]:
    """Path → sha256 of what a wheel holds, but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        expect_same(f"names in {wheel.name}, each once", sorted(set(names)), sorted(names))
        return {name: sha256(archive.read(name)) for name in names}


def expect_same(what: str, expected: object, found: object) -> None:
    """Ends this check, naming the differences, unless two descriptions are equal."""
    if expected == found:
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        for key in differing[1:]:
            print(f"{what}: {key} differs", file=sys.stderr)
        expect_same(f"{what}: {differing[0]}", expected.get(differing[0]), found.get(differing[0]))
    if isinstance(expected, list) and isinstance(found, list):
        missing = [item for item in expected if item not in found]
        raise SystemExit(f"{what}: missing {missing}, too many {[item for item in found if item not in expected]}")
    raise SystemExit(f"{what}: expected {expected!r}, found {found!r}")


def build_archives(work: Path) -> Path:
    """Builds the archives, compares their content with the repository, and returns the wheel."""
    repository = copy_repository(work / "built")
    expected = files_of_the_package(repository)
    sources = {
        path.relative_to(repository).as_posix()
        for path in repository.rglob("*")
        if path.is_file() and not any(parent.is_symlink() for parent in path.parents)
    }
    run(sys.executable, "-m", "build", "--outdir", work / "from-sdist", repository, cwd=work)
    shutil.rmtree(repository / "build", ignore_errors=True)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", work / "direct", repository, cwd=work)
    (sdist,) = (work / "from-sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    expect_same("files of the repository that the source archive lacks", [], sorted(sources - packed))
    (wheel,) = (work / "direct").glob("*.whl")
    (wheel_of_sdist,) = (work / "from-sdist").glob("*.whl")
    expect_same("wheel against the folders", expected, files_of_a_wheel(wheel))
    expect_same("wheel of the source archive", expected, files_of_a_wheel(wheel_of_sdist))
    return wheel


def probe(name: str, work: Path, install: list[object], pythonpath: Path | None = None) -> tuple[str, dict]:
    """Makes an environment, installs one form of vistok into it, and returns what the form exposes."""
    environment, empty = work / f"{name} environment", work / f"{name} cwd"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=empty)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    if install:
        run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *install, cwd=empty)
    own_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=empty).strip()
    # A path in a .pth file brings the packages there, but not what their own .pth files bring: an editable vistok.
    borrowed = "\n".join(sorted({sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}))
    Path(own_packages, "borrowed.pth").write_text(borrowed, encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if pythonpath is not None:
        env["PYTHONPATH"] = str(pythonpath)
    printed = run(python, "-c", PROBE, json.dumps([ROOMS, DATA_FOLDERS]), cwd=empty, env=env)
    origin, exposed = json.loads(printed.splitlines()[-1])
    if not Path(origin).is_relative_to(work):
        raise SystemExit(f"{name}: vistok came from {origin}, not from this form")
    if install:
        run(python.with_name("vistok"), "--help", cwd=empty, env=env)
    return name, exposed


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vistok-forms-") as folder:
        work = Path(folder).resolve()
        wheel = build_archives(work)
        print("source archive and wheels hold what the folders hold")
        bare = copy_repository(work / "bare")
        editable = copy_repository(work / "editable")
        strict = copy_repository(work / "strict")
        unlinked = copy_repository(work / "unlinked", symlinks=False)
        forms: dict[str, tuple[list[object], Path | None]] = {
            "bare checkout": ([], bare),
            "wheel": ([wheel], None),
            "editable install": (["-e", editable], None),
            "strict editable install": (["--config-settings", "editable_mode=strict", "-e", strict], None),
            "editable install of a clone without symlinks": (["-e", unlinked], None),
        }
        with ThreadPoolExecutor(max_workers=2) as pool:
            probes = [pool.submit(probe, name, work, *arguments) for name, arguments in forms.items()]
            exposed = dict(result.result() for result in probes)
        for name, found in exposed.items():
            expect_same(name, exposed["bare checkout"], found)
            counts = {key: len(value) for key, value in found.items() if key != "version"}
            print(f"{name}: {', '.join(f'{count} {key}' for key, count in counts.items())}")


if __name__ == "__main__":
    main()
