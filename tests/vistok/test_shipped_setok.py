"""The SeTok that ships: it finds what a drawn image shows, outlines it, and draws it again."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw
from transformers import AutoImageProcessor, AutoModel, pipeline

from vistok import cli
from vistok.configuration.shipped import shipped_path
from vistok.evaluation.cluster_quality import adjusted_rand_index
from vistok.modeling.base_weights import resolve_checkpoint

pytestmark = pytest.mark.real_weights

SIZE, GRID = 224, 16
DISCS = {"red": (20, 24, 90, 94), "blue": (130, 30, 210, 110), "yellow": (60, 130, 140, 210)}


def discs(*colors: str) -> tuple[Image.Image, np.ndarray]:
    """An image, and a mask of each of its discs."""
    image, masks = Image.new("RGB", (SIZE, SIZE), (120, 150, 120)), []
    for color in colors:
        mask = Image.new("1", (SIZE, SIZE))
        for canvas, fill in ((image, color), (mask, 1)):
            ImageDraw.Draw(canvas).ellipse(DISCS[color], fill=fill)
        masks.append(np.asarray(mask))
    return image, np.stack(masks)


@pytest.fixture(scope="module")
def setok():
    folder = resolve_checkpoint("vistok:setok-demo")
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoImageProcessor.from_pretrained(folder)


def encoded(setok, image: Image.Image):
    model, processor = setok
    with torch.no_grad():
        return model.vision_model(processor(image, return_tensors="pt")["pixel_values"])


def test_its_name_is_that_of_the_folder_that_ships():
    assert resolve_checkpoint("vistok:setok-demo") == str(shipped_path("checkpoints/setok-demo"))


def test_its_clusters_are_the_discs_and_more_discs_are_more_tokens(setok):
    counts = []
    for colors in (["red"], list(DISCS)):
        image, masks = discs(*colors)
        found = encoded(setok, image)
        shares = masks.reshape(len(masks), GRID, SIZE // GRID, GRID, SIZE // GRID).mean((2, 4)).reshape(len(masks), -1)
        labels = torch.tensor(np.where(shares.max(0) > 0.5, shares.argmax(0) + 1, 0))[None]
        assert adjusted_rand_index(found.assignment, labels).item() > 0.75
        counts.append(int(found.mask.sum()))
    assert counts[0] < counts[1] <= 8


def test_a_token_outlines_its_disc(setok):
    image, masks = discs(*DISCS)
    found = encoded(setok, image)
    with torch.no_grad():
        logits = setok[0].decode_masks(found.tokens, found.mask, found.patch_features, found.grid_size, (SIZE, SIZE))
    predicted = (logits[0, found.mask[0]] > 0).numpy()
    for mask in masks:
        overlaps = (predicted & mask).sum((1, 2)) / (predicted | mask).sum((1, 2)).clip(1)
        assert overlaps.max() > 0.5


def test_its_detokenizer_draws_each_disc_in_its_place_and_nearest_to_its_colour(setok):
    image, _ = discs(*DISCS)
    found = encoded(setok, image)
    generator = torch.Generator().manual_seed(0)
    drawn = setok[0].reconstruct(found.tokens, found.mask, generator=generator)[0].permute(1, 2, 0)
    scale, margin = len(drawn) / SIZE, 20
    for color, (left, top, right, bottom) in DISCS.items():
        rows = slice(int((top + margin) * scale), int((bottom - margin) * scale))
        columns = slice(int((left + margin) * scale), int((right - margin) * scale))
        mean = drawn[rows, columns].mean((0, 1))
        distances = {name: (mean - torch.tensor(ImageColor.getrgb(name)) / 255).norm().item() for name in DISCS}
        assert min(distances, key=distances.__getitem__) == color


def test_the_command_names_it(tmp_path):
    image, _ = discs(*DISCS)
    image.save(tmp_path / "discs.png")
    output = ["--output", str(tmp_path / "tokens.png"), "--device", "cpu"]
    assert cli.main(["tokens", str(tmp_path / "discs.png"), "--model", "vistok:setok-demo", *output]) == 0
    with Image.open(tmp_path / "tokens.png") as drawn:
        assert min(drawn.size) > SIZE


def test_features_of_an_image_are_its_tokens_in_transformers_own_pipeline(setok):
    image, _ = discs("red", "blue")
    features = pipeline("image-feature-extraction", model=setok[0], image_processor=setok[1])(
        image, return_tensors=True
    )
    assert torch.equal(features, encoded(setok, image).tokens)


def test_tokens_of_a_model_without_setok_are_refused_by_its_type(tmp_path, capsys):
    discs("red")[0].save(tmp_path / "disc.png")
    assert cli.main(["tokens", str(tmp_path / "disc.png"), "--model", "vistok:gvt-demo"]) == 2
    assert "vistok:gvt-demo holds a model of type gvt, a language model with images" in capsys.readouterr().err
