"""SeTok as a visual tokenizer: what it reads, what it says of its tokens, and what training can move."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel

from tests.tiny import livelier
from vistok import SeTokTokenizer, SeTokTokenizerConfig, VisualTokenizer, cluster_patches
from vistok.modeling.sine_positions import sine_positions

GRID = (4, 6)


def patches_of(batch_size=3, width=16):
    """Images of 2, 3, 4 … distinct kinds of patches, so that they need different numbers of tokens."""
    images = []
    for index in range(batch_size):
        kinds = 2 * torch.randn(2 + index, width)
        images.append(kinds[torch.arange(24) * len(kinds) // 24] + 0.2 * torch.randn(24, width))
    return torch.stack(images)


def tokenizer_of(**options):
    sizes = {"patch_hidden_size": 16, "kernel_scale": 0.8, "score_threshold": 0.6}
    return livelier(SeTokTokenizer(SeTokTokenizerConfig(**sizes | options))).eval()


@pytest.mark.parametrize("method", ["iterative", "threshold"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("merger", ["attention", "mean"])
def test_it_is_a_visual_tokenizer_whose_tokens_follow_the_image(method, assignment, merger):
    tokenizer = tokenizer_of(method=method, assignment=assignment, merger=merger, output_size=20, max_tokens=9)
    assert isinstance(tokenizer, VisualTokenizer)
    assert tokenizer.variable_num_tokens
    assert not tokenizer.one_token_per_patch
    assert (tokenizer.output_size, tokenizer.max_num_tokens) == (20, 9)
    patches = patches_of()
    output = tokenizer(patches, GRID)
    counts = output.mask.sum(-1)
    assert len(set(counts.tolist())) > 1
    assert output.tokens.shape == (3, int(counts.max()), 20)
    assert not output.tokens[~output.mask].any()
    assert torch.allclose(output.cluster_masks.sum(1), torch.ones(3, 24), atol=1e-5)
    assert torch.allclose(output.weights.sum(-1), output.mask.float(), atol=1e-5)
    assert (output.weights >= 0).all()
    expected = cluster_patches(
        patches,
        method=method,
        assignment=assignment,
        kernel_scale=0.8,
        score_threshold=0.6,
        max_tokens=9,
        grid_size=GRID,
    )
    for name in ("assignment", "mask", "centers", "scores"):
        assert torch.equal(output[name], expected[name]), name
    assert torch.allclose(output.cluster_masks, expected.cluster_masks, atol=1e-6)


def test_an_image_has_the_same_tokens_alone_and_in_any_batch():
    tokenizer, patches = tokenizer_of(), patches_of(5)
    with torch.no_grad():
        together = tokenizer(patches, GRID)
        for chosen in ([0], [4], [3, 1]):
            some = tokenizer(patches[chosen], GRID)
            width = some.mask.shape[1]
            for name in ("assignment", "scores"):
                assert torch.equal(some[name], together[name][chosen])
            for name in ("cluster_masks", "centers", "mask", "weights", "soft_masks"):
                assert torch.equal(some[name], together[name][chosen][:, :width]), name
            assert torch.allclose(some.tokens, together.tokens[chosen][:, :width], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"normalize_features": True}, {"cluster_with_positions": True}])
def test_distances_are_taken_of_the_features_that_the_config_names(options):
    tokenizer, patches = tokenizer_of(cluster_projection_size=6, **options), patches_of()
    with torch.no_grad():
        tokenizer.cluster_projection.weight.normal_()
    features = patches
    if "cluster_with_positions" in options:
        features = features + sine_positions(GRID, 16)
    features = features @ tokenizer.cluster_projection.weight.t()
    if "normalize_features" in options:
        features = features / features.norm(dim=-1, keepdim=True) * 6**0.5
    output = tokenizer(patches, GRID)
    expected = cluster_patches(features, method="iterative", kernel_scale=0.8, grid_size=GRID)
    assert torch.allclose(output.scores, expected.scores, atol=1e-5)
    assert torch.equal(output.assignment, expected.assignment)
    assert not torch.equal(output.scores, tokenizer_of()(patches, GRID).scores)


def test_projection_is_the_identity_at_first_and_changes_nothing():
    patches = patches_of()
    plain, projected = tokenizer_of(), tokenizer_of(cluster_projection_size=16)
    assert torch.equal(projected.cluster_projection.weight, torch.eye(16))
    assert torch.equal(projected.cluster_features(patches, GRID), patches)
    assert torch.equal(plain(patches, GRID).assignment, projected(patches, GRID).assignment)
    narrow = tokenizer_of(cluster_projection_size=5)
    assert torch.equal(narrow.cluster_features(patches, GRID), patches[..., :5])


@pytest.mark.parametrize("method", ["iterative", "threshold"])
def test_hard_tokens_train_projection_and_kernel_scale_straight_through_the_soft_masks(method):
    tokenizer = tokenizer_of(method=method, cluster_projection_size=16, merger="mean").double()
    patches = patches_of().double()
    output = tokenizer(patches, GRID)
    assert torch.equal(output.cluster_masks.detach().unique(), torch.tensor([0.0, 1.0]).double())
    target = torch.randn_like(output.tokens)
    parameters = [tokenizer.cluster_projection.weight, tokenizer.log_kernel_scale]
    found = torch.autograd.grad((output.tokens * target).sum(), parameters, retain_graph=True)
    soft = output.soft_masks
    hard = torch.nn.functional.one_hot(output.assignment, soft.shape[1]).transpose(1, 2)
    masks = hard + soft - soft.detach()
    tokens = masks @ patches / masks.sum(-1, keepdim=True).where(output.mask.unsqueeze(-1), 1)
    expected = torch.autograd.grad((tokens * target).sum(), parameters)
    for gradient, wanted in zip(found, expected):
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-12)
        assert gradient.abs().max() > 1e-6
    for options in ({"straight_through": False}, {"learn_kernel_scale": False}):
        other = tokenizer_of(method=method, merger="mean", **options)
        assert not other(patches.float(), GRID).tokens.requires_grad


def test_kernel_scale_starts_at_that_of_the_config_and_may_stay_there():
    assert tokenizer_of().log_kernel_scale.exp().item() == pytest.approx(0.8)
    fixed = tokenizer_of(learn_kernel_scale=False)
    assert fixed.log_kernel_scale is None
    patches = patches_of()
    assert torch.allclose(fixed(patches, GRID).tokens, fixed(patches, GRID).tokens)
    assert torch.equal(fixed(patches, GRID).assignment, tokenizer_of()(patches, GRID).assignment)
    wider = tokenizer_of()
    with torch.no_grad():
        wider.log_kernel_scale += 1
    assert wider(patches, GRID).mask.sum() < fixed(patches, GRID).mask.sum(), "wider kernels, fewer tokens"


def test_training_reaches_every_parameter_and_half_precision_works():
    for options in ({}, {"assignment": "soft"}, {"method": "threshold"}):
        tokenizer = tokenizer_of(cluster_projection_size=16, normalize_features=True, **options).train()
        tokenizer(patches_of(), GRID).tokens.square().sum().backward()
        missing = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []
    tokenizer = tokenizer_of(cluster_projection_size=16).bfloat16()
    output = tokenizer(patches_of().bfloat16(), GRID)
    assert output.tokens.dtype == torch.bfloat16
    assert output.cluster_masks.dtype == output.scores.dtype == torch.float32
    assert output.tokens.isfinite().all()


def test_autocast_clusters_in_single_precision():
    tokenizer, patches = tokenizer_of().train(), patches_of()
    expected = tokenizer(patches, GRID)
    with torch.autocast("cpu", torch.bfloat16):
        output = tokenizer(patches, GRID)
    assert torch.equal(output.assignment, expected.assignment)
    assert torch.equal(output.scores, expected.scores)
    assert (output.tokens.float() - expected.tokens).norm() < 0.05 * expected.tokens.norm()
    output.tokens.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in tokenizer.parameters())


def test_gradient_checkpointing_gives_equal_gradients():
    tokenizer, patches = tokenizer_of().train(), patches_of()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            tokenizer.gradient_checkpointing_enable()
        tokenizer.zero_grad()
        tokenizer(patches, GRID).tokens.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in tokenizer.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_backends_agree(implementation):
    tokenizer, patches = tokenizer_of(), patches_of()
    with torch.no_grad():
        expected = tokenizer(patches, GRID).tokens
        tokenizer.set_attn_implementation(implementation)
        assert torch.allclose(tokenizer(patches, GRID).tokens, expected, rtol=1e-4, atol=1e-5)


def test_prefix_tokens_are_dropped_and_a_square_is_assumed_where_the_grid_is_unknown():
    tokenizer = tokenizer_of()
    patches = patches_of()
    with_prefix = torch.cat([5 * torch.randn(3, 2, 16), patches], dim=1)
    expected = tokenizer(patches, GRID)
    assert torch.equal(tokenizer(with_prefix, GRID, num_prefix_tokens=2).assignment, expected.assignment)
    square = torch.randn(1, 16, 16)
    assert torch.equal(tokenizer(square).tokens, tokenizer(square, (4, 4)).tokens)
    with pytest.raises(ValueError, match="24 patches are no square: give grid_size"):
        tokenizer(patches)
    with pytest.raises(ValueError, match='vision_feature_select_strategy="default"'):
        tokenizer(patches, GRID, num_prefix_tokens=None)
    with pytest.raises(ValueError, match=r"15 wide, SeTok expects patch_hidden_size=16"):
        tokenizer(patches[..., :15], GRID)
    with pytest.raises(ValueError, match="4 × 5 has 20 patches, the features are of 24"):
        tokenizer(patches, (4, 5))


def test_save_and_load_by_the_auto_classes(tmp_path):
    tokenizer = tokenizer_of(method="threshold", cluster_projection_size=7, output_size=9)
    with torch.no_grad():
        tokenizer.log_kernel_scale.fill_(0.3)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SeTokTokenizer
    assert type(AutoConfig.from_pretrained(tmp_path)) is SeTokTokenizerConfig
    assert torch.equal(loaded.log_kernel_scale, tokenizer.log_kernel_scale)
    patches = patches_of()
    assert torch.equal(loaded(patches, GRID).tokens, tokenizer(patches, GRID).tokens)


def test_configs_that_contradict_themselves_are_refused():
    for name in ("patch_hidden_size", "num_neighbors", "min_tokens", "max_tokens", "output_size", "merger_num_heads"):
        with pytest.raises(ValueError, match=f"{name} is 0, SeTok needs at least 1"):
            SeTokTokenizerConfig(**{name: 0})
    for name, value in (("stop_threshold", 5.0), ("stop_threshold", float("nan")), ("score_threshold", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            SeTokTokenizerConfig(**{name: value})
    with pytest.raises(ValueError, match="min_tokens=9 is more than max_tokens=8"):
        SeTokTokenizerConfig(min_tokens=9, max_tokens=8)
    with pytest.raises(ValueError, match="kernel_scale is 0"):
        SeTokTokenizerConfig(kernel_scale=0)
    with pytest.raises(ValueError, match="cluster_projection_size=65 is more than the patch features have: 64"):
        SeTokTokenizerConfig(patch_hidden_size=64, cluster_projection_size=65)
    with pytest.raises(ValueError, match="patch_hidden_size=63 does not divide into merger_num_heads=2"):
        SeTokTokenizer(SeTokTokenizerConfig(patch_hidden_size=63))
    with pytest.raises(StrictDataclassFieldValidationError, match=r"expected one of \('iterative', 'threshold'\)"):
        SeTokTokenizerConfig(method="kmeans")
