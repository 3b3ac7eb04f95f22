"""Composed models whose weights lie on disk, or are whole numbers, compute what they do with plain ones."""

import copy

import pytest
import torch
from torch import nn

from tests.tiny import IMAGE, batch, pixels, same, tiny_gvt, words
from tests.tiny_kinds import KINDS, tiny_vtlmm

ROWS = [[*IMAGE, *words(6)], [*words(2, 1), *IMAGE, *words(1, 2), *IMAGE, *words(4, 3)]]


@pytest.fixture(scope="module", params=["gvt", "vtlmm"])
def saved_model(request, tmp_path_factory):
    folder, kind = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    model = kind.make()
    model.save_pretrained(folder)
    return folder, model, kind


@pytest.mark.parametrize("on_disk", [0, 1, 2, 3, 4, slice(None)], ids=[*map(str, range(5)), "everything"])
def test_parts_on_disk_compute_what_they_do_in_memory(on_disk, saved_model, tmp_path):
    folder, model, kind = saved_model
    chosen = kind.parts[on_disk] if isinstance(on_disk, slice) else (kind.parts[on_disk],)
    device_map = {part: "disk" if part in chosen else "cpu" for part in kind.parts}
    loaded = kind.model_class.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    offloaded = [name for name, parameter in loaded.named_parameters() if parameter.is_meta]
    assert {part for part in kind.parts for name in offloaded if name.startswith(part)} == set(chosen)
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    assert same(loaded(**inputs).logits, model(**inputs).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


@pytest.mark.parametrize("visual_loss", ["visual_modeling", "visual_tokens"])
@pytest.mark.parametrize("rank", [None, 5])
def test_heads_on_disk_give_the_losses_and_words_that_they_give_in_memory(visual_loss, rank, tmp_path):
    kind = KINDS["vtlmm"]
    model = kind.make(vm_head_rank=rank)
    model.save_pretrained(tmp_path / "saved")
    device_map = {part: "disk" if "head" in part or "language" in part else "cpu" for part in kind.parts}
    loaded = kind.model_class.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    inputs |= {"labels": inputs["input_ids"], "visual_loss": visual_loss, "skip_logits": True}
    with torch.no_grad():
        found, expected = loaded(**inputs), model(**inputs)
        assert same(found.loss_lm, expected.loss_lm)
        assert same(found.loss_vm, expected.loss_vm)
    assert torch.equal(loaded.get_visual_tokens(pixels(1)).token_ids, model.get_visual_tokens(pixels(1)).token_ids)
    tokens = expected.image_hidden_states
    assert torch.equal(loaded.nearest_text_tokens(tokens)[1], model.nearest_text_tokens(tokens)[1])
    loaded.config.pseudo_image_features = model.config.pseudo_image_features = True
    images = [one.get_image_features(pixels(1)).embeddings for one in (loaded, model)]
    assert same(*images)


def test_device_map_splits_between_layers_and_no_layer():
    from accelerate import infer_auto_device_map

    model = tiny_gvt()
    assert {"PerceiverResamplerLayer", "LlamaDecoderLayer", "Dinov2Layer"} <= set(model._no_split_modules)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    device_map = infer_auto_device_map(
        model, {0: size // 2, "cpu": size}, no_split_module_classes=list(model._no_split_modules)
    )
    assert set(device_map.values()) == {0, "cpu"}
    for name in device_map:
        assert not any(part in name for part in (".attention.", ".self_attn.", ".feed_forward.", ".mlp."))


class WholeNumbersLinear(nn.Module):
    """Stands for a quantised layer: its weights are integers, and it computes in the dtype of what it reads."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def dequantised(self) -> torch.Tensor:
        return self.weight * self.scale

    def forward(self, x):
        assert x.is_floating_point()
        return nn.functional.linear(x, self.dequantised().to(x.dtype), self.bias)


def quantised(model):
    """The model with whole numbers in the resampler and the projector, and one of plain weights that are equal."""
    found, expected = copy.deepcopy(model), copy.deepcopy(model)
    for name, linear in model.model.named_modules():
        if type(linear) is nn.Linear and name.startswith(("resampler", "projector")):
            layer = WholeNumbersLinear(linear)
            found.model.set_submodule(name, layer)
            expected.model.get_submodule(name).weight.data = layer.dequantised().to(linear.weight.dtype)
    return found, expected


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_layers_of_whole_numbers_read_floating_point_ones(dtype, tolerance):
    found, expected = quantised(tiny_gvt().to(dtype))
    assert found.model.projector.weight.dtype == torch.int8
    for images in (pixels(2), pixels(2).to(dtype)):
        tokens, wanted = (model.get_image_features(images).last_hidden_state for model in (found, expected))
        assert tokens.dtype == dtype
        assert (tokens - wanted).abs().max() <= tolerance * wanted.abs().max()
    output = found(**batch(*ROWS), pixel_values=pixels(3), labels=batch(*ROWS)["input_ids"])
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("visual_loss", ["visual_modeling", "visual_tokens"])
def test_heads_of_whole_numbers_give_losses_and_words(visual_loss):
    expected = tiny_vtlmm()
    found = copy.deepcopy(expected)
    for name in ("lm_head", "model.vm_head"):
        layer = WholeNumbersLinear(found.get_submodule(name))
        found.set_submodule(name, layer)
        expected.get_submodule(name).weight.data = layer.dequantised()
    inputs = batch(*KINDS["vtlmm"].rows) | {"pixel_values": pixels(3), "visual_loss": visual_loss}
    for skip_logits in (True, False):
        assert same(found(**inputs, skip_logits=skip_logits).loss_vm, expected(**inputs).loss_vm, 1e-4)
    assert torch.equal(found.get_visual_tokens(pixels(1)).token_ids, expected.get_visual_tokens(pixels(1)).token_ids)
