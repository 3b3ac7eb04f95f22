"""A trained folder as `vistok train` leaves it, of tiny random models: what the commands are tried on."""

import pytest
import torch

from tests.tiny import NUM_LATENTS, livelier, save_base_models, tiny_image, tiny_resampler_config
from vistok import (
    GVTForConditionalGeneration,
    GVTProcessor,
    VTLMMForCausalLM,
    VTLMMProcessor,
    save_trained_weights,
)


@pytest.fixture(scope="session")
def base_models(tmp_path_factory):
    """Paths of a vision and a language checkpoint."""
    return save_base_models(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter_folder(base_models, tmp_path_factory):
    """A folder that holds trained weights only and names its base models."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    model = GVTForConditionalGeneration.from_vision_text_pretrained(
        *base_models, resampler_config=tiny_resampler_config()
    )
    model.requires_grad_(False)
    for part in (model.model.resampler, model.model.projector):
        livelier(part.requires_grad_(True))
    save_trained_weights(model, folder)
    GVTProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=NUM_LATENTS).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def words_folder(base_models, tmp_path_factory):
    """A VT-LMM as training leaves it: trained weights that name their base models."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("words")
    model = VTLMMForCausalLM.from_vision_text_pretrained(*base_models)
    model.requires_grad_(False)
    for part in (model.model.adapter, model.model.vm_head):
        livelier(part.requires_grad_(True))
    save_trained_weights(model, folder)
    VTLMMProcessor.from_vision_text_pretrained(*base_models).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def image_file(tmp_path):
    tiny_image(3, size=(40, 30)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")
