"""A blank image in a batch of text alone changes no loss and no gradient, and gives a zero one to the adapter."""

import copy

import pytest
import torch

from tests.trainer.tiny_training import question
from tests.trainer.tiny_visual_modeling import NUM_TOKENS, compose_vtlmm, vtlmm_processor
from vistok.processing.collator import VisualLanguageCollator
from vistok.trainer.blank_images import BlankImages
from vistok.trainer.freezing import set_trainable


@pytest.fixture
def model(base_models):
    model = compose_vtlmm(base_models)
    set_trainable(model, {"adapter": "full", "llm": "full"})
    return model


@pytest.fixture
def processor(base_models):
    return vtlmm_processor(base_models)


def losses_and_gradients(model, inputs):
    model.zero_grad()
    outputs = model(**inputs, visual_loss="visual_modeling", skip_logits=True)
    outputs.loss.backward()
    return outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_losses_and_gradients_stay_as_they_are(model, processor, cached, long):
    text = "is there a red dog in the image? " * (5 if long else 1)  # longer or shorter than an image
    batch = VisualLanguageCollator(processor)([question(0, text=text), question(1)])
    features = {"key": torch.zeros(NUM_TOKENS, 32)} if cached else None
    images = BlankImages(model, processor, features)
    assert images.are_needed
    added = images.add_to(batch)
    assert len(added["input_ids"]) == 3 and ("vision_features" if cached else "pixel_values") in added
    before, plain = losses_and_gradients(model, batch)
    after, with_image = losses_and_gradients(model, added)
    assert float(after.loss_lm.detach()) == pytest.approx(float(before.loss_lm.detach()), rel=1e-12)
    assert float(after.loss_vm.detach()) == 0.0 and not after.visual_positions.any()
    adapter = {name for name in with_image if name.startswith("model.adapter.")}
    assert set(with_image) - set(plain) == adapter and len(adapter) == 4
    assert all(gradient.abs().sum() == 0 for name, gradient in with_image.items() if name in adapter)
    for name, gradient in plain.items():
        assert torch.allclose(with_image[name], gradient, rtol=1e-9, atol=1e-12), name


def test_they_are_added_only_where_something_learns_from_images(model, processor):
    assert not BlankImages(model, None).are_needed  # nobody knows how to prepare one
    frozen = copy.deepcopy(model)
    set_trainable(frozen, {"llm": "full"})
    assert not BlankImages(frozen, processor).are_needed
