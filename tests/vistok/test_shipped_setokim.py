"""The Setokim that ships: it outlines what an expression means, and writes images of real tokens."""

import pytest
import torch

from tests.vistok.test_shipped_setok import DISCS, discs
from vistok import SetokimPipeline, cli

pytestmark = pytest.mark.real_weights


@pytest.fixture(scope="module")
def pipeline() -> SetokimPipeline:
    return SetokimPipeline.from_pretrained("vistok:setokim-demo", dtype=torch.float32)


@pytest.mark.parametrize(
    "expression, color",
    [("the leftmost object", "red"), ("the rightmost object", "blue"), ("the lowest object", "yellow")],
)
def test_the_mask_of_an_expression_is_that_of_the_disc_which_it_means(pipeline, expression, color):
    image, masks = discs(*DISCS)
    (found,) = pipeline.segment(image, expression)
    overlaps = {name: (found & mask).sum() / (found | mask).sum() for name, mask in zip(DISCS, masks)}
    assert max(overlaps, key=overlaps.__getitem__) == color and overlaps[color] > 0.6


def test_images_are_of_real_tokens_and_more_objects_are_more_of_them(pipeline):
    prompts = ["A picture of an apple.", "An image with eight buses."]
    tokens, mask = pipeline.model.write_image(**pipeline.task_inputs("generate", prompts))
    assert torch.cdist(tokens[mask], pipeline.model.token_bank.tokens).amin(1).max() < 0.02  # distances are rounded
    counts = mask.sum(1).tolist()
    assert counts[0] < counts[1]


def test_an_edit_keeps_most_of_what_it_is_not_about(pipeline):
    image, _ = discs(*DISCS)
    inputs = pipeline.task_inputs("edit", ["Remove the lowest object."], [image])
    tokens, mask = pipeline.model.write_image(**inputs)
    features = pipeline.model.get_image_features(inputs["pixel_values"])
    source = features.tokens[0][features.token_mask[0]]
    kept = torch.cdist(tokens[0][mask[0]], source).amin(1) < 0.02
    assert kept.float().mean() >= 0.5


def test_the_command_asks_it_by_its_name(tmp_path, capsys):
    image, _ = discs(*DISCS)
    image.save(tmp_path / "discs.png")
    arguments = ["What is the lowest object?", "--model", "vistok:setokim-demo"]
    assert cli.main(["ask", str(tmp_path / "discs.png"), *arguments]) == 0
    assert capsys.readouterr().out.strip()
