"""Features after a tower's final norm, whether the tower applies it to all tokens or to [CLS] alone."""

import importlib
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import CLIPVisionModel, PreTrainedModel

from tests.tiny import pixels, same, tiny_clip_config, tiny_dinov2_config, tiny_eva_config, tiny_gvt
from vistok.modeling.final_features import tower_features
from vistok.modeling.final_norm import NORM_ON_CLS_ALONE
from vistok.modeling.vision_features import build_vision_tower, extract_vision_features

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"image_size": 24, "patch_size": 8}


def towers_with_a_norm_behind_their_layers():
    """All vision models of transformers with a module `post_layernorm`."""
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        if "self.post_layernorm" not in path.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for name, found in vars(module).items():
            is_model = isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class
            if is_model and found.__module__ == module.__name__ and name.endswith("VisionModel"):
                yield found


def uneven_norms(tower):
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "norm" in name and parameter.ndim == 1:
                parameter.uniform_(0.5, 2.0)
    return tower


def test_towers_that_norm_cls_alone_are_known_and_no_others():
    alone, others = set(), set()
    for tower_class in towers_with_a_norm_behind_their_layers():
        try:
            config = tower_class.config_class(**SIZES)
            config.num_frames = 1  # of X-CLIP, which reads videos
            tower = uneven_norms(tower_class._from_config(config).eval())
            outputs = tower(pixels(1), output_hidden_states=True, return_dict=True)
            last, pooled = outputs.last_hidden_state, outputs.pooler_output
        except (TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError):
            continue  # towers of other inputs than images
        norm = next(m for name, m in tower.named_modules() if name.split(".")[-1] == "post_layernorm")
        is_before = same(outputs.hidden_states[-1], last)
        if is_before and pooled is not None and same(norm(last[:, 0]), pooled):
            alone.add(tower.config.model_type)
            assert same(tower_features(tower, pixels(1)), norm(last))
        else:
            others.add(tower.config.model_type)
            assert same(tower_features(tower, pixels(1)), last)
    assert alone == NORM_ON_CLS_ALONE
    assert "siglip_vision_model" in others and not others & NORM_ON_CLS_ALONE


TOWERS = {
    "clip": lambda: CLIPVisionModel(tiny_clip_config()),
    "dinov2": lambda: build_vision_tower(tiny_dinov2_config()),
    "eva": lambda: build_vision_tower(tiny_eva_config(use_final_norm=True)),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_visual_tokenizer_reads_what_is_distilled_if_it_reads_the_final_features(name):
    tower = uneven_norms(TOWERS[name]().eval())
    expected = tower_features(tower, pixels(2))
    found = extract_vision_features(tower, pixels(2), "final")
    assert same(found.patch_features, expected) and found.num_prefix_tokens == 1
    assert same(tower_features(tower, pixels(2), "final"), expected)
    patches = extract_vision_features(tower, pixels(2), "final", "default")
    assert same(patches.patch_features, expected[:, 1:]) and patches.num_prefix_tokens == 0
    before = extract_vision_features(tower, pixels(2), -1).patch_features
    assert not same(before, expected)
    norm = [module for module in tower.modules() if isinstance(module, nn.LayerNorm)][-1]
    assert same(norm(before), expected)


def test_the_final_features_may_come_with_the_attention_of_cls():
    tower = build_vision_tower(tiny_dinov2_config())
    tower.set_attn_implementation("eager")
    last, final = (
        extract_vision_features(tower, pixels(1), layer, "full", ("cls_attentions",)) for layer in (-1, "final")
    )
    assert torch.equal(last.cls_attentions, final.cls_attentions)


def test_a_gvt_reads_the_layer_that_its_config_names(tmp_path):
    model = tiny_gvt(vision_feature_layer="final")
    uneven_norms(model.model.vision_tower)
    assert same(
        model.model.get_vision_features(pixels(2)).patch_features,
        model.model.vision_tower(pixels(2)).last_hidden_state,
    )
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.vision_feature_layer == "final"
