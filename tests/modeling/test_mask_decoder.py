"""The mask decoder: a mask for every token, whichever tokens are beside it."""

import pytest
import torch

from tests.tiny import same
from vistok import MaskDecoder, MaskDecoderConfig

GRID = (3, 4)


def tiny_decoder(**kwargs) -> MaskDecoder:
    sizes = {"token_size": 12, "patch_hidden_size": 20, "hidden_size": 16, "num_attention_heads": 2}
    return MaskDecoder(MaskDecoderConfig(**{**sizes, "intermediate_size": 32, **kwargs})).eval()


def inputs(batch: int = 2, num_tokens: int = 5):
    return torch.randn(batch, num_tokens, 12), torch.randn(batch, 12, 20)


@pytest.mark.parametrize(("num_upsamplings", "factor"), [(0, 1), (1, 2), (2, 4)])
def test_masks_are_finer_than_the_grid(num_upsamplings, factor):
    tokens, patches = inputs()
    logits = tiny_decoder(num_upsamplings=num_upsamplings)(tokens, None, patches, GRID)
    assert logits.shape == (2, 5, 3 * factor, 4 * factor)
    assert tiny_decoder()(tokens, None, patches, GRID, size=(30, 41)).shape == (2, 5, 30, 41)


def test_a_token_has_the_same_mask_alone_as_among_others():
    decoder, (tokens, patches) = tiny_decoder(), inputs()
    together = decoder(tokens, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool(), patches, GRID)
    alone = decoder(tokens[1:, 1:2], None, patches[1:], GRID)
    assert torch.allclose(alone[0, 0], together[1, 1], atol=1e-5)
    assert together[1, 1].std() > 1e-3


def test_masks_of_padding_are_empty():
    tokens, patches = inputs()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    probabilities = tiny_decoder()(tokens, mask, patches, GRID, size=(9, 9)).sigmoid()
    assert probabilities[~mask].max() == 0
    assert probabilities[mask].min() > 0


def test_masks_follow_the_token_the_patches_and_where_these_are():
    decoder, (tokens, patches) = tiny_decoder(), inputs()
    before = decoder(tokens, None, patches, GRID)
    assert not torch.allclose(decoder(tokens.flip(1), None, patches, GRID), before, atol=1e-3)
    assert not torch.allclose(decoder(tokens, None, patches.flip(0), GRID), before, atol=1e-3)
    same_features = decoder(tokens, None, patches[:, :1].expand(-1, 12, -1), GRID)
    assert same_features[0, 0].std() > 1e-4


def test_eager_attention_gives_the_same_masks():
    decoder, (tokens, patches) = tiny_decoder(), inputs()
    before = decoder(tokens, None, patches, GRID)
    decoder.set_attn_implementation("eager")
    assert torch.allclose(decoder(tokens, None, patches, GRID), before, atol=1e-5)


def test_it_learns_which_patches_belong_to_a_token():
    torch.manual_seed(1)
    decoder, (_, patches) = tiny_decoder(), inputs()
    # The token says the features of the patches that it stands for.
    parts = torch.arange(12) % 4 < 2
    means = torch.stack([patches[:, parts].mean(1), patches[:, ~parts].mean(1)], dim=1)
    tokens = means[..., :12] * 3
    targets = torch.stack([parts, ~parts]).float().unflatten(1, GRID).expand(2, -1, -1, -1)
    targets = torch.nn.functional.interpolate(targets, scale_factor=4)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        logits = decoder(tokens, None, patches, GRID)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()
        optimizer.step()
    assert ((logits > 0) == targets.bool()).float().mean() > 0.97


def test_gradient_checkpointing_changes_no_gradient():
    decoder, (tokens, patches) = tiny_decoder(), inputs()
    decoder.train()
    gradients = []
    for _ in range(2):
        decoder.zero_grad()
        decoder(tokens, None, patches, GRID).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in decoder.parameters()])
        decoder.gradient_checkpointing_enable()
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients))


def test_it_comes_back_from_a_folder(tmp_path):
    decoder, (tokens, patches) = tiny_decoder(), inputs()
    decoder.save_pretrained(tmp_path)
    loaded = MaskDecoder.from_pretrained(tmp_path)
    assert same(loaded(tokens, None, patches, GRID), decoder(tokens, None, patches, GRID))


def test_inputs_that_do_not_fit_are_named():
    decoder, (tokens, patches) = tiny_decoder(), inputs()
    with pytest.raises(ValueError, match=r"\(2, 12, 20\), expected \(2, 16, 20\).*4 × 4 patches"):
        decoder(tokens, None, patches, (4, 4))
    with pytest.raises(ValueError, match=r"\(2, 5, 11\).*token_size=12"):
        decoder(tokens[..., 1:], None, patches, GRID)
    with pytest.raises(ValueError, match=r"mask is torch.float32 of shape \(2, 5\)"):
        decoder(tokens, torch.ones(2, 5), patches, GRID)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="hidden_size=18 is no multiple of num_attention_heads=4"):
        MaskDecoderConfig(hidden_size=18, num_attention_heads=4)
    with pytest.raises(ValueError, match="hidden_size is 20, expected a multiple of 8"):
        MaskDecoderConfig(hidden_size=20, num_attention_heads=2, num_upsamplings=3)
    with pytest.raises(ValueError, match="num_hidden_layers is 0"):
        MaskDecoderConfig(num_hidden_layers=0)
