"""The final norm of a vision tower, for all tokens, whatever the tower itself does with it."""

import torch
from torch import nn
from transformers import PreTrainedModel

# Towers that apply their final norm to the pooled [CLS] alone; their last_hidden_state is before it.
NORM_ON_CLS_ALONE = frozenset(
    (
        *("clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model", "clipseg_vision_model"),
        *("metaclip_2_vision_model", "mlcd_vision_model", "kosmos_2_vision_model", "xclip_vision_model"),
        *("owlvit_vision_model", "owlv2_vision_model"),
    )
)


def after_final_norm(vision_tower: PreTrainedModel, last_hidden_state: torch.Tensor) -> torch.Tensor:
    """
    Features of all tokens after the final norm: what most towers return as it is. CLIP and its kin apply that norm to
    the pooled [CLS] alone, so it is applied here.

    Args:
        vision_tower (`PreTrainedModel`): whose output it is.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`): as the tower returns it.

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    norm = _skipped_norm(vision_tower)
    return last_hidden_state if norm is None else norm(last_hidden_state)


def _skipped_norm(vision_tower: PreTrainedModel) -> nn.Module | None:
    if vision_tower.config.model_type not in NORM_ON_CLS_ALONE:
        return None
    return next(
        (module for name, module in vision_tower.named_modules() if name.split(".")[-1] == "post_layernorm"), None
    )


__all__ = ["NORM_ON_CLS_ALONE", "after_final_norm"]
