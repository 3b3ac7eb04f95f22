"""Stochastic depth (drop path) for any vision transformer: its own where it has one, around whole layers elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class DropPath(nn.Module):
    """
    Leaves a residual branch out for some images of a batch, and scales it up for the others (Huang et al. 2016). Does
    nothing outside training.

    Args:
        rate (`float`): how often it is left out.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """`(batch, …)`: what is to be added to the stream."""
        if not self.training or self.rate == 0.0:
            return branch
        shape = (len(branch), *[1] * (branch.ndim - 1))
        kept = torch.rand(shape, device=branch.device) >= self.rate
        return branch * (kept.to(branch.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class _AroundLayer:
    """A forward hook: drop path of all that a layer adds to its input."""

    def __init__(self, rate: float):
        self.drop_path = DropPath(rate)
        self._handle: Any = None

    def register(self, layer: nn.Module) -> None:
        self._handle = layer.register_forward_hook(self, with_kwargs=True)

    def remove(self) -> None:
        self._handle.remove()

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if not layer.training:
            return None
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        after = before + self.drop_path(after - before)
        return (after, *output[1:]) if isinstance(output, tuple) else after


def set_drop_path(vision_tower: PreTrainedModel, rate: float) -> list[float]:
    """
    Gives the layers of a vision transformer drop path with rates that grow linearly from 0 to `rate`. Layers with
    modules `drop_path…` of their own get these replaced; around others, all that a layer adds is dropped together.
    Nothing that is saved changes. Called again, it sets other rates.

    Args:
        vision_tower (`PreTrainedModel`): to be trained.
        rate (`float`): of the last layer.

    Returns:
        `list[float]`: the rates.

    Raises:
        ValueError: if the layers are not found.
    """
    layers = transformer_layers(vision_tower)
    rates = [rate * index / max(len(layers) - 1, 1) for index in range(len(layers))]
    for layer, layer_rate in zip(layers, rates, strict=True):
        own = [name for name, _ in layer.named_children() if name.startswith("drop_path")]
        for name in own:
            setattr(layer, name, DropPath(layer_rate))
        for hook in _hooks(layer):
            hook.remove()
        if not own and layer_rate > 0:
            _AroundLayer(layer_rate).register(layer)
    return rates


@contextlib.contextmanager
def drop_path(vision_tower: PreTrainedModel, rate: float) -> Iterator[list[float]]:
    """
    The same for a while: the tower is then as it was before.

    Args:
        vision_tower, rate: as in [`set_drop_path`].

    Yields:
        `list[float]`: the rates.

    Raises:
        ValueError: if the layers are not found.
    """
    layers = transformer_layers(vision_tower)
    modules = [
        (layer, name, module)
        for layer in layers
        for name, module in layer.named_children()
        if name.startswith("drop_path")
    ]
    hooks = [(layer, hook) for layer in layers for hook in _hooks(layer)]
    try:
        yield set_drop_path(vision_tower, rate)
    finally:
        for layer in layers:
            for hook in _hooks(layer):
                hook.remove()
        for layer, hook in hooks:
            hook.register(layer)
        for layer, name, module in modules:
            setattr(layer, name, module.train(layer.training))


def _hooks(layer: nn.Module) -> list[_AroundLayer]:
    return [hook for hook in layer._forward_hooks.values() if isinstance(hook, _AroundLayer)]


def transformer_layers(vision_tower: PreTrainedModel) -> nn.ModuleList:
    """
    The layers of a vision transformer, in order.

    Args:
        vision_tower (`PreTrainedModel`): its config says how many there are (`num_hidden_layers`).

    Raises:
        ValueError: if there is no list of so many modules.
    """
    count = getattr(vision_tower.config, "num_hidden_layers", None)
    found = [module for module in vision_tower.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not found:
        raise ValueError(
            f"{type(vision_tower).__name__} has no list of {count} layers (num_hidden_layers of its config) to drop: "
            "set drop_path_rate to 0."
        )
    return found[0]


__all__ = ["DropPath", "drop_path", "set_drop_path", "transformer_layers"]
