"""Answers of a model to the questions of examples, generated greedily, with whatever is shared computed once."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.utils import logging

from .image_controls import control_images
from .image_encoder import ImageEncoder
from .prompts import Prompt, PromptGroup, can_share_prefix, group_prompts, make_prompts

Examples = Sequence[Mapping[str, Any]]


def generate_answers(
    model,
    processor,
    examples: Examples,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    images: str = "given",
    seed: int = 0,
    features: Mapping[str, torch.Tensor] | None = None,
    progress_bar: bool = True,
    encoder: ImageEncoder | None = None,
    known: Mapping[int, str] | None = None,
    on_answers: Callable[[list[int], list[str]], None] | None = None,
) -> list[str]:
    """
    Lets a model answer the last question of each example, by greedy decoding.

    The vision tower sees every distinct image once. Prompts that begin alike (about one image, or about blank images,
    which are all the same) share the key-value cache of what they have in common, and a prompt that several examples
    ask is answered once. In exact arithmetic the answers are those of one `generate` per example; in bfloat16 a tie
    may fall differently, as it may between any two batch sizes.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): answers.
        processor ([`GVTProcessor`] or alike): its chat template writes the prompts.
        examples (`list[dict]`): training examples; the last turn of each is the assistant's and is not shown.
        batch_size (`int`, *optional*, defaults to 32): questions per batch, and images whose prefixes are kept.
        max_new_tokens (`int`, *optional*, defaults to 16): limit of an answer, in tokens.
        images (`str`, *optional*, defaults to `"given"`): `"given"`, `"blank"` or `"shuffled"`, see
            [`control_images`].
        seed (`int`, *optional*, defaults to 0): of the shuffling.
        features (`Mapping[str, torch.Tensor]`, *optional*): of the tower, by image key: a [`FeatureCache`].
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.
        encoder ([`ImageEncoder`], *optional*): remembers images from one call to the next.
        known (`dict[int, str]`, *optional*): answers found earlier, by position. They are not generated again.
        on_answers (`Callable`, *optional*):
            Called with positions of examples and their answers, as soon as a batch is done.

    Returns:
        `list[str]`: an answer for each example, without white space at its ends; empty if the model said nothing.

    Raises:
        ValueError: if an argument is out of range.
        BadSampleError: if an example cannot be asked; names its row.
    """
    _check_sizes(batch_size=batch_size, max_new_tokens=max_new_tokens)
    answers = dict(known or {})

    def answer(batch: "_Batch") -> None:
        tokens = _generate(model, batch, max_new_tokens)
        texts = [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        new = {
            index: text
            for prompt, text in zip(batch.prompts, texts)
            for index in prompt.examples
            if index not in answers
        }
        answers.update(new)
        if on_answers is not None:
            on_answers(list(new), list(new.values()))

    examples = control_images(examples, images, seed)
    prompts = make_prompts(processor, examples)
    encoder = encoder or ImageEncoder(model, processor, features, batch_size)
    encoder.know(examples)
    _run_batches(
        model, processor, prompts, encoder, batch_size, set(answers), answer, progress_bar and f"{images} images"
    )
    return [answers[index] for index in range(len(examples))]


def score_answers(
    model,
    processor,
    examples: Examples,
    batch_size: int = 32,
    images: str = "given",
    seed: int = 0,
    features: Mapping[str, torch.Tensor] | None = None,
    progress_bar: bool = True,
    encoder: ImageEncoder | None = None,
) -> list[bool]:
    """
    Whether greedy decoding would give exactly the right answers, without decoding: it does if each token of the right
    answer, the end included, is the most probable one behind those before it. One pass instead of one per token, for
    quick checks. Stricter than comparing texts, as it allows no other capitals or punctuation.

    Args:
        model, processor, examples, batch_size, images, seed, features, progress_bar, encoder:
            see [`generate_answers`].

    Returns:
        `list[bool]`: for each example, whether its last turn is what greedy decoding gives.

    Raises:
        ValueError: if an argument is out of range.
        BadSampleError: if an example cannot be asked; names its row.
    """
    _check_sizes(batch_size=batch_size)
    right: dict[int, bool] = {}

    def score(batch: "_Batch") -> None:
        for prompt, is_right in zip(batch.prompts, _score(model, batch)):
            right.update(dict.fromkeys(prompt.examples, is_right))

    examples = control_images(examples, images, seed)
    prompts = make_prompts(processor, examples, with_answers=True)
    encoder = encoder or ImageEncoder(model, processor, features, batch_size)
    encoder.know(examples)
    _run_batches(model, processor, prompts, encoder, batch_size, set(), score, progress_bar and f"{images} images")
    return [right[index] for index in range(len(examples))]


@dataclass
class _Batch:
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


def _run_batches(
    model,
    processor,
    prompts: list[Prompt],
    encoder: ImageEncoder,
    batch_size: int,
    done: set[int],
    handle: Callable[[_Batch], None],
    progress_bar: str | bool,
) -> None:
    """
    Hands all prompts over in batches. What is done is left out by whole batches only, so that the others are composed
    as they would be without.
    """
    tokenizer = processor.tokenizer
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    groups = group_prompts(prompts, processor.image_token_id, can_share_prefix(model))
    total = sum(len(prompt.examples) for prompt in prompts)
    with (
        _evaluating(model),
        logging.tqdm(total=total, desc=progress_bar or None, unit=" questions", disable=not progress_bar) as progress,
    ):
        for group in groups:
            for chunk in group.chunks(batch_size):
                pending = [not all(done.issuperset(prompt.examples) for prompt in batch) for batch in chunk]
                prefix = _Prefix.compute(model, group, chunk, encoder) if any(pending) else None
                for batch, is_pending in zip(chunk, pending):
                    if is_pending:
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
        attention_mask = torch.ones_like(input_ids)
        image_outputs = encoder([key for keys in first for key in keys])
        cache = core(
            input_ids=input_ids, attention_mask=attention_mask, mm_encoder_outputs=image_outputs, use_cache=True
        ).past_key_values
        if image_outputs is not None:
            # A shorter image leaves placeholders unused: what follows must not attend to these either.
            placeholders = core.get_placeholder_mask(input_ids, image_outputs["image"])
            attention_mask = core.mask_unused(placeholders, attention_mask, image_outputs["image"].token_mask)
        return cls({keys: row for row, keys in enumerate(first)}, input_ids, attention_mask, cache)

    def select(self, rows: torch.Tensor) -> Cache:
        """The cache of some rows, with repetitions. Layers replace their tensors, so copies may share these."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(rows)
        return cache


def _assemble(
    model, prompts: list[Prompt], prefix_length: int, prefix: _Prefix | None, encoder: ImageEncoder, pad_token_id: int
) -> _Batch:
    tails = [prompt.input_ids[prefix_length:] for prompt in prompts]
    length = max(map(len, tails))
    device = _device(model)
    input_ids = torch.tensor([[pad_token_id] * (length - len(tail)) + tail for tail in tails], device=device)
    mask = torch.tensor([[0] * (length - len(tail)) + [1] * len(tail) for tail in tails], device=device)
    if prefix is None:
        image_outputs = encoder([key for prompt in prompts for key in prompt.image_keys])
        return _Batch(prompts, input_ids, mask, image_outputs=image_outputs)
    rows = torch.tensor([prefix.rows[prompt.image_keys] for prompt in prompts], device=device)
    return _Batch(
        prompts,
        torch.cat([prefix.input_ids[rows], input_ids], dim=1),
        torch.cat([prefix.attention_mask[rows], mask], dim=1),
        prefix_length,
        prefix.select(rows),
    )


@torch.no_grad()
def _generate(model, batch: _Batch, max_new_tokens: int) -> torch.Tensor:
    """Generated tokens, `(batch, new_tokens)`."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.cache is not None:
        inputs["past_key_values"] = batch.cache
    if batch.image_outputs is not None:
        inputs["mm_encoder_outputs"] = batch.image_outputs
    # Plainly greedy, whatever the checkpoint samples with. A repetition penalty would count padding, too.
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        use_cache=True,
    )
    return output if model.config.is_encoder_decoder else output[:, batch.input_ids.shape[1] :]


@torch.no_grad()
def _score(model, batch: _Batch) -> list[bool]:
    """For each row, whether every token of its answer is the most probable one."""
    longest = max(prompt.answer_length for prompt in batch.prompts)
    targets = torch.full((len(batch.prompts), longest), -100, device=batch.input_ids.device)
    for row, prompt in enumerate(batch.prompts):
        targets[row, longest - prompt.answer_length :] = batch.input_ids[row, -prompt.answer_length :]
    if model.config.is_encoder_decoder:
        logits, targets = _encoder_decoder_logits(model, batch)
    else:
        logits = model(
            input_ids=batch.input_ids[:, batch.prefix_length :],
            attention_mask=batch.attention_mask,
            past_key_values=batch.cache,
            mm_encoder_outputs=batch.image_outputs,
            logits_to_keep=longest + 1,
        ).logits[:, -longest - 1 : -1]
    suppressed = model.generation_config.suppress_tokens
    if suppressed:
        logits[..., suppressed] = -torch.inf
    return ((logits.argmax(-1) == targets) | (targets == -100)).all(-1).tolist()


def _encoder_decoder_logits(model, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder reads the prompts, the decoder the answers, padded on the right."""
    prompts = [
        row[mask.bool()][: -prompt.answer_length].tolist()
        for row, mask, prompt in zip(batch.input_ids, batch.attention_mask, batch.prompts)
    ]
    length = max(map(len, prompts))
    longest = max(prompt.answer_length for prompt in batch.prompts)
    pad = batch.input_ids.new_tensor
    targets = pad(
        [
            prompt.input_ids[-prompt.answer_length :] + [-100] * (longest - prompt.answer_length)
            for prompt in batch.prompts
        ]
    )
    logits = model(
        input_ids=pad([[model.config.text_config.pad_token_id] * (length - len(row)) + row for row in prompts]),
        attention_mask=pad([[0] * (length - len(row)) + [1] * len(row) for row in prompts]),
        mm_encoder_outputs=batch.image_outputs,
        labels=targets,
    ).logits
    return logits, targets


@contextlib.contextmanager
def _evaluating(model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _device(model) -> torch.device:
    return model.get_input_embeddings().weight.device


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, expected at least 1.")


__all__ = ["generate_answers", "score_answers"]
