"""Answers of a composed model to the questions of examples, with whatever is shared computed once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .answer_run import AnswerRun
from .batches import Batch, run_batches
from .generation_settings import GenerationSettings
from .image_controls import control_images
from .image_encoder import ImageEncoder
from .prompts import make_prompts

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
    answers = answer_examples(
        model,
        processor,
        control_images(examples, images, seed),
        GenerationSettings(max_new_tokens),
        batch_size,
        encoder=encoder or ImageEncoder(model, processor, features, batch_size),
        run=AnswerRun(known, on_answers, progress_bar=progress_bar and f"{images} images"),
    )
    return [answers[index] for index in range(len(examples))]


def answer_examples(
    model,
    processor,
    examples: Examples,
    settings: GenerationSettings,
    batch_size: int,
    *,
    encoder: ImageEncoder,
    own_prompt: bool = False,
    run: AnswerRun | None = None,
) -> dict[int, str]:
    """
    What [`generate_answers`] does, with any settings, and for one of several processes.

    Args:
        model, processor, examples, batch_size, encoder: see [`generate_answers`].
        settings ([`GenerationSettings`]): of the decoding.
        own_prompt (`bool`, *optional*, defaults to `False`): see [`render_prompts`].
        run ([`AnswerRun`], *optional*): what is known before, and which batches are this process's; by default
            nothing, and all of them.

    Returns:
        `dict[int, str]`: answers by position, of the examples in this process's batches and of those known.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    run = AnswerRun() if run is None else run

    def answer(batch: Batch) -> None:
        tokens = _generate(model, batch, settings)
        texts = [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        run.add((index, text) for prompt, text in zip(batch.prompts, texts) for index in prompt.examples)

    prompts = make_prompts(processor, examples, own_prompt=own_prompt)
    encoder.know(examples)
    # Beams are copies of a prompt that `generate` makes itself, and a cache that is handed over has none.
    share_prefixes = settings.num_beams == 1
    run_batches(model, processor, prompts, encoder, batch_size, run, answer, share_prefixes)
    return run.answers


@torch.no_grad()
def _generate(model, batch: Batch, settings: GenerationSettings) -> torch.Tensor:
    """Generated tokens, `(batch, new_tokens)`."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.cache is not None:
        inputs["past_key_values"] = batch.cache
    if batch.image_outputs is not None:
        inputs["mm_encoder_outputs"] = batch.image_outputs
    output = model.generate(**inputs, **settings.arguments())
    return output if model.config.is_encoder_decoder else output[:, batch.input_ids.shape[1] :]


__all__ = ["answer_examples", "generate_answers"]
