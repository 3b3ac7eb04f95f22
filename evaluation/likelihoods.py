"""How probable a composed model finds given answers, in one pass and without decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .answer_run import AnswerRun
from .batches import Batch, run_batches
from .image_controls import control_images
from .image_encoder import ImageEncoder
from .prompts import make_prompts

Examples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Likelihood:
    """
    How probable a continuation is behind a prompt.

    Args:
        total (`float`): log-likelihood, in nats: the sum over its tokens.
        num_tokens (`int`): how many tokens it has.
        is_greedy (`bool`): whether greedy decoding would begin with it: each token is the most probable one.
    """

    total: float
    num_tokens: int
    is_greedy: bool

    @property
    def per_token(self) -> float:
        """Log-likelihood per token, in nats."""
        return self.total / max(self.num_tokens, 1)


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
    scored = score_continuations(
        model,
        processor,
        control_images(examples, images, seed),
        None,
        batch_size,
        encoder=encoder or ImageEncoder(model, processor, features, batch_size),
        progress_bar=progress_bar and f"{images} images",
    )
    return [likelihood.is_greedy for likelihood in scored]


def score_continuations(
    model,
    processor,
    examples: Examples,
    continuations: Sequence[str] | None,
    batch_size: int,
    *,
    encoder: ImageEncoder,
    own_prompt: bool = False,
    progress_bar: str | bool = False,
) -> list[Likelihood]:
    """
    Likelihoods of continuations of prompts. Images and what prompts have in common are computed once.

    Args:
        model, processor, examples, batch_size, encoder: see [`generate_answers`].
        continuations (`list[str]`, *optional*): one for each example, without the token that ends an answer. By
            default the example's own answer, with it.
        own_prompt (`bool`, *optional*, defaults to `False`): see [`render_prompts`].
        progress_bar (`str` or `bool`): its text, or `False`.

    Returns:
        `list[Likelihood]`: one for each example.

    Raises:
        ValueError: if an argument is out of range.
        BadSampleError: if an example cannot be asked; names its row.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    found: dict[int, Likelihood] = {}

    def score(batch: Batch) -> None:
        for prompt, likelihood in zip(batch.prompts, _score(model, batch)):
            found.update(dict.fromkeys(prompt.examples, likelihood))

    prompts = make_prompts(processor, examples, with_answers=True, own_prompt=own_prompt, continuations=continuations)
    encoder.know(examples)
    run_batches(model, processor, prompts, encoder, batch_size, AnswerRun(progress_bar=progress_bar), score)
    return [found[index] for index in range(len(examples))]


@torch.no_grad()
def _score(model, batch: Batch) -> list[Likelihood]:
    longest = max(prompt.answer_length for prompt in batch.prompts)
    if model.config.is_encoder_decoder:
        logits, targets = _encoder_decoder_logits(model, batch)
    else:
        targets = torch.full((len(batch.prompts), longest), -100, device=batch.input_ids.device)
        for row, prompt in enumerate(batch.prompts):
            targets[row, longest - prompt.answer_length :] = batch.input_ids[row, -prompt.answer_length :]
        logits = model(
            input_ids=batch.input_ids[:, batch.prefix_length :],
            attention_mask=batch.attention_mask,
            past_key_values=batch.cache,
            mm_encoder_outputs=batch.image_outputs,
            logits_to_keep=longest + 1,
        ).logits[:, -longest - 1 : -1]
    return likelihoods_of(logits, targets, model.generation_config.suppress_tokens)


def likelihoods_of(
    logits: torch.Tensor, targets: torch.Tensor, suppress_tokens: Sequence[int] | None = None
) -> list[Likelihood]:
    """
    Likelihoods from logits.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, positions, vocab_size)`): predictions of the targets.
        targets (`torch.LongTensor` of shape `(batch, positions)`): tokens, -100 where there is none.
        suppress_tokens (`list[int]`, *optional*): tokens that the model never says.

    Returns:
        `list[Likelihood]`: one for each row.
    """
    logits = logits.float()
    if suppress_tokens:
        logits[..., list(suppress_tokens)] = -torch.inf
    counted = targets != -100
    chosen = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    totals = chosen.double().masked_fill(~counted, 0).sum(-1)
    greedy = ((logits.argmax(-1) == targets) | ~counted).all(-1)
    return [
        Likelihood(float(total), int(number), bool(is_greedy))
        for total, number, is_greedy in zip(totals, counted.sum(-1), greedy)
    ]


def _encoder_decoder_logits(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
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


__all__ = ["Likelihood", "likelihoods_of", "score_answers", "score_continuations"]
