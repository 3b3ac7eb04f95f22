"""The cluster merger: every cluster of patches becomes a visual token."""

from typing import Any

import torch
from torch import nn

from ..configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
from .packed_segments import PackedSegments, SegmentLayer
from .patch_clusters import PatchClusters
from .sine_positions import sine_positions


class ClusterMerger(nn.Module):
    """
    Merges the patches of each cluster into a visual token (Section 2.1, "Cluster Merger", and Appendix D): layers of
    attention within each cluster on the patch features with their 2-D sine positions, the mean over the cluster,
    layers of attention between the tokens of an image, a layer norm and a linear layer to the output width. Soft
    clusters have no inside: their tokens are weighted means, and only the second half of the layers follows. With
    `merger="mean"` tokens are the (weighted) means of the patch features, and nothing else, unless another width is
    asked for.

    Args:
        config ([`SeTokTokenizerConfig`]): its sizes.
    """

    def __init__(self, config: SeTokTokenizerConfig):
        super().__init__()
        self.config = config
        width, num_layers = config.patch_hidden_size, config.merger_num_layers
        self.within_layers: Any = None
        self.between_layers: Any = None
        self.norm: Any = None
        self.output_projection: Any = None
        if config.merger == "attention":
            if config.assignment == "hard":
                self.within_layers = nn.ModuleList([SegmentLayer(config) for _ in range(num_layers)])
            self.between_layers = nn.ModuleList([SegmentLayer(config) for _ in range(num_layers)])
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if config.merger == "attention" or (config.output_size or width) != width:
            self.output_projection = nn.Linear(width, config.output_size or width)

    def forward(
        self, patch_features: torch.Tensor, clusters: PatchClusters, grid_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            patch_features (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`): of patches alone.
            clusters ([`PatchClusters`]): of these patches.
            grid_size (`tuple[int, int]`): height and width of the image in patches.

        Returns:
            `tuple` of tokens, `(batch, num_tokens, output_size)`, zero at padding, and of the weights of the patches
            in their means, `(batch, num_tokens, num_patches)`.
        """
        weights = patch_weights(clusters.cluster_masks)
        hidden_states = patch_features
        if self.between_layers is not None and self.config.position_embedding:
            hidden_states = hidden_states + sine_positions(grid_size, hidden_states.shape[-1]).to(hidden_states)
        if self.within_layers is not None:
            hidden_states = self._merge_within(hidden_states, clusters)
        tokens = torch.bmm(weights.to(hidden_states.dtype), hidden_states)
        return self._merge_between(tokens, clusters.mask), weights

    def _merge_within(self, hidden_states: torch.Tensor, clusters: PatchClusters) -> torch.Tensor:
        batch_size, num_clusters = clusters.mask.shape
        first_cluster = torch.arange(batch_size, device=hidden_states.device).unsqueeze(1) * num_clusters
        segments = PackedSegments.of((clusters.assignment + first_cluster).flatten(), batch_size * num_clusters)
        packed = segments.pack(hidden_states.flatten(0, 1))
        for layer in self.within_layers:
            packed = layer(packed, segments.buckets)
        return segments.unpack(packed).view_as(hidden_states)

    def _merge_between(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Works on real tokens alone: padding costs nothing and stays zero."""
        if self.between_layers is None and self.output_projection is None:
            return tokens
        image, slot = mask.nonzero(as_tuple=True)
        segments = PackedSegments.of(image, len(mask))
        image, slot = image[segments.order], slot[segments.order]
        packed = tokens[image, slot]
        for layer in self.between_layers or ():
            packed = layer(packed, segments.buckets)
        if self.norm is not None:
            packed = self.norm(packed)
        packed = self.output_projection(packed)
        return packed.new_zeros(*mask.shape, packed.shape[-1]).index_put((image, slot), packed)


def patch_weights(cluster_masks: torch.Tensor) -> torch.Tensor:
    """
    Cluster masks normalised over patches: the rows of real tokens sum to 1, those of padding are zero.

    Args:
        cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`): not negative.
    """
    mass = cluster_masks.sum(-1, keepdim=True)
    return cluster_masks / torch.where(mass > 0, mass, 1)


__all__ = ["ClusterMerger", "patch_weights"]
