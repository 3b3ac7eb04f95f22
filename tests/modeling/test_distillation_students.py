"""Students: the teacher's architecture from a seed, and that of Wei et al., compared with its equations."""

import math

import pytest
import torch
from torch import nn

from tests.tiny import livelier, pixels, same, tiny_clip_config, tiny_dinov2_config
from vistok.modeling.distillation_students import random_student, wei_student, wei_student_config
from vistok.modeling.final_features import tower_features
from vistok.modeling.stochastic_depth import transformer_layers
from vistok.modeling.vision_features import build_vision_tower


def test_a_student_is_the_teachers_architecture_with_the_weights_of_a_seed():
    teacher = build_vision_tower(tiny_dinov2_config())
    state = torch.get_rng_state()
    first, again, other = (random_student(teacher.config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    shapes = {name: tensor.shape for name, tensor in teacher.state_dict().items()}
    assert {name: tensor.shape for name, tensor in first.state_dict().items()} == shapes
    name = "encoder.layer.1.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], teacher.state_dict()[name])


def test_another_image_size_is_another_number_of_positions_and_leaves_the_teachers_config_alone():
    config = tiny_dinov2_config()
    student = random_student(config, 32)
    assert student.embeddings.position_embeddings.shape[1] == 1 + 16 and config.image_size == 24
    for make in (random_student, wei_student):
        with pytest.raises(ValueError, match="image size 30 is no multiple of the patch size 8"):
            make(config, 30)


def relative_position_index(side: int) -> torch.Tensor:
    """Of each pair of tokens, the row of the table: an offset of two patches, or one of three rows for [CLS]."""
    rows = (2 * side - 1) ** 2
    index = torch.empty(side * side + 1, side * side + 1, dtype=torch.long)
    for a in range(side * side):
        for b in range(side * side):
            down, right = a // side - b // side + side - 1, a % side - b % side + side - 1
            index[a + 1, b + 1] = down * (2 * side - 1) + right
    index[0, :], index[:, 0], index[0, 0] = rows, rows + 1, rows + 2
    return index


def direct(student, images: torch.Tensor) -> torch.Tensor:
    """The equations of Wei et al.'s student, slowly, in float64."""
    w = {name: tensor.double() for name, tensor in student.state_dict().items()}
    heads, width = student.config.num_attention_heads, student.config.hidden_size

    def norm(x, name):
        return nn.functional.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    kernel = w["embeddings.patch_embeddings.projection.weight"]
    x = nn.functional.conv2d(images.double(), kernel, w["embeddings.patch_embeddings.projection.bias"], stride=8)
    side = x.shape[-1]
    x = torch.cat([w["embeddings.cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    (table,) = (tensor for name, tensor in w.items() if name.endswith("relative_position_bias_table"))
    bias = table[relative_position_index(side)].permute(2, 0, 1)
    for layer in range(student.config.num_hidden_layers):
        p = f"layers.{layer}"
        y = norm(x, f"{p}.layernorm_before")
        q = split(y @ w[f"{p}.attention.q_proj.weight"].T + w[f"{p}.attention.q_proj.bias"])
        k = split(y @ w[f"{p}.attention.k_proj.weight"].T)
        v = split(y @ w[f"{p}.attention.v_proj.weight"].T + w[f"{p}.attention.v_proj.bias"])
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads) + bias
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + w[f"{p}.lambda_1"] * (y @ w[f"{p}.attention.o_proj.weight"].T + w[f"{p}.attention.o_proj.bias"])
        y = norm(x, f"{p}.layernorm_after") @ w[f"{p}.mlp.fc1.weight"].T + w[f"{p}.mlp.fc1.bias"]
        y = nn.functional.gelu(y) @ w[f"{p}.mlp.fc2.weight"].T + w[f"{p}.mlp.fc2.bias"]
        x = x + w[f"{p}.lambda_2"] * y
    return norm(x, "layernorm")


def test_the_student_of_wei_is_transformers_beit_with_the_right_config():
    student = livelier(wei_student(tiny_clip_config(), 24))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases, norms and position biases too
    student = student.double()
    found = tower_features(student, pixels(2).double())
    assert found.shape == (2, 10, 32)
    assert torch.allclose(found, direct(student, pixels(2)), atol=1e-8)


def test_the_student_of_wei_has_what_they_say_and_starts_as_theirs():
    config = wei_student_config(tiny_clip_config(num_hidden_layers=3), 24)
    student = wei_student(tiny_clip_config(num_hidden_layers=3), 24)
    names = dict(student.named_parameters())
    assert not any("position_embeddings" in name for name in names)
    assert sum("relative_position_bias_table" in name for name in names) == 1
    assert not any(name.endswith("k_proj.bias") for name in names)
    assert config.intermediate_size == 4 * config.hidden_size and config.layer_norm_eps == 1e-6
    plain = random_student(config)
    for number, (layer, other) in enumerate(
        zip(transformer_layers(student), transformer_layers(plain), strict=True), start=1
    ):
        assert layer.lambda_1.tolist() == layer.lambda_2.tolist() == pytest.approx([0.1] * 32)
        assert same(layer.mlp.fc2.weight * math.sqrt(2 * number), other.mlp.fc2.weight)
        assert same(layer.attention.o_proj.weight * math.sqrt(2 * number), other.attention.o_proj.weight)
        assert torch.equal(layer.mlp.fc1.weight, other.mlp.fc1.weight)
    assert student.embeddings.cls_token.std() > 0.01
