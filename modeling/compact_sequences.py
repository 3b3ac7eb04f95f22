"""Rows without the placeholders that an image left unused: what is left, and the way back to the given positions."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput

from .attention_masks import is_tree

STATES = ("last_hidden_state", "hidden_states", "encoder_last_hidden_state", "encoder_hidden_states")
SELF_ATTENTIONS = ("attentions", "encoder_attentions")


@dataclass(frozen=True)
class CompactSequences:
    """
    Which columns of a batch its rows keep, so that length, key-value cache and time follow the real number of visual
    tokens. Rows that keep less than the longest are padded again, on the side where the batch was padded.

    Args:
        columns (`torch.LongTensor` of shape `(batch, compact_length)`): the given column of each compact position.
        real (`torch.BoolTensor` of shape `(batch, compact_length)`): False at padding.
        unused (`torch.BoolTensor` of shape `(batch, length)`): placeholders that an image left unused.
        sources (`torch.LongTensor` of shape `(batch, length)`): the compact position of each given column; of a
            dropped one that of the last kept before it, whose state says what comes next; -1 where there is none.
        past_length (`int`): number of columns in the cache, which stay as they are.
    """

    columns: torch.Tensor
    real: torch.Tensor
    unused: torch.Tensor
    sources: torch.Tensor
    past_length: int = 0

    @classmethod
    def of(
        cls,
        placeholders: torch.Tensor,
        token_mask: torch.Tensor,
        attention_mask: Any = None,
        past_length: int = 0,
    ) -> "CompactSequences | None":
        """
        Finds what a batch keeps: everything but unused placeholders and padding.

        Args:
            placeholders (`torch.BoolTensor` of shape `(batch, length)`): positions of image placeholders.
            token_mask (`torch.BoolTensor` of shape `(num_images, num_tokens)`): True at real visual tokens.
            attention_mask (`torch.Tensor`, *optional*):
                `(batch, past_length + length)`, 0 at padding; or `(batch, 1, length, length)`, boolean, of which
                padding stays, because it attends to itself.
            past_length (`int`, *optional*, defaults to 0): number of tokens in the cache.

        Returns:
            [`CompactSequences`], or `None` where every image uses all of its placeholders.

        Raises:
            ValueError: if the attention mask is of another form, of which no columns can be taken out.
        """
        token_mask = token_mask.to(placeholders.device)
        if bool(token_mask.all()):
            return None
        unused = torch.zeros_like(placeholders).masked_scatter(placeholders, ~token_mask)
        kept, pads_left = ~unused, True
        if attention_mask is not None:
            if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
                attended = attention_mask[:, -placeholders.shape[1] :].bool()
                kept, pads_left = kept & attended, bool(attended[:, -1].all())
            elif is_tree(attention_mask):
                pads_left = False
            else:
                raise ValueError(
                    "Images with fewer visual tokens than placeholders make rows shorter, which needs an attention "
                    "mask of shape (batch, sequence_length), or a boolean one of (batch, 1, sequence_length, "
                    "sequence_length): give one of these."
                )
        return cls._keeping(kept, unused, pads_left, past_length)

    @classmethod
    def _keeping(cls, kept, unused, pads_left: bool, past_length: int) -> "CompactSequences":
        counts = kept.sum(1, keepdim=True)
        length = max(int(counts.max()), 1)
        ranks = kept.long().cumsum(1) - 1
        if pads_left:
            columns = kept.byte().argsort(dim=1, stable=True)[:, -length:]
            ranks = torch.where(ranks < 0, -1, ranks + length - counts)
        else:
            columns = (~kept).byte().argsort(dim=1, stable=True)[:, :length]
        return cls(columns, kept.gather(1, columns), unused, ranks, past_length)

    def take(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """
        What stands at the kept positions.

        Args:
            values (`torch.Tensor` of shape `(batch, length, ...)`): ids, embeddings, labels, …
            fill (`float`, *optional*, defaults to 0): stands at padding.
        """
        taken = values[self._rows(), self.columns.to(values.device)]
        padding = ~self.real.to(values.device)
        return taken.masked_fill(padding.view(*padding.shape, *[1] * (values.ndim - 2)), fill)

    def attention_mask(self, given: torch.Tensor | None) -> torch.Tensor:
        """
        The attention mask of the compact rows.

        Args:
            given (`torch.Tensor`, *optional*): the mask of the given rows.
        """
        if given is None:
            past = torch.ones(len(self.real), self.past_length, dtype=torch.long, device=self.real.device)
            return torch.cat([past, self.real.long()], dim=1)
        if given.ndim == 2:
            return torch.cat([given[:, : self.past_length], self.real.to(given.dtype)], dim=1)
        pairs = given[:, 0][self._rows(), self.columns]
        pairs = pairs.gather(2, self.columns[:, None].expand(-1, pairs.shape[1], -1))
        pairs = pairs & self.real[:, None] & self.real[:, :, None]
        return (pairs | torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)).unsqueeze(1)

    def position_ids(self, given: torch.Tensor | None) -> torch.Tensor | None:
        """
        Positions that count no unused placeholder of their own sequence. A sequence of a row ends where the given
        positions do not count on.

        Args:
            given (`torch.LongTensor` of shape `(batch, length)`, *optional*): positions of the given rows.
        """
        if given is None:
            return None
        given = given.expand(self.unused.shape)
        starts = torch.ones_like(self.unused)
        starts[:, 1:] = given[:, 1:] != given[:, :-1] + 1
        counts = self.unused.long().cumsum(1)
        before = torch.where(starts, counts - self.unused.long(), 0).cummax(1).values
        return self.take(given - (counts - before))

    def restore(self, values: torch.Tensor, dim: int = 1, repeat: bool = True) -> torch.Tensor:
        """
        What was computed at compact positions, at the given ones.

        Args:
            values (`torch.Tensor`): of compact rows, the batch in the first dimension.
            dim (`int`, *optional*, defaults to 1): dimension of the positions.
            repeat (`bool`, *optional*, defaults to `True`):
                Whether a dropped position has what the last kept one before it has, so that the last visual token of
                an image predicts the word behind its unused placeholders; otherwise it has zero.
        """
        sources = self.sources.to(values.device)
        known = sources >= 0
        if not repeat:
            kept = torch.zeros_like(known).scatter_(1, self.columns.to(values.device), self.real.to(values.device))
            known = known & kept
        moved = values.movedim(dim, 1)
        rows = torch.arange(len(sources), device=values.device)[:, None]
        restored = moved[rows, sources.clamp(min=0)]
        restored = restored.masked_fill(~known.view(*known.shape, *[1] * (moved.ndim - 2)), 0)
        return restored.movedim(1, dim)

    def restore_outputs(self, outputs: ModelOutput, is_encoder_decoder: bool = False) -> ModelOutput:
        """
        The output of a language model that read compact rows, with states and attention maps at the given positions.
        Caches stay compact.

        Args:
            outputs (`ModelOutput`): changed in place.
            is_encoder_decoder (`bool`, *optional*, defaults to `False`): whether the rows went into an encoder.
        """
        for name in STATES:
            if name.startswith("encoder") == is_encoder_decoder and outputs.get(name) is not None:
                outputs[name] = _each(outputs[name], self.restore)
        for name in SELF_ATTENTIONS:
            if name.startswith("encoder") == is_encoder_decoder and outputs.get(name) is not None:
                outputs[name] = _each(outputs[name], self._restore_attention)
        if is_encoder_decoder and outputs.get("cross_attentions") is not None:
            outputs["cross_attentions"] = _each(outputs["cross_attentions"], self._restore_keys)
        return outputs

    def _restore_attention(self, maps: torch.Tensor) -> torch.Tensor:
        return self._restore_keys(self.restore(maps, dim=2))

    def _restore_keys(self, maps: torch.Tensor) -> torch.Tensor:
        past, own = maps[..., : self.past_length], maps[..., self.past_length :]
        return torch.cat([past, self.restore(own, dim=3, repeat=False)], dim=-1)

    def _rows(self) -> torch.Tensor:
        return torch.arange(len(self.columns), device=self.columns.device)[:, None]


def _each(values, function):
    if isinstance(values, (tuple, list)):
        return tuple(None if value is None else function(value) for value in values)
    return function(values)


__all__ = ["CompactSequences"]
