"""Small random inputs of the losses with heads, and a computation in chunks of few positions."""

import pytest
import torch

from vistok import language_modeling_loss, visual_modeling_loss, visual_token_loss
from vistok.modeling import fused_head_losses, vocabulary_chunks

VOCAB_SIZE, WIDTH, IMAGE_WIDTH = 29, 6, 4
# Loss → what it trains and what it compares with, of the names in `inputs`.
LOSSES = {
    visual_modeling_loss: (("hidden_states", "lm_head_weight"), ("image_features", "vm_head_weight")),
    visual_token_loss: (("image_features", "vm_head_weight"), ("hidden_states", "lm_head_weight")),
    language_modeling_loss: (("hidden_states", "lm_head_weight"), ("labels",)),
}
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def inputs(loss, num_positions: int = 11, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> dict:
    """Arguments of a loss by name; all that is not integer requires a gradient. Every third label is to be ignored."""
    both = {
        "hidden_states": torch.randn(num_positions, WIDTH, dtype=torch.float64),
        "lm_head_weight": torch.randn(VOCAB_SIZE, WIDTH, dtype=torch.float64) * scale,
        "image_features": torch.randn(num_positions, IMAGE_WIDTH, dtype=torch.float64),
        "vm_head_weight": torch.randn(VOCAB_SIZE, IMAGE_WIDTH, dtype=torch.float64) * scale,
    }
    arguments = {name: value.to(dtype).requires_grad_() for name, value in both.items()}
    if loss is language_modeling_loss:
        labels = torch.randint(VOCAB_SIZE, (num_positions,))
        labels[2::3] = -100
        arguments = {name: arguments[name] for name in ("hidden_states", "lm_head_weight")} | {"labels": labels}
    return arguments


def value_and_gradients(loss, arguments: dict, **options) -> tuple[torch.Tensor, dict]:
    """A loss and the gradients of its arguments, None where there is none."""
    value = loss(**arguments, **options)
    names = [name for name, part in arguments.items() if part.requires_grad]
    gradients = torch.autograd.grad(value, [arguments[name] for name in names], allow_unused=True)
    return value.detach(), dict(zip(names, gradients))


def relative_distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def compute_in_chunks(monkeypatch, positions: int) -> None:
    """Also where the vocabulary is small; probabilities are computed for two rows at once, and all paths are taken."""
    monkeypatch.setattr(fused_head_losses, "LEAST_LENT", 1)
    monkeypatch.setattr(fused_head_losses, "CACHE_LINE", 24)
    monkeypatch.setattr(vocabulary_chunks, "POSITIONS_OF_ONE_HEAD", positions)
    monkeypatch.setattr(vocabulary_chunks, "POSITIONS_OF_TWO_HEADS", dict.fromkeys((2, 4, 8), (positions, positions)))
    monkeypatch.setattr(vocabulary_chunks, "SMALL_VOCABULARY", 1)
    monkeypatch.setattr(vocabulary_chunks, "TILE_ON_CPU", dict.fromkeys((2, 4, 8), 2 * VOCAB_SIZE))


@pytest.fixture(params=["chunks of 3 positions", "one chunk"])
def chunk_size(request, monkeypatch):
    """Once in chunks of three positions and tiles of two rows, and once as such small inputs are computed."""
    if request.param == "chunks of 3 positions":
        compute_in_chunks(monkeypatch, 3)
