"""Where a training starts from: a projection that is aligned with the words of training examples."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from torch import nn
from transformers.utils import logging
from transformers.utils.logging import tqdm

from ..modeling.divided_weights import is_whole
from ..modeling.projection_alignment import AlignedProjection, ProjectionAlignment
from ..modeling.pseudo_image_features import embedding_table
from ..processing.collator import IGNORED

logger = logging.get_logger(__name__)


def check_alignment(model: Any) -> None:
    """
    Checks that a model, frozen and opened for its training, has a projection to align.

    Args:
        model (`PreTrainedModel`): a composed model of vistok.

    Raises:
        ValueError: if it has none, or one that is not trained as a whole, or weights are divided among processes.
    """
    projection = model.model.projection
    if projection is None:
        raise ValueError(
            f"alignment_examples is set, but {type(model).__name__} has no projection of a single layer behind its "
            "visual tokenizer: leave it out."
        )
    if type(projection) is not nn.Linear or not projection.weight.requires_grad:
        raise ValueError(
            "alignment_examples sets the projection of visual tokens anew, but this training leaves it as it is or "
            "adapts it: train it in full, or leave alignment_examples out."
        )
    if not is_whole(projection.weight) or not is_whole(model.get_input_embeddings().weight):
        raise ValueError(
            "alignment_examples needs the projection and the embeddings whole on every process: align on one GPU (a "
            "training of one step saves the projection), or choose a strategy that divides weights later."
        )


@torch.no_grad()
def align_projection(
    model: Any,
    dataset: Dataset,
    collator: Any,
    num_examples: int,
    batch_size: int,
    seed: int,
    progress_bar: bool = True,
) -> AlignedProjection:
    """
    Sets the projection of visual tokens to what [`ProjectionAlignment`] finds for training examples: rows that have
    images and text for answers. All processes of a training do the same, and end up with the projection of the first.
    What torch draws next on the CPU stays what it would have been.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): on the device that it is trained on; changed in place.
        dataset (`Dataset`): training rows.
        collator (`Callable`): makes batches of them.
        num_examples (`int`): at most so many rows, drawn with `seed`.
        batch_size (`int`): rows at a time.
        seed (`int`): of the draw.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.

    Returns:
        [`AlignedProjection`].

    Raises:
        ValueError: if the rows have nothing to align with.
    """
    core = model.model
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:num_examples].tolist()
    training = model.training
    model.eval()
    embeddings = core.get_input_embeddings()
    # As text enters the model: Gemma scales what it looks up, and embeddings may have adapters.
    alignment = ProjectionAlignment(embedding_table(embeddings, len(embeddings.weight)))
    steps = range(0, len(chosen), batch_size)
    with torch.random.fork_rng(devices=[]):  # a collator of one's own may draw
        for start in tqdm(steps, desc="Aligning the projection", unit="batches", disable=not progress_bar):
            rows = [dataset[index] for index in chosen[start : start + batch_size]]
            for tokens, words in _examples(core, collator(rows)):
                alignment.add(tokens, words)
    model.train(training)
    aligned = alignment.solve()
    projection = core.projection
    projection.weight.copy_(aligned.weight)
    projection.bias.copy_(aligned.bias)
    for parameter in projection.parameters():
        parameter.copy_(broadcast(parameter.data))
    logger.info(
        f"The projection starts from {aligned.num_examples} examples, whose words it explains by "
        f"{100 * aligned.explained:.1f} %."
    )
    return aligned


def _examples(core: Any, batch: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Visual tokens and words of the rows of a batch whose answers are text; masks that are written are no images."""
    images = {name: batch[name].to(core.device) for name in core.image_inputs if name in batch}
    if not images:
        return
    placeholder = core.config.image_token_id
    features = core.get_image_features(**images)
    tokens = [image[kept] for image, kept in zip(features.tokens, features.token_mask)]
    length = features.tokens.shape[1]
    masks = set(batch["mask_places"].tolist()) if "mask_places" in batch else set()
    place = taken = 0
    for ids, labels in zip(batch["input_ids"], batch["labels"]):
        shown = []
        for _ in range(int((ids == placeholder).sum()) // length):
            if place not in masks:
                shown.append(tokens[taken])
                taken += 1
            place += 1
        words = labels[labels != IGNORED].tolist()
        if shown and words and placeholder not in words:
            yield torch.cat(shown), words


__all__ = ["align_projection", "check_alignment"]
