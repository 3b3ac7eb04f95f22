"""Reading the images of training examples: late, strictly, and always as 8-bit RGB."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from transformers.utils import logging

logger = logging.get_logger(__name__)

ImageSource = str | os.PathLike | bytes | Mapping[str, Any] | Image.Image
"""A path, the bytes of a file, `{"path": ..., "bytes": ...}` as in `datasets.Image(decode=False)`, or a PIL image."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
WHITE = (255, 255, 255, 255)


class BadSampleError(ValueError):
    """A training sample that cannot be used: says which file, which row of which source, and why.

    Args:
        reason (`str`): what is wrong, and what was expected. The only required argument, because PyTorch rebuilds an
            exception of a data loader's worker from its message alone.
        file (`str`, *optional*): the file at fault: an image, an annotation file or a shard.
        row (`int`, *optional*): row of the source, counted from 0 (a line of a JSONL file, an element of a JSON list).
        source (`str`, *optional*): name of the data source.
    """

    def __init__(self, reason: str, file: str | None = None, row: int | None = None, source: str | None = None):
        self.reason, self.file, self.row, self.source = reason, file, row, source
        place = [
            f"data source {source!r}" if source else "",
            f"row {row}" if row is not None else "",
            f"file {file}" if file else "",
        ]
        where = ", ".join(part for part in place if part)
        super().__init__(f"{where}: {reason}" if where else reason)

    def __reduce__(self):
        # Exceptions are pickled by their message: without this, a worker process would lose file and row.
        return type(self), (self.reason, self.file, self.row, self.source)


def load_image(
    image: ImageSource, *, apply_exif_orientation: bool = True, max_pixels: int | None = Image.MAX_IMAGE_PIXELS
) -> Image.Image:
    """Reads an image completely and returns it as 8-bit RGB.

    Transparent pixels are composited on white. 16-bit greyscale is scaled to 8 bits (not clipped); palette, bilevel,
    CMYK and other colour spaces are converted. Of an animation, the first frame is read. A truncated file is refused
    (unless the program itself set Pillow's global `ImageFile.LOAD_TRUNCATED_IMAGES`).

    Args:
        image: a path, the bytes of an image file, `{"path", "bytes"}` as in `datasets.Image(decode=False)` (the bytes
            win over the path), or a PIL image.
        apply_exif_orientation (`bool`): rotate and mirror the pixels as the EXIF tag says, as viewers do. Set it to
            `False` where boxes or masks refer to the pixels as stored (COCO annotations do).
        max_pixels (`int`, *optional*): refuse images of more pixels, as protection against decompression bombs.
            Pillow itself refuses more than twice its `Image.MAX_IMAGE_PIXELS`.

    Returns:
        `PIL.Image.Image`: an image of mode RGB, with both sides at least 1 pixel.

    Raises:
        BadSampleError: if the file is missing, empty, truncated, not an image, of zero size or too large.
        TypeError: if `image` is none of the kinds above.
    """
    if isinstance(image, Image.Image):
        file, opened = getattr(image, "filename", None) or None, image
    else:
        file = _file_name(image)
        opened = _open(_read_bytes(image), file)
    width, height = opened.size
    if width < 1 or height < 1:
        raise BadSampleError(f"the image has zero size ({width}x{height} pixels)", file)
    if max_pixels is not None and width * height > max_pixels:
        raise BadSampleError(
            f"the image has {width}x{height} = {width * height} pixels, more than max_pixels={max_pixels}", file
        )
    try:
        opened.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise BadSampleError(f"the image is truncated or damaged ({error})", file) from error
    if apply_exif_orientation:
        opened = _apply_orientation(opened, file)
    return _to_rgb(opened, file)


def image_names(folder: str | os.PathLike) -> list[str]:
    """
    All images below a folder, by their suffixes. Hidden files are passed over, links to folders followed.

    Args:
        folder (`str` or `Path`): where to look.

    Returns:
        `list[str]`: paths below the folder, sorted; empty if there are none.
    """
    return sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, files in os.walk(Path(folder), followlinks=True)
        for name in files
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """
    Image files by name: files as they are, and of folders all images below them, as [`image_names`] has them.

    Args:
        paths (`list[str]`): files and folders.

    Returns:
        `list[Path]`: no path twice.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [path / name for name in image_names(path)]
            if not files:
                raise FileNotFoundError(f"The folder {str(path)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
            found.update(dict.fromkeys(files))
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"There is no image file or folder {str(path)!r}.")
    return list(found)


def load_example_images(example: Mapping[str, Any], **options: Any) -> list[Image.Image]:
    """Reads the images of one training example, in order.

    Args:
        example: a canonical example of `vistok.trainer.data_sources`; `images` holds its undecoded images, `source`
            and `row` are named in errors.
        **options: passed on to [`load_image`].

    Returns:
        `list[PIL.Image.Image]`: RGB images; empty for an example without images.

    Raises:
        BadSampleError: if an image cannot be read; names the image file, the row and the data source.
    """
    images = []
    for image in example.get("images") or []:
        try:
            images.append(load_image(image, **options))
        except BadSampleError as error:
            raise BadSampleError(error.reason, error.file, example.get("row"), example.get("source")) from error
    return images


def is_turned(image: ImageSource) -> bool:
    """Whether an image says in its EXIF data that its pixels are to be turned or mirrored; only its header is read.

    Args:
        image: as in [`load_image`].

    Returns:
        `bool`: `False` too of what cannot be read, which [`load_image`] tells.
    """
    try:
        opened = image if isinstance(image, Image.Image) else _open(_read_bytes(image), _file_name(image))
        return opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # damaged EXIF data raise almost anything, and turn nothing
        return False


def image_key(image: ImageSource) -> str:
    """A stable name for the content of an image, under which computed features can be cached.

    Two files of equal bytes have the same key wherever they lie; a file that changed has a new one. A PIL image is
    named by its pixels, so its key differs from that of the file it was read from.

    Args:
        image: as in [`load_image`].

    Returns:
        `str`: SHA-256 of the content, 64 hexadecimal digits.

    Raises:
        BadSampleError: if the file cannot be read.
        TypeError: if `image` is of no known kind.
    """
    if isinstance(image, Image.Image):
        # The palette is part of the content: equal indices with another palette are another picture.
        palette = bytes(image.getpalette() or []) if image.mode in ("P", "PA") else b""
        header = f"{image.mode} {image.size[0]}x{image.size[1]}".encode()
        return hashlib.sha256(header + palette + image.tobytes()).hexdigest()
    path = _local_path(image)
    if path is None:
        return hashlib.sha256(_read_bytes(image)).hexdigest()
    try:
        stat = os.stat(path)
    except OSError as error:
        raise BadSampleError(_read_failure(error), path) from error
    return _file_hash(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1 << 16)
def _file_hash(path: str, mtime_ns: int, size: int) -> str:
    # Modification time and size are arguments only to be part of the cache key: a changed file is read again.
    return hashlib.sha256(_read_bytes(path)).hexdigest()


def _file_name(image: ImageSource) -> str | None:
    if isinstance(image, Mapping):
        image = image.get("path") or b""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def _local_path(image: ImageSource) -> str | None:
    """The local file that holds the image, or None where the bytes are given or the path is a URL."""
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return None
    file = _file_name(image)
    return None if file is None or "://" in file else file


def _read_bytes(image: ImageSource) -> bytes:
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return image["bytes"]
        if image.get("path") is None:
            raise BadSampleError("the image has neither a path nor bytes")
        image = image["path"]
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(
            f"an image must be a path, bytes, a dict of 'path' and 'bytes' or a PIL image, got {type(image).__name__}"
        )
    path = os.fspath(image)
    try:
        if "://" in path:  # an image of a dataset that is streamed from the Hub
            import fsspec

            with fsspec.open(path, "rb") as stream:
                return stream.read()
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte, an unknown protocol
        raise BadSampleError(_read_failure(error), path) from error


def _read_failure(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the image file does not exist"
    return f"the image file cannot be read ({error})"


def _open(content: bytes, file: str | None) -> Image.Image:
    if not content:
        raise BadSampleError("the image file is empty", file)
    try:
        return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise BadSampleError(f"the image is too large ({error})", file) from error
    except MemoryError:
        raise
    except Exception as error:
        raise BadSampleError("the file is not an image that Pillow can read", file) from error


def _apply_orientation(image: Image.Image, file: str | None) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are sound, only the metadata is damaged
        logger.warning_once(f"Ignoring damaged EXIF data of {file or 'an image'} ({error}).")
        return image


def _to_rgb(image: Image.Image, file: str | None) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image, file)
    # "transparency" is how PNG and GIF make a colour of a palette, greyscale or RGB image transparent.
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image, file: str | None) -> Image.Image:
    """Scales a 16-bit, 32-bit integer or float greyscale image to 8 bits, where Pillow's own conversion would clip."""
    values = np.asarray(image).astype(np.float64)
    full_scale = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > full_scale:
        raise BadSampleError(
            f"greyscale values of mode {image.mode!r} must lie between 0 and {full_scale:g}, "
            f"got {values.min():g} to {values.max():g}: convert the image to 8 bits",
            file,
        )
    return Image.fromarray(np.rint(values * (255.0 / full_scale)).astype(np.uint8), mode=None)


__all__: Sequence[str] = [
    "IMAGE_SUFFIXES",
    "BadSampleError",
    "ImageSource",
    "find_images",
    "image_key",
    "image_names",
    "is_turned",
    "load_example_images",
    "load_image",
]
