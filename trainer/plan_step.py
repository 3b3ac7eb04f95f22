"""What a step of a training costs, found by running it on tensors without content."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..modeling.fused_head_losses import fused_divergence
from ..modeling.modeling_vtlmm import VISUAL_LOSSES
from ..modeling.vm_head import last_layer
from ..modeling.vocabulary_chunks import OutputHead
from .freezing import rest_frozen_parts
from .live_memory import LiveMemory

_DEPENDS_ON_DATA = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class StepShape:
    """
    What a process sees in a batch.

    Args:
        rows (`int`): rows of the batch.
        conversations (`int`): conversations in a row, which share its images.
        text_tokens (`int`): of each conversation, without images.
        answer_tokens (`int`): those of them that have labels.
        images (`int`): of a row.
        image_size (`int`): their side, in pixels.
        image_tokens (`int`, *optional*): visual tokens of an image; by default as many as the model makes.
        max_length (`int`, *optional*): most tokens of a row.
    """

    rows: int
    conversations: int
    text_tokens: int
    answer_tokens: int
    images: int
    image_size: int
    image_tokens: int | None = None
    max_length: int | None = None


@dataclass
class StepCosts:
    """
    What a batch costs a process, forward and backward.

    Args:
        flops (`dict[str, int]`): floating-point operations of each part of the computation.
        activation_bytes (`int`): the most memory at a time, above weights, gradients and optimizer.
        tokens (`int`): that the language model reads.
        image_tokens (`int`): of an image.
        notes (`list[str]`): what was not counted.
    """

    flops: dict[str, int]
    activation_bytes: int
    tokens: int
    image_tokens: int
    notes: list[str]


def _sdpa_forward(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _sdpa_backward(grad_out_shape, query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_out_shape, query_shape, key_shape, value_shape)


_ON_CPU = {  # which torch does not count
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


class StepCounter:
    """
    Counts operations part by part and watches the memory of a step.

    Args:
        memory ([`LiveMemory`]): active while the step runs.
    """

    def __init__(self, memory: LiveMemory):
        self.flops: dict[str, int] = {}
        self.memory = memory

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs within is counted as this part."""
        with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
            yield
        self.flops[name] = self.flops.get(name, 0) + counter.get_total_flops()


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Within, tensors have shapes and types and no content."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextlib.contextmanager
def counted_step(parameters: Any, autocast: torch.dtype | None) -> Iterator[StepCounter]:
    """
    Runs a step as a training would that has been going on: with gradients in place, in its precision.

    Args:
        parameters (iterable of `torch.nn.Parameter`): of the model.
        autocast (`torch.dtype`, *optional*): of mixed precision.
    """
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    memory = LiveMemory()
    with memory, torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        yield StepCounter(memory)


def composed_step(
    model: Any,
    trainable: dict[str, str],
    shape: StepShape,
    autocast: torch.dtype | None = None,
    cached_features: bool = False,
    gradient_checkpointing: bool = False,
    visual_loss: str | None = None,
) -> StepCosts:
    """
    A step of a model that is composed of tower, visual tokenizer and language model; called within [`fake_tensors`].

    Args:
        model (`PreTrainedModel`): frozen and opened, of fake tensors.
        trainable (`dict[str, str]`): how each part is trained.
        shape ([`StepShape`]): of its batch.
        autocast (`torch.dtype`, *optional*): of mixed precision.
        cached_features (`bool`): whether the tower's features are read from a cache.
        gradient_checkpointing (`bool`): whether layers are computed twice.
        visual_loss (`str`, *optional*): of a VT-LMM: `"visual_modeling"` or `"visual_tokens"`.
    """
    model.train()
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    rest_frozen_parts(model, trainable)
    images = torch.empty(shape.rows * shape.images, 3, shape.image_size, shape.image_size)
    features, notes = None, []
    if cached_features and shape.images:
        with torch.no_grad():
            features = _features(model, images)
    with counted_step(model.parameters(), autocast) as counter:
        grads = torch.set_grad_enabled(visual_loss != "visual_tokens")
        with grads:
            tokens = None
            if shape.images:
                if features is None:
                    with counter.part("vision tower"):
                        features = _features(model, images)
                with counter.part("visual tokenizer"):
                    tokens, note = _visual_tokens(model, features, shape)
                notes += note
            num_tokens = 0 if tokens is None else tokens.shape[1]
            with counter.part("language model"):
                hidden = _read(model, tokens, shape, visual_loss)
        with counter.part("losses"):
            loss = _losses(model, hidden, tokens, shape, visual_loss)
        with counter.part("backward"):
            loss.backward(torch.tensor(1.0))  # whose content is known, as losses ask
        peak = counter.memory.peak
    return StepCosts(counter.flops, peak, hidden.shape[0] * hidden.shape[1], num_tokens, notes)


def _features(model: Any, images: torch.Tensor) -> Any:
    core = model.model
    # Images are given in float32; a tower's first layer brings them to its own type.
    return core.get_vision_features(images)


def _visual_tokens(model: Any, features: Any, shape: StepShape) -> tuple[torch.Tensor, list[str]]:
    core = model.model
    try:
        tokens = core.project(core.tokenize(features).tokens)
        notes = []
    except _DEPENDS_ON_DATA:
        tokenizer = core.visual_tokenizer
        count = shape.image_tokens or tokenizer.max_num_tokens
        tokens = core.project(torch.empty(len(features.patch_features), count, tokenizer.output_size))
        notes = ["how many tokens an image has depends on what it shows: clustering and merging are not counted"]
    if shape.image_tokens is not None:
        tokens = tokens[:, : shape.image_tokens]
    return tokens, notes


def _read(model: Any, tokens: torch.Tensor | None, shape: StepShape, visual_loss: str | None) -> torch.Tensor:
    core = model.model
    text = 0 if visual_loss == "visual_tokens" else shape.conversations * shape.text_tokens
    ids = torch.zeros(shape.rows, max(text, 0 if tokens is not None else 1), dtype=torch.long)
    embedded = core.get_input_embeddings()(ids)
    if tokens is not None:
        of_rows = tokens.reshape(shape.rows, -1, tokens.shape[-1]).to(embedded.dtype)
        embedded = torch.cat([of_rows, embedded], 1)
    embedded = embedded[:, : shape.max_length]
    mask = torch.ones(embedded.shape[:2], dtype=torch.long)
    outputs = core.language_model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, return_dict=True)
    return outputs.last_hidden_state


def _losses(model: Any, hidden: torch.Tensor, tokens: Any, shape: StepShape, visual_loss: str | None) -> torch.Tensor:
    fused = hasattr(model.model, "vm_head")
    width = hidden.shape[-1]
    parts: list[torch.Tensor] = []
    if visual_loss != "visual_tokens":
        answers = min(shape.conversations * shape.answer_tokens, hidden.shape[1])
        rows = hidden[:, -answers:].reshape(-1, width)
        labels = torch.zeros(len(rows), dtype=torch.long)
        if fused:
            head = OutputHead.of(rows, model.lm_head.weight, model.lm_head.bias)
            parts.append(fused_divergence(head, labels, 1.0))
        else:
            parts.append(torch.nn.functional.cross_entropy(model.lm_head(rows).float(), labels))
    if visual_loss is not None:
        count = tokens.shape[1] * shape.images
        states = hidden[:, :count].reshape(-1, width)
        features, weight = last_layer(model.model.vm_head, tokens.reshape(-1, tokens.shape[-1]))
        loss = VISUAL_LOSSES[visual_loss]
        head = {"lm_head_weight": model.lm_head.weight, "lm_head_bias": model.lm_head.bias}
        parts.append(loss(states, image_features=features, vm_head_weight=weight, num_items=1, **head))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


__all__ = ["StepCosts", "StepCounter", "StepShape", "composed_step", "counted_step", "fake_tensors"]
