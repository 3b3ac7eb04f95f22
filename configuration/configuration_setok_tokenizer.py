"""Configuration of SeTok as a visual tokenizer: clustering and cluster merger, without the vision tower."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SeTokTokenizerConfig(PreTrainedConfig):
    r"""
    Configuration of a [`SeTokTokenizer`], which clusters the patches of an image and merges every cluster into a
    visual token ("Towards Semantic Equivalence of Tokenization in Multimodal LLM", Section 2.1 and Appendices C and
    D). The defaults are the paper's dynamic clusters, hard, with a merger of two layers and two heads.

    Args:
        patch_hidden_size (`int`, *optional*, defaults to 1024):
            Width D of the patch features.
        method (`"iterative"` or `"threshold"`, *optional*, defaults to `"iterative"`):
            How clusters are found: see [`cluster_patches`].
        assignment (`"hard"` or `"soft"`, *optional*, defaults to `"hard"`):
            Whether a patch belongs to one cluster or, by weights, to all of them.
        merger (`"attention"` or `"mean"`, *optional*, defaults to `"attention"`):
            `"attention"` merges by layers of attention within clusters, a mean, and layers of attention between
            tokens; `"mean"` by the mean alone.
        num_neighbors (`int`, *optional*, defaults to 5):
            Neighbours k, the patch itself included, that its density is measured on.
        score_threshold (`float`, *optional*, defaults to 0.5):
            Of the threshold method: patches of a higher score are centres.
        stop_threshold (`float`, *optional*, defaults to 0.05):
            Of the iterative method: it stops when the mean scope left is below, from 0 to 1.
        kernel_scale (`float`, *optional*, defaults to 1.0):
            Scale σ of the kernel exp(-d²/σ²), in the unit of distances d = ‖x_i - x_j‖ / √D; where
            `learn_kernel_scale` it is where training starts.
        relative_kernel_scale (`bool`, *optional*, defaults to `False`):
            Whether σ is `kernel_scale` times the mean distance between the image's patches instead, which fits
            features of any scale. Where most of an image is a plain background this σ is small, and objects fall
            apart: beside `normalize_features`, which brings all images to one scale, leave it out.
        min_tokens (`int`, *optional*, defaults to 1):
            Fewest clusters that are looked for. Hard clusters that win no patch are dropped afterwards.
        max_tokens (`int`, *optional*, defaults to 64):
            Most tokens of an image.
        normalize_features (`bool`, *optional*, defaults to `False`):
            Whether features are scaled to norm √D before distances are taken. Tokens are made of them as they are.
        cluster_with_positions (`bool`, *optional*, defaults to `False`):
            Whether clustering sees the features with their position embedding.
        cluster_projection_size (`int`, *optional*):
            Width of a linear projection without bias before distances are taken, the identity at the start (its first
            rows where it is smaller than D). `None` for no projection.
        cluster_projection_layers (`int`, *optional*, defaults to 0):
            Layers of attention between all patches before that projection, the identity at the start too. Not in the
            paper: with them the distances of patches may depend on the whole image, so that what is a background or
            a second object of the same kind can be learned. Tokens are made of the patch features as they are.
        learn_kernel_scale (`bool`, *optional*, defaults to `True`):
            Whether σ is a parameter.
        straight_through (`bool`, *optional*, defaults to `True`):
            Whether hard clusters are trained as if they were soft: the masks that average patches into tokens are
            hard, their gradient is that of the soft masks. It reaches the projection, σ, and a tower that is trained.
        position_embedding (`bool`, *optional*, defaults to `True`):
            Whether patches get a 2-D sine position embedding before attention merges them.
        merger_num_layers (`int`, *optional*, defaults to 2):
            Layers of attention within clusters, and as many between tokens.
        merger_num_heads (`int`, *optional*, defaults to 2):
            Heads of these layers.
        merger_intermediate_size (`int`, *optional*):
            Width of their feed-forward layers. `None` is 4·D.
        output_size (`int`, *optional*):
            Width of a visual token. `None` is D. With `merger="mean"` there is a linear layer behind the mean only
            where it differs from D.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every layer norm.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the merger.

    Raises:
        ValueError: if sizes or bounds do not fit each other.
    """

    model_type = "setok_tokenizer"

    patch_hidden_size: int = 1024
    method: Literal["iterative", "threshold"] = "iterative"
    assignment: Literal["hard", "soft"] = "hard"
    merger: Literal["attention", "mean"] = "attention"
    num_neighbors: int = 5
    score_threshold: float | int = 0.5
    stop_threshold: float | int = 0.05
    kernel_scale: float | int = 1.0
    relative_kernel_scale: bool = False
    min_tokens: int = 1
    max_tokens: int = 64
    normalize_features: bool = False
    cluster_with_positions: bool = False
    cluster_projection_size: int | None = None
    cluster_projection_layers: int = 0
    learn_kernel_scale: bool = True
    straight_through: bool = True
    position_embedding: bool = True
    merger_num_layers: int = 2
    merger_num_heads: int = 2
    merger_intermediate_size: int | None = None
    output_size: int | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        sizes = ("patch_hidden_size", "num_neighbors", "min_tokens", "max_tokens", "cluster_projection_size")
        for name in (*sizes, "merger_num_heads", "merger_intermediate_size", "output_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, SeTok needs at least 1.")
        for name in ("merger_num_layers", "cluster_projection_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more.")
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}: an image cannot have both."
            )
        if not 0 <= self.stop_threshold <= 1:
            raise ValueError(f"stop_threshold is {self.stop_threshold}: give a mean scope, from 0 to 1.")
        if not math.isfinite(self.score_threshold):
            raise ValueError(f"score_threshold is {self.score_threshold}: give a number.")
        if not 0 < self.kernel_scale < math.inf:
            raise ValueError(f"kernel_scale is {self.kernel_scale}: the scale of a kernel is a number above 0.")
        if (self.cluster_projection_size or 0) > self.patch_hidden_size:
            raise ValueError(
                f"cluster_projection_size={self.cluster_projection_size} is more than the patch features have: "
                f"{self.patch_hidden_size}."
            )

    def check_heads(self) -> None:
        """
        Makes sure that patch features divide into heads. Models ask when they are built, by when a composed config has
        set `patch_hidden_size` to the width of its tower.

        Raises:
            ValueError: if they do not; names both numbers.
        """
        has_heads = self.merger == "attention" or self.cluster_projection_layers
        if has_heads and self.patch_hidden_size % self.merger_num_heads:
            raise ValueError(
                f"patch_hidden_size={self.patch_hidden_size} does not divide into merger_num_heads="
                f"{self.merger_num_heads} heads."
            )


__all__ = ["SeTokTokenizerConfig"]
