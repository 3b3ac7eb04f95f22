"""The vision transformer of EVA-02 and EVA-CLIP (Fang et al. 2023, Sun et al. 2023): teacher and tower of GVT."""

import copy
import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_eva import EvaVisionConfig
from .hub_weights import DownloadedPreTrainedModel
from .stochastic_depth import DropPath


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax attention that keeps its map: (batch, heads, tokens, head_dim) -> (batch, tokens, heads, head_dim)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    dtype = torch.promote_types(scores.dtype, torch.float32)
    attention = nn.functional.softmax(scores, dim=-1, dtype=dtype).to(query.dtype)
    attention = nn.functional.dropout(attention, p=dropout, training=module.training)
    return torch.matmul(attention, value).transpose(1, 2).contiguous(), attention


def rotary_angles(
    grid_size: tuple[int, int],
    head_dim: int,
    theta: float = 10000.0,
    rope_grid_size: int = 16,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """
    Angles by which the pairs of a head's channels are rotated (EVA-02, Section 2; interpolated frequencies of
    EVA-CLIP). The first half of the pairs turns with the row, the second with the column: pair i of n by
    `position · theta^(-i / n)`. Positions of any grid run from 0 to `rope_grid_size`.

    Args:
        grid_size (`tuple[int, int]`): height and width of the image, in patches.
        head_dim (`int`): width of a head, a multiple of four.
        theta (`float`): base of the frequencies.
        rope_grid_size (`int`): number of patches at which neighbours are 1 apart.
        device (`torch.device`, *optional*): where the angles are computed.
        dtype (`torch.dtype`): in which they are computed.

    Returns:
        `torch.Tensor` of shape `(num_patches, head_dim // 2)`: radians, patches in row-major order.
    """
    num_pairs = head_dim // 4
    exponents = torch.arange(num_pairs, device=device, dtype=dtype) / num_pairs
    frequencies = theta**-exponents
    rows, columns = (
        torch.arange(length, device=device, dtype=dtype) / length * rope_grid_size for length in grid_size
    )
    by_row = (rows[:, None] * frequencies)[:, None, :].expand(*grid_size, num_pairs)
    by_column = (columns[:, None] * frequencies)[None, :, :].expand(*grid_size, num_pairs)
    return torch.cat([by_row, by_column], dim=-1).flatten(0, 1)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Rotates neighbouring channels as pairs: (x, y) -> (x cos - y sin, y cos + x sin).

    Args:
        states (`torch.FloatTensor` of shape `(batch, num_heads, num_tokens, head_dim)`): queries or keys.
        cos, sin (`torch.FloatTensor` of shape `(num_tokens, head_dim)`): each value twice, once for each of a pair.
    """
    first, second = states.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (states * cos + turned * sin).to(states.dtype)


class EvaVisionRotaryEmbedding(nn.Module):
    """2-D rotary positions of all tokens. [CLS] comes first and stays as it is."""

    def __init__(self, config: EvaVisionConfig):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.theta = float(config.rope_theta)
        self.rope_grid_size = config.rope_grid_size

    def forward(self, states: torch.Tensor, grid_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each `(1 + num_patches, head_dim)`, in float32 at least."""
        dtype = torch.promote_types(states.dtype, torch.float32)
        angles = rotary_angles(grid_size, self.head_dim, self.theta, self.rope_grid_size, states.device, dtype)
        angles = nn.functional.pad(angles, (0, 0, 1, 0)).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


class EvaVisionEmbeddings(nn.Module):
    """Patches, [CLS] and learned absolute positions."""

    def __init__(self, config: EvaVisionConfig):
        super().__init__()
        self.config = config
        patch_size = config.patch_height_width
        self.patch_embeddings = nn.Conv2d(config.num_channels, config.hidden_size, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.use_mask_token else None
        num_patches = math.prod(config.grid_size)
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + num_patches, config.hidden_size))

    def interpolate_pos_encoding(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """
        The position embeddings at another grid, `(1, 1 + num_patches, hidden_size)`: bicubic between those that were
        learned, computed in float32 at least; that of [CLS] as it is.
        """
        learned_size = self.config.grid_size
        if grid_size == learned_size:
            return self.position_embeddings
        patches = self.position_embeddings[:, 1:].unflatten(1, learned_size).permute(0, 3, 1, 2)
        dtype = torch.promote_types(patches.dtype, torch.float32)
        patches = nn.functional.interpolate(patches.to(dtype), size=grid_size, mode="bicubic", align_corners=False)
        patches = patches.to(self.position_embeddings.dtype).flatten(2).transpose(1, 2)
        return torch.cat([self.position_embeddings[:, :1], patches], dim=1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Embeddings of all tokens, `(batch, 1 + num_patches, hidden_size)`, and the grid of the patches."""
        self._check(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        patches = self.patch_embeddings(pixel_values.to(self.patch_embeddings.weight.dtype))
        grid_size = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        if bool_masked_pos is not None and self.mask_token is not None:
            patches = torch.where(bool_masked_pos.bool().unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return tokens + self.interpolate_pos_encoding(grid_size), grid_size

    def _check(self, pixel_values, bool_masked_pos, interpolate_pos_encoding) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {self.config.num_channels}, "
                "height, width)."
            )
        size, learned_size = tuple(pixel_values.shape[-2:]), self.config.image_height_width
        if size != learned_size and not interpolate_pos_encoding:
            raise ValueError(
                f"The image is {size[0]} × {size[1]} pixels, the model was trained at {learned_size[0]} × "
                f"{learned_size[1]}: resize it, or interpolate positions with interpolate_pos_encoding=True."
            )
        if bool_masked_pos is not None and self.mask_token is None:
            raise ValueError(
                "bool_masked_pos was given to a model that has no mask token: build it with use_mask_token=True."
            )


class EvaVisionResidualProjection(nn.Linear):
    """The last projection of a residual branch; its first weights are the smaller the deeper it lies."""

    def __init__(self, in_features: int, out_features: int, layer_index: int):
        self.init_scale = 1 / math.sqrt(2.0 * (layer_index + 1))
        super().__init__(in_features, out_features)


class EvaVisionAttention(nn.Module):
    """Self-attention with rotary positions; queries and values have biases, keys have none."""

    def __init__(self, config: EvaVisionConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.inner_norm: nn.Module = nn.Identity()
        if config.use_attention_norm:
            self.inner_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.o_proj = EvaVisionResidualProjection(config.hidden_size, config.hidden_size, layer_index)

    def forward(
        self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, num_tokens, hidden_size) -> the same, and the attention if the backend returns it."""
        heads = (self.num_heads, self.head_dim)
        query, key, value = (
            projection(hidden_states).unflatten(-1, heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        update, attention = attend(
            self,
            apply_rotary(query, cos, sin),
            apply_rotary(key, cos, sin),
            value,
            None,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
            **kwargs,
        )
        return self.o_proj(self.inner_norm(update.flatten(2))), attention


class EvaVisionMLP(nn.Module):
    """SwiGLU, its product normalised before the last projection."""

    def __init__(self, config: EvaVisionConfig, layer_index: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.inner_norm: nn.Module = nn.Identity()
        if config.use_feed_forward_norm:
            self.inner_norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.down_proj = EvaVisionResidualProjection(config.intermediate_size, config.hidden_size, layer_index)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.inner_norm(gated))


class EvaVisionLayer(GradientCheckpointingLayer):
    """Attention and a gated feed-forward layer, each behind a layer norm and with a residual connection."""

    def __init__(self, config: EvaVisionConfig, layer_index: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = EvaVisionAttention(config, layer_index)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EvaVisionMLP(config, layer_index)
        self.drop_path = DropPath(config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1))

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **kwargs) -> torch.Tensor:
        update, _ = self.attention(self.norm1(hidden_states), cos, sin, **kwargs)
        hidden_states = hidden_states + self.drop_path(update)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class EvaVisionPreTrainedModel(DownloadedPreTrainedModel):
    config: EvaVisionConfig
    config_class = EvaVisionConfig
    base_model_prefix = "eva_vision"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EvaVisionEmbeddings", "EvaVisionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": EvaVisionLayer, "attentions": EvaVisionAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=std * getattr(module, "init_scale", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, EvaVisionEmbeddings):
            tokens = (module.cls_token, module.mask_token, module.position_embeddings)
            for parameter in (parameter for parameter in tokens if parameter is not None):
                init.trunc_normal_(parameter, std=std)


class EvaVisionModel(EvaVisionPreTrainedModel):
    """
    Vision transformer of EVA-02: pre-norm layers with 2-D rotary positions beside learned absolute ones, SwiGLU and
    layer norms inside attention and feed-forward layers ("EVA-02: A Visual Representation for Neon Genesis", Section
    2). With the weights of EVA-CLIP it is the teacher and, distilled, the tower of GVT (Section 3.2).

    Args:
        config ([`EvaVisionConfig`]): see there.
    """

    def __init__(self, config: EvaVisionConfig):
        super().__init__(config)
        self.embeddings = EvaVisionEmbeddings(config)
        self.rotary_embedding = EvaVisionRotaryEmbedding(config)
        self.layers = nn.ModuleList([EvaVisionLayer(config, index) for index in range(config.num_hidden_layers)])
        self.final_norm: nn.Module = nn.Identity()
        if config.use_final_norm:
            self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
                Images, normalised by the statistics of CLIP.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, num_patches)`, *optional*):
                True at patches that the mask token takes the place of.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether images may be of another size than `config.image_size`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` of shape `(batch, 1 + num_patches, hidden_size)`, [CLS]
            first, behind the final norm if there is one; `pooler_output`, that of [CLS]; `hidden_states` (the
            embeddings, then each layer's output, before the final norm) and `attentions` if asked for.

        Raises:
            ValueError: if the images are of another size or number of channels, or patches are masked without a mask
                token.
        """
        hidden_states, grid_size = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        cos, sin = self.rotary_embedding(hidden_states, grid_size)
        for layer in self.layers:
            hidden_states = layer(hidden_states, cos, sin, **kwargs)
        hidden_states = self.final_norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class EvaVisionForImageClassification(EvaVisionPreTrainedModel):
    """
    An [`EvaVisionModel`] with a classifier on the mean of its patches, as EVA-02 is fine-tuned (`fc_norm`, `head`;
    baaivision/EVA, EVA-02/asuka/modeling_finetune.py): the layer norm of the mean takes the place of the final norm,
    which the tower here is without, whatever it was pretrained with.

    Args:
        config ([`EvaVisionConfig`]): its `num_labels` says how many classes there are; the model has a copy, with
            `use_final_norm=False`.
    """

    _keys_to_ignore_on_load_unexpected = [r"final_norm\."]

    def __init__(self, config: EvaVisionConfig):
        config = copy.deepcopy(config)
        config.use_final_norm = False
        super().__init__(config)
        self.num_labels = config.num_labels
        self.eva_vision = EvaVisionModel(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values, interpolate_pos_encoding: see [`EvaVisionModel.forward`].
            labels (`torch.Tensor` of shape `(batch,)`, or `(batch, num_labels)` for several labels, *optional*):
                Classes, or values to regress.

        Returns:
            `ImageClassifierOutput` with `logits` of shape `(batch, num_labels)`.
        """
        outputs = self.eva_vision(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(self.norm(outputs.last_hidden_state[:, 1:].mean(1)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["EvaVisionForImageClassification", "EvaVisionModel", "EvaVisionPreTrainedModel", "rotary_angles"]
