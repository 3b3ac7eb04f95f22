"""The cluster merger against loops over images, clusters and heads, written from its weights."""

import math

import pytest
import torch

from tests.tiny import calls, livelier
from vistok import SeTokTokenizer, SeTokTokenizerConfig
from vistok.modeling.cluster_merger import patch_weights
from vistok.modeling.packed_segments import PackedSegments
from vistok.modeling.patch_clusters import PatchClusters
from vistok.modeling.sine_positions import sine_positions

GRID = (3, 5)
COUNTS = (2, 4, 1)


def clusters_of(kind="hard"):
    """Three images of 15 patches in 2, 4 and 1 clusters."""
    mask = torch.arange(4) < torch.tensor(COUNTS)[:, None]
    assignment = torch.stack([torch.randint(count, (15,)) for count in COUNTS])
    assignment[:, :4] = torch.stack([torch.arange(4) % count for count in COUNTS])
    masks = torch.nn.functional.one_hot(assignment, 4).transpose(1, 2).double()
    if kind == "soft":
        masks = torch.rand(3, 4, 15, dtype=torch.float64).masked_fill(~mask.unsqueeze(-1), 0)
        masks = masks / masks.sum(1, keepdim=True)
    return PatchClusters(cluster_masks=masks, assignment=assignment, mask=mask)


def merger_of(**options):
    config = SeTokTokenizerConfig(patch_hidden_size=12, **{"output_size": 10, **options})
    return livelier(SeTokTokenizer(config)).double().merger


def slow_norm(states, norm):
    centered = states - states.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def slow_linear(states, linear):
    return states @ linear.weight.t() + linear.bias


def slow_layer(states, layer, num_heads=2):
    """One layer on the items of one segment, `(num_items, hidden_size)`, head by head."""
    normed = slow_norm(states, layer.attention_norm)
    query, key, value = (
        slow_linear(normed, projection)
        for projection in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
    )
    width = states.shape[-1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].t() / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ value[:, part])
    states = states + slow_linear(torch.cat(heads, dim=-1), layer.attention.o_proj)
    inner = slow_linear(slow_norm(states, layer.feed_forward_norm), layer.feed_forward.up_proj)
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return states + slow_linear(inner, layer.feed_forward.down_proj)


def slow_tokens(merger, patches, clusters, kind):
    """The tokens of each image, `(num_clusters, output_size)`."""
    positions = sine_positions(GRID, 12).double()
    images = []
    for index, count in enumerate(COUNTS):
        states, means = patches[index] + positions, []
        for cluster in range(count):
            if kind == "hard":
                members = states[clusters.assignment[index] == cluster]
                for layer in merger.within_layers:
                    members = slow_layer(members, layer)
                means.append(members.mean(0))
            else:
                weights = clusters.cluster_masks[index, cluster]
                means.append((weights[:, None] * states).sum(0) / weights.sum())
        tokens = torch.stack(means)
        for layer in merger.between_layers:
            tokens = slow_layer(tokens, layer)
        images.append(slow_linear(slow_norm(tokens, merger.norm), merger.output_projection))
    return images


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_tokens_and_gradients_equal_a_loop_over_clusters(kind):
    merger, clusters = merger_of(assignment=kind), clusters_of(kind)
    patches = torch.randn(3, 15, 12, dtype=torch.float64, requires_grad=True)
    tokens, weights = merger(patches, clusters, GRID)
    expected = slow_tokens(merger, patches, clusters, kind)
    assert tokens.shape == (3, 4, 10)
    for found, image, count in zip(tokens, expected, COUNTS):
        assert torch.allclose(found[:count], image, rtol=1e-9, atol=1e-11)
        assert not found[count:].any(), "padding is zero"
    direction = torch.randn(3, 4, 10, dtype=torch.float64)
    inputs = [patches, *merger.parameters()]
    gradients = torch.autograd.grad((tokens * direction).sum(), inputs)
    loss = sum((image * direction[index, : len(image)]).sum() for index, image in enumerate(expected))
    for found, wanted in zip(gradients, torch.autograd.grad(loss, inputs)):
        assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-10)
    assert torch.allclose(weights.sum(-1), clusters.mask.double())


def test_no_patch_sees_another_cluster_before_the_mean():
    merger, clusters = merger_of(), clusters_of()
    patches = torch.randn(3, 15, 12, dtype=torch.float64)
    states = merger._merge_within(patches, clusters)
    elsewhere = clusters.assignment[0] == 1
    patches[0, elsewhere] += 1
    again = merger._merge_within(patches, clusters)
    changed = (states != again).any(-1)
    assert torch.equal(changed[0], elsewhere)
    assert not changed[1:].any()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_mean_merger_is_the_mean_of_the_patches_and_nothing_else(kind):
    clusters = clusters_of(kind)
    patches = torch.randn(3, 15, 12, dtype=torch.float64)
    merger = merger_of(merger="mean", assignment=kind, output_size=12)
    assert not list(merger.parameters())
    tokens, weights = merger(patches, clusters, GRID)
    expected = clusters.cluster_masks @ patches / clusters.cluster_masks.sum(-1, keepdim=True).clamp(min=1e-9)
    assert torch.allclose(tokens, expected)
    assert torch.allclose(tokens, weights @ patches)
    wider = merger_of(merger="mean", assignment=kind, output_size=20)
    tokens = wider(patches, clusters, GRID)[0]
    assert torch.allclose(tokens, (expected @ wider.output_projection.weight.t()) * clusters.mask.unsqueeze(-1))


def test_position_embedding_can_be_left_out():
    clusters, patches = clusters_of(), torch.randn(3, 15, 12, dtype=torch.float64)
    with_positions, without = merger_of(), merger_of(position_embedding=False)
    without.load_state_dict(with_positions.state_dict())
    positions = sine_positions(GRID, 12).double()
    assert torch.equal(with_positions(patches, clusters, GRID)[0], without(patches + positions, clusters, GRID)[0])
    assert not torch.allclose(with_positions(patches, clusters, GRID)[0], without(patches, clusters, GRID)[0])


def test_layers_between_tokens_pass_real_tokens_alone(monkeypatch):
    merger, clusters = merger_of(), clusters_of()
    recorded = calls(monkeypatch, type(merger.norm), "forward")
    merger(torch.randn(3, 15, 12, dtype=torch.float64), clusters, GRID)
    assert {args[1].shape[0] for args, _ in recorded} == {45, sum(COUNTS)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close_to_float64(dtype):
    merger, clusters = merger_of(), clusters_of()
    patches = torch.randn(3, 15, 12, dtype=torch.float64)
    expected = merger(patches, clusters, GRID)[0]
    tokens = merger.to(dtype)(patches.to(dtype), clusters, GRID)[0]
    assert tokens.dtype == dtype
    error = (tokens.double() - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]


def test_segments_of_one_length_lie_side_by_side():
    segments = torch.tensor([4, 0, 4, 2, 0, 4, 7, 2])
    packed = PackedSegments.of(segments, 9)
    assert packed.buckets == [(1, 1), (2, 2), (1, 3)]
    assert segments[packed.order].tolist() == [7, 0, 0, 2, 2, 4, 4, 4]
    items = torch.randn(8, 3)
    assert torch.equal(packed.unpack(packed.pack(items)), items)


def test_weights_are_masks_normalised_over_patches():
    weights = patch_weights(torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]]))
    assert torch.allclose(weights, torch.tensor([[[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3], [0, 0, 0]]]))


@pytest.mark.parametrize("width", [8, 16, 19, 3])
def test_positions_are_sines_and_cosines_of_row_and_column(width):
    positions = sine_positions((3, 4), width)
    assert positions.shape == (12, width)
    waves = width // 4
    for patch in range(12):
        row, column = divmod(patch, 4)
        expected = []
        for coordinate in (row, column):
            angles = [coordinate / 10000 ** (wave / waves) for wave in range(waves)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        expected += [0.0] * (width - len(expected))
        assert torch.allclose(positions[patch], torch.tensor(expected), atol=1e-6)
