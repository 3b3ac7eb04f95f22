"""Every attention backend that GVT and its resampler declare is forced here, and shown to have run."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.integrations import flex_attention as flex
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from tests.tiny import (
    IMAGE,
    batch,
    calls,
    pixels,
    same,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_gvt,
    tiny_llama_config,
    tiny_resampler_config,
    words,
)
from tests.tiny_kinds import every_kind
from vistok import (
    GVTForConditionalGeneration,
    MLPAdapter,
    PerceiverResampler,
    VisualTokenizer,
    VTLMMForCausalLM,
)
from vistok.modeling.modeling_gvt import GVTPreTrainedModel

ROWS = [[*IMAGE, *words(6)], [*words(2, 1), *IMAGE, *words(1, 2), *IMAGE, *words(4, 3)], words(5, 4)]
PARTS = ("vision_tower", "resampler", "language_model")


def plain_gvt(attn_implementation, vision_config=None, **sizes):
    """A GVT whose resampler goes through the attention backends of transformers."""
    resampler_config = tiny_resampler_config(attention_formulation="plain", **sizes)
    torch.manual_seed(0)
    return tiny_gvt(vision_config, None, resampler_config, attn_implementation=attn_implementation)


def implementations(model):
    return {name: getattr(model.model, name).config._attn_implementation for name in PARTS}


def inputs(side="left"):
    return batch(*ROWS, side=side) | {"pixel_values": pixels(3)}


def logits_of(model, side="left"):
    given = inputs(side)
    return model(**given).logits[given["attention_mask"].bool()]


def test_flags_are_those_that_are_tested_below():
    composed = (GVTPreTrainedModel, GVTForConditionalGeneration, VTLMMForCausalLM)
    for model_class in (VisualTokenizer, PerceiverResampler, MLPAdapter, *composed):
        flags = {
            name for name in dir(model_class) if name.startswith("_supports_") and getattr(model_class, name) is True
        }
        tested = {"_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend"}
        assert flags & {name for name in flags if "attn" in name or "attention" in name or "sdpa" in name} == tested
        assert model_class is VisualTokenizer or model_class._can_compile_fullgraph  # tested with the models


@pytest.mark.parametrize("side", ["left", "right"])
def test_sdpa(monkeypatch, side):
    expected = logits_of(plain_gvt("eager"), side)
    model = plain_gvt("sdpa")
    assert set(implementations(model).values()) == {"sdpa"}
    recorded = calls(monkeypatch, torch.nn.functional, "scaled_dot_product_attention")
    assert same(logits_of(model, side), expected, 1e-4)
    assert len(recorded) == 6, "two layers of each of the three parts"


def test_eager(monkeypatch):
    model = plain_gvt("eager")
    assert set(implementations(model).values()) == {"eager"}
    recorded = calls(monkeypatch, torch.nn.functional, "scaled_dot_product_attention")
    output = model(**inputs(), output_attentions=True)
    assert not recorded
    assert len(output.attentions) == len(output.image_attentions) == 2


def test_a_backend_for_each_part(monkeypatch):
    wanted = {"vision_config": "eager", "resampler_config": "sdpa", "text_config": "eager"}
    model = plain_gvt(wanted)
    assert implementations(model) == {"vision_tower": "eager", "resampler": "sdpa", "language_model": "eager"}
    recorded = calls(monkeypatch, torch.nn.functional, "scaled_dot_product_attention")
    assert same(logits_of(model), logits_of(plain_gvt("eager")), 1e-4)
    assert len(recorded) == 2, "the two layers of the resampler"


def test_backend_can_be_changed_later(monkeypatch):
    model = plain_gvt("sdpa")
    expected = logits_of(model)
    model.set_attn_implementation("eager")
    assert set(implementations(model).values()) == {"eager"}
    recorded = calls(monkeypatch, torch.nn.functional, "scaled_dot_product_attention")
    assert same(logits_of(model), expected, 1e-4)
    assert not recorded


def test_registered_attention_function():
    modules = []

    def planted(module, *args, **kwargs):
        modules.append(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("planted_in_gvt", planted)
    AttentionMaskInterface.register("planted_in_gvt", sdpa_mask)
    model = plain_gvt("planted_in_gvt", tiny_clip_config())
    assert same(logits_of(model), logits_of(plain_gvt("sdpa", tiny_clip_config())), 1e-4)
    assert modules == ["CLIPAttention"] * 2 + ["PerceiverAttention"] * 2 + ["LlamaAttention"] * 2


def test_flex_attention(monkeypatch):
    # Its kernels want heads of at least 16.
    sizes = {"hidden_size": 64, "num_attention_heads": 4}
    configs = (tiny_dinov2_config(**sizes), tiny_llama_config(**sizes))

    def model_with(implementation):
        torch.manual_seed(0)
        resampler_config = tiny_resampler_config(attention_formulation="plain", head_dim=16, patch_hidden_size=64)
        return tiny_gvt(*configs, resampler_config, attn_implementation=implementation)

    expected = logits_of(model_with("eager"))
    model = model_with("flex_attention")
    assert set(implementations(model).values()) == {"flex_attention"}
    # Uncompiled: what is computed is the same, and compiling takes minutes on a CPU.
    monkeypatch.setattr(flex.WrappedFlexAttention, "__call__", lambda self: flex.flex_attention)
    block_mask = masking_utils.create_block_mask
    monkeypatch.setattr(
        masking_utils, "create_block_mask", lambda **kwargs: block_mask(**kwargs | {"_compile": False})
    )
    recorded = calls(monkeypatch, flex, "flex_attention")
    try:
        with torch.no_grad():
            found = logits_of(model)
    except (NotImplementedError, RuntimeError) as error:
        if torch.cuda.is_available():
            raise
        pytest.skip(f"flex_attention needs a GPU here: {error}")
    assert same(found, expected, 1e-3)
    assert len(recorded) == 6, "two layers of each of the three parts"


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()),
    reason="flash_attention_2 needs a GPU and the flash-attn package",
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_flash_attention_2(side):
    sizes = {"hidden_size": 64, "num_attention_heads": 4}
    torch.manual_seed(0)
    resampler_config = tiny_resampler_config(attention_formulation="plain", head_dim=16, patch_hidden_size=64)
    model = tiny_gvt(tiny_clip_config(**sizes), tiny_llama_config(**sizes), resampler_config).cuda().bfloat16()
    given = {name: value.cuda() for name, value in inputs(side).items()}
    kept = given["attention_mask"].bool()
    expected = model(**given).logits[kept].float()
    model.set_attn_implementation("flash_attention_2")
    assert set(implementations(model).values()) == {"flash_attention_2"}
    assert (model(**given).logits[kept].float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_absorbed_formulation_runs_under_any_backend(implementation):
    torch.manual_seed(0)
    model = tiny_gvt(attn_implementation=implementation)
    assert same(logits_of(model), logits_of(plain_gvt("eager")), 1e-4)


@every_kind
def test_backends_of_every_kind_of_model_agree_and_run(kind, monkeypatch):
    logits = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = kind.make(attn_implementation=implementation)
        recorded = calls(monkeypatch, torch.nn.functional, "scaled_dot_product_attention")
        given = batch(*kind.rows)
        logits.append(model(**given, pixel_values=pixels(3)).logits[given["attention_mask"].bool()])
        least = 4 if implementation == "sdpa" else 0  # two layers of the tower and of the decoder
        assert len(recorded) >= least and bool(recorded) == bool(least)
        assert model.model.vision_tower.config._attn_implementation == implementation
        assert model.model.language_model.config._attn_implementation == implementation
    assert same(*logits, 1e-4)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="no_such_attention"):
        tiny_gvt(attn_implementation="no_such_attention")
