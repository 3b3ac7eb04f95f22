"""The mask decoder of SeTok: visual tokens and patch features → a mask for every token."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_mask_decoder import MaskDecoderConfig
from .perceiver_resampler import eager_attention_forward
from .sine_positions import sine_positions


class TokenPatchAttention(nn.Module):
    """Attention of tokens to patches, through any attention backend of transformers."""

    def __init__(self, config: MaskDecoderConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection, states in ((self.q_proj, tokens), (self.k_proj, keys), (self.v_proj, values))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        update, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.o_proj(update.flatten(2))


class MaskDecoderLayer(GradientCheckpointingLayer):
    """Attention of the tokens to the patches and a feed-forward layer, each with a norm before it and a residual."""

    def __init__(self, config: MaskDecoderConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = TokenPatchAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            ACT2FN[config.hidden_act],
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens), keys, values)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class PixelUpsampling(nn.Module):
    """Doubles a feature map and halves its channels; a 3 × 3 convolution joins what lay in different patches."""

    def __init__(self, config: MaskDecoderConfig, channels: int):
        super().__init__()
        self.upsampling = nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)
        self.norm = nn.GroupNorm(1, channels // 2, eps=config.layer_norm_eps)
        self.act_fn = ACT2FN[config.hidden_act]
        self.convolution = nn.Conv2d(channels // 2, channels // 2, kernel_size=3, padding=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.convolution(self.act_fn(self.norm(self.upsampling(feature_map))))


class MaskDecoder(PreTrainedModel):
    """
    Predicts a mask for every visual token (SeTok, Section 2.2, stage I-b). The tokens attend to the patch features,
    and a small network turns each into a mask embedding; the patch features are upsampled to pixel embeddings; a mask
    is the dot product of both. Tokens do not attend to one another, so a token has the same mask alone as among
    others: also one that a language model emits for an expression.

    Args:
        config ([`MaskDecoderConfig`]): its sizes.
    """

    config: MaskDecoderConfig
    config_class = MaskDecoderConfig
    base_model_prefix = ""
    main_input_name = "tokens"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MaskDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MaskDecoderConfig):
        super().__init__(config)
        size = config.hidden_size
        self.token_norm = nn.LayerNorm(config.token_size, eps=config.layer_norm_eps)
        self.token_projection = nn.Linear(config.token_size, size)
        self.patch_norm = nn.LayerNorm(config.patch_hidden_size, eps=config.layer_norm_eps)
        self.patch_projection = nn.Linear(config.patch_hidden_size, size)
        self.layers = nn.ModuleList([MaskDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.upsamplings = nn.ModuleList([PixelUpsampling(config, size >> i) for i in range(config.num_upsamplings)])
        self.mask_embedding = nn.Sequential(
            nn.Linear(size, size),
            ACT2FN[config.hidden_act],
            nn.Linear(size, size),
            ACT2FN[config.hidden_act],
            nn.Linear(size, size >> config.num_upsamplings),
        )
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        # PyTorch's values, which follow the number of inputs; 0.02 for all would leave mask logits near 0 for long.
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def forward(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        patch_features: torch.Tensor,
        grid_size: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """
        Args:
            tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`):
                Visual tokens, of the tokenizer or of a language model.
            mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*):
                True at real tokens; all are if it is `None`. The masks of padding are empty.
            patch_features (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`):
                Of the image, in row-major order, without [CLS].
            grid_size (`tuple[int, int]`): height and width of the image, in patches.
            size (`tuple[int, int]`, *optional*):
                Height and width of the masks, in pixels, to which they are interpolated; by default they are
                `2 ** num_upsamplings` times as fine as the grid.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_tokens, height, width)`: mask logits, before the sigmoid.

        Raises:
            ValueError: if tokens, mask, patches and grid do not fit one another or the config.
        """
        self._check(tokens, mask, patch_features, grid_size)
        dtype = self.patch_projection.weight.dtype
        patches = self.patch_projection(self.patch_norm(patch_features.to(dtype)))
        positions = sine_positions(grid_size, patches.shape[-1]).to(patches)
        hidden_states = self.token_projection(self.token_norm(tokens.to(dtype)))
        for layer in self.layers:
            hidden_states = layer(hidden_states, patches + positions, patches)
        embeddings = self.mask_embedding(self.norm(hidden_states))
        pixels = (patches + positions).transpose(1, 2).unflatten(-1, grid_size)
        for upsampling in self.upsamplings:
            pixels = upsampling(pixels)
        mask_logits = torch.einsum("bmc,bchw->bmhw", embeddings, pixels)
        if size is not None:
            mask_logits = nn.functional.interpolate(mask_logits, size=tuple(size), mode="bilinear")
        if mask is not None:
            mask_logits = mask_logits.masked_fill(~mask[:, :, None, None], torch.finfo(mask_logits.dtype).min)
        return mask_logits

    def _check(self, tokens, mask, patch_features, grid_size) -> None:
        expected = (len(tokens), grid_size[0] * grid_size[1], self.config.patch_hidden_size)
        if tuple(patch_features.shape) != expected:
            raise ValueError(
                f"patch_features have the shape {tuple(patch_features.shape)}, expected {expected}: (batch, "
                f"num_patches, patch_hidden_size) of a grid of {grid_size[0]} × {grid_size[1]} patches, without [CLS]."
            )
        if tokens.ndim != 3 or tokens.shape[-1] != self.config.token_size:
            raise ValueError(
                f"tokens have the shape {tuple(tokens.shape)}, expected (batch, num_tokens, "
                f"token_size={self.config.token_size})."
            )
        if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of shape "
                f"{tuple(tokens.shape[:2])}."
            )


__all__ = ["MaskDecoder"]
