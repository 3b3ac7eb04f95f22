"""SeTok as a visual tokenizer: patches are clustered, every cluster becomes a token."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ..configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
from .cluster_layers import ClusterLayer
from .cluster_merger import ClusterMerger
from .density_peaks import computing_precision
from .patch_clusters import PatchClusters, cluster_patches, given_clusters
from .sine_positions import sine_positions
from .visual_tokenizer import VisualTokenizer, VisualTokenizerOutput


@dataclass
class SeTokTokenizerOutput(VisualTokenizerOutput):
    """
    Output of a [`SeTokTokenizer`]: that of every visual tokenizer and two more of [`PatchClusters`]. Tokens are in
    raster order of the centres of mass of their clusters.

    Args:
        centers (`torch.LongTensor` of shape `(batch, num_tokens)`):
            The patch that each cluster formed around, -1 at padding.
        soft_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`, *optional*):
            The differentiable weights of the clusters, also where `cluster_masks` are hard.
    """

    centers: torch.Tensor | None = None
    soft_masks: torch.Tensor | None = None


class SeTokTokenizer(VisualTokenizer):
    """
    The semantic-equivalent tokenizer without its vision tower: [`cluster_patches`] and a [`ClusterMerger`] ("Towards
    Semantic Equivalence of Tokenization in Multimodal LLM", Section 2.1). The number of tokens follows the image.

    So that training can move hard clusters, distances may be taken behind a learned projection (`cluster_projection`),
    the scale of the kernel is learned, and with `straight_through` hard masks have the gradient of the soft ones.

    Args:
        config ([`SeTokTokenizerConfig`]): see there.
    """

    config: SeTokTokenizerConfig
    config_class = SeTokTokenizerConfig
    variable_num_tokens = True
    required_inputs = ("num_prefix_tokens",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SegmentLayer"]

    def __init__(self, config: SeTokTokenizerConfig):
        super().__init__(config)
        config.check_heads()
        width = config.patch_hidden_size
        self.cluster_projection = None
        if config.cluster_projection_size is not None:
            self.cluster_projection = nn.Linear(width, config.cluster_projection_size, bias=False)
        layers = [ClusterLayer(config) for _ in range(config.cluster_projection_layers)]
        self.cluster_layers = nn.ModuleList(layers) if layers else None
        self.log_kernel_scale = nn.Parameter(torch.empty(1)) if config.learn_kernel_scale else None
        self.merger = ClusterMerger(config)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SeTokTokenizer):
            if module.log_kernel_scale is not None:
                init.constant_(module.log_kernel_scale, math.log(self.config.kernel_scale))
            if module.cluster_projection is not None:
                init.eye_(module.cluster_projection.weight)
        elif isinstance(module, ClusterLayer):
            for output in (module.attention_output, module.feed_forward_output):
                init.zeros_(output.weight)
                init.zeros_(output.bias)

    @property
    def output_size(self) -> int:
        return self.config.output_size or self.config.patch_hidden_size

    @property
    def max_num_tokens(self) -> int:
        return self.config.max_tokens

    def forward(
        self,
        patch_features: torch.Tensor,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int | None = 0,
        assignment: torch.Tensor | None = None,
        **kwargs,
    ) -> SeTokTokenizerOutput:
        """
        Args:
            patch_features (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`):
                Features of the vision tower; [CLS] and registers before them are dropped.
            grid_size (`tuple[int, int]`, *optional*):
                Height and width of the image in patches. Where it is unknown, of cached features, a square is assumed.
            num_prefix_tokens (`int`, *optional*): how many features come before the first patch.
            assignment (`torch.LongTensor` of shape `(batch, num_patches)`, *optional*):
                Clusters in place of the tokenizer's own, such as a plain grid's, to compare with: see
                [`given_clusters`]. They are merged as its own are.

        Returns:
            [`SeTokTokenizerOutput`]. The maps of a token refer to patches alone.

        Raises:
            ValueError: if the features are not of width `patch_hidden_size` or not finite, or it is unknown which of
                them are patches or what grid they are of.
        """
        patches, grid_size = self._patches(patch_features, grid_size, num_prefix_tokens)
        if assignment is None:
            clusters = self.cluster(patches, grid_size)
        else:
            clusters = given_clusters(assignment.to(patches.device), grid_size)
        tokens, weights = self.merger(patches, clusters, grid_size)
        return SeTokTokenizerOutput(
            tokens=tokens,
            mask=clusters.mask,
            assignment=clusters.assignment,
            cluster_masks=clusters.cluster_masks,
            weights=weights,
            scores=clusters.scores,
            centers=clusters.centers,
            soft_masks=clusters.soft_masks,
        )

    def cluster(self, patches: torch.Tensor, grid_size: tuple[int, int]) -> PatchClusters:
        """
        The clusters of patches, before they are merged.

        Args:
            patches (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`): of patches alone.
            grid_size (`tuple[int, int]`): height and width of the image in patches.

        Returns:
            [`PatchClusters`] in raster order.
        """
        config, features = self.config, self.cluster_features(patches, grid_size)
        kernel_scale = self.kernel_scale(features)
        return cluster_patches(
            features,
            method=config.method,
            assignment=config.assignment,
            num_neighbors=config.num_neighbors,
            score_threshold=config.score_threshold,
            stop_threshold=config.stop_threshold,
            kernel_scale=kernel_scale,
            relative_kernel_scale=config.relative_kernel_scale,
            min_tokens=config.min_tokens,
            max_tokens=config.max_tokens,
            straight_through=self.is_straight_through(features),
            grid_size=grid_size,
        )

    def cluster_features(self, patches: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """
        The features that distances are taken of: with positions, projected and normalised, as the config says.

        Args:
            patches (`torch.FloatTensor` of shape `(batch, num_patches, patch_hidden_size)`): of patches alone.
            grid_size (`tuple[int, int]`): height and width of the image in patches.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_patches, cluster_projection_size or patch_hidden_size)`.
        """
        features = patches
        if self.config.cluster_with_positions:
            features = features + sine_positions(grid_size, features.shape[-1]).to(features)
        for layer in self.cluster_layers or ():
            features = layer(features, grid_size)
        if self.cluster_projection is not None:
            features = self.cluster_projection(features)
        if self.config.normalize_features:
            features = features.to(computing_precision(features))
            features = nn.functional.normalize(features, dim=-1) * math.sqrt(features.shape[-1])
        return features

    def kernel_scale(self, features: torch.Tensor) -> Any:
        """
        σ: the learned one, in the precision that clusters of the features are computed in, or that of the config.

        Args:
            features (`torch.FloatTensor`): that distances are taken of.
        """
        if self.log_kernel_scale is None:
            return self.config.kernel_scale
        return self.log_kernel_scale.to(computing_precision(features)).exp()

    def is_straight_through(self, features: torch.Tensor) -> bool:
        """
        Whether hard clusters have the gradient of the soft ones now: as the config says, where something learns by it.

        Args:
            features (`torch.FloatTensor`): that distances are taken of.
        """
        learns = features.requires_grad or (self.log_kernel_scale is not None and self.log_kernel_scale.requires_grad)
        return self.config.straight_through and learns and torch.is_grad_enabled()

    def _patches(self, patch_features, grid_size, num_prefix_tokens):
        if patch_features.shape[-1] != self.config.patch_hidden_size:
            raise ValueError(
                f"The patch features are {patch_features.shape[-1]} wide, SeTok expects "
                f"patch_hidden_size={self.config.patch_hidden_size}."
            )
        if num_prefix_tokens is None:
            raise ValueError(
                "SeTok clusters patches alone, and it is unknown how many of these features are [CLS] or registers: "
                'cache features with vision_feature_select_strategy="default".'
            )
        patches = patch_features[:, num_prefix_tokens:]
        if grid_size is None:
            side = math.isqrt(patches.shape[1])
            grid_size = (side, side)
            if side * side != patches.shape[1]:
                raise ValueError(
                    f"{patches.shape[1]} patches are no square: give grid_size, their height and width in patches."
                )
        return patches, grid_size


__all__ = ["SeTokTokenizer", "SeTokTokenizerOutput"]
