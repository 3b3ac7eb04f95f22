"""Answers and likelihoods of any image-text-to-text model of transformers, batched, through its own processor."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..processing.images import image_key, load_example_images
from .answer_run import AnswerRun
from .batches import evaluating
from .generation_settings import GenerationSettings
from .image_encoder import resized
from .likelihoods import Likelihood, likelihoods_of
from .prompt_texts import answer_lead, continuation_tokens, render_prompts
from .prompts import check_answered

Examples = Sequence[Mapping[str, Any]]


def answer_with_processor(
    model,
    processor,
    examples: Examples,
    settings: GenerationSettings,
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    own_prompt: bool = False,
    run: AnswerRun | None = None,
) -> dict[int, str]:
    """
    Answers questions in batches that are padded on the left. A prompt that several examples ask is answered once.

    In exact arithmetic the answers are those of one `generate` per example; in bfloat16 a tie may fall differently, as
    it may between any two batch sizes.

    Args:
        model (`PreTrainedModel`): an image-text-to-text model.
        processor (`ProcessorMixin`): its processor.
        image_size (`tuple[int, int]`, *optional*): see [`resized`].
        examples, settings, batch_size, own_prompt, run: see [`answer_examples`].

    Returns:
        `dict[int, str]`: answers by position, of the examples in this process's batches and of those known.

    Raises:
        BadSampleError: if an example cannot be asked; names its row.
    """
    check_answered(examples)
    texts = render_prompts(processor, examples, own_prompt)
    distinct: dict[tuple, list[int]] = {}
    for index, (example, text) in enumerate(zip(examples, texts)):
        keys = tuple(image_key(image) for image in example.get("images") or [])
        distinct.setdefault((text, keys), []).append(index)
    # Prompts with images and without are of different inputs, and so are prompts of other numbers of images.
    prompts = sorted(distinct.values(), key=lambda asked: (_num_images(examples[asked[0]]), len(texts[asked[0]])))
    run = AnswerRun() if run is None else run
    with evaluating(model), run.progress(len(examples)) as progress:
        for batch in _batches(prompts, examples, batch_size):
            if run.takes([index for asked in batch for index in asked]):
                first = [asked[0] for asked in batch]
                said = _generate(
                    model, processor, [texts[index] for index in first], [examples[index] for index in first],
                    settings, image_size,
                )  # fmt: skip
                run.add((index, text) for asked, text in zip(batch, said) for index in asked)
            progress.update(sum(map(len, batch)))
    return run.answers


def _num_images(example: Mapping[str, Any]) -> int:
    return len(example.get("images") or [])


def _batches(prompts: list[list[int]], examples: Examples, batch_size: int):
    """Batches of prompts about equally many images."""
    start = 0
    for end in range(1, len(prompts) + 1):
        full = end - start == batch_size
        if (
            full
            or end == len(prompts)
            or _num_images(examples[prompts[end][0]]) != _num_images(examples[prompts[start][0]])
        ):
            yield prompts[start:end]
            start = end


@torch.no_grad()
def _generate(model, processor, texts, examples, settings, image_size) -> list[str]:
    inputs = _inputs(model, processor, texts, examples, image_size, "left")
    output = model.generate(**inputs, **settings.arguments(), pad_token_id=_pad_token_id(processor))
    # Decoders hand the prompt back, encoder-decoders and those that generate from embeddings do not.
    length = inputs["input_ids"].shape[1]
    if output.shape[1] >= length and torch.equal(output[:, :length], inputs["input_ids"]):
        output = output[:, length:]
    return [text.strip() for text in processor.tokenizer.batch_decode(output, skip_special_tokens=True)]


def _inputs(model, processor, texts, examples, image_size, padding_side: str) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    images = [[resized(image, image_size) for image in load_example_images(example)] for example in examples]
    given: dict[str, Any] = {"images": _nested(processor, images)} if any(images) else {}
    # What templates begin with is not to be begun again, by the rule of apply_chat_template.
    begun = tokenizer.bos_token is not None and all(text.startswith(tokenizer.bos_token) for text in texts)
    if begun:
        given["add_special_tokens"] = False
    inputs = processor(text=list(texts), padding=True, padding_side=padding_side, return_tensors="pt", **given)
    inputs.pop("labels", None)
    if "qformer_input_ids" in inputs and padding_side == "left":
        # InstructBLIP's Q-Former counts positions from the left, padding or not.
        encoded = processor.qformer_tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        inputs["qformer_input_ids"] = encoded["input_ids"]
        inputs["qformer_attention_mask"] = encoded["attention_mask"]
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }


def _nested(processor, images: list[list[Any]]) -> list[Any]:
    # BLIP's processors come from before several images per text.
    return [image for row in images for image in row] if hasattr(processor, "num_query_tokens") else images


def _pad_token_id(processor) -> int | None:
    tokenizer = processor.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


@torch.no_grad()
def score_with_processor(
    model,
    processor,
    examples: Examples,
    continuations: Sequence[str],
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    own_prompt: bool = False,
) -> list[Likelihood]:
    """
    Likelihoods of continuations of prompts. Rows are padded on the right, where padding changes nothing before it.

    Args:
        model, processor, examples, batch_size, image_size, own_prompt: see [`answer_with_processor`].
        continuations (`list[str]`): one for each example, without the token that ends an answer.

    Returns:
        `list[Likelihood]`: one for each example.

    Raises:
        ValueError: if a continuation is empty, or the model reads prompts in both directions (PaliGemma), so that a
            pass over prompt and continuation would let it see what it is to predict.
    """
    if str(model.config.model_type).startswith("paligemma"):
        raise ValueError(
            f"{type(model).__name__} reads its whole input in both directions, and would see the answers whose "
            "likelihood is asked: choose a task that generates answers."
        )
    texts, lead = render_prompts(processor, examples, own_prompt), answer_lead(processor)
    order = sorted(range(len(examples)), key=lambda index: (_num_images(examples[index]), len(texts[index])))
    found: dict[int, Likelihood] = {}
    with evaluating(model):
        for batch in _batches([[index] for index in order], examples, batch_size):
            rows = [index for (index,) in batch]
            inputs = _inputs(
                model, processor, [texts[row] for row in rows], [examples[row] for row in rows], image_size, "right"
            )
            spliced = [continuation_tokens(processor, texts[row], continuations[row], lead) for row in rows]
            score = _score_encoder_decoder if model.config.is_encoder_decoder else _score_decoder
            found.update(zip(rows, score(model, processor, inputs, spliced)))
    return [found[index] for index in range(len(examples))]


def _score_decoder(model, processor, inputs: dict[str, Any], spliced: list[tuple[int, list[int]]]) -> list[Likelihood]:
    lengths = inputs["attention_mask"].shape[1] - inputs["attention_mask"].flip(1).argmax(1)
    kept = [int(length) - replaced for length, (replaced, _) in zip(lengths, spliced)]
    longest = max(start + len(tokens) for start, (_, tokens) in zip(kept, spliced))
    fillers = {"input_ids": _pad_token_id(processor), "attention_mask": 0}
    rows, targets = {}, inputs["input_ids"].new_full((len(kept), longest), -100)
    for name in [name for name in inputs if name in _PER_TOKEN]:
        rows[name] = inputs[name].new_full((len(kept), longest), fillers.get(name, 0))
        for row, (start, (_, tokens)) in enumerate(zip(kept, spliced)):
            rows[name][row, :start] = inputs[name][row, :start]
            end = start + len(tokens)
            if name == "input_ids":
                rows[name][row, start:end] = targets[row, start:end] = rows[name].new_tensor(tokens)
            elif name == "attention_mask":
                rows[name][row, start:end] = 1
    first = min(kept) - 1
    arguments = {**inputs, **rows}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = longest - first
    logits = model(**arguments).logits[:, -(longest - first) :]
    return likelihoods_of(logits[:, :-1], targets[:, first + 1 :])


_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def _score_encoder_decoder(model, processor, inputs: dict[str, Any], spliced) -> list[Likelihood]:
    longest = max(len(tokens) for _, tokens in spliced)
    targets = inputs["input_ids"].new_tensor([tokens + [-100] * (longest - len(tokens)) for _, tokens in spliced])
    logits = model(**inputs, labels=targets).logits
    return likelihoods_of(logits[:, -longest:], targets)


__all__ = ["answer_with_processor", "score_with_processor"]
