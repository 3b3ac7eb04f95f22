"""What a step of a training costs, found by running it on tensors without content."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from ..modeling.final_features import tower_features
from ..modeling.fused_head_losses import fused_divergence
from ..modeling.modeling_vtlmm import VISUAL_LOSSES
from ..modeling.setok_tokenizer import SeTokTokenizer
from ..modeling.vm_head import last_layer
from .freezing import rest_frozen_parts
from .live_costs import LiveCosts
from .plan_clusters import CLUSTERS, Part, fixed_clusters
from .plan_setokim import text_head, written_losses

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
        writes (`tuple[str, ...]`): what a row of Setokim writes: its `"images"`, a `"mask"`, or both.
    """

    rows: int
    conversations: int
    text_tokens: int
    answer_tokens: int
    images: int
    image_size: int
    image_tokens: int | None = None
    max_length: int | None = None
    writes: tuple[str, ...] = ()


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


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Within, tensors have shapes and types and no content."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def run_step(
    step: Callable[[Part], torch.Tensor], parameters: Iterable[torch.nn.Parameter], autocast: torch.dtype | None = None
) -> LiveCosts:
    """
    Runs a step as a training would that has been going on, with gradients in place.

    Args:
        step (`Callable`): makes the loss, and says of which parts.
        parameters (iterable of `torch.nn.Parameter`): of what is trained.
        autocast (`torch.dtype`, *optional*): of mixed precision.

    Returns:
        [`LiveCosts`]: operations of each part, forward, and of `"backward"`; and memory above weights and gradients.
    """
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with LiveCosts() as costs:
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = step(costs.part)
        with costs.part("backward"):
            loss.backward(torch.tensor(1.0))  # whose content is known, as losses ask
    return costs


def composed_step(
    model: Any,
    trainable: Mapping[str, str],
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
        checkpoint_layers(model)
    rest_frozen_parts(model, trainable)
    images = torch.empty(shape.rows * shape.images, 3, shape.image_size, shape.image_size)
    cached, notes, read = None, set[str](), dict[str, int]()
    if cached_features and shape.images:
        with torch.no_grad():
            cached = model.model.get_vision_features(images)

    def step(part: Part) -> torch.Tensor:
        tokens, features = None, cached
        with torch.set_grad_enabled(visual_loss != "visual_tokens"):
            if shape.images:
                if features is None:
                    with part("vision tower"):
                        features = model.model.get_vision_features(images)
                with part("visual tokenizer"):
                    tokens = _visual_tokens(model, features, shape, notes, part)
            with part("language model"):
                hidden = _read(model, tokens, shape, visual_loss)
        read.update(tokens=hidden.shape[0] * hidden.shape[1], of_image=0 if tokens is None else tokens.shape[1])
        with part("losses"):
            losses = _losses(model, hidden, tokens, shape, visual_loss)
            if shape.writes and tokens is not None:
                losses += written_losses(model, hidden, features, tokens.shape[1], shape, part)
            return functools.reduce(torch.add, losses)  # which hands on the gradient that is known

    costs = run_step(step, model.parameters(), autocast)
    return StepCosts(costs.flops, costs.peak, read["tokens"], read["of_image"], sorted(notes))


def distillation_step(
    distilled: Any,
    teacher: Any,
    shape: StepShape,
    teacher_size: int,
    teacher_layer: int | None,
    autocast: torch.dtype | None = None,
    cached_features: bool = False,
    gradient_checkpointing: bool = False,
) -> StepCosts:
    """
    A step of feature distillation; called within [`fake_tensors`].

    Args:
        distilled ([`DistilledStudent`]): of fake tensors.
        teacher (`PreTrainedModel`): frozen.
        shape ([`StepShape`]): `rows` images of `image_size`.
        teacher_size (`int`): side of the teacher's images, in pixels.
        teacher_layer (`int`, *optional*): of which features are learned.
        autocast, cached_features, gradient_checkpointing: as in [`composed_step`].
    """
    distilled.train()
    if gradient_checkpointing:
        checkpoint_layers(distilled)
    images = torch.empty(shape.rows, 3, shape.image_size, shape.image_size)
    of_teacher = torch.empty(shape.rows, 3, teacher_size, teacher_size)

    def look() -> torch.Tensor:
        with torch.no_grad():
            return tower_features(teacher, of_teacher, teacher_layer)

    cached = look() if cached_features else None

    def step(part: Part) -> torch.Tensor:
        features = cached
        if features is None:
            with part("teacher"):
                features = look()
        with part("student"):
            return distilled(images, features)["loss"]

    costs = run_step(step, distilled.parameters(), autocast)
    return StepCosts(costs.flops, costs.peak, 0, 0, [])


def checkpoint_layers(model: Any) -> None:
    """Lets layers be computed twice; by the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def _visual_tokens(model: Any, features: Any, shape: StepShape, notes: set[str], part: Part) -> torch.Tensor:
    core = model.model
    if isinstance(core.visual_tokenizer, SeTokTokenizer):
        with fixed_clusters(core.visual_tokenizer, shape.image_tokens, part):
            tokens = core.project(core.tokenize(features).tokens)
        notes.add(CLUSTERS.format(tokens.shape[1]))
        return tokens
    try:
        tokens = core.project(core.tokenize(features).tokens)
    except _DEPENDS_ON_DATA:
        tokenizer = core.visual_tokenizer
        count = shape.image_tokens or tokenizer.max_num_tokens
        tokens = core.project(torch.empty(len(features.patch_features), count, tokenizer.output_size))
        notes.add("How many tokens an image has depends on what it shows: what makes them is not counted.")
    return tokens if shape.image_tokens is None else tokens[:, : shape.image_tokens]


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


def _losses(
    model: Any, hidden: torch.Tensor, tokens: Any, shape: StepShape, visual_loss: str | None
) -> list[torch.Tensor]:
    fused = hasattr(model.model, "vm_head") or hasattr(model, "output_projection")
    width = hidden.shape[-1]
    parts: list[torch.Tensor] = []
    if visual_loss != "visual_tokens":
        answers = min(shape.conversations * shape.answer_tokens, hidden.shape[1])
        rows = hidden[:, -answers:].reshape(-1, width)
        labels = torch.zeros(len(rows), dtype=torch.long)
        if fused:
            parts.append(fused_divergence(text_head(model, rows), labels, 1.0))
        else:
            parts.append(torch.nn.functional.cross_entropy(model.lm_head(rows).float(), labels))
    if visual_loss is not None:
        count = tokens.shape[1] * shape.images
        states = hidden[:, :count].reshape(-1, width)
        features, weight = last_layer(model.model.vm_head, tokens.reshape(-1, tokens.shape[-1]))
        loss = VISUAL_LOSSES[visual_loss]
        head = {"lm_head_weight": model.lm_head.weight, "lm_head_bias": model.lm_head.bias}
        parts.append(loss(states, image_features=features, vm_head_weight=weight, num_items=1, **head))
    return parts


__all__ = [
    "StepCosts",
    "StepShape",
    "checkpoint_layers",
    "composed_step",
    "distillation_step",
    "fake_tensors",
    "run_step",
]
