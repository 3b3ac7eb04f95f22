"""What feature distillation trains: the student, the projection onto the teacher's width, and the mask token."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .final_features import tower_features
from .losses_distillation import feature_distillation_loss, whiten
from .vision_features import patch_grid


class DistilledStudent(nn.Module):
    """
    A student with the 1×1 projection g of GVT's Equation 1 (a linear map of each token, with bias) and, for masked
    variants, a learned mask token. Both are thrown away when the student is saved for use.

    Args:
        student (`PreTrainedModel`): a vision tower.
        teacher_hidden_size (`int`): width of the features to learn.
        beta (`float`, *optional*, defaults to 2.0): see [`feature_distillation_loss`].
        feature_layer (`int`, *optional*): of the student; by default after its final norm.
        feature_tokens (`str`, *optional*, defaults to `"all"`): or `"patches"`.
        masked (`bool`, *optional*, defaults to `False`): whether patches are masked.
        seed (`int`, *optional*, defaults to 0): of the projection and the mask token.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        student: PreTrainedModel,
        teacher_hidden_size: int,
        beta: float = 2.0,
        feature_layer: int | None = None,
        feature_tokens: str = "all",
        masked: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.student, self.beta = student, beta
        self.feature_layer, self.feature_tokens = feature_layer, feature_tokens
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.projector = nn.Linear(student.config.hidden_size, teacher_hidden_size)
            self.mask_token: nn.Parameter | None = None
            if masked:
                patch_embedding = find_patch_embedding(student)
                self.mask_token = nn.Parameter(
                    nn.init.trunc_normal_(torch.empty(patch_embedding.out_channels), std=0.02)
                )

    @property
    def config(self):
        """The student's."""
        return self.student.config

    def forward(
        self,
        pixel_values: torch.Tensor,
        teacher_features: torch.Tensor,
        masked_patches: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        The loss of Equation 1.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): the student's images.
            teacher_features (`torch.FloatTensor` of shape `(batch, num_tokens, teacher_hidden_size)`): not whitened.
            masked_patches (`torch.BoolTensor` of shape `(batch, num_patches)`, *optional*): hidden from the student.

        Returns:
            `dict`: `loss`, and outside training `predicted`, `(batch, num_tokens, teacher_hidden_size)`, and the
            whitened `target` of that shape.

        Raises:
            ValueError: if the student has other tokens than the teacher.
        """
        grid = patch_grid(self.student.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
        num_patches = grid[0] * grid[1]
        with self._masking(masked_patches):
            features = tower_features(self.student, pixel_values, self.feature_layer)
        features, teacher_features = select_tokens(features, teacher_features, num_patches, self.feature_tokens)
        mask = None
        if masked_patches is not None:
            num_prefix = features.shape[1] - num_patches
            mask = nn.functional.pad(masked_patches, (num_prefix, 0), value=False)
        loss = feature_distillation_loss(features, teacher_features, self.projector, self.beta, mask)
        if self.training:
            return {"loss": loss}
        return {"loss": loss, "predicted": self.projector(features), "target": whiten(teacher_features)}

    @contextlib.contextmanager
    def _masking(self, masked_patches: torch.Tensor | None) -> Iterator[None]:
        """Hides patches before positions are added, so that the student knows where they are."""
        mask_token = self.mask_token
        if masked_patches is None or mask_token is None:
            yield
            return

        def replace(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            mask = masked_patches.view(len(output), 1, *output.shape[-2:])
            return torch.where(mask, mask_token.to(output.dtype).view(1, -1, 1, 1), output)

        handle = find_patch_embedding(self.student).register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def activation_checkpointing_enable(self, *args, **kwargs) -> None:
        """As of `PreTrainedModel`, for the student."""
        self.student.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """The same, as trainers of older versions of transformers call it."""
        self.student.gradient_checkpointing_enable(*args, **kwargs)


def select_tokens(
    student_features: torch.Tensor, teacher_features: torch.Tensor, num_patches: int, feature_tokens: str = "all"
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The tokens of student and teacher that are compared.

    Args:
        student_features, teacher_features (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`):
            [CLS] and registers, if any, before the patches.
        num_patches (`int`): of an image.
        feature_tokens (`str`): `"all"` or `"patches"`.

    Returns:
        The same features, or those of the patches alone.

    Raises:
        ValueError: if one of them has other patches, or other tokens before them.
    """
    counts = student_features.shape[1] - num_patches, teacher_features.shape[1] - num_patches
    if min(counts) < 0:
        raise ValueError(
            f"The student has {student_features.shape[1]} tokens and the teacher {teacher_features.shape[1]}, for "
            f"{num_patches} patches of the student: both have to cut an image into the same patches."
        )
    if feature_tokens == "patches":
        return student_features[:, counts[0] :], teacher_features[:, counts[1] :]
    if counts[0] != counts[1]:
        raise ValueError(
            f"The student has {counts[0]} tokens before its {num_patches} patches and the teacher {counts[1]} ([CLS] "
            "and registers): set feature_tokens to 'patches', or choose a student with the teacher's tokens."
        )
    return student_features, teacher_features


def find_patch_embedding(vision_tower: PreTrainedModel) -> nn.Conv2d:
    """
    The convolution that turns patches into embeddings.

    Args:
        vision_tower (`PreTrainedModel`): a vision transformer.

    Raises:
        ValueError: if there is none, or more than one.
    """
    patch = vision_tower.config.patch_size
    size = tuple(patch) if isinstance(patch, list | tuple) else (patch, patch)
    found = [
        module
        for module in vision_tower.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == size and module.stride == size
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(vision_tower).__name__} has {len(found)} convolutions over patches of {size[0]} × {size[1]} "
            "pixels. Masking replaces the outputs of the one there should be: set mask_ratio to 0 for this student."
        )
    return found[0]


__all__ = ["DistilledStudent", "find_patch_embedding", "select_tokens"]
