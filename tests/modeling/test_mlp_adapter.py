"""The MLP adapter: two layers on every patch by itself, as a visual tokenizer of one token for each patch."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from vistok import MLPAdapter, MLPAdapterConfig, VisualTokenizer

SIZES = {"patch_hidden_size": 6, "output_size": 10, "intermediate_size": 8}


def test_every_patch_becomes_a_token_by_itself():
    adapter = MLPAdapter(MLPAdapterConfig(**SIZES)).double()
    patches = torch.randn(2, 7, 6, dtype=torch.float64)
    weights = dict(adapter.named_parameters())
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        **{"linear_1.weight": (8, 6), "linear_1.bias": (8,)},
        **{"linear_2.weight": (10, 8), "linear_2.bias": (10,)},
    }
    hidden = patches @ weights["linear_1.weight"].t() + weights["linear_1.bias"]
    hidden = hidden * (0.5 + 0.5 * torch.erf(hidden / 2**0.5))
    output = adapter(patches, grid_size=(1, 7), num_prefix_tokens=0, output_attentions=True)
    assert torch.allclose(output.tokens, hidden @ weights["linear_2.weight"].t() + weights["linear_2.bias"])
    assert output.mask.all()
    assert output.mask.shape == (2, 7)
    assert torch.allclose(adapter(patches[:, 3:4]).tokens, output.tokens[:, 3:4])


def test_it_is_a_visual_tokenizer_of_any_number_of_patches():
    adapter = MLPAdapter(MLPAdapterConfig(**SIZES, num_tokens=7))
    assert isinstance(adapter, VisualTokenizer)
    assert (adapter.output_size, adapter.max_num_tokens) == (10, 7)
    assert adapter.one_token_per_patch
    assert not adapter.variable_num_tokens
    assert adapter(torch.randn(1, 30, 6)).tokens.shape == (1, 30, 10)
    with pytest.raises(ValueError, match="set num_tokens of its config"):
        _ = MLPAdapter(MLPAdapterConfig(**SIZES)).max_num_tokens


def test_first_weights_are_those_of_the_config(tmp_path):
    config = MLPAdapterConfig(patch_hidden_size=200, output_size=100, initializer_range=0.1)
    adapter = MLPAdapter(config)
    assert adapter.linear_1.weight.shape == (100, 200), "the inner width is the outer one by default"
    for layer in (adapter.linear_1, adapter.linear_2):
        assert abs(layer.weight.std() - 0.1) < 0.01
        assert not layer.bias.any()
    adapter.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is MLPAdapter
    assert torch.equal(loaded.linear_2.weight, adapter.linear_2.weight)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MLPAdapterConfig


def test_another_activation_may_be_chosen():
    adapter = MLPAdapter(MLPAdapterConfig(**SIZES, hidden_act="relu"))
    patches = torch.randn(1, 3, 6)
    assert torch.allclose(adapter(patches).tokens, adapter.linear_2(adapter.linear_1(patches).clamp(min=0)))


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="hidden_act is 'gello': choose one of gelu, "):
        MLPAdapter(MLPAdapterConfig(**SIZES, hidden_act="gello"))


def test_what_does_not_fit_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"5 wide.*patch_hidden_size=6"):
        MLPAdapter(MLPAdapterConfig(**SIZES))(torch.randn(1, 3, 5))
    for name in ("patch_hidden_size", "output_size", "intermediate_size", "num_tokens"):
        with pytest.raises(ValueError, match=f"{name} is 0, an MLP adapter needs at least 1"):
            MLPAdapterConfig(**{name: 0})
