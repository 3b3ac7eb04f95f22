"""From training examples to batches: chat formatting, labels on the answers only, and shared visual tokens."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template

from .chat_templates import adds_special_tokens
from .image_placeholders import image_text, num_placeholders
from .images import BadSampleError, image_key, load_example_images

IGNORED = -100


@dataclass
class TokenizedConversation:
    """
    Token ids of one conversation.

    Args:
        input_ids (`list[int]`): with one placeholder per visual token.
        supervised (`list[bool]`): True at tokens of an answer.
    """

    input_ids: list[int]
    supervised: list[bool]


def tokenize_conversation(processor, messages: Sequence[Mapping[str, Any]]) -> TokenizedConversation:
    """
    Formats messages by the processor's chat template and marks the tokens of the assistant's turns.

    Args:
        processor ([`GVTProcessor`] or alike): its chat template holds `{% generation %}` blocks.
        messages (`list[dict]`): the `messages` of a training example.

    Returns:
        [`TokenizedConversation`].

    Raises:
        ValueError: if the chat template marks no answers.
    """
    texts, generations = render_jinja_template(
        conversations=[list(messages)],
        chat_template=processor.chat_template,
        return_assistant_tokens_mask=True,
        **processor.tokenizer.special_tokens_map,
    )
    if not generations[0] and any(message["role"] == "assistant" for message in messages):
        raise ValueError(
            "The chat template marks no answers: write {% generation %} before and {% endgeneration %} behind the "
            "text of an assistant's turn."
        )
    num_images = texts[0].count(processor.image_token)
    expanded, offsets = processor.get_text_with_replacements(
        list(texts), [image_text(processor, index) for index in range(num_images)]
    )
    tokenizer = processor.tokenizer
    add_special_tokens = adds_special_tokens(tokenizer, texts[0])
    encoded = tokenizer(expanded[0], return_offsets_mapping=True, add_special_tokens=add_special_tokens)
    answers = _behind_expansions(generations[0], offsets[0] if offsets else [])
    # A token counts where it ends: the one behind a block that ends in white space begins with that white space.
    supervised = [any(start < end <= stop for start, stop in answers) for _, end in encoded["offset_mapping"]]
    return TokenizedConversation(list(encoded["input_ids"]), supervised)


def _behind_expansions(
    spans: Sequence[tuple[int, int]], expansions: Sequence[Mapping[str, Any]]
) -> list[tuple[int, int]]:
    """Moves spans of a text by what the placeholders before them have grown."""
    ends = [expansion["span"][1] for expansion in expansions]
    grown = [0, *(expansion["new_span"][1] - expansion["span"][1] for expansion in expansions)]
    return [
        (start + grown[bisect.bisect_right(ends, start)], stop + grown[bisect.bisect_right(ends, stop)])
        for start, stop in spans
    ]


def shared_prefix_length(conversations: Sequence[TokenizedConversation], image_token_id: int | None = None) -> int:
    """
    Number of first tokens that conversations about the same images have in common and that can be computed once: at
    least one token before the first answer stays with each conversation, because it predicts that answer. 0 if an
    image comes behind them, after words that differ: images are shared all or none.
    """
    limit = min(
        (conversation.supervised.index(True) if any(conversation.supervised) else len(conversation.input_ids)) - 1
        for conversation in conversations
    )
    first = conversations[0].input_ids
    length = max(limit, 0)
    for position in range(length):
        if any(conversation.input_ids[position] != first[position] for conversation in conversations[1:]):
            length = position
            break
    return 0 if any(image_token_id in conversation.input_ids[length:] for conversation in conversations) else length


@dataclass
class VisualLanguageCollator:
    """
    Makes batches of training examples. An example has `images` and `messages`, or, if several conversations are about
    the same images, `conversations`: these then share one row, and its visual tokens are computed once (`rows` and
    `sources` then say where each comes from). A mask keeps
    them from seeing one another and positions restart behind the shared tokens, so that loss and gradients are those
    of separate rows.

    Args:
        processor ([`GVTProcessor`] or alike): formats, tokenizes and prepares images.
        image_transform (`Callable`, *optional*): augmentation, from one PIL image to another.
        features (`Mapping[str, torch.Tensor]`, *optional*):
            Cached features of a frozen tower by [`image_key`]: batches hold `vision_features`, not `pixel_values`.
        max_length (`int`, *optional*): cuts longer rows at the end.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`):
            Labels are a sequence of their own, the last answer.
    """

    processor: Any
    image_transform: Callable[[Image.Image], Image.Image] | None = None
    features: Mapping[str, torch.Tensor] | None = None
    max_length: int | None = None
    is_encoder_decoder: bool = False

    def __post_init__(self):
        if self.features is not None and self.image_transform is not None:
            raise ValueError("Cached features belong to fixed images: drop the image transform or the cache.")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples (`list[dict]`): training examples.

        Returns:
            `dict`: `input_ids`, `attention_mask` and `labels` of shape `(batch, sequence_length)`; `position_ids`, and
            a mask of shape `(batch, 1, sequence_length, sequence_length)`, where conversations share a row; and
            `pixel_values` or `vision_features` of all images, if there are any.

        Raises:
            BadSampleError: if an image is unreadable or counts do not agree; names file and row.
        """
        rows = [self._tokenize(example) for example in examples]
        shows = [1] * len(rows)  # how often the images of each row are shown
        if self.is_encoder_decoder:
            batch = self._encoder_decoder_batch(rows)
        elif any(len(row) > 1 for row in rows):
            image_token_id = self.processor.image_token_id
            prefixes = [shared_prefix_length(row, image_token_id) if len(row) > 1 else 0 for row in rows]
            shows = [1 if prefix else len(row) for prefix, row in zip(prefixes, rows)]
            batch = self._shared_batch(rows, prefixes)
        else:
            batch = self._plain_batch(rows)
        return batch | self._images(examples, shows)

    def _tokenize(self, example) -> list[TokenizedConversation]:
        conversations = example.get("conversations") or [example["messages"]]
        tokenized = [tokenize_conversation(self.processor, messages) for messages in conversations]
        for index, conversation in enumerate(tokenized):
            self._check(conversation, example, _place(example, index))
        return tokenized

    def check(self, example: Mapping[str, Any]) -> None:
        """
        Checks the text of an example, without reading its images.

        Args:
            example (`dict`): training example.

        Raises:
            BadSampleError: if it does not fit the images, or no answer is left; names file and row.
        """
        self._tokenize(example)

    def length(self, example: Mapping[str, Any]) -> int:
        """
        Number of tokens of an example in a batch, without padding, which does not read its images.

        Args:
            example (`dict`): training example, or several conversations about the same images.

        Raises:
            BadSampleError: as [`check`].
        """
        row = self._tokenize(example)
        if len(row) == 1:
            return len(row[0].input_ids)
        prefix = shared_prefix_length(row, self.processor.image_token_id)
        return prefix + sum(len(conversation.input_ids) - prefix for conversation in row)

    def _check(self, conversation: TokenizedConversation, example, place: Mapping[str, Any]) -> None:
        expected = len(example.get("images") or []) * num_placeholders(self.processor)
        if self.max_length is not None:
            conversation.input_ids = conversation.input_ids[: self.max_length]
            conversation.supervised = conversation.supervised[: self.max_length]
        found = conversation.input_ids.count(self.processor.image_token_id)
        if found != expected:
            raise BadSampleError(
                f"{len(example.get('images') or [])} images need {expected} placeholder tokens, the text has {found}"
                f" (max_length is {self.max_length}): write one <image> per image, or allow longer rows",
                **place,
            )
        if not any(conversation.supervised):
            raise BadSampleError(
                f"no answer is left to learn from (max_length is {self.max_length}): give an assistant turn, or allow "
                "longer rows",
                **place,
            )

    def _plain_batch(self, rows) -> dict[str, torch.Tensor]:
        conversations = [row[0] for row in rows]
        return {
            "input_ids": self._pad([row.input_ids for row in conversations], self._pad_token_id),
            "attention_mask": self._pad([[1] * len(row.input_ids) for row in conversations], 0),
            "labels": self._pad([_labels(row) for row in conversations], IGNORED),
        }

    def _shared_batch(self, rows, prefixes) -> dict[str, torch.Tensor]:
        packed = [pack_conversations(row, prefix) for row, prefix in zip(rows, prefixes)]
        length = max(len(row["input_ids"]) for row in packed)
        mask = torch.eye(length, dtype=torch.bool).repeat(len(packed), 1, 1)  # padding attends to itself: no NaN
        for index, row in enumerate(packed):
            size = len(row["input_ids"])
            mask[index, :size, :size] = row["mask"]
        return {
            "input_ids": self._pad([row["input_ids"] for row in packed], self._pad_token_id),
            "attention_mask": mask.unsqueeze(1),
            "position_ids": self._pad([row["position_ids"] for row in packed], 0),
            "labels": self._pad([row["labels"] for row in packed], IGNORED),
        }

    def _encoder_decoder_batch(self, rows) -> dict[str, torch.Tensor]:
        conversations = [conversation for row in rows for conversation in row]
        if len(conversations) > len(rows):
            raise ValueError("Encoder-decoder language models cannot share a row between conversations.")
        prompts, answers = [], []
        for conversation in conversations:
            end = max(index for index, value in enumerate(conversation.supervised) if value) + 1
            start = end
            while start > 0 and conversation.supervised[start - 1]:
                start -= 1
            # The tokenizer may end every text (T5: `</s>`), as it will end the prompt when the model is asked.
            ending = [token for token in conversation.input_ids[end:] if token in self._special_ids]
            prompts.append(conversation.input_ids[:start] + ending)
            answers.append(conversation.input_ids[start:end])
        return {
            "input_ids": self._pad(prompts, self._pad_token_id),
            "attention_mask": self._pad([[1] * len(prompt) for prompt in prompts], 0),
            "labels": self._pad(answers, IGNORED),
        }

    def _images(self, examples, shows: Sequence[int]) -> dict[str, torch.Tensor]:
        if self.features is not None:
            cached = [
                self.features[image_key(image)]
                for example, times in zip(examples, shows)
                for image in (example.get("images") or []) * times
            ]
            return {"vision_features": torch.stack(cached)} if cached else {}
        images = [image for example, times in zip(examples, shows) for image in self.load_images(example) * times]
        if not images:
            return {}
        return {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}

    def load_images(self, example: Mapping[str, Any]) -> list[Image.Image]:
        """Reads and transforms the images of an example."""
        images = load_example_images(example)
        return images if self.image_transform is None else [self.image_transform(image) for image in images]

    @property
    def _pad_token_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    @property
    def _special_ids(self) -> set[int]:
        return set(self.processor.tokenizer.all_special_ids)

    @staticmethod
    def _pad(rows: Sequence[list[int]], value: int) -> torch.Tensor:
        length = max(len(row) for row in rows)
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def pack_conversations(conversations: Sequence[TokenizedConversation], prefix: int | None = None) -> dict[str, Any]:
    """
    Writes conversations about the same images into one row: the tokens they share, then each one's own.

    Args:
        conversations (`list[TokenizedConversation]`): at least one.
        prefix (`int`, *optional*): number of shared tokens; by default [`shared_prefix_length`].

    Returns:
        `dict`: `input_ids`, `labels` and `position_ids`, lists of one length, and `mask`, boolean, `(length, length)`:
        a token attends to the shared tokens and to those of its own conversation, never to later ones.
    """
    prefix = shared_prefix_length(conversations) if prefix is None else prefix
    first = conversations[0]
    input_ids, labels = first.input_ids[:prefix], [IGNORED] * prefix
    position_ids, owner = list(range(prefix)), [-1] * prefix
    for index, conversation in enumerate(conversations):
        input_ids = input_ids + conversation.input_ids[prefix:]
        labels = labels + _labels(conversation)[prefix:]
        position_ids = position_ids + list(range(prefix, len(conversation.input_ids)))
        owner = owner + [index] * (len(conversation.input_ids) - prefix)
    owners = torch.tensor(owner)
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    mask = causal & ((owners[None, :] == -1) | (owners[None, :] == owners[:, None]))
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "mask": mask}


def _place(example: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Where a conversation of an example comes from; with the first image, since shards count their rows anew."""
    images = example.get("images") or [{}]
    place = {"file": images[0].get("path") if isinstance(images[0], Mapping) else None}
    for name, gathered in (("row", "rows"), ("source", "sources")):
        place[name] = example[gathered][index] if example.get(gathered) else example.get(name)
    return place


def _labels(conversation: TokenizedConversation) -> list[int]:
    return [
        token if supervised else IGNORED for token, supervised in zip(conversation.input_ids, conversation.supervised)
    ]


__all__ = ["VisualLanguageCollator", "pack_conversations", "tokenize_conversation"]
