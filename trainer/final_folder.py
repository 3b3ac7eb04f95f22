"""The folder that a training ends with: written whole, and of an ordinary model where everything is saved."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling.trained_weights import TRAINED_WEIGHTS_NAME


@contextlib.contextmanager
def replacing_files(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Lets files be written elsewhere and then puts them into a folder, each whole: weights last, in place of any others.
    An error leaves the folder as it was.

    Args:
        folder (`str`): made if it does not exist. Its other files stay.

    Yields:
        `Path`: an empty folder to write into.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        yield Path(temporary)
        written = sorted(path.relative_to(temporary) for path in Path(temporary).rglob("*") if path.is_file())
        written.sort(key=_is_weights)
        for name in written:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / name, folder / name)
        # Weights of a former run of another kind would be loaded in place of these.
        for path in folder.iterdir():
            if _is_weights(path) and Path(path.name) not in written:
                path.unlink()


def _is_weights(path: Path) -> bool:
    names = (TRAINED_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return path.name in names or re.fullmatch(r"model-\d+-of-\d+\.safetensors", path.name) is not None


__all__ = ["replacing_files"]
