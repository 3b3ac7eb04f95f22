"""The Perceiver resampler: a fixed number of learned queries read an image's patch features."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_perceiver_resampler import PerceiverResamplerConfig
from .plain_matrix import is_plain_matrix
from .visual_tokenizer import VisualTokenizer, VisualTokenizerOutput


def stable_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, computed in float32 at least."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return nn.functional.softmax(scores, dim=-1, dtype=dtype).to(scores.dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Softmax attention that keeps its map: (batch, heads, queries, head_dim) -> (batch, queries, heads, head_dim)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    attention = stable_softmax(scores)
    return torch.matmul(attention, value).transpose(1, 2).contiguous(), attention


class PerceiverAttention(nn.Module):
    """
    Attention of the latents over `[patches; latents]`, without biases, scale head_dim^-1/2.

    Because keys and values have no bias, `q · W_k x = (W_kᵀ q) · x` and `Σ a W_v x = W_v Σ a x`. The absorbed
    formulation uses both, so that the projections act on the few latents in place of the many patches.
    """

    def __init__(self, config: PerceiverResamplerConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        inner_size = self.num_heads * self.head_dim
        self.patch_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.latent_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.q_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.o_proj = nn.Linear(inner_size, config.hidden_size, bias=False)

    def forward(
        self, latents: torch.Tensor, patches: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, num_latents, hidden_size), (batch, num_patches, hidden_size) -> update of the latents, attention."""
        latents = self.latent_norm(latents)
        keys_values = torch.cat([self.patch_norm(patches), latents], dim=1)
        query = self.q_proj(latents).unflatten(-1, (self.num_heads, self.head_dim))
        absorbable = is_plain_matrix(self.k_proj) and is_plain_matrix(self.v_proj)
        if self.config.attention_formulation == "absorbed" and absorbable:
            update, attention = self._attend_absorbed(query, keys_values)
        else:
            update, attention = self._attend_plain(query, keys_values, output_attentions)
        return self.o_proj(update), attention

    def _attend_plain(self, query, keys_values, output_attentions):
        key = self.k_proj(keys_values).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        value = self.v_proj(keys_values).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        attend = eager_attention_forward
        if not output_attentions:  # the other backends return no maps
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        update, attention = attend(
            self, query.transpose(1, 2), key, value, None, scaling=self.scaling, dropout=0.0, is_causal=False
        )
        return update.flatten(2), attention

    def _attend_absorbed(self, query, keys_values):
        batch_size, num_latents = query.shape[:2]
        # (heads, batch · latents, head_dim) @ (heads, head_dim, hidden_size)
        key_weight = self.k_proj.weight.unflatten(0, (self.num_heads, self.head_dim))
        query = query.permute(2, 0, 1, 3).flatten(1, 2) * self.scaling
        absorbed = torch.bmm(query, key_weight).unflatten(1, (batch_size, num_latents)).transpose(0, 1).flatten(1, 2)
        # (batch, heads · latents, hidden_size) @ (batch, hidden_size, keys)
        scores = torch.bmm(absorbed, keys_values.transpose(1, 2))
        attention = stable_softmax(scores)
        summed = torch.bmm(attention, keys_values).unflatten(1, (self.num_heads, num_latents))
        # (heads, batch · latents, hidden_size) @ (heads, hidden_size, head_dim)
        value_weight = self.v_proj.weight.unflatten(0, (self.num_heads, self.head_dim))
        update = torch.bmm(summed.transpose(0, 1).flatten(1, 2), value_weight.transpose(1, 2))
        update = update.unflatten(1, (batch_size, num_latents)).permute(1, 2, 0, 3).flatten(2)
        return update, attention.unflatten(1, (self.num_heads, num_latents))


class PerceiverFeedForward(nn.Module):
    """LayerNorm, Linear, activation, Linear, without biases in the linear layers."""

    def __init__(self, config: PerceiverResamplerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(self.norm(hidden_states))))


class PerceiverResamplerLayer(GradientCheckpointingLayer):
    """Attention over the patches and a feed-forward layer, each with a residual connection."""

    def __init__(self, config: PerceiverResamplerConfig):
        super().__init__()
        self.attention = PerceiverAttention(config)
        self.feed_forward = PerceiverFeedForward(config)

    def forward(self, latents: torch.Tensor, patches: torch.Tensor, output_attentions: bool = False):
        update, attention = self.attention(latents, patches, output_attentions=output_attentions)
        latents = latents + update
        return latents + self.feed_forward(latents), attention


class PerceiverResampler(VisualTokenizer):
    """
    Perceiver resampler of GVT (Section 3.2; layers as in Flamingo, Alayrac et al. 2022): a layer norm and one learned
    position embedding on the patch features, then layers in which learned queries attend to the patches and to one
    another, then a layer norm.
    """

    config: PerceiverResamplerConfig
    config_class = PerceiverResamplerConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["PerceiverResamplerLayer"]
    _can_compile_fullgraph = True

    def __init__(self, config: PerceiverResamplerConfig):
        super().__init__(config)
        patch_hidden_size: Any = config.patch_hidden_size
        self.patch_norm = nn.LayerNorm(patch_hidden_size, eps=config.layer_norm_eps)
        self.patch_projection = None
        if patch_hidden_size != config.hidden_size:
            self.patch_projection = nn.Linear(patch_hidden_size, config.hidden_size, bias=False)
        self.patch_position_embedding = nn.Parameter(torch.empty(1, config.hidden_size))
        self.latents = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))
        self.layers = nn.ModuleList([PerceiverResamplerLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PerceiverResampler):
            init.normal_(module.latents, mean=0.0, std=1.0)
            init.normal_(module.patch_position_embedding, mean=0.0, std=self.config.initializer_range)

    @property
    def output_size(self) -> int:
        return self.config.hidden_size

    @property
    def max_num_tokens(self) -> int:
        return self.config.num_latents

    def forward(
        self,
        patch_features: torch.Tensor,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int | None = 0,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> VisualTokenizerOutput:
        """
        Args:
            patch_features (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`):
                Features of the vision tower; [CLS] and registers may be among them.
            grid_size (`tuple[int, int]`, *optional*): not used.
            num_prefix_tokens (`int`, *optional*): not used.
            output_attentions (`bool`, *optional*):
                Whether to return the attention of every layer, `(batch, num_heads, num_latents, num_patches +
                num_latents)`: the last keys are the latents themselves.

        Returns:
            [`VisualTokenizerOutput`] with `num_latents` tokens per image, all of them real.

        Raises:
            ValueError: if the features are not of width `patch_hidden_size`.
        """
        if patch_features.shape[-1] != self.config.patch_hidden_size:
            raise ValueError(
                f"The patch features are {patch_features.shape[-1]} wide, the resampler expects "
                f"patch_hidden_size={self.config.patch_hidden_size}."
            )
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        patches = self.patch_norm(patch_features)
        if self.patch_projection is not None:
            patches = self.patch_projection(patches)
        patches = patches + self.patch_position_embedding
        latents = self.latents.expand(patches.shape[0], -1, -1)
        attentions = []
        for layer in self.layers:
            latents, attention = layer(latents, patches, output_attentions=output_attentions)
            attentions.append(attention)
        tokens = self.norm(latents)
        return VisualTokenizerOutput(
            tokens=tokens,
            mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            attentions=tuple(attentions) if output_attentions else None,
        )


__all__ = ["PerceiverResampler"]
