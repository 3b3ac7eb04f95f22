"""With the same weights VT-LMM computes what LLaVA of transformers does."""

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tests.tiny import IMAGE_TOKEN_ID, batch, livelier, pixels, same, tiny_clip_config, tiny_llama_config
from tests.tiny_kinds import KINDS, tiny_vtlmm

PARTS = {
    "model.vision_tower.": "model.vision_tower.",
    "model.multi_modal_projector.": "model.adapter.",
    "model.language_model.": "model.language_model.",
    "lm_head.": "lm_head.",
}
TOWER = {"num_hidden_layers": 3, "attention_dropout": 0.0}


def llava_and_vtlmm(layer: int):
    config = LlavaConfig(
        vision_config=tiny_clip_config(**TOWER),
        text_config=tiny_llama_config(),
        image_token_index=IMAGE_TOKEN_ID,
        image_token_id=IMAGE_TOKEN_ID,
        vision_feature_layer=layer,
        image_seq_length=9,
    )
    llava = livelier(LlavaForConditionalGeneration(config)).eval()
    model = tiny_vtlmm(tiny_clip_config(**TOWER), None, {"intermediate_size": 48}, vision_feature_layer=layer)
    weights = {}
    for name, weight in llava.state_dict().items():
        (prefix,) = (prefix for prefix in PARTS if name.startswith(prefix))
        weights[PARTS[prefix] + name.removeprefix(prefix)] = weight
    loading = model.load_state_dict(weights, strict=False)
    assert loading.unexpected_keys == []
    assert loading.missing_keys == ["model.vm_head.weight"]
    return llava, model


@pytest.mark.parametrize("layer", [-2, -1])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_losses_are_those_of_llava(layer, side):
    llava, model = llava_and_vtlmm(layer)
    inputs = batch(*KINDS["vtlmm"].rows, side=side)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = llava(**inputs, pixel_values=pixels(3), labels=labels, position_ids=positions)
    found = model(**inputs, pixel_values=pixels(3), labels=labels)
    kept = inputs["attention_mask"].bool()
    assert expected.logits[kept].std() > 0.1
    assert same(found.logits[kept], expected.logits[kept])
    assert same(found.loss, expected.loss)
    assert same(found.image_hidden_states.flatten(0, 1), expected.image_hidden_states.flatten(0, -2))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_what_is_generated_is_what_llava_generates(options):
    llava, model = llava_and_vtlmm(-2)
    llava.generation_config = model.generation_config
    inputs = batch(*KINDS["vtlmm"].rows) | {"pixel_values": pixels(3), "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), llava.generate(**inputs, **options))
