"""The prompts of an evaluation: tokenized once, without repetitions, and ordered so that images are encoded once."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..processing.chat_templates import adds_special_tokens
from ..processing.collator import tokenize_conversation
from ..processing.images import BadSampleError, image_key
from .prompt_texts import answer_lead, continuation_tokens, render_prompts


@dataclass
class Prompt:
    """
    A distinct prompt about distinct images.

    Args:
        input_ids (`list[int]`): its tokens, and behind them those of an answer, if one is to be scored.
        image_keys (`tuple[str, ...]`): keys of its images.
        answer_length (`int`): how many of the tokens are the answer.
        examples (`list[int]`): positions of the examples that ask it.
    """

    input_ids: list[int]
    image_keys: tuple[str, ...]
    answer_length: int = 0
    examples: list[int] = field(default_factory=list)


@dataclass
class PromptGroup:
    """
    Prompts whose first tokens are the same wherever their images are.

    Args:
        prompts (`list[Prompt]`): the prompts.
        prefix_length (`int`): how many tokens prompts about the same images share; 0 if nothing is shared.
    """

    prompts: list[Prompt]
    prefix_length: int

    def chunks(self, batch_size: int) -> Iterator[list[list[Prompt]]]:
        """
        Chunks of batches: a chunk holds all prompts about `batch_size` images (or sets of them), its batches hold
        prompts of similar length.
        """
        if not self.prefix_length:
            for batch in _by_length(self.prompts, batch_size):
                yield [batch]
            return
        of_images: dict[tuple[str, ...], list[Prompt]] = {}
        for prompt in self.prompts:
            of_images.setdefault(prompt.image_keys, []).append(prompt)
        gathered = list(of_images.values())
        for start in range(0, len(gathered), batch_size):
            together = [prompt for prompts in gathered[start : start + batch_size] for prompt in prompts]
            yield _by_length(together, batch_size)


def make_prompts(
    processor,
    examples: Sequence[Mapping[str, Any]],
    with_answers: bool = False,
    own_prompt: bool = False,
    continuations: Sequence[str] | None = None,
) -> list[Prompt]:
    """
    Writes examples as prompts for their last answer, through the processor's chat template.

    Args:
        processor ([`GVTProcessor`] or alike): has a chat template.
        examples (`list[dict]`): training examples; the last turn of each is the assistant's and no part of its prompt.
        with_answers (`bool`, *optional*, defaults to `False`): append the tokens of an answer.
        own_prompt (`bool`, *optional*, defaults to `False`): see [`render_prompts`].
        continuations (`list[str]`, *optional*): these answers, one for each example, without the token that ends an
            answer. By default the last turn of the example, with that token.

    Returns:
        `list[Prompt]`: each distinct one once, in the order in which they are first met.

    Raises:
        BadSampleError: if an example does not end with an answer, or text and images do not fit; names its row.
    """
    check_answered(examples)
    texts = render_prompts(processor, examples, own_prompt)
    lead = answer_lead(processor) if with_answers and continuations is not None else ""
    prompts: dict[tuple, Prompt] = {}
    for index, (example, input_ids) in enumerate(zip(examples, _tokenize(processor, examples, texts))):
        answer: list[int] = []
        if with_answers and continuations is not None:
            replaced, answer = continuation_tokens(processor, texts[index], continuations[index], lead)
            input_ids = input_ids[: len(input_ids) - replaced]
        elif with_answers:
            answer = _answer_tokens(processor, example)
        keys = tuple(image_key(image) for image in example.get("images") or [])
        prompt = Prompt(input_ids + answer, keys, len(answer))
        prompts.setdefault((keys, len(answer), *prompt.input_ids), prompt).examples.append(index)
    return list(prompts.values())


def check_answered(examples: Sequence[Mapping[str, Any]]) -> None:
    """
    Makes sure that examples end with an answer, which no prompt shows.

    Raises:
        BadSampleError: if one does not; names its row.
    """
    for example in examples:
        if not example["messages"] or example["messages"][-1]["role"] != "assistant":
            raise BadSampleError(
                "the last turn must be the assistant's, the right answer", row=example.get("row"),
                source=example.get("source"),
            )  # fmt: skip


def _tokenize(processor, examples, texts: Sequence[str]) -> list[list[int]]:
    expanded = []
    for example, text in zip(examples, texts):
        num_images, found = len(example.get("images") or []), text.count(processor.image_token)
        if num_images != found:
            raise BadSampleError(
                f"{found} image placeholders for {num_images} images", row=example.get("row"),
                source=example.get("source"),
            )  # fmt: skip
        replacements = [processor.replace_image_token({}, index) for index in range(num_images)]
        expanded.append(processor.get_text_with_replacements([text], replacements)[0][0])
    tokenizer = processor.tokenizer
    return [tokenizer(text, add_special_tokens=adds_special_tokens(tokenizer, text))["input_ids"] for text in expanded]


def _answer_tokens(processor, example) -> list[int]:
    conversation = tokenize_conversation(processor, example["messages"])
    end = len(conversation.supervised) - conversation.supervised[::-1].index(True)
    start = end
    while start > 0 and conversation.supervised[start - 1]:
        start -= 1
    return conversation.input_ids[start:end]


def group_prompts(prompts: Sequence[Prompt], image_token_id: int, share: bool = True) -> list[PromptGroup]:
    """
    Finds prompts that can share the computation of their first tokens. The shared tokens of a group end at the same
    place, so that they need no padding: behind the last image, and behind the words that the template puts there.

    Args:
        prompts (`list[Prompt]`): distinct prompts.
        image_token_id (`int`): id of the image placeholder.
        share (`bool`): whether to share at all.

    Returns:
        `list[PromptGroup]`: every prompt is in exactly one.
    """
    by_head: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in prompts:
        past_images = 0
        if image_token_id in prompt.input_ids:
            past_images = len(prompt.input_ids) - prompt.input_ids[::-1].index(image_token_id)
        by_head.setdefault(tuple(prompt.input_ids[:past_images]), []).append(prompt)
    groups, alone = [], []
    for head, members in by_head.items():
        # The last token before an answer stays with its prompt, because it predicts the answer.
        length = _common_length([prompt.input_ids[: -1 - prompt.answer_length] for prompt in members])
        if share and length >= max(len(head), 1) and len({prompt.image_keys for prompt in members}) < len(members):
            groups.append(PromptGroup(members, length))
        else:
            alone += members
    return groups + ([PromptGroup(alone, 0)] if alone else [])


def can_share_prefix(model) -> bool:
    """
    Whether a cached prefix may be followed by padding: in decoders with full attention and explicit positions.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): composed model.
    """
    text_config = model.config.text_config
    layer_types = getattr(text_config, "layer_types", None) or []
    return (
        not model.config.is_encoder_decoder
        and "position_ids" in inspect.signature(model.model.language_model.forward).parameters
        and all(layer_type == "full_attention" for layer_type in layer_types)
        and not getattr(text_config, "sliding_window", None)
    )


def _common_length(rows: list[list[int]]) -> int:
    """Number of first tokens that all rows have in common."""
    first, last = min(rows), max(rows)  # in lexical order: what these two share, all others share
    return next((place for place, pair in enumerate(zip(first, last)) if pair[0] != pair[1]), min(map(len, rows)))


def _by_length(prompts: list[Prompt], batch_size: int) -> list[list[Prompt]]:
    ordered = sorted(prompts, key=lambda prompt: len(prompt.input_ids))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


__all__ = ["Prompt", "PromptGroup", "can_share_prefix", "check_answered", "group_prompts", "make_prompts"]
