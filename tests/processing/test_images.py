"""Images are read completely, as 8-bit RGB, or refused with the file's name."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from torch._utils import ExceptionWrapper

from vistok.processing.images import (
    BadSampleError,
    find_images,
    image_key,
    image_names,
    load_example_images,
    load_image,
)


def noise(size=(48, 32), mode="RGB", seed=0):
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = noise()
    path = tmp_path / "image.png"
    image.save(path)
    content = path.read_bytes()
    sources = [path, str(path), content, {"path": str(path), "bytes": None}, {"path": None, "bytes": content}, image]
    for source in sources:
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), np.asarray(image))


def test_bytes_win_over_the_path(tmp_path):
    path = tmp_path / "other.png"
    noise(seed=1).save(path)
    loaded = load_image({"path": str(path), "bytes": encoded(noise(seed=2))})
    assert np.array_equal(np.asarray(loaded), np.asarray(noise(seed=2)))


def test_transparent_pixels_become_white_and_half_transparent_ones_are_blended():
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0] = [[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]  # alpha 0, 1 and 0.2
    loaded = np.asarray(load_image(encoded(Image.fromarray(pixels))))
    assert loaded[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_transparency_of_other_modes_is_composited_on_white(mode):
    image = Image.new("L", (2, 1), 7).convert(mode)
    options = {}
    if mode == "LA":
        image.putpixel((0, 0), (7, 0))
    elif mode == "P":
        image.putpixel((0, 0), 200)
        options["transparency"] = 200
    else:
        image.putpixel((0, 0), 9 if mode == "L" else (9, 9, 9))
        options["transparency"] = 9 if mode == "L" else (9, 9, 9)
    loaded = load_image(encoded(image, **options))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 0)) == (7, 7, 7)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = noise().quantize(16) if mode == "P" else noise().convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    loaded = np.asarray(load_image(encoded(red, "JPEG", quality=95))).astype(int)
    assert np.abs(loaded - np.array([255, 0, 0])).max() <= 12


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(values), format)))
    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_values_without_a_defined_range_are_refused():
    image = Image.fromarray(np.array([[0.0, 300.0]], dtype=np.float32))
    with pytest.raises(BadSampleError, match="between 0 and 1, got 0 to 300"):
        load_image(image)


def test_exif_orientation_is_applied_unless_switched_off():
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    content = encoded(image, exif=exif)
    turned = load_image(content)
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 0, 0)
    stored = load_image(content, apply_exif_orientation=False)
    assert stored.size == (4, 2)
    assert stored.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_truncated_files_are_refused(format, tmp_path):
    content = encoded(noise((96, 96)), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadSampleError) as raised:
        load_image(path)
    assert raised.value.file == str(path)
    assert str(path) in str(raised.value)


def test_a_jpeg_without_its_last_bytes_is_refused():
    content = encoded(noise((96, 96)), "JPEG")
    with pytest.raises(BadSampleError, match="truncated"):
        load_image(content[:-200])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"a shopping list", "not an image"), (None, "does not exist")],
    ids=["empty", "text", "missing"],
)
def test_files_that_are_no_images_are_refused(content, reason, tmp_path):
    path = tmp_path / "picture.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSampleError, match=reason) as raised:
        load_image({"path": str(path), "bytes": None})
    assert raised.value.file == str(path)


def test_a_folder_and_an_image_without_content_are_refused(tmp_path):
    with pytest.raises(BadSampleError, match="cannot be read"):
        load_image(tmp_path)
    with pytest.raises(BadSampleError, match="neither a path nor bytes"):
        load_image({"path": None, "bytes": None})


def test_images_of_zero_size_are_refused():
    with pytest.raises(BadSampleError, match="zero size \\(0x5 pixels\\)"):
        load_image(Image.new("RGB", (0, 5)))


def test_images_above_max_pixels_are_refused():
    content = encoded(Image.new("L", (100, 100)))
    with pytest.raises(BadSampleError, match="100x100 = 10000 pixels, more than max_pixels=9999"):
        load_image(content, max_pixels=9999)
    assert load_image(content, max_pixels=10000).size == (100, 100)


def test_decompression_bombs_are_bad_samples(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadSampleError, match="too large"):
        load_image(encoded(Image.new("L", (100, 100))), max_pixels=None)


def test_an_unknown_kind_of_source_is_a_type_error():
    with pytest.raises(TypeError, match="got int"):
        load_image(3)


def test_the_error_names_row_and_source_of_the_example(tmp_path):
    example = {"source": "photos", "row": 12, "images": [{"path": str(tmp_path / "gone.png"), "bytes": None}]}
    with pytest.raises(BadSampleError) as raised:
        load_example_images(example)
    error = raised.value
    assert (error.source, error.row, error.file) == ("photos", 12, str(tmp_path / "gone.png"))
    assert "'photos', row 12" in str(error)


def test_images_of_an_example_come_in_order():
    images = [noise(seed=seed) for seed in range(3)]
    example = {"images": [{"path": None, "bytes": encoded(image)} for image in images]}
    for loaded, image in zip(load_example_images(example), images, strict=True):
        assert np.array_equal(np.asarray(loaded), np.asarray(image))
    assert load_example_images({"images": []}) == []


def test_the_error_survives_pickling_and_being_rebuilt_from_its_message():
    error = BadSampleError("is broken", "a.jpg", 3, "photos")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.file, copy.row, copy.source, str(copy)) == (
        "is broken",
        "a.jpg",
        3,
        "photos",
        str(error),
    )
    try:
        raise error
    except BadSampleError:
        wrapped = ExceptionWrapper(where="in a data loader's worker")
    with pytest.raises(BadSampleError, match=r"(?s)a data loader's worker.*'photos', row 3, file a\.jpg: is broken"):
        wrapped.reraise()


def test_the_key_depends_on_the_content_alone(tmp_path):
    content, other = encoded(noise(seed=0)), encoded(noise(seed=1))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(content)
    keys = {image_key(source) for source in (*paths, content, {"path": str(paths[0]), "bytes": None})}
    assert len(keys) == 1
    assert image_key(other) not in keys
    paths[0].write_bytes(other)
    assert image_key(paths[0]) == image_key(other)


def test_the_key_of_a_pil_image_depends_on_pixels_size_and_palette():
    flat = Image.new("L", (4, 2), 5)
    assert image_key(flat) == image_key(flat.copy())
    assert image_key(flat) != image_key(flat.resize((2, 4)))
    first, second = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    first.putpalette([255, 0, 0])
    second.putpalette([0, 255, 0])
    assert image_key(first) != image_key(second)


def test_the_key_of_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(BadSampleError, match="does not exist"):
        image_key(tmp_path / "gone.png")


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "photos" / "more").mkdir(parents=True)
        for name in ("2.png", "10.JPG", "more/wide.PNG", "notes.txt", "._2.png", "more/.hidden.png"):
            (tmp_path / "photos" / name).write_bytes(b"")
        return tmp_path / "photos"

    def test_images_below_a_folder_are_known_by_their_suffixes(self, folder):
        assert image_names(folder) == ["10.JPG", "2.png", "more/wide.PNG"]

    def test_links_to_folders_are_followed(self, folder, tmp_path):
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "photos").symlink_to(folder, target_is_directory=True)
        assert image_names(tmp_path / "links") == [f"photos/{name}" for name in image_names(folder)]

    def test_files_and_folders_are_found_once(self, folder):
        files = [folder / name for name in image_names(folder)]
        assert find_images([str(folder), folder / "2.png", folder / "._2.png"]) == [*files, folder / "._2.png"]

    def test_a_folder_without_images_and_a_missing_file_are_told(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no image"):
            find_images([tmp_path])
        with pytest.raises(FileNotFoundError, match=r"no image file or folder .*gone\.jpg"):
            find_images([tmp_path / "gone.jpg"])
