"""Linear layers as matrices: those that a LoRA adapter wraps are what calling them computes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vistok.modeling.plain_matrix import matrix_of


@pytest.fixture
def adapted():
    """A linear layer of 6 inputs with a LoRA adapter that drops half of them out."""
    layers = get_peft_model(
        nn.Sequential(nn.Linear(6, 5)), LoraConfig(target_modules=["0"], r=3, lora_dropout=0.5)
    ).base_model.model
    with torch.no_grad():
        layers[0].lora_B["default"].weight.normal_()
    return layers[0]


def test_in_evaluation_it_is_the_merged_weight(adapted):
    weight, bias = matrix_of(adapted.eval(), 6, torch.zeros(1))
    expected = adapted.base_layer.weight + adapted.get_delta_weight("default")
    assert torch.allclose(weight, expected, atol=1e-6) and torch.allclose(bias, adapted.base_layer.bias, atol=1e-6)


def test_in_training_dropout_takes_whole_inputs_away_from_the_adapter(adapted):
    weight, bias = matrix_of(adapted.train(), 6, torch.zeros(1))
    update, whole = weight - adapted.base_layer.weight, adapted.get_delta_weight("default")
    kept = update.abs().amax(0) > 1e-5
    assert 0 < kept.sum() < 6
    assert torch.allclose(update[:, kept], 2 * whole[:, kept], atol=1e-5)  # 1 / (1 - 0.5)
    assert torch.allclose(bias, adapted.base_layer.bias, atol=1e-6)
