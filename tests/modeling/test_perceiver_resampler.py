"""The resampler, against a direct transcription of its equations into loops of float64."""

import math

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel

from tests.tiny import livelier, same, tiny_resampler_config
from vistok import PerceiverResampler, PerceiverResamplerConfig

NUM_PATCHES = 7


def resampler(formulation="absorbed", dtype=torch.float64, **kwargs):
    torch.manual_seed(1)
    model = PerceiverResampler(tiny_resampler_config(attention_formulation=formulation, **kwargs))
    livelier(model)
    with torch.no_grad():  # weights of norms that are not ones, or a forgotten norm goes unnoticed
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def features(batch_size=2, width=32, dtype=torch.float64):
    return torch.randn(batch_size, NUM_PATCHES, width, dtype=dtype, generator=torch.Generator().manual_seed(2)) + 0.3


def layer_norm(x, norm):
    centred = x - x.sum() / len(x)
    return centred / ((centred * centred).sum() / len(x) + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend_in_loops(attention, latents, media):
    """q from latents, k and v from [media; latents]; softmax with scale head_dim^-1/2; a head at a time."""
    latents = [layer_norm(latent, attention.latent_norm) for latent in latents]
    keys_values = [layer_norm(token, attention.patch_norm) for token in media] + latents
    width, maps, updates = attention.head_dim, [], []
    for latent in latents:
        heads = []
        for head in range(attention.num_heads):
            rows = slice(head * width, (head + 1) * width)
            query = attention.q_proj.weight[rows] @ latent
            scores = [(query @ (attention.k_proj.weight[rows] @ token)) / math.sqrt(width) for token in keys_values]
            exponentials = [(score - max(scores).detach()).exp() for score in scores]
            shares = [value / sum(exponentials) for value in exponentials]
            values = [attention.v_proj.weight[rows] @ token for token in keys_values]
            heads.append(sum(share * value for share, value in zip(shares, values)))
            maps.append(torch.stack(shares))
        updates.append(attention.o_proj.weight @ torch.cat(heads))
    return updates, torch.stack(maps).unflatten(0, (len(latents), attention.num_heads)).transpose(0, 1)


def resample_in_loops(model, image):
    """Perceiver resampler of GVT for one image `(patches, width)`: tokens, and the attention of every layer."""
    media = [layer_norm(patch, model.patch_norm) for patch in image]
    if model.patch_projection is not None:
        media = [model.patch_projection.weight @ patch for patch in media]
    media = [patch + model.patch_position_embedding[0] for patch in media]
    latents, maps = list(model.latents), []
    for layer in model.layers:
        updates, attention = attend_in_loops(layer.attention, latents, media)
        latents = [latent + update for latent, update in zip(latents, updates)]
        feed_forward = layer.feed_forward
        for index, latent in enumerate(latents):
            hidden = gelu(feed_forward.up_proj.weight @ layer_norm(latent, feed_forward.norm))
            latents[index] = latent + feed_forward.down_proj.weight @ hidden
        maps.append(attention)
    return torch.stack([layer_norm(latent, model.norm) for latent in latents]), maps


def loss_and_gradients(model, tokens, inputs):
    """Gradients of a random projection of the tokens, by parameter name and for the input."""
    direction = torch.randn(tokens.shape, dtype=tokens.dtype, generator=torch.Generator().manual_seed(3))
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad((tokens * direction).sum(), [*parameters, inputs])
    return dict(zip([*names, "input"], gradients))


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
@pytest.mark.parametrize("patch_hidden_size", [32, 24])
def test_tokens_and_gradients_equal_a_transcription_in_loops(formulation, patch_hidden_size):
    model = resampler(formulation, patch_hidden_size=patch_hidden_size)
    assert (model.patch_projection is None) == (patch_hidden_size == 24)
    images = features(width=patch_hidden_size).requires_grad_()
    tokens = model(images).tokens
    expected = torch.stack([resample_in_loops(model, image)[0] for image in images])
    assert tokens.std() > 0.5
    assert (tokens - expected).abs().max() <= 1e-10
    gradients, wanted = loss_and_gradients(model, tokens, images), loss_and_gradients(model, expected, images)
    for name in wanted:
        assert wanted[name].abs().max() > 1e-6, f"{name} gets no gradient: the comparison would be empty"
        assert (gradients[name] - wanted[name]).abs().max() <= 1e-10 * max(1, wanted[name].abs().max()), name


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
def test_attention_maps_equal_a_transcription_in_loops_and_sum_to_one(formulation):
    model = resampler(formulation)
    images = features()
    maps = model(images, output_attentions=True).attentions
    assert len(maps) == 2
    for index, image in enumerate(images):
        for attention, expected in zip(maps, resample_in_loops(model, image)[1]):
            assert attention.shape == (2, 2, 3, NUM_PATCHES + 3)
            assert (attention[index] - expected).abs().max() <= 1e-10
            assert (attention.sum(-1) - 1).abs().max() <= 1e-12
    assert model(images).attentions is None


@pytest.mark.parametrize("sizes", [{}, {"num_latents": 40, "head_dim": 8}, {"num_attention_heads": 1}])
def test_absorbed_and_plain_formulations_are_one_function(sizes):
    absorbed, plain = resampler("absorbed", **sizes), resampler("plain", **sizes)
    plain.load_state_dict(absorbed.state_dict())
    images = features(3).requires_grad_()
    tokens, expected = absorbed(images).tokens, plain(images).tokens
    assert (tokens - expected).abs().max() <= 1e-10
    gradients, wanted = loss_and_gradients(absorbed, tokens, images), loss_and_gradients(plain, expected, images)
    assert all(
        (gradients[name] - wanted[name]).abs().max() <= 1e-10 * max(1, wanted[name].abs().max()) for name in wanted
    )


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_close_to_float64(formulation, dtype, tolerance):
    exact = resampler(formulation)(features()).tokens
    model = resampler(formulation).to(dtype)
    output = model(features().to(dtype), output_attentions=True)
    assert output.tokens.dtype == dtype
    assert output.attentions[0].dtype == dtype
    assert (output.tokens.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_softmax_of_half_precision_scores_is_taken_in_float32():
    from vistok.modeling.perceiver_resampler import stable_softmax

    scores = torch.randn(4, 400).mul(8).to(torch.bfloat16)
    expected = scores.double().softmax(-1).to(torch.bfloat16)
    assert (stable_softmax(scores) != expected).float().mean() < 0.01
    assert stable_softmax(scores.double()).dtype == torch.float64


def test_resampler_of_the_paper_has_its_number_of_parameters():
    with torch.device("meta"):
        model = PerceiverResampler(PerceiverResamplerConfig())
    width, inner, layers, latents = 1024, 16 * 96, 6, 32
    attention = 4 * width * inner + 2 * 2 * width  # q, k, v, out without biases; two norms
    feed_forward = 2 * width * 4 * width + 2 * width
    expected = layers * (attention + feed_forward) + latents * width + width + 2 * 2 * width
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 88_155_136
    assert {type(module) for module in model.modules() if getattr(module, "bias", None) is not None} == {nn.LayerNorm}


def test_initial_latents_are_standard_normal_and_weights_small():
    torch.manual_seed(0)
    model = PerceiverResampler(PerceiverResamplerConfig(num_hidden_layers=1, num_latents=64))
    assert abs(model.latents.mean()) < 0.02
    assert abs(model.latents.std() - 1) < 0.02
    assert abs(model.patch_position_embedding.std() - 0.02) < 0.003
    assert abs(model.layers[0].attention.k_proj.weight.std() - 0.02) < 0.001


def test_order_of_patches_does_not_matter_and_queries_read_all_of_them():
    model, images = resampler(), features()
    tokens = model(images).tokens
    assert torch.allclose(model(images[:, torch.randperm(NUM_PATCHES)]).tokens, tokens, atol=1e-10)
    for patch in range(NUM_PATCHES):
        changed = images.clone()
        changed[:, patch] *= -1
        assert (model(changed).tokens - tokens).abs().amax((1, 2)).min() > 1e-4


def test_output_says_that_every_token_is_real_and_has_no_map_of_clusters():
    output = resampler()(features())
    assert output.tokens.shape == (2, 3, 24)
    assert output.mask.dtype == torch.bool
    assert output.mask.all()
    for name in ("assignment", "cluster_masks", "weights", "scores", "auxiliary_losses"):
        assert output[name] is None if name in output else getattr(output, name) is None


def test_lora_on_a_projection_takes_the_plain_path_and_its_adapter_counts():
    from peft import LoraConfig

    model, plain = resampler(dtype=torch.float32), resampler("plain", dtype=torch.float32)
    images = features(dtype=torch.float32)
    before = model(images).tokens
    model.add_adapter(LoraConfig(r=2, target_modules=["k_proj", "v_proj"]))
    assert type(model.layers[0].attention.k_proj) is not nn.Linear
    assert torch.allclose(model(images).tokens, before, atol=1e-5)  # B is zero at first
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    for layer, adapted in zip(plain.layers, model.layers):
        for name in ("k_proj", "v_proj"):
            projection = getattr(adapted.attention, name)
            delta = projection.lora_B["default"].weight @ projection.lora_A["default"].weight
            getattr(layer.attention, name).weight.data += delta * projection.scaling["default"]
    tokens = model(images).tokens
    assert (tokens - before).abs().max() > 0.01
    assert torch.allclose(tokens, plain(images).tokens, atol=1e-5)
    tokens.sum().backward()
    assert model.layers[0].attention.v_proj.lora_A["default"].weight.grad.abs().max() > 0


class RoundedLinear(nn.Linear):
    """Stands for a quantised projection: its weight is not what it multiplies with."""

    def forward(self, x):
        return nn.functional.linear(x, (self.weight * 8).round() / 8)


def test_projection_that_is_no_plain_matrix_is_not_absorbed():
    model, expected = resampler(), resampler("plain")
    for layer, wanted in zip(model.layers, expected.layers):
        for name in ("k_proj", "v_proj"):
            weight = getattr(layer.attention, name).weight
            rounded = RoundedLinear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            rounded.weight = weight
            setattr(layer.attention, name, rounded)
            getattr(wanted.attention, name).weight.data = (weight.data * 8).round() / 8
    assert (model(features()).tokens - expected(features()).tokens).abs().max() <= 1e-10
    assert (model(features()).tokens - resampler()(features()).tokens).abs().max() > 1e-3


def test_projection_that_zero_3_shards_is_called_and_its_weight_not_read():
    model, expected = resampler(), resampler()
    for layer in model.layers:
        for projection in (layer.attention.k_proj, layer.attention.v_proj):
            whole, empty = projection.weight.data, projection.weight.data.new_empty(0)
            projection.weight.data = empty
            projection.weight.ds_id = 0
            projection.register_forward_pre_hook(lambda module, _, whole=whole: setattr(module.weight, "data", whole))
            projection.register_forward_hook(lambda module, *_, empty=empty: setattr(module.weight, "data", empty))
    assert (model(features()).tokens - expected(features()).tokens).abs().max() <= 1e-10


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
def test_gradient_checkpointing_gives_equal_gradients(formulation):
    plain, checkpointed = resampler(formulation).train(), resampler(formulation).train()
    checkpointed.gradient_checkpointing_enable()
    runs = []
    checkpointed.layers[0].attention.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for model in (plain, checkpointed):
        images = features().requires_grad_()
        gradients.append(loss_and_gradients_by_backward(model, images))
    assert len(runs) == 2, "the layer was not computed again in the backward pass"
    for name, gradient in gradients[0].items():
        assert same(gradient, gradients[1][name]), name


def loss_and_gradients_by_backward(model, images):
    model(images).tokens.pow(3).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()} | {"input": images.grad}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("formulation", ["plain", "absorbed"])
def test_backends_agree(implementation, formulation):
    model = resampler(formulation)
    expected = model(features()).tokens
    model.set_attn_implementation(implementation)
    assert torch.allclose(model(features()).tokens, expected, atol=1e-10)


def test_plain_formulation_uses_a_registered_attention_function_but_not_for_maps():
    calls = []

    def planted(module, query, key, value, attention_mask, scaling, is_causal=None, **kwargs):
        calls.append((query.shape, key.shape, scaling, is_causal))
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("planted_in_resampler", planted)
    model = resampler("plain")
    expected = model(features()).tokens
    model.set_attn_implementation("planted_in_resampler")
    assert (model(features()).tokens - expected).abs().max() > 1e-3
    assert calls == [((2, 2, 3, 10), (2, 2, NUM_PATCHES + 3, 10), 10**-0.5, False)] * 2
    maps = model(features(), output_attentions=True).attentions
    assert all(torch.allclose(attention.sum(-1), torch.ones((), dtype=torch.float64)) for attention in maps)


def test_wrong_width_of_features_is_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"31 wide.*patch_hidden_size=32"):
        resampler()(features(width=31))


def test_save_and_load_by_the_auto_classes(tmp_path):
    model = resampler(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert type(AutoConfig.from_pretrained(tmp_path)) is PerceiverResamplerConfig
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is PerceiverResampler
    images = features(dtype=torch.float32)
    assert same(loaded(images).tokens, model(images).tokens)


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
def test_compiles_without_graph_breaks(formulation):
    model = resampler(formulation, dtype=torch.float32)
    images = features(dtype=torch.float32)
    expected = model(images).tokens
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(images).tokens, expected, atol=1e-5)
