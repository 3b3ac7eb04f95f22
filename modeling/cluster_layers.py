"""Layers between the patches of an image and the distances that they are clustered by."""

import torch
from torch import nn

from ..configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
from .sine_positions import sine_positions


class ClusterLayer(nn.Module):
    """
    A layer of attention between all patches of an image, with their 2-D sine positions, and a feed-forward layer. What
    it adds to the features is zero at the start: untrained, clusters are those of the features themselves.

    Args:
        config ([`SeTokTokenizerConfig`]): width, heads and feed-forward width, which are those of the merger.
    """

    def __init__(self, config: SeTokTokenizerConfig):
        super().__init__()
        width = config.patch_hidden_size
        self.num_heads = config.merger_num_heads
        self.norm_attention = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.norm_feed_forward = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.feed_forward = nn.Linear(width, config.merger_intermediate_size or 4 * width)
        self.feed_forward_output = nn.Linear(config.merger_intermediate_size or 4 * width, width)

    def forward(self, features: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """
        Args:
            features (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`): of patches alone.
            grid_size (`tuple[int, int]`): height and width of the images in patches.

        Returns:
            `torch.FloatTensor` of the shape of the features.
        """
        batch, num_patches, width = features.shape
        hidden = self.norm_attention(features) + sine_positions(grid_size, width).to(features)
        heads = self.queries_keys_values(hidden).view(batch, num_patches, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        features = features + self.attention_output(attended.transpose(1, 2).flatten(2))
        hidden = nn.functional.gelu(self.feed_forward(self.norm_feed_forward(features)))
        return features + self.feed_forward_output(hidden)


__all__ = ["ClusterLayer"]
