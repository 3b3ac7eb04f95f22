"""Prompts of a generation without the placeholders that images left unused, and their sequences as they were given."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass(frozen=True)
class CompactPrompt:
    """
    What a prompt became before it was read. A key-value cache carries it as `compact_prompt`, so that a conversation
    can go on from the ids that its user knows.

    Args:
        given_length (`int`): length of the prompt as its user knows it.
        input_ids (`torch.LongTensor` of shape `(batch, compact_length)`): the prompt as it was read.
        attention_mask (`torch.LongTensor` of shape `(batch, compact_length)`): 0 at padding.
    """

    given_length: int
    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def continued(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        A longer prompt that begins with this one, and its mask, as they are to be read.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): as the user knows them.
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 at padding.
        """
        new = input_ids[:, self.given_length :]
        mask = torch.ones_like(new) if attention_mask is None else attention_mask[:, self.given_length :]
        return torch.cat([self.input_ids, new], dim=1), torch.cat([self.attention_mask, mask], dim=1)


def compact_arguments(
    model: Any, kwargs: dict[str, Any], image_features: Any, generation_config: Any = None
) -> CompactPrompt | None:
    """
    Makes the arguments of a generation those of the prompt that the language model reads.

    Args:
        model ([`MultimodalModel`]): about to read it.
        kwargs (`dict`): arguments of `generate` without images; changed in place.
        image_features ([`ImageFeatures`], *optional*): of the images of the prompt.
        generation_config (`GenerationConfig`, *optional*): names the id to pad with, where the arguments do not.

    Returns:
        [`CompactPrompt`] of a prompt given as ids that is shorter than what was given; `None` otherwise.
    """
    input_ids, embeddings, mask = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    if image_features is None:
        return _continued(kwargs, input_ids, mask)
    inputs = embeddings if embeddings is not None else input_ids
    placeholders = model.get_placeholder_mask(inputs, image_features)
    compact = model.compact_sequences(placeholders, mask, image_features)
    images = image_features.per_image() if compact is None else image_features.real_tokens()
    kwargs["mm_encoder_outputs"] = {"image": model.image_features_class(pooler_output=images)}
    if compact is None:
        return None
    kwargs["attention_mask"] = compact.attention_mask(mask)
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = compact.position_ids(kwargs["position_ids"])
    if embeddings is not None:
        kwargs["inputs_embeds"] = compact.take(embeddings)
    if input_ids is None or input_ids.shape[1] == 0:
        return None
    defaults = kwargs.get("generation_config") or generation_config
    pad_token_id = kwargs.get("pad_token_id", getattr(defaults, "pad_token_id", None))
    usable = isinstance(pad_token_id, int) and pad_token_id != model.config.image_token_id
    kwargs["input_ids"] = compact.take(input_ids, pad_token_id if usable else model.filler_id())
    _shorten(kwargs, input_ids.shape[1] - kwargs["input_ids"].shape[1])
    return CompactPrompt(input_ids.shape[1], kwargs["input_ids"], kwargs["attention_mask"])


def _continued(kwargs: dict[str, Any], input_ids, mask) -> CompactPrompt | None:
    """The prompt behind a cache that was filled by a prompt of which not everything was read."""
    before: CompactPrompt | None = getattr(kwargs.get("past_key_values"), "compact_prompt", None)
    if before is None or input_ids is None or input_ids.shape[1] <= before.given_length:
        return None
    kwargs["input_ids"], kwargs["attention_mask"] = before.continued(input_ids, mask)
    _shorten(kwargs, input_ids.shape[1] - kwargs["input_ids"].shape[1])
    return CompactPrompt(input_ids.shape[1], kwargs["input_ids"], kwargs["attention_mask"])


def _shorten(kwargs: dict[str, Any], removed: int) -> None:
    """Lengths that count the prompt count the one that is read."""
    if kwargs.get("generation_config") is not None:
        kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
    for name in ("max_length", "min_length"):
        if kwargs.get(name):
            kwargs[name] = max(kwargs[name] - removed, 0)
        elif getattr(kwargs.get("generation_config"), name, None):
            length = getattr(kwargs["generation_config"], name)
            setattr(kwargs["generation_config"], name, max(length - removed, 0))


def with_given_prompt(result: Any, given: torch.Tensor, prompt: CompactPrompt, cache: Any) -> Any:
    """
    What a generation returned, with the prompt as its user knows it.

    Args:
        result (`torch.LongTensor` or `ModelOutput`): of `generate`.
        given (`torch.LongTensor` of shape `(batch, given_length)`): the prompt as it was given.
        prompt ([`CompactPrompt`]): what was read of it.
        cache (`Cache`, *optional*): that of the user, where it is filled.

    Returns:
        The same kind of result; its cache carries the prompt.
    """
    in_dict = isinstance(result, ModelOutput)
    sequences = result.sequences if in_dict else result
    copies = len(sequences) // len(given)
    prompts = given.to(sequences.device).repeat_interleave(copies, dim=0)
    restored = torch.cat([prompts, sequences[:, prompt.input_ids.shape[1] :]], dim=1)
    cache = result.get("past_key_values") if in_dict else cache
    if cache is not None and copies == 1:
        cache.compact_prompt = prompt
    if not in_dict:
        return restored
    result.sequences = restored
    return result


__all__ = ["CompactPrompt", "compact_arguments", "with_given_prompt"]
