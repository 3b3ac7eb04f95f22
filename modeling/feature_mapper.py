"""The feature mapper of SeTok: a Q-Former that turns visual tokens into the condition of a diffusion U-Net."""

import math
import re

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    PreTrainedModel,
)
from transformers import initialization as init

from ..configuration.configuration_feature_mapper import FeatureMapperConfig
from .base_checkpoints import hub_arguments
from .base_weights import resolve_checkpoint
from .sine_positions import sine_positions
from .trained_weights import CheckpointError, one_checkpoint_error

# What a Q-Former that starts from BERT has as BERT has it.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")

# Name in BERT → name in the Q-Former, whose queries have feed-forward layers of their own.
_FROM_BERT = (
    (r"embeddings\.LayerNorm\.", "layernorm."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.", r"encoder.layer.\1.attention.attention."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.", r"encoder.layer.\1.attention.output."),
    (r"encoder\.layer\.(\d+)\.intermediate\.", r"encoder.layer.\1.intermediate_query."),
    (r"encoder\.layer\.(\d+)\.output\.", r"encoder.layer.\1.output_query."),
)


class FeatureMapper(PreTrainedModel):
    """
    A Q-Former (SeTok, Section 2.2, stage I; Q-Former: Li et al. 2023): learned queries attend to one another, and in
    every `cross_attention_frequency`-th layer to the visual tokens; a linear layer brings them to the width of the
    U-Net's condition. A learned token stands for no image, which classifier-free guidance needs. With `query_grid`
    each query stands for a square of the image and starts as its position.

    Args:
        config ([`FeatureMapperConfig`]): its sizes.
    """

    config: FeatureMapperConfig
    config_class = FeatureMapperConfig
    base_model_prefix = ""
    main_input_name = "tokens"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Blip2QFormerLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: FeatureMapperConfig):
        super().__init__(config)
        self.queries = nn.Parameter(torch.empty(1, config.num_queries, config.hidden_size))
        self.no_image_token = nn.Parameter(torch.empty(1, 1, config.token_size))
        self.token_norm = nn.LayerNorm(config.token_size)
        self.qformer = Blip2QFormerModel._from_config(self._qformer_config())
        self.projection = nn.Linear(config.hidden_size, config.condition_size)
        self.post_init()

    def _qformer_config(self) -> Blip2QFormerConfig:
        config = self.config
        same = ("cross_attention_frequency", "layer_norm_eps", "initializer_range")
        return Blip2QFormerConfig(
            **{name: getattr(config, name) for name in (*_SIZES, *same)},
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            encoder_hidden_size=config.token_size,
            attn_implementation=config._attn_implementation,
        )

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FeatureMapper):
            init.normal_(module.queries, mean=0.0, std=1.0)
            if self.config.query_grid:
                side = math.isqrt(self.config.num_queries)
                positions = sine_positions((side, side), self.config.hidden_size) * math.sqrt(2)  # as large as N(0, 1)
                init.copy_(module.queries, positions.to(module.queries).unsqueeze(0))
            init.normal_(module.no_image_token, mean=0.0, std=1.0)

    @classmethod
    def from_bert(cls, name_or_path: str, config: FeatureMapperConfig | None = None, **kwargs) -> "FeatureMapper":
        """
        A mapper whose self-attention and feed-forward layers are those of BERT (SeTok, Appendix D). Cross-attention,
        queries and projection are new and random.

        Args:
            name_or_path (`str`): folder or Hub id of a BERT, e.g. `"google-bert/bert-base-uncased"`.
            config ([`FeatureMapperConfig`], *optional*):
                The mapper's. By default it has BERT's sizes.
            kwargs: fields of the config (`token_size=384`), or `revision`, `token`, … as in `from_pretrained`.

        Returns:
            [`FeatureMapper`], in evaluation mode.

        Raises:
            CheckpointError: if the checkpoint is no BERT, truncated, or of other sizes than the config.
        """
        where = hub_arguments(kwargs)
        fields = {name: value for name, value in kwargs.items() if name not in where}
        if config is None:
            config = FeatureMapperConfig(**{**_sizes_of_bert(name_or_path, where), **fields})
        mapper = cls(config)
        mapper.load_bert(name_or_path, **where)
        return mapper.eval()

    def load_bert(self, name_or_path: str, **hub_options) -> None:
        """
        Takes over the layers of a BERT, in place; see [`from_bert`].

        Args:
            name_or_path (`str`): folder or Hub id.
            hub_options: `revision`, `token`, … as in `from_pretrained`.

        Raises:
            CheckpointError: if the checkpoint is no BERT, truncated, or of other sizes.
        """
        sizes = _sizes_of_bert(name_or_path, hub_options)
        if differ := [name for name, size in sizes.items() if getattr(self.config, name) != size]:
            raise CheckpointError(
                f"{name_or_path} has {', '.join(f'{name}={sizes[name]}' for name in differ)}, the feature mapper "
                f"{', '.join(f'{name}={getattr(self.config, name)}' for name in differ)}: give the mapper's config "
                "the same."
            )
        path = resolve_checkpoint(name_or_path)
        with one_checkpoint_error(path):
            bert = AutoModel.from_pretrained(path, add_pooling_layer=False, **hub_options)
        weights = {}
        for name, tensor in bert.state_dict().items():
            for pattern, replacement in _FROM_BERT:
                renamed, count = re.subn(f"^{pattern}", replacement, name)
                if count:
                    weights[renamed] = tensor
        left_out = self.qformer.load_state_dict(weights, strict=False)
        new = [name for name in left_out.missing_keys if ".crossattention." not in name]
        if new or left_out.unexpected_keys:
            raise CheckpointError(
                f"{name_or_path} does not fit the Q-Former: it lacks {new[:3]} and has {left_out.unexpected_keys[:3]}."
            )

    def forward(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`): visual tokens.
            mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*):
                True at real tokens; all are if it is `None`.
            dropped (`torch.BoolTensor` of shape `(batch,)`, *optional*):
                Images that count as none: their condition is that of the token for no image.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_queries, condition_size)`: the condition of the U-Net.

        Raises:
            ValueError: if the tokens are not of width `token_size`, or an image has none.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.config.token_size or not tokens.shape[1]:
            raise ValueError(
                f"tokens have the shape {tuple(tokens.shape)}, expected (batch, num_tokens, "
                f"token_size={self.config.token_size}) with at least one token."
            )
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if not bool(mask.any(1).all()):
            raise ValueError(f"Images {(~mask.any(1)).nonzero().flatten().tolist()} have no visual token.")
        tokens = tokens.to(self.no_image_token.dtype)
        if dropped is not None:
            first = torch.arange(tokens.shape[1], device=tokens.device) == 0
            tokens = torch.where(dropped[:, None, None], self.no_image_token, tokens)
            mask = torch.where(dropped[:, None], first, mask)
        outputs = self.qformer(
            query_embeds=self.queries.expand(len(tokens), -1, -1),
            encoder_hidden_states=self.token_norm(tokens),
            encoder_attention_mask=mask.long(),
            return_dict=True,
        )
        return self.projection(outputs.last_hidden_state)


def _sizes_of_bert(name_or_path: str, hub_options) -> dict[str, int | float | str]:
    config = AutoConfig.from_pretrained(resolve_checkpoint(name_or_path), **hub_options)
    if config.model_type != "bert":
        raise CheckpointError(
            f"{name_or_path} holds a model of type {config.model_type}: the feature mapper is initialised from BERT, "
            "such as google-bert/bert-base-uncased."
        )
    return {name: getattr(config, name) for name in _SIZES}


__all__ = ["FeatureMapper"]
