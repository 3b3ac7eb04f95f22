"""Conversion of published EVA-02 vision transformers: of EVA-CLIP, of EVA-02, of timm, and of GVT's own checkpoint."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil
from transformers.utils import logging

from ..configuration.configuration_eva import EvaVisionConfig
from .atomic_folder import write_folder_atomically
from .modeling_eva import EvaVisionModel, rotary_angles
from .published_checkpoints import folded, read_published_checkpoint, refuse_misfits

logger = logging.get_logger(__name__)

PREFIXES = ("visual_encoder.", "visual.", "")
"""What stands before the tower's names: in GVT's checkpoint, in EVA-CLIP's, and where the tower is alone."""

HEAD_DIM = 64
"""Width of a head in every EVA-02 model, from Ti to L."""

NUM_LAYERS = {192: 12, 384: 12, 768: 12, 1024: 24, 1408: 40, 1792: 64}
"""
Hidden size → number of layers, as published: EVA-02 Ti, S, B, L (baaivision/EVA, EVA-02/asuka/modeling_pretrain.py),
EVA-CLIP g (the same, clip/model_configs/EVA_CLIP_g_14.json), E (huggingface/pytorch-image-models, timm/models/eva.py).
"""

_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "final_norm",
}
# Published name in a layer → ours. The second name of a module is timm's.
_LAYER = {
    "norm1": "norm1",
    "attn.q_proj": "attention.q_proj",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.k_proj": "attention.k_proj",
    "attn.v_proj": "attention.v_proj",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.inner_attn_ln": "attention.inner_norm",
    "attn.norm": "attention.inner_norm",
    "attn.proj": "attention.o_proj",
    "norm2": "norm2",
    "mlp.w1": "mlp.gate_proj",
    "mlp.fc1_g": "mlp.gate_proj",
    "mlp.w2": "mlp.up_proj",
    "mlp.fc1_x": "mlp.up_proj",
    "mlp.ffn_ln": "mlp.inner_norm",
    "mlp.norm": "mlp.inner_norm",
    "mlp.w3": "mlp.down_proj",
    "mlp.fc2": "mlp.down_proj",
}
# One published weight that holds several of ours, one above the other.
_STACKED = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.fc1": ("mlp.gate_proj", "mlp.up_proj"),
}
# What sizes are read from: published name → ours, number of dimensions.
_SIZES = {
    "cls_token": ("embeddings.cls_token", 3),
    "pos_embed": ("embeddings.position_embeddings", 3),
    "patch_embed.proj.weight": ("embeddings.patch_embeddings.weight", 4),
    "blocks.0.mlp.w1.weight": ("layers.0.mlp.gate_proj.weight", 2),
}
_ROTARY = re.compile(r"(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)")
# Heads of pretraining and classification, and tables that follow from the config.
_UNUSED = re.compile(rf"(fc_norm|head|lm_head)\.(weight|bias)|{_ROTARY.pattern}")


@dataclass
class Conversion:
    """
    What a conversion made.

    Args:
        config (`PreTrainedConfig`): of the model that was written.
        num_parameters (`int`): of the weights that were written.
        dropped (`list[str]`): published names of weights that have no use in it.
    """

    config: Any
    num_parameters: int
    dropped: list[str] = field(default_factory=list)

    def dropped_names(self) -> str:
        """The dropped weights in words, layers folded into ranges."""
        return ", ".join(folded(self.dropped)) or "none"


def convert_eva_clip(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    num_attention_heads: int | None = None,
    rope_grid_size: int | None = None,
    num_layers: int | None = None,
) -> Conversion:
    """
    Writes an [`EvaVisionModel`] folder, with its image processor, from a published checkpoint: of EVA-CLIP
    (`visual.*`), of EVA-02, of timm's EVA-02, or of GVT (`visual_encoder.*`).

    Sizes follow from the weights; the number of layers from the width ([`NUM_LAYERS`]); the width of a head and the
    grid of the rotary positions from the published rotary table, else they are those of EVA-02. The final norm is kept
    where the checkpoint has one.

    Args:
        source (`str` or `Path`): the file, see [`read_published_checkpoint`].
        folder (`str` or `Path`): where the result goes, whole or not at all; may not exist yet.
        num_attention_heads (`int`, *optional*): number of heads, where it does not follow.
        rope_grid_size (`int`, *optional*): see [`EvaVisionConfig`], where it does not follow.
        num_layers (`int`, *optional*): number of layers; needed where no model of this width is published.

    Returns:
        [`Conversion`].

    Raises:
        FileNotFoundError: if there is no such file.
        FileExistsError: if there is something in the folder.
        CheckpointError: if the file is truncated, or its weights are not exactly those of the architecture; lists what
            is missing, unknown or of another shape.
        ValueError: if a number that is given is none of a model, or that of the layers is needed and not given.
    """
    tensors = read_published_checkpoint(source)
    with write_folder_atomically(folder) as work:
        return write_eva_tower(source, tensors, work, num_attention_heads, rope_grid_size, num_layers)


def write_eva_tower(
    source: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
    num_attention_heads: int | None = None,
    rope_grid_size: int | None = None,
    num_layers: int | None = None,
) -> Conversion:
    """As [`convert_eva_clip`], of `tensors` that were read from `source` already, into an existing folder."""
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors))
    published = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    own, unknown = own_names(published)
    what = "an EVA-02 vision transformer"
    if unknown:
        refuse_misfits(source, what, unknown=[prefix + name for name in unknown])
    config = infer_config(source, prefix, published, own, num_attention_heads, rope_grid_size, num_layers)
    with torch.device("meta"):
        model = EvaVisionModel(config)
    expected = model.state_dict()
    refuse_misfits(
        source,
        f"{what} of {config.num_hidden_layers} layers of {config.hidden_size}",
        missing=[prefix + published_name(name, published) for name in expected if name not in own],
        unknown=[prefix + published_name(name, published) for name in own if name not in expected],
        misshapen=[
            *misfits(own, expected, lambda name: prefix + published_name(name, published)),
            *_rotary_misfits(prefix, published, config),
        ],
    )
    # One dtype: half-precision checkpoints keep their norms in float32.
    dtype = max((tensor.dtype for tensor in own.values()), key=lambda dtype: dtype.itemsize)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in own.items()}, assign=True)
    model.eval().save_pretrained(folder)
    eva_image_processor(config).save_pretrained(folder)
    used = {prefix + name for name in published if not _UNUSED.fullmatch(name)}
    return Conversion(config, model.num_parameters(), [name for name in tensors if name not in used])


def own_names(published: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Weights of a published tower under the names of [`EvaVisionModel`].

    Args:
        published (`dict[str, torch.Tensor]`): by published name, without prefix.

    Returns:
        The weights, and the published names that are neither known nor known to be of no use.
    """
    own: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in published.items():
        if _UNUSED.fullmatch(name):
            continue
        layer, inner = _layer_and_name(name)
        module, _, kind = inner.rpartition(".")
        names = _LAYER if layer is not None else _EMBEDDINGS
        start = "" if layer is None else f"layers.{layer}."
        if inner in names:
            own[start + names[inner]] = tensor
        elif kind in ("weight", "bias") and module in names:
            own[f"{start}{names[module]}.{kind}"] = tensor
        elif kind in ("weight", "bias") and layer is not None and module in _STACKED:
            parts = tensor.chunk(len(_STACKED[module]))
            own |= {f"{start}{part}.{kind}": value.clone() for part, value in zip(_STACKED[module], parts)}
        else:
            unknown.append(name)
    return own, unknown


def _layer_and_name(name: str) -> tuple[int | None, str]:
    match = re.fullmatch(r"blocks\.(0|[1-9]\d*)\.(.+)", name)
    return (int(match[1]), match[2]) if match else (None, name)


def published_name(own_name: str, published: Mapping[str, Any]) -> str:
    """
    The published name of one of our weights, in the manner of the checkpoint that lacks it.

    Args:
        own_name (`str`): in [`EvaVisionModel`].
        published (`dict`): by published name, without prefix.
    """
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", own_name)
    start, inner = (f"blocks.{match[1]}.", match[2]) if match else ("", own_name)
    names = _LAYER if match else _EMBEDDINGS
    module, _, kind = inner.rpartition(".")
    candidates = [name for name, own in names.items() if own == inner]
    candidates += [f"{name}.{kind}" for name, own in names.items() if own == module]
    manner = {re.sub(r"^blocks\.\d+\.", "", name) for name in published}
    return start + next((name for name in candidates if name in manner), candidates[0])


def infer_config(
    source: str | os.PathLike,
    prefix: str,
    published: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    num_attention_heads: int | None = None,
    rope_grid_size: int | None = None,
    num_layers: int | None = None,
) -> EvaVisionConfig:
    """
    The architecture that published weights are of.

    Args:
        source (`str` or `Path`): the file, for errors.
        prefix (`str`): one of [`PREFIXES`].
        published, own (`dict[str, torch.Tensor]`): the weights, by published name without prefix and by our name.
        num_attention_heads, rope_grid_size, num_layers (`int`, *optional*): where they are known.

    Raises:
        CheckpointError: if the weights that sizes are read from are missing or of no such shape, or whole layers are
            missing or too many.
        ValueError: if a number that is given is none of a model, or that of the layers is needed and not given.
    """
    what = "an EVA-02 vision transformer"
    refuse_misfits(
        source, what, missing=[prefix + name for name, (own_name, _) in _SIZES.items() if own_name not in own]
    )
    misshapen = [
        f"{prefix}{name} has shape {tuple(own[own_name].shape)}, expected {num_dimensions} dimensions"
        for name, (own_name, num_dimensions) in _SIZES.items()
        if own[own_name].ndim != num_dimensions
    ]
    refuse_misfits(source, what, misshapen=misshapen)
    num_patches = own["embeddings.position_embeddings"].shape[1] - 1
    grid = math.isqrt(max(num_patches, 0))
    if grid == 0 or grid**2 != num_patches:
        misshapen = [f"{prefix}pos_embed has {num_patches} positions beside [CLS], which make no square"]
    refuse_misfits(source, what, misshapen=misshapen)
    hidden_size, num_channels, *patch_size = own["embeddings.patch_embeddings.weight"].shape
    num_layers = _checked_num_layers(source, prefix, published, hidden_size, num_layers)
    cos, sin = (next((published[name] for name in _rotary_names(published, part)), None) for part in ("cos", "sin"))
    head_dim = HEAD_DIM
    if cos is not None and sin is not None and cos.ndim == 2 and cos.shape == sin.shape and len(cos) == num_patches:
        head_dim = cos.shape[1]
        rope_grid_size = _rope_grid_size(cos, sin, grid) if rope_grid_size is None else rope_grid_size
    names = {re.sub(r"^layers\.\d+\.", "", name) for name in own}
    # EVA-CLIP normalises inside attention and feed-forward layers exactly where q, k and v are apart.
    normed = prefix != "" and not any(name.endswith("attn.qkv.weight") for name in published)
    return EvaVisionConfig(
        hidden_size=hidden_size,
        intermediate_size=own["layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=num_layers,
        num_attention_heads=max(hidden_size // head_dim, 1) if num_attention_heads is None else num_attention_heads,
        num_channels=num_channels,
        image_size=_one_or_two([size * grid for size in patch_size]),
        patch_size=_one_or_two(patch_size),
        rope_grid_size=16 if rope_grid_size is None else rope_grid_size,
        use_attention_norm=normed or "attention.inner_norm.weight" in names,
        use_feed_forward_norm=normed or "mlp.inner_norm.weight" in names,
        use_final_norm="norm.weight" in published or (prefix == "visual." and "fc_norm.weight" not in published),
        use_mask_token="mask_token" in published,
    )


def _checked_num_layers(
    source: str | os.PathLike, prefix: str, published: Mapping[str, Any], hidden_size: int, num_layers: int | None
) -> int:
    """How many layers there should be; refuses weights of fewer, of more, and with gaps."""
    found = {layer for name in published if (layer := _layer_and_name(name)[0]) is not None}
    expected = NUM_LAYERS.get(hidden_size) if num_layers is None else num_layers
    if expected is None:
        widths = ", ".join(str(width) for width in NUM_LAYERS)
        raise ValueError(
            f"{source} holds {len(found)} layers of width {hidden_size}, which no published model has (these have "
            f"{widths}), so that nothing says whether they are all: give their number with num_layers (--num-layers)."
        )
    if expected < 1:
        raise ValueError(f"num_layers is {expected}, an EVA vision transformer needs at least 1.")
    hint = " as published (num_layers, or --num-layers, says another number)" if num_layers is None else ""
    refuse_misfits(
        source,
        f"an EVA-02 vision transformer of {expected} layers of {hidden_size}{hint}",
        missing=[f"{prefix}blocks.{layer}.*" for layer in range(expected) if layer not in found],
        unknown=[f"{prefix}blocks.{layer}.*" for layer in sorted(found) if layer >= expected],
    )
    return expected


def _one_or_two(sizes: list[int]) -> int | tuple[int, int]:
    return sizes[0] if sizes[0] == sizes[1] else (sizes[0], sizes[1])


def _rope_grid_size(cos: torch.Tensor, sin: torch.Tensor, grid: int) -> int | None:
    """The reach of the rotary positions that gives the published tables; first that of every EVA-CLIP, 16."""
    for reach in (16, *range(1, 65)):
        angles = rotary_angles((grid, grid), cos.shape[1], rope_grid_size=reach, dtype=torch.float64)
        if _is_table(cos, angles.cos()) and _is_table(sin, angles.sin()):
            return reach
    return None


def _is_table(published: torch.Tensor, per_pair: torch.Tensor) -> bool:
    expected = per_pair.repeat_interleave(2, dim=-1)
    if published.shape != expected.shape or not published.is_floating_point():
        return False
    return bool((published - expected).abs().max() < 4 * torch.finfo(published.dtype).eps + 1e-4)


def _rotary_names(published: Mapping[str, Any], part: str) -> list[str]:
    """Where tables of cosines (`"cos"`) or sines (`"sin"`) are: beside the layers, and once more in each of them."""
    return [name for name in published if _ROTARY.fullmatch(name) and name.endswith(part)]


def _rotary_misfits(prefix: str, published: Mapping[str, torch.Tensor], config: EvaVisionConfig) -> list[str]:
    """Whether all tables that the checkpoint was trained with are those that the config gives."""
    head_dim = config.hidden_size // config.num_attention_heads
    angles = rotary_angles(config.grid_size, head_dim, config.rope_theta, config.rope_grid_size, dtype=torch.float64)
    others = [
        prefix + name
        for part, table in (("cos", angles.cos()), ("sin", angles.sin()))
        for name in _rotary_names(published, part)
        if not _is_table(published[name], table)
    ]
    return [
        f"{name} is not the table of {config.num_attention_heads} heads of {head_dim}, rope_grid_size="
        f"{config.rope_grid_size} and rope_theta={config.rope_theta:g}"
        for name in folded(others)
    ]


def misfits(
    own: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name_of: Callable[[str], str] = str
) -> list[str]:
    """
    What is wrong with weights, in words: shapes, kinds of numbers, and numbers that are none.

    Args:
        own, expected (`dict[str, torch.Tensor]`): the weights, and those of a model; names in both are compared.
        name_of (`Callable`, *optional*): gives the name of a weight for these words.
    """
    problems = []
    for name, tensor in own.items():
        if name not in expected:
            continue
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            problems.append(f"{name_of(name)} has shape {shapes}")
        elif not tensor.is_floating_point():
            problems.append(f"{name_of(name)} holds {tensor.dtype}, expected floating-point numbers")
        elif not torch.isfinite(tensor).all():
            problems.append(f"{name_of(name)} holds numbers that are not finite")
    return problems


def eva_image_processor(config: EvaVisionConfig) -> CLIPImageProcessorPil:
    """
    The image processor of EVA-CLIP: the shorter side resized (bicubic), the centre cropped, the statistics of CLIP.

    Args:
        config ([`EvaVisionConfig`]): says the size of the images.
    """
    height, width = config.image_height_width
    return CLIPImageProcessorPil(
        size={"shortest_edge": max(height, width)}, crop_size={"height": height, "width": width}
    )


__all__ = ["Conversion", "convert_eva_clip", "eva_image_processor", "own_names", "write_eva_tower"]
