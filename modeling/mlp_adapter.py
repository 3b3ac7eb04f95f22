"""The MLP adapter: every patch becomes a visual token, each by itself."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..configuration.configuration_mlp_adapter import MLPAdapterConfig
from .visual_tokenizer import VisualTokenizer, VisualTokenizerOutput


class MLPAdapter(VisualTokenizer):
    """
    Two linear layers with an activation between them, applied to every patch: the adapter of VT-LMM (Section 3.1) and
    the projector of LLaVA-1.5.

    Args:
        config ([`MLPAdapterConfig`]): its sizes.

    Raises:
        ValueError: if the activation is unknown.
    """

    config: MLPAdapterConfig
    config_class = MLPAdapterConfig
    one_token_per_patch = True
    _can_compile_fullgraph = True

    def __init__(self, config: MLPAdapterConfig):
        super().__init__(config)
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {config.hidden_act!r}: choose one of {', '.join(sorted(ACT2FN))}.")
        inner_size = config.intermediate_size or config.output_size
        self.linear_1 = nn.Linear(config.patch_hidden_size, inner_size)
        self.act = ACT2FN[config.hidden_act]
        self.linear_2 = nn.Linear(inner_size, config.output_size)
        self.post_init()

    @property
    def output_size(self) -> int:
        return self.config.output_size

    @property
    def max_num_tokens(self) -> int:
        if self.config.num_tokens is None:
            raise ValueError("The adapter was not told how many patches an image has: set num_tokens of its config.")
        return self.config.num_tokens

    def forward(
        self,
        patch_features: torch.Tensor,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int | None = 0,
        **kwargs,
    ) -> VisualTokenizerOutput:
        """
        Args:
            patch_features (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`):
                Patches, and the prefix tokens that were kept, of any number.
            grid_size (`tuple[int, int]`, *optional*): not read.
            num_prefix_tokens (`int`, *optional*): not read: what is kept becomes a token.

        Returns:
            [`VisualTokenizerOutput`] with as many tokens as patch features, all of them real.

        Raises:
            ValueError: if the features are not of width `patch_hidden_size`.
        """
        if patch_features.shape[-1] != self.config.patch_hidden_size:
            raise ValueError(
                f"The patch features are {patch_features.shape[-1]} wide, the adapter expects "
                f"patch_hidden_size={self.config.patch_hidden_size}."
            )
        tokens = self.linear_2(self.act(self.linear_1(patch_features)))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return VisualTokenizerOutput(tokens=tokens, mask=mask)


__all__ = ["MLPAdapter"]
