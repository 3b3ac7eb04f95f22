"""Queries that stand for squares of the image: previews and placements beside slow direct computations."""

import math

import pytest
import torch

from tests.tiny import calls
from tests.tiny_setok import (
    DRAWN_SIZE,
    GRID,
    TOKEN_SIZE,
    seeds,
    tiny_detokenizer_config,
    tiny_mapper_config,
    tiny_setok,
    tiny_unet_config,
    tokens_of,
)
from vistok import FeatureMapper, FeatureMapperConfig, ImageDetokenizer
from vistok.modeling.query_grid import QueryGrid
from vistok.modeling.sine_positions import sine_positions

SIDE = 2
MAPPER = tiny_mapper_config(num_queries=SIDE**2, query_grid=True)


def tiny_grid_detokenizer(latent: bool = False, **kwargs) -> ImageDetokenizer:
    torch.manual_seed(0)
    return ImageDetokenizer(tiny_detokenizer_config(latent, mapper_config=MAPPER, **kwargs)).eval()


def cluster_masks_of(assignment: list[list[int]], num_tokens: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(assignment), num_tokens).transpose(1, 2).float()


def test_the_preview_of_each_square_is_compared_with_its_pixels():
    grid, condition = QueryGrid(SIDE, 20, TOKEN_SIZE, 3, DRAWN_SIZE), torch.randn(2, SIDE**2, 20)
    pixels, cell = torch.randn(2, 3, DRAWN_SIZE, DRAWN_SIZE), DRAWN_SIZE // SIDE
    found = grid.preview_loss(condition, pixels)
    for image in range(2):
        errors = []
        for query in range(SIDE**2):
            row, column = divmod(query, SIDE)
            square = pixels[image, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            errors.append(
                (grid.preview(condition[image, query]).view(3, cell, cell) - square).double().square().mean()
            )
        assert found[image].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


@pytest.mark.parametrize("grid_size", [(4, 4), (6, 2), (3, 5)])
def test_the_placement_is_the_cross_entropy_with_the_shares_of_a_square(grid_size):
    grid, (tokens, mask) = QueryGrid(SIDE, 20, TOKEN_SIZE, 3, DRAWN_SIZE), tokens_of(3, 2)
    condition, patches = torch.randn(2, SIDE**2, 20), math.prod(grid_size)
    assignment = [[place % 3 for place in range(patches)], [place % 2 for place in range(patches)]]
    masks = cluster_masks_of(assignment, 3)
    found = grid.placement_loss(condition, tokens, mask, masks, grid_size)
    edges = [[(i * n // SIDE, -(-(i + 1) * n // SIDE)) for i in range(SIDE)] for n in grid_size]
    for image in range(2):
        total = 0.0
        for query in range(SIDE**2):
            (top, bottom), (left, right) = edges[0][query // SIDE], edges[1][query % SIDE]
            count = int(mask[image].sum())
            keys = [grid.place_key(grid.token_norm(token)).double() for token in tokens[image, :count]]
            logits = torch.stack([key @ grid.place_query(condition[image, query]).double() for key in keys])
            shown = masks[image].view(3, *grid_size)[:count, top:bottom, left:right].double().mean((1, 2))
            total -= (shown * (logits / math.sqrt(20)).log_softmax(0)).sum().item() / SIDE**2
        assert found[image].item() == pytest.approx(total, rel=1e-4)


def test_padding_changes_neither_placement_nor_its_gradient():
    grid, (tokens, mask) = QueryGrid(SIDE, 20, TOKEN_SIZE, 3, DRAWN_SIZE), tokens_of(4, 2)
    condition, masks = torch.randn(2, SIDE**2, 20), cluster_masks_of([[0, 1, 2, 3], [0, 1, 1, 0]], 4)
    alone = grid.placement_loss(condition[1:], tokens[1:, :2], None, masks[1:, :2], (2, 2))
    padded = tokens.clone().requires_grad_()
    loss = grid.placement_loss(condition, padded, mask, masks, (2, 2))
    assert torch.allclose(loss[1:], alone, atol=1e-6)
    loss.sum().backward()
    assert padded.grad[1, 2:].abs().max() == 0 and padded.grad.isfinite().all()


def test_queries_start_as_positions_and_only_in_a_grid():
    mapper = FeatureMapper(FeatureMapperConfig(**MAPPER, condition_size=20))
    assert torch.allclose(mapper.queries[0], sine_positions((SIDE, SIDE), 16) * 2**0.5)
    with pytest.raises(ValueError, match="num_queries is 3, but with query_grid"):
        FeatureMapperConfig(**tiny_mapper_config(query_grid=True))
    with pytest.raises(ValueError, match=r"num_queries=9 with query_grid, but its 3 × 3 squares do not .* 8 × 8"):
        tiny_detokenizer_config(mapper_config=tiny_mapper_config(num_queries=9, query_grid=True))


@pytest.mark.parametrize("latent", [False, True])
def test_dropped_images_count_nothing(latent, monkeypatch):
    model, (tokens, mask) = tiny_grid_detokenizer(latent), tokens_of(4, 2)
    pixels = torch.rand(2, 3, model.config.image_size, model.config.image_size, generator=seeds(7)[0])
    masks = cluster_masks_of([[0, 1, 2, 3], [0, 1, 1, 0]], 4)
    options = {"cluster_masks": masks, "grid_size": (2, 2), "timesteps": torch.tensor([3, 4])}
    alone = model(tokens[:1], mask[:1], pixels[:1], generator=seeds(5), **{**options, "cluster_masks": masks[:1],
                  "timesteps": torch.tensor([3])})  # fmt: skip
    model.train()
    monkeypatch.setattr(model, "_random", lambda *_, **__: torch.tensor([1.0, 0.0]))  # the second is dropped
    both = model(tokens, mask, pixels, generator=seeds(5, 6), **options)
    assert both.preview_loss.item() == pytest.approx(alone.preview_loss.item() / 2, rel=1e-4)
    assert both.placement_loss.item() == pytest.approx(alone.placement_loss.item() / 2, rel=1e-4)
    monkeypatch.setattr(model, "_random", lambda *_, **__: torch.zeros(2))
    assert model(tokens, mask, pixels, generator=seeds(5, 6), **options).preview_loss == 0
    assert model(tokens, mask, pixels, timesteps=options["timesteps"]).placement_loss is None


def test_the_heads_train_the_mapper_come_back_and_leave_drawing_alone(tmp_path):
    model, (tokens, mask) = tiny_grid_detokenizer(), tokens_of(4, 2)
    masks = cluster_masks_of([[0, 1, 2, 3], [0, 1, 1, 0]], 4)
    pixels = torch.rand(2, 3, DRAWN_SIZE, DRAWN_SIZE)
    output = model(tokens, mask, pixels, cluster_masks=masks, grid_size=(2, 2))
    (output.preview_loss + output.placement_loss).backward()
    moved = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {"mapper", "query_grid"}
    drawn = model.sample(tokens, mask, seeds(1, 2), num_inference_steps=2)
    model.save_pretrained(tmp_path)
    loaded = ImageDetokenizer.from_pretrained(tmp_path).eval()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    torch.nn.init.normal_(loaded.query_grid.preview.weight)
    assert torch.equal(loaded.sample(tokens, mask, seeds(1, 2), num_inference_steps=2), drawn)


def test_stage_one_a_has_both_terms():
    detokenizer = tiny_detokenizer_config(mapper_config=MAPPER)
    model = tiny_setok(detokenizer_config=detokenizer, preview_weight=2.0, placement_weight=3.0)
    pixel_values = torch.randn(2, 3, 24, 24)
    drawn = torch.rand(2, 3, DRAWN_SIZE, DRAWN_SIZE)
    output = model(pixel_values, drawn, phase="reconstruction", generator=seeds(1, 2))
    total = output.loss_reconstruction + 2 * output.loss_preview + 3 * output.loss_placement
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)
    encoded = model.vision_model(pixel_values)
    condition = model.detokenizer.mapper(encoded.tokens, encoded.mask)
    expected = model.detokenizer.query_grid.placement_loss(
        condition, encoded.tokens, encoded.mask, encoded.cluster_masks, GRID
    )
    assert output.loss_placement.item() == pytest.approx(expected.mean().item(), rel=1e-4)
    model.train_phase("reconstruction")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "detokenizer.query_grid.preview.weight" in trained


@pytest.mark.parametrize("latent", [False, True])
def test_the_unet_may_see_the_preview(latent, monkeypatch):
    channels = 4 if latent else 3
    unet = tiny_unet_config(in_channels=2 * channels + 4, out_channels=channels)
    whole = {"trained_unet_parts": "all"}
    model = tiny_grid_detokenizer(latent, unet_config=unet, preview_channels=True, num_position_channels=4, **whole)
    (tokens, mask), seen = tokens_of(4, 2), calls(monkeypatch, type(model.unet), "forward")
    condition = model.mapper(tokens, mask)
    drawn = model.sample(tokens, mask, seeds(1, 2), num_inference_steps=2, guidance_scale=1)
    for (_, samples, *_), _ in seen:
        assert samples.shape[1] == 2 * channels + 4
        assert torch.allclose(samples[:, channels : 2 * channels], model.query_grid.previews(condition), atol=1e-6)
        assert torch.equal(samples[0, 2 * channels :], samples[1, 2 * channels :])  # positions
    pixels = torch.rand(2, 3, model.config.image_size, model.config.image_size)
    model(tokens, mask, pixels).loss.backward()
    assert model.query_grid.preview.weight.grad is None and model.mapper.queries.grad.abs().max() > 0
    with torch.no_grad():
        model.query_grid.preview.bias += 1.0
    assert not torch.allclose(model.sample(tokens, mask, seeds(1, 2), 2, 1.0), drawn, atol=1e-3)
    with pytest.raises(ValueError, match=f"expected {2 * channels + 4} and {channels}.*{channels} of a preview"):
        tiny_grid_detokenizer(latent, preview_channels=True, num_position_channels=4, **whole)
    with pytest.raises(ValueError, match="preview_channels are of what the mapper's queries preview"):
        tiny_detokenizer_config(latent, preview_channels=True)
    with pytest.raises(ValueError, match="trained_unet_parts is 'keys_values', but the U-Net's first layer"):
        tiny_detokenizer_config(latent, mapper_config=MAPPER, preview_channels=True)
    with pytest.raises(ValueError, match="give both or neither"):
        model(tokens, mask, pixels, grid_size=(2, 2))
