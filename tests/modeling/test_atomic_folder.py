"""Folders of the cache are complete or absent, and files: after errors, kills, and with several processes at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest

from vistok.modeling import atomic_folder
from vistok.modeling.atomic_folder import (
    FetchError,
    build_folder_once,
    cache_dir,
    is_complete,
    write_folder_atomically,
    write_text_atomically,
)

SOURCE = {"name": "tiny", "sha256": "0" * 64, "revision": 1}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_answer(content: Path, scratch: Path) -> None:
    (content / "answer.txt").write_text("42")


def start(script: str, cache: Path) -> subprocess.Popen:
    # The module by itself, which needs no torch: importing vistok would take most of the test's time.
    environment = os.environ | {"VISTOK_CACHE": str(cache), "PYTHONPATH": str(Path(atomic_folder.__file__).parent)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.PIPE, text=True
    )


def leftovers(cache: Path) -> list[Path]:
    return [path for path in (cache / "work").rglob("*") if path.is_file()] if (cache / "work").exists() else []


def test_cache_dir_prefers_its_own_variable_then_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("VISTOK_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "vistok"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "vistok"


def test_built_folder_records_its_source_and_is_built_once(cache):
    calls = []

    def build(content, scratch):
        calls.append(content)
        write_answer(content, scratch)

    for _ in range(2):
        folder = build_folder_once(cache / "models" / "tiny", SOURCE, build)
    assert len(calls) == 1
    assert (folder / "answer.txt").read_text() == "42"
    assert json.loads((folder / "SOURCE.json").read_text()) == SOURCE | {"files": {"answer.txt": 2}}
    assert not leftovers(cache)


def test_everyone_may_read_what_the_umask_lets_them_read(cache):
    def build(content, scratch):
        write_answer(content, scratch)
        (content / "answer.txt").chmod(0o600)

    folder = build_folder_once(cache / "models" / "tiny", SOURCE, build)
    plain = cache / "plain"
    plain.touch()
    assert (folder / "answer.txt").stat().st_mode == plain.stat().st_mode
    assert folder.stat().st_mode == cache.stat().st_mode


@pytest.mark.parametrize("interruption", [RuntimeError("conversion failed"), KeyboardInterrupt()])
def test_interrupted_build_leaves_nothing_and_a_retry_succeeds(cache, interruption):
    def build(content, scratch):
        (content / "half.bin").write_bytes(b"half")
        (scratch / "half.zip").write_bytes(b"half")
        raise interruption

    folder = cache / "models" / "tiny"
    with pytest.raises(type(interruption)):
        build_folder_once(folder, SOURCE, build)
    assert not folder.exists()
    assert not leftovers(cache)
    assert is_complete(build_folder_once(folder, SOURCE, write_answer), SOURCE)


def test_killed_build_leaves_no_folder_and_the_next_build_clears_its_traces(cache):
    process = start(
        f"""
        import time
        from atomic_folder import build_folder_once, cache_dir

        def build(content, scratch):
            (content / "half.bin").write_bytes(b"half")
            print("half-way", flush=True)
            time.sleep(60)

        build_folder_once(cache_dir() / "models" / "tiny", {SOURCE!r}, build)
        """,
        cache,
    )
    assert process.stdout.readline() == "half-way\n"
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    folder = cache / "models" / "tiny"
    assert not folder.exists() and leftovers(cache)

    def build(content, scratch):
        assert not leftovers(cache), "their space may be needed"
        write_answer(content, scratch)

    build_folder_once(folder, SOURCE, build)
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "answer.txt"]
    assert not leftovers(cache)


def test_processes_at_once_build_one_time(cache):
    script = f"""
        import time
        from atomic_folder import build_folder_once, cache_dir

        def build(content, scratch):
            print("built", flush=True)
            time.sleep(0.5)
            (content / "answer.txt").write_text("42")

        print((build_folder_once(cache_dir() / "models" / "tiny", {SOURCE!r}, build) / "answer.txt").read_text())
        """
    processes = [start(script, cache) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(said) == [["42"], ["42"], ["built", "42"]]


def test_force_replaces_a_complete_folder_only_by_a_complete_one(cache):
    folder = cache / "models" / "tiny"
    build_folder_once(folder, SOURCE, write_answer)

    def fail(content, scratch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        build_folder_once(folder, SOURCE, fail, force=True)
    assert (folder / "answer.txt").read_text() == "42"
    build_folder_once(folder, SOURCE, lambda content, _: (content / "other.txt").touch(), force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "other.txt"]


def second_replace_fails(monkeypatch):
    """Of the two renames of a replacement the one that puts the new folder in place fails."""
    replace, calls = os.replace, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "planted", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)


def test_replacement_that_fails_at_its_last_step_leaves_the_old_folder(cache, monkeypatch):
    folder = build_folder_once(cache / "models" / "tiny", SOURCE, write_answer)
    second_replace_fails(monkeypatch)
    with pytest.raises(OSError, match="planted"):
        build_folder_once(folder, SOURCE, lambda content, _: (content / "new.txt").touch(), force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "answer.txt"]
    assert is_complete(folder, SOURCE) and not leftovers(cache)


def test_replacement_that_is_killed_at_its_last_step_is_undone_by_the_next_build(cache):
    folder = build_folder_once(cache / "models" / "tiny", SOURCE, write_answer)
    process = start(
        f"""
        import os
        from atomic_folder import build_folder_once, cache_dir

        replace, calls = os.replace, []

        def die_at_the_second(source, target):
            calls.append(target)
            replace(source, target) if len(calls) == 1 else os._exit(9)

        os.replace = die_at_the_second
        build_folder_once(cache_dir() / "models" / "tiny", {SOURCE!r}, lambda content, scratch: None, force=True)
        """,
        cache,
    )
    assert process.wait(timeout=60) == 9
    assert not folder.exists()
    assert build_folder_once(folder, SOURCE, pytest.fail) == folder
    assert (folder / "answer.txt").read_text() == "42"
    assert not leftovers(cache)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("4")], ids=["deleted", "truncated"])
def test_folder_that_lost_some_of_its_content_is_rebuilt(cache, damage):
    def build(content, scratch):
        (content / "deep").mkdir()
        (content / "deep" / "answer.txt").write_text("42")

    folder = build_folder_once(cache / "models" / "tiny", SOURCE, build)
    assert is_complete(folder, SOURCE)
    damage(folder / "deep" / "answer.txt")
    assert not is_complete(folder, SOURCE)
    build_folder_once(folder, SOURCE, build)
    assert is_complete(folder, SOURCE) and (folder / "deep" / "answer.txt").read_text() == "42"


def test_folder_of_an_earlier_version_which_recorded_no_sizes_is_complete(cache):
    folder = build_folder_once(cache / "models" / "tiny", SOURCE, write_answer)
    (folder / "SOURCE.json").write_text(json.dumps(SOURCE))
    assert is_complete(folder, SOURCE)


@pytest.mark.parametrize("change", [{"sha256": "1" * 64}, {"revision": 2}])
def test_folder_from_another_archive_or_conversion_is_rebuilt(cache, change):
    folder = build_folder_once(cache / "models" / "tiny", SOURCE, write_answer)
    assert not is_complete(folder, SOURCE | change)
    build_folder_once(folder, SOURCE | change, lambda content, _: (content / "new.txt").touch())
    assert is_complete(folder, SOURCE | change) and not (folder / "answer.txt").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_folder_with_a_damaged_record_is_not_complete(cache, damage):
    folder = build_folder_once(cache / "models" / "tiny", SOURCE, write_answer)
    (folder / "SOURCE.json").write_text(damage)
    assert not is_complete(folder, SOURCE)


def test_too_little_space_is_said_before_anything_is_built(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 5_000_000)
    monkeypatch.setattr(atomic_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match=r"5 MB free and 300 MB are needed.*VISTOK_CACHE"):
        build_folder_once(cache / "models" / "tiny", SOURCE, pytest.fail, needed_bytes=300_000_000)


def test_full_disk_names_the_cache_and_leaves_nothing(cache):
    def build(content, scratch):
        (content / "half.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FetchError, match=r"No space left on device.*VISTOK_CACHE"):
        build_folder_once(cache / "models" / "tiny", SOURCE, build)
    assert not (cache / "models").exists() and not leftovers(cache)


def test_what_cannot_be_read_elsewhere_is_not_blamed_on_the_cache(cache, tmp_path):
    def build(content, scratch):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "archive.whl"))

    with pytest.raises(PermissionError, match=r"archive\.whl"):
        build_folder_once(cache / "models" / "tiny", SOURCE, build)


def test_what_cannot_be_written_in_the_work_folder_is_said_with_the_remedy(cache):
    def build(content, scratch):
        raise PermissionError(errno.EACCES, "Permission denied", str(content / "answer.txt"))

    with pytest.raises(FetchError, match="VISTOK_CACHE"):
        build_folder_once(cache / "models" / "tiny", SOURCE, build)


def test_cache_that_cannot_be_written_is_said_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match="VISTOK_CACHE"):
        build_folder_once(cache_dir() / "models" / "tiny", SOURCE, write_answer)


class TestAtomicWriting:
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, step):
        path = tmp_path / "README.md"
        write_text_atomically(path, "old")

        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_text_atomically(path, "new")
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]

    def test_the_file_has_the_permissions_of_any_new_file(self, tmp_path):
        (tmp_path / "any").write_text("")
        write_text_atomically(tmp_path / "ours", "")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "any").stat().st_mode


class TestWritingAFolder:
    def test_it_appears_at_the_end_with_the_permissions_of_any_new_folder(self, tmp_path):
        (tmp_path / "any").mkdir()
        (tmp_path / "any" / "file").write_text("")
        with write_folder_atomically(tmp_path / "deep" / "ours") as work:
            (work / "file").write_text("42")
            (work / "file").chmod(0o600)
            assert not (tmp_path / "deep" / "ours").exists()
        for name in (".", "file"):
            assert (tmp_path / "deep" / "ours" / name).stat().st_mode == (tmp_path / "any" / name).stat().st_mode
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["ours"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_block_that_raises_leaves_nothing(self, tmp_path, error):
        with pytest.raises(error), write_folder_atomically(tmp_path / "ours") as work:
            (work / "file").write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []

    def test_an_empty_folder_is_filled_also_from_within_another_block(self, tmp_path):
        (tmp_path / "ours").mkdir()
        with write_folder_atomically(tmp_path / "ours") as outer:
            with write_folder_atomically(outer) as inner:
                (inner / "first").write_text("1")
            (outer / "second").write_text("2")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "ours", "second"]

    def test_what_is_there_is_not_overwritten(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for taken in (tmp_path, tmp_path / "file"):
            with pytest.raises(FileExistsError, match="would be overwritten"), write_folder_atomically(taken):
                pass
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGTERM])
    def test_what_a_killed_writer_left_is_removed_by_the_next_one(self, tmp_path, killed):
        process = start(WRITER.format(folder=str(tmp_path / "ours")), tmp_path)
        assert process.stdout.readline() == "writing\n"
        process.send_signal(killed)
        process.wait()
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".ours.") and [path.name for path in left.rglob("half")] == ["half"]
        with write_folder_atomically(tmp_path / "other"):
            assert left.exists()
        with write_folder_atomically(tmp_path / "ours") as work:
            assert not left.exists()
            (work / "file").write_text("whole")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "other", "ours"]

    def test_a_writer_that_lives_is_left_alone(self, tmp_path):
        process = start(WRITER.format(folder=str(tmp_path / "ours")), tmp_path)
        try:
            assert process.stdout.readline() == "writing\n"
            with pytest.raises(ValueError), write_folder_atomically(tmp_path / "ours"):
                raise ValueError
            assert [path.name for path in tmp_path.rglob("half")] == ["half"]
        finally:
            process.kill()
            process.wait()

    def test_a_folder_that_only_looks_like_a_leftover_is_left_alone(self, tmp_path):
        (tmp_path / f".ours.{'0' * 32}").mkdir()
        with write_folder_atomically(tmp_path / "ours"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {"ours", f".ours.{'0' * 32}"}


# Killed by the test while it is in its block.
WRITER = """
    import time
    from pathlib import Path
    from atomic_folder import write_folder_atomically

    with write_folder_atomically({folder!r}) as work:
        Path(work, "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""
