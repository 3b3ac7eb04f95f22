"""Batches of prompts: padded on the left, behind the cached computation of what they share."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from .answer_run import AnswerRun
from .image_encoder import ImageEncoder
from .prompts import Prompt, PromptGroup, can_share_prefix, group_prompts


@dataclass
class Batch:
    """
    Prompts padded on the left, behind what they share.

    Args:
        prompts (`list[Prompt]`): one for each row.
        input_ids, attention_mask (`torch.LongTensor` of shape `(batch, prefix_length + length)`): the whole prompts.
        prefix_length (`int`): number of first tokens that are in the cache.
        cache (`Cache`, *optional*): of these tokens.
        image_outputs (`dict`, *optional*): visual tokens, where no cache has taken them in.
    """

    prompts: list[Prompt]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prefix_length: int = 0
    cache: Cache | None = None
    image_outputs: dict[str, Any] | None = None


def run_batches(
    model,
    processor,
    prompts: list[Prompt],
    encoder: ImageEncoder,
    batch_size: int,
    run: AnswerRun,
    handle: Callable[[Batch], None],
    share_prefixes: bool = True,
) -> None:
    """
    Hands prompts over in batches.

    Args:
        model, processor: composed model and its processor.
        prompts (`list[Prompt]`): distinct prompts.
        encoder ([`ImageEncoder`]): knows their images.
        batch_size (`int`): prompts per batch, and sets of images whose prefixes are kept.
        run ([`AnswerRun`]): which of the batches are to be handed over.
        handle (`Callable`): takes a [`Batch`].
        share_prefixes (`bool`, *optional*, defaults to `True`): whether prompts that begin alike share a cache.
    """
    tokenizer = processor.tokenizer
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    groups = group_prompts(prompts, processor.image_token_id, share_prefixes and can_share_prefix(model))
    total = sum(len(prompt.examples) for prompt in prompts)
    with evaluating(model), run.progress(total) as progress:
        for group in groups:
            for chunk in group.chunks(batch_size):
                mine = [run.takes([index for prompt in batch for index in prompt.examples]) for batch in chunk]
                prefix = _Prefix.compute(model, group, chunk, encoder) if any(mine) else None
                for batch, is_mine in zip(chunk, mine):
                    if is_mine:
                        handle(_assemble(model, batch, group.prefix_length, prefix, encoder, pad_token_id))
                    progress.update(sum(len(prompt.examples) for prompt in batch))


@dataclass
class _Prefix:
    """The first tokens of the prompts of a chunk, a row for each set of images: their ids, mask and cache."""

    rows: dict[tuple[str, ...], int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: Cache

    @classmethod
    @torch.no_grad()
    def compute(cls, model, group: PromptGroup, chunk: list[list[Prompt]], encoder: ImageEncoder) -> "_Prefix | None":
        if not group.prefix_length:
            return None
        first = {prompt.image_keys: prompt for batch in chunk for prompt in batch}
        core = model.model
        input_ids = torch.tensor(
            [prompt.input_ids[: group.prefix_length] for prompt in first.values()], device=_device(model)
        )
        image_outputs = encoder([key for keys in first for key in keys])
        # A shorter image leaves placeholders unused, which take no place in the cache.
        input_ids, attention_mask, image_outputs = core.compact_prompt(
            input_ids, torch.ones_like(input_ids), image_outputs
        )
        cache = core(
            input_ids=input_ids, attention_mask=attention_mask, mm_encoder_outputs=image_outputs, use_cache=True
        ).past_key_values
        return cls({keys: row for row, keys in enumerate(first)}, input_ids, attention_mask, cache)

    def select(self, rows: torch.Tensor) -> Cache:
        """The cache of some rows, with repetitions. Layers replace their tensors, so copies may share these."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(rows)
        return cache


def _assemble(
    model, prompts: list[Prompt], prefix_length: int, prefix: _Prefix | None, encoder: ImageEncoder, pad_token_id: int
) -> Batch:
    tails = [prompt.input_ids[prefix_length:] for prompt in prompts]
    length = max(map(len, tails))
    device = _device(model)
    input_ids = torch.tensor([[pad_token_id] * (length - len(tail)) + tail for tail in tails], device=device)
    mask = torch.tensor([[0] * (length - len(tail)) + [1] * len(tail) for tail in tails], device=device)
    if prefix is None:
        image_outputs = encoder([key for prompt in prompts for key in prompt.image_keys])
        return Batch(prompts, input_ids, mask, image_outputs=image_outputs)
    rows = torch.tensor([prefix.rows[prompt.image_keys] for prompt in prompts], device=device)
    return Batch(
        prompts,
        torch.cat([prefix.input_ids[rows], input_ids], dim=1),
        torch.cat([prefix.attention_mask[rows], mask], dim=1),
        prefix.input_ids.shape[1],
        prefix.select(rows),
    )


@contextlib.contextmanager
def evaluating(model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _device(model) -> torch.device:
    return model.get_input_embeddings().weight.device


__all__ = ["Batch", "evaluating", "run_batches"]
