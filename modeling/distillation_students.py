"""Students of feature distillation: the teacher's architecture with random weights, and that of Wei et al. (2022)."""

import copy
import re

import torch
from torch import nn
from transformers import BeitConfig, PreTrainedConfig, PreTrainedModel

from .stochastic_depth import transformer_layers
from .vision_features import build_vision_tower


def random_student(config: PreTrainedConfig, image_size: int | None = None, seed: int = 0) -> PreTrainedModel:
    """
    A vision tower with the random weights of its class: by default GVT's student is one of the teacher's own
    architecture (Section 3.2).

    Args:
        config (`PreTrainedConfig`): of the architecture, such as `teacher.config`. It stays as it is.
        image_size (`int`, *optional*): side of its images in pixels, which decides how many positions it learns; by
            default that of the config.
        seed (`int`, *optional*, defaults to 0): of the weights.

    Returns:
        `PreTrainedModel`: in float32, in evaluation mode.

    Raises:
        ValueError: if the image size is no multiple of the patch size.
    """
    config = copy.deepcopy(config)
    if image_size is not None:
        _check_image_size(image_size, config.patch_size)
        config.image_size = image_size
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build_vision_tower(config).float().eval()


def wei_student_config(teacher_config: PreTrainedConfig, image_size: int | None = None) -> BeitConfig:
    """
    The student of Wei et al. (2022): a BEiT of the teacher's depth and width, with one relative position bias that
    all layers share in place of absolute positions, no bias of the keys, LayerScale from 0.1, and a final norm on all
    tokens (SwinTransformer/Feature-Distillation, models/vision_transformer.py and configs/pretrain). Transformers'
    `BeitModel` with this config is exactly that.

    Args:
        teacher_config (`PreTrainedConfig`): gives depth, width, heads and patch size.
        image_size (`int`, *optional*): side of its images in pixels; by default that of the teacher.

    Raises:
        ValueError: if the image size is no multiple of the patch size.
    """
    image_size = teacher_config.image_size if image_size is None else image_size
    _check_image_size(image_size, teacher_config.patch_size)
    return BeitConfig(
        hidden_size=teacher_config.hidden_size,
        num_hidden_layers=teacher_config.num_hidden_layers,
        num_attention_heads=teacher_config.num_attention_heads,
        intermediate_size=4 * teacher_config.hidden_size,
        image_size=image_size,
        patch_size=teacher_config.patch_size,
        layer_norm_eps=1e-6,
        use_absolute_position_embeddings=False,
        use_relative_position_bias=False,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=0.1,
        drop_path_rate=0.0,
        use_mean_pooling=False,
        use_mask_token=False,
    )


def wei_student(teacher_config: PreTrainedConfig, image_size: int | None = None, seed: int = 0) -> PreTrainedModel:
    """
    A student of [`wei_student_config`], with the initial weights of Wei et al.: the last linear maps of attention and
    MLP are divided by √(2·layer), [CLS] is drawn with a standard deviation of 0.02, and the patch embedding is that
    of `nn.Conv2d`.

    Args:
        teacher_config, image_size: as in [`wei_student_config`].
        seed (`int`, *optional*, defaults to 0): of the weights.
    """
    student = random_student(wei_student_config(teacher_config, image_size), seed=seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed + 1)
        for index, layer in enumerate(transformer_layers(student), start=1):
            for name, parameter in layer.named_parameters():
                if re.search(r"(?:o_proj|fc2|output\.dense)\.weight$", name):
                    parameter.div_((2.0 * index) ** 0.5)
        nn.init.trunc_normal_(student.embeddings.cls_token, std=0.02, a=-0.04, b=0.04)
        student.embeddings.patch_embeddings.projection.reset_parameters()
    return student


def _check_image_size(image_size, patch_size) -> None:
    sizes = image_size if isinstance(image_size, list | tuple) else (image_size,)
    patches = patch_size if isinstance(patch_size, list | tuple) else (patch_size,)
    if any(size % patch for size in sizes for patch in patches):
        raise ValueError(f"The image size {image_size} is no multiple of the patch size {patch_size}.")


__all__ = ["random_student", "wei_student", "wei_student_config"]
