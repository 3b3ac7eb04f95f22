"""Transformer layers on segments of different lengths, packed without padding."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
from .perceiver_resampler import eager_attention_forward


@dataclass
class PackedSegments:
    """
    How items that belong to segments are packed: segments of one length side by side, so that each length is one
    batch, and attention needs no mask.

    Args:
        order (`torch.LongTensor` of shape `(num_items,)`): indices of the items, in packed order.
        buckets (`list[tuple[int, int]]`): number of segments and their length, shortest first.
    """

    order: torch.Tensor
    buckets: list[tuple[int, int]]

    @classmethod
    def of(cls, segments: torch.Tensor, num_segments: int) -> "PackedSegments":
        """
        Args:
            segments (`torch.LongTensor` of shape `(num_items,)`): the segment of each item.
            num_segments (`int`): upper bound of their number; some may be empty.
        """
        lengths = torch.bincount(segments, minlength=num_segments)
        order = (lengths[segments] * num_segments + segments).argsort(stable=True)
        counts = torch.bincount(lengths).tolist()
        return cls(order, [(count, length) for length, count in enumerate(counts) if count and length])

    def pack(self, items: torch.Tensor) -> torch.Tensor:
        """`(num_items, width)` in packed order."""
        return items.index_select(0, self.order)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The inverse of [`PackedSegments.pack`]."""
        return packed.index_select(0, self.order.argsort())


class SegmentAttention(nn.Module):
    """Self-attention in which an item sees the items of its own segment: block-diagonal attention."""

    def __init__(self, config: SeTokTokenizerConfig):
        super().__init__()
        self.config = config
        hidden_size = config.patch_hidden_size
        self.num_heads = config.merger_num_heads
        self.head_dim = hidden_size // config.merger_num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, buckets: list[tuple[int, int]]) -> torch.Tensor:
        """(num_items, hidden_size) in packed order -> the same."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        sizes = [count * length for count, length in buckets]
        projected = [
            projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).split(sizes)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        ]
        updates = []
        for (count, length), *items in zip(buckets, *projected, strict=True):
            query, key, value = (part.unflatten(0, (count, length)).transpose(1, 2) for part in items)
            update, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=False)
            updates.append(update.flatten(2).flatten(0, 1))
        return self.o_proj(torch.cat(updates))


class SegmentFeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: SeTokTokenizerConfig):
        super().__init__()
        intermediate_size = config.merger_intermediate_size or 4 * config.patch_hidden_size
        self.up_proj = nn.Linear(config.patch_hidden_size, intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(intermediate_size, config.patch_hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class SegmentLayer(GradientCheckpointingLayer):
    """Attention within segments and a feed-forward layer, each behind a layer norm and with a residual connection."""

    def __init__(self, config: SeTokTokenizerConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.patch_hidden_size, eps=config.layer_norm_eps)
        self.attention = SegmentAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.patch_hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = SegmentFeedForward(config)

    def forward(self, hidden_states: torch.Tensor, buckets: list[tuple[int, int]]) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), buckets)
        return hidden_states + self.feed_forward(self.feed_forward_norm(hidden_states))


__all__ = ["PackedSegments", "SegmentAttention", "SegmentLayer"]
