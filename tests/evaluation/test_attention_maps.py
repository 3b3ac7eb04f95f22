"""Attention maps: what is planted at a place of the image is drawn at that place."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.tiny import IMAGE_SIZE, NUM_LATENTS, PATCH_SIZE, tiny_gvt, tiny_image, tiny_processor
from vistok.evaluation.attention_maps import (
    draw_query_attention,
    overlay,
    patch_attention,
    query_attention,
    seen_image,
    upsample_attention,
)

GRID = IMAGE_SIZE // PATCH_SIZE


class BrightnessSeeker:
    """
    In place of a model: its queries look at the brightest patch, its last head at the darkest. As in the resampler the
    keys are two prefix tokens, the patches and the queries, and half of the attention goes to what is no patch.
    """

    device = torch.device("cpu")
    num_queries, num_heads, num_layers = 3, 2, 2

    def __init__(self, patch_size):
        self.config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=patch_size))
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size

    def get_image_features(self, pixel_values, output_attentions):
        assert output_attentions
        patches = torch.nn.functional.avg_pool2d(pixel_values.mean(1), self.patch_size)
        on_patches = torch.stack([patches, -patches], 1).flatten(2).mul(50).softmax(-1)[:, :, None] / 2
        on_patches = on_patches.expand(-1, -1, self.num_queries, -1)
        beside = torch.full((*on_patches.shape[:3], 2 + self.num_queries), 0.5 / (2 + self.num_queries))
        attention = torch.cat([beside[..., :2], on_patches, beside[..., 2:]], -1)
        uniform = torch.full_like(attention, 1 / attention.shape[-1])
        return SimpleNamespace(
            attentions=(uniform,) * (self.num_layers - 1) + (attention,),
            grid_size=tuple(patches.shape[-2:]),
            num_prefix_tokens=2,
        )


def processor_of_size(height, width, **kwargs):
    kwargs = {"size": {"height": height, "width": width}, "do_center_crop": False, **kwargs}
    return SimpleNamespace(image_processor=CLIPImageProcessorPil(**kwargs))


def grey_image_with_white_square(width, height, left, top, side):
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    pixels[top : top + side, left : left + side] = 255
    return Image.fromarray(pixels)


def place_of_highest(values):
    return np.unravel_index(values.argmax(), values.shape)


def test_prefix_tokens_and_queries_are_dropped_and_patches_are_laid_out_in_rows():
    attention = torch.zeros(4, 3, 2 + 2 * 5 + 3)
    attention[..., :2] = 7.0
    attention[..., 12:] = 9.0
    attention[3, 1, 2 + 1 * 5 + 4] = 1.0  # behind the prefix: row 1, column 4 of 2 rows of 5
    maps = patch_attention(attention, (2, 5), num_prefix_tokens=2)
    assert maps.shape == (4, 3, 2, 5)
    assert maps.nonzero().tolist() == [[3, 1, 1, 4]]


def test_fewer_keys_than_patches_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"14 keys, fewer than 1 prefix tokens and 2 × 7 patches"):
        patch_attention(torch.zeros(1, 1, 14), (2, 7), num_prefix_tokens=1)


def test_maps_of_a_model_are_the_softmax_of_its_queries_and_keys():
    model, processor = tiny_gvt(), tiny_processor()
    image = tiny_image(3)
    maps = query_attention(model, processor, image, layer=0)

    resampler = model.model.resampler
    pixel_values = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.model.get_vision_features(pixel_values).patch_features
        patches = resampler.patch_projection(resampler.patch_norm(features)) + resampler.patch_position_embedding
        attention = resampler.layers[0].attention
        latents = attention.latent_norm(resampler.latents)
        keys = torch.cat([attention.patch_norm(patches[0]), latents])
        queries, keys = attention.q_proj(latents), attention.k_proj(keys)
    width = attention.head_dim
    for head in range(attention.num_heads):
        of_head = slice(head * width, (head + 1) * width)
        shares = (queries[:, of_head] @ keys[:, of_head].T / width**0.5).softmax(-1)
        on_patches = shares[:, 1 : 1 + GRID * GRID].reshape(NUM_LATENTS, GRID, GRID)  # key 0 is [CLS]
        np.testing.assert_allclose(maps[head], on_patches.numpy(), atol=1e-5)
    assert maps.dtype == np.float32
    assert maps.std() > 0.01  # not uniform, so that a wrong place would be seen


@pytest.mark.parametrize(("layer", "first_share"), [(0, 1 / 41), (-2, 1 / 41), (-1, 0.0), (1, 0.0)])
def test_the_layer_asked_for_is_the_one_returned(layer, first_share):
    image = grey_image_with_white_square(48, 48, left=40, top=40, side=8)
    maps = query_attention(BrightnessSeeker(8), processor_of_size(48, 48), image, layer=layer)
    assert maps[0, 0, 0, 0] == pytest.approx(first_share, abs=1e-6)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(ValueError, match=f"layer is {layer}, but the visual tokenizer has 2 layers, 0 to 1"):
        query_attention(BrightnessSeeker(8), processor_of_size(24, 24), tiny_image(), layer=layer)


def test_a_tokenizer_without_attention_maps_is_refused():
    model = SimpleNamespace(
        device="cpu", get_image_features=lambda **kwargs: SimpleNamespace(attentions=None, grid_size=(3, 3))
    )
    with pytest.raises(ValueError, match="returned no attention maps"):
        query_attention(model, processor_of_size(24, 24), tiny_image())


@pytest.mark.parametrize("grid_place", [(0, 0), (1, 4), (3, 2)])
def test_attention_planted_on_a_patch_lands_on_the_pixels_of_that_patch(grid_place):
    planted = np.zeros((4, 5), dtype=np.float32)
    planted[grid_place] = 0.7
    row, column = grid_place
    pixels = upsample_attention(planted, (50, 40))
    assert pixels.shape == (40, 50)
    place = place_of_highest(pixels)
    assert (place[0] // 10, place[1] // 10) == grid_place
    inside = pixels[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10]
    assert inside.min() > 0.2 * pixels.max()
    far = np.ones_like(pixels, dtype=bool)
    far[max(row - 2, 0) * 10 : (row + 3) * 10, max(column - 2, 0) * 10 : (column + 3) * 10] = False
    assert pixels[far].max() < 1e-6
    assert pixels.min() >= 0


@pytest.mark.parametrize(("left", "top"), [(0, 0), (150, 10), (60, 70), (170, 70)])
def test_what_a_query_looks_at_glows_in_the_image_that_the_model_sees(left, top):
    """From a wide photograph, squeezed by the processor, through the model's maps to coloured pixels."""
    image = grey_image_with_white_square(200, 100, left, top, side=30)
    model, processor = BrightnessSeeker((8, 6)), processor_of_size(64, 48)
    maps = query_attention(model, processor, image)
    seen = seen_image(model, processor, image)
    dark = Image.new("RGB", seen.size)
    glow = overlay(dark, maps[0, 0], maps.max())
    assert glow.shape == (64, 48, 3)
    assert glow.min() >= 0 and glow.max() <= 1
    assert np.asarray(seen)[place_of_highest(glow.sum(-1))].min() > 200, "it glows beside the white square"
    away = overlay(dark, maps[1, 0], maps.max())
    assert np.asarray(seen)[place_of_highest(away.sum(-1))].max() < 110, "the other head looks at the grey background"


def test_without_attention_the_image_stays_visible_but_dark_and_pale():
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    image.paste((255, 255, 255), (0, 0, 4, 8))
    plain = overlay(image, np.zeros((2, 2), dtype=np.float32), highest=0.5)
    white, red = plain[0, 0], plain[0, 7]
    assert np.ptp(white) < 0.01 and 0.4 < white.max() < 0.7
    assert 0.1 < np.ptp(red) < 0.3, "of the full 1"


def test_the_seen_image_is_what_resizing_makes_of_it():
    image = tiny_image(1, size=(90, 50))
    seen = seen_image(BrightnessSeeker(8), processor_of_size(24, 32), image)
    expected = image.resize((32, 24), Image.Resampling.BICUBIC)
    assert seen.size == (32, 24)
    np.testing.assert_allclose(np.asarray(seen, int), np.asarray(expected, int), atol=1)


def test_the_seen_image_is_cropped_as_the_processor_crops():
    image = tiny_image(1, size=(80, 40))
    processor = processor_of_size(
        24, 24, size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": 24, "width": 24}
    )
    seen = seen_image(BrightnessSeeker(8), processor, image)
    expected = image.crop((28, 8, 52, 32))
    np.testing.assert_allclose(np.asarray(seen, int), np.asarray(expected, int), atol=1)


def test_the_seen_image_ends_where_the_last_whole_patch_does():
    image = tiny_image(1, size=(30, 21))
    seen = seen_image(BrightnessSeeker(8), processor_of_size(21, 30), image)
    assert seen.size == (24, 16)
    np.testing.assert_allclose(np.asarray(seen, int), np.asarray(image.crop((0, 0, 24, 16)), int), atol=1)


@pytest.mark.parametrize("options", [{"do_normalize": False}, {"do_normalize": False, "do_rescale": False}, {}])
def test_the_seen_image_does_not_depend_on_how_values_are_scaled(options):
    image = tiny_image(2)
    seen = seen_image(BrightnessSeeker(8), processor_of_size(24, 24, **options), image)
    np.testing.assert_allclose(np.asarray(seen, int), np.asarray(image, int), atol=1)


def hot_pixels(path):
    """Rows and columns of pixels in the brightest colour of the maps, in the right part of a figure."""
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    hot = (pixels[..., 0] > 190) & (pixels[..., 1] > 180) & (pixels[..., 2] < 150)
    hot[:, : pixels.shape[1] * 2 // 5] = False
    hot[int(pixels.shape[0] * 0.93) :] = False  # the colour bar
    return np.nonzero(hot)


def test_the_figure_shows_planted_attention_at_its_place(tmp_path):
    """One query: its map fills the right side, so patches three rows and columns apart are three quarters apart."""
    places = {}
    for name, (row, column) in {"first": (0, 0), "last": (3, 3)}.items():
        planted = np.full((2, 1, 4, 4), 1e-3, dtype=np.float32)
        planted[:, 0, row, column] = 0.5
        draw_query_attention(Image.new("RGB", (64, 64)), planted, tmp_path / f"{name}.png", dpi=50)
        rows, columns = hot_pixels(tmp_path / f"{name}.png")
        assert len(rows) > 100
        places[name] = rows.mean(), columns.mean()
    map_side = 7.6 * 50
    assert places["last"][0] - places["first"][0] == pytest.approx(0.75 * map_side, rel=0.2)
    assert places["last"][1] - places["first"][1] == pytest.approx(0.75 * map_side, rel=0.2)


@pytest.mark.parametrize(("scale", "bright_tiles"), [("shared", 1), ("per map", 4)])
def test_one_colour_scale_shows_who_looks_harder_and_one_per_map_where_each_looks(tmp_path, scale, bright_tiles):
    planted = np.full((1, 4, 4, 4), 1e-4, dtype=np.float32)
    for query, peak in enumerate((0.9, 0.1, 0.1, 0.1)):
        planted[0, query, 1, 1] = peak
    path = tmp_path / "figure.png"
    draw_query_attention(Image.new("RGB", (64, 64)), planted, path, scale=scale, dpi=50)
    rows, columns = hot_pixels(path)
    middle = (2 * 0.3 + 4.7 + 7.6 / 2) * 50
    tiles = {(row > rows.min() + 7.6 * 50 / 4, column > middle) for row, column in zip(rows, columns)}
    assert len(tiles) == bright_tiles


@pytest.mark.filterwarnings("error")
def test_any_text_can_be_written_over_the_figure(tmp_path):
    draw_query_attention(
        Image.new("RGB", (8, 8)),
        np.ones((1, 1, 2, 2)),
        tmp_path / "figure.png",
        question="Is it $5 or $x^{2? " + "very long " * 50,
        answer="a\x11b\ncd",
    )
    assert (tmp_path / "figure.png").exists()


def test_the_two_heads_that_look_at_the_most_distant_places_are_chosen():
    from vistok.evaluation.attention_maps import _choose

    planted = np.full((4, 5, 6, 6), 0.01)
    planted[0, 2, 1, 1] = planted[1, 2, 1, 2] = 0.6  # neighbours
    planted[1, 3, 1, 1] = planted[2, 3, 4, 4] = 0.5  # far apart
    planted[2, 4, 1, 1] = planted[3, 4, 4, 4] = 0.2  # far apart, but little
    assert _choose(planted, None, None) == (3, (1, 2))
    assert _choose(planted, 4, None) == (4, (2, 3))
    assert _choose(planted, None, (0, 1)) == (3, (0, 1))
    assert _choose(planted[:1], 2, None) == (2, (0, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "log"}, "scale is 'log': choose 'shared' or 'per map'"),
        ({"query": 3}, "query is 3, but there are 3 queries, 0 to 2"),
        ({"heads": (0, 2)}, r"heads is \(0, 2\), but there are 2 heads, 0 to 1"),
    ],
)
def test_unknown_choices_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        draw_query_attention(Image.new("RGB", (8, 8)), np.ones((2, 3, 2, 2)), tmp_path / "figure.png", **options)


def test_maps_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"attention has shape \(3, 2, 2\), expected \(heads, queries"):
        draw_query_attention(Image.new("RGB", (8, 8)), np.ones((3, 2, 2)), tmp_path / "figure.png")


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "vistok\[draw\]"'):
        draw_query_attention(Image.new("RGB", (8, 8)), np.ones((1, 1, 2, 2)), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
