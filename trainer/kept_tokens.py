"""Visual tokens of a tokenizer that stays as it is, computed once per image and kept in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..modeling.modeling_setok_vision import SeTokVisionModel, SeTokVisionOutput

KEPT = ("tokens", "mask", "assignment", "cluster_masks")
"""What a batch holds of each image, under the names of [`SeTokVisionOutput`]."""


class KeptTokens:
    """
    Computes the tokens of an image from its cached features when they are first asked for.

    Args:
        model ([`SeTokVisionModel`]): whose clustering and merger stay as they are.
        features (`Mapping[str, torch.Tensor]`): of patches by image key, such as a [`FeatureCache`].
        grid_size (`tuple[int, int]`): height and width of images in patches.
    """

    def __init__(self, model: SeTokVisionModel, features: Mapping[str, torch.Tensor], grid_size: tuple[int, int]):
        self.model, self.features, self.grid_size = model, features, grid_size
        self._kept: dict[str, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, keys: Sequence[str]) -> dict[str, Any]:
        """
        Tokens of some images, as the tokenizer gives them of a batch: padded with zeros to the most.

        Args:
            keys (`list[str]`): of the images.

        Returns:
            `dict`: `tokens`, `mask`, `assignment` and `cluster_masks` of [`SeTokVisionOutput`], and `grid_size`.
        """
        if new := list(dict.fromkeys(key for key in keys if key not in self._kept)):
            self._compute(new)
        rows = [self._kept[key] for key in keys]
        counts = torch.tensor([len(row["tokens"]) for row in rows])
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([row[name].float() for row in rows], batch_first=True)
            for name in ("tokens", "cluster_masks")
        }
        mask = torch.arange(int(counts.max())) < counts.unsqueeze(1)
        assignment = torch.stack([row["assignment"] for row in rows]).long()
        return {**padded, "mask": mask, "assignment": assignment, "grid_size": self.grid_size}

    @torch.no_grad()
    def _compute(self, keys: Sequence[str]) -> None:
        patch_features = torch.stack([self.features[key] for key in keys]).to(self.model.device)
        found: SeTokVisionOutput = self.model(
            patch_features=patch_features, grid_size=self.grid_size, return_dict=True
        )
        for place, key in enumerate(keys):
            of_image: Any = {name: found[name][place].cpu() for name in KEPT}
            real = of_image["mask"]
            masks = of_image["cluster_masks"][real]
            is_hard = bool(((masks == 0) | (masks == 1)).all())
            self._kept[key] = {
                "tokens": of_image["tokens"][real].clone(),
                "cluster_masks": masks.bool() if is_hard else masks.clone(),
                "assignment": of_image["assignment"].to(torch.int16),
            }


__all__ = ["KEPT", "KeptTokens"]
