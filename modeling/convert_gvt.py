"""Conversion of the published GVT: its resampler and projector as trained weights, its vision tower beside them."""

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from ..configuration.configuration_eva import EvaVisionConfig
from ..configuration.configuration_gvt import GVTConfig
from .atomic_folder import write_folder_atomically
from .base_checkpoints import lasting_name
from .base_weights import require_fetched, resolve_checkpoint
from .completed_model import expected_shapes
from .composition import add_image_token, compose_config, grown_size
from .convert_eva import Conversion, misfits, write_eva_tower
from .modeling_gvt import GVTForConditionalGeneration
from .published_checkpoints import read_published_checkpoint, refuse_misfits
from .trained_weights import TRAINED_WEIGHTS_NAME, write_safetensors

TOWER_FOLDER = "vision_tower"
"""Where the vision tower lies in the folder of a converted GVT."""

HEAD_DIM = 96
"""Width of a head in GVT's resampler."""

NUM_LAYERS = 6
"""Number of layers of GVT's resampler."""

# Published name → names in [`GVTForConditionalGeneration`]; two where one weight holds both, one above the other.
_OUTSIDE_LAYERS = {
    "ln_vision.weight": "resampler.patch_norm.weight",
    "ln_vision.bias": "resampler.patch_norm.bias",
    "perceiver.latents": "resampler.latents",
    "perceiver.media_pos_emb": "resampler.patch_position_embedding",
    "perceiver.norm.weight": "resampler.norm.weight",
    "perceiver.norm.bias": "resampler.norm.bias",
    "llm_proj.weight": "projector.weight",
    "llm_proj.bias": "projector.bias",
}
_IN_LAYER = {
    "0.norm_media.weight": ("attention.patch_norm.weight",),
    "0.norm_media.bias": ("attention.patch_norm.bias",),
    "0.norm_latents.weight": ("attention.latent_norm.weight",),
    "0.norm_latents.bias": ("attention.latent_norm.bias",),
    "0.to_q.weight": ("attention.q_proj.weight",),
    "0.to_kv.weight": ("attention.k_proj.weight", "attention.v_proj.weight"),
    "0.to_out.weight": ("attention.o_proj.weight",),
    "1.0.weight": ("feed_forward.norm.weight",),
    "1.0.bias": ("feed_forward.norm.bias",),
    "1.1.weight": ("feed_forward.up_proj.weight",),
    "1.3.weight": ("feed_forward.down_proj.weight",),
}
_OWN_PARTS = re.compile(r"(ln_vision|perceiver|llm_proj)\.")
# The tower is converted by itself, the language model is another checkpoint, GVT's forward has no use for `input_ln`.
_ELSEWHERE = re.compile(r"(visual_encoder|input_ln|llm)\.")


def convert_gvt(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    text: str,
    head_dim: int = HEAD_DIM,
    num_layers: int = NUM_LAYERS,
    num_tower_layers: int | None = None,
) -> Conversion:
    """
    Writes a folder that [`GVTForConditionalGeneration`] loads from the checkpoint of GVT's authors (TencentARC/GVT):
    the resampler and the projector as trained weights, the vision tower in the folder `vision_tower` within, which
    the config names as base model beside the language model. The processor is not among it:
    `GVTProcessor.from_vision_text_pretrained(folder / "vision_tower", text, image_size=224)` makes it.

    Args:
        source (`str` or `Path`): the file, see [`read_published_checkpoint`].
        folder (`str` or `Path`): where the result goes, whole or not at all; may not exist yet.
        text (`str`): language model that the projector was trained for, of GVT Vicuna-7B: a folder, a Hub id, or the
            name of a base model. Only its config and its tokenizer are read.
        head_dim (`int`, *optional*, defaults to 96): width of a head of the resampler.
        num_layers (`int`, *optional*, defaults to 6): number of layers of the resampler.
        num_tower_layers (`int`, *optional*): number of layers of the vision tower; needed where no model of its width
            is published.

    Returns:
        [`Conversion`].

    Raises:
        FileNotFoundError: if there is no such file.
        FileExistsError: if there is something in the folder.
        CheckpointError: if the file is truncated, its weights are not exactly those of GVT, or the language model is
            of another width; lists what is missing, unknown or of another shape.
    """
    require_fetched([text])
    tensors = read_published_checkpoint(source)
    trained, unknown = own_gvt_names(tensors)
    what = "those of GVT"
    unknown += [name for name in tensors if not _OWN_PARTS.match(name) and not _ELSEWHERE.match(name)]
    layers = {layer for name in trained if (layer := _layer(name)) is not None}
    unknown += [f"perceiver.layers.{layer}.*" for layer in sorted(layers) if layer >= num_layers]
    missing = _missing(trained, num_layers)
    if not any(name.startswith("visual_encoder.") for name in tensors):
        missing.append("visual_encoder.*")
    refuse_misfits(source, what, missing=missing, unknown=unknown)
    with write_folder_atomically(folder) as work:
        tower_folder = work / TOWER_FOLDER
        tower_folder.mkdir()
        tower = write_eva_tower(source, tensors, tower_folder, num_layers=num_tower_layers)
        config = _gvt_config(source, trained, tower.config, text, head_dim, num_layers)
        shapes = expected_shapes(GVTForConditionalGeneration, config)
        expected = {
            name: torch.empty(shape, device="meta")
            for name, shape in shapes.items()
            if name.startswith(("model.resampler.", "model.projector."))
        }
        refuse_misfits(
            source,
            f"those of a GVT with a language model of width {expected['model.projector.weight'].shape[0]} ({text})",
            missing=[name for name in expected if name not in trained],
            unknown=[name for name in trained if name not in expected],
            misshapen=misfits(trained, expected, _published_name),
        )
        _write_adapter(work, config, trained, text)
    own = {name for name in tensors if _OWN_PARTS.match(name)}
    dropped = [name for name in tower.dropped if name not in own]
    num_parameters = tower.num_parameters + sum(tensor.numel() for tensor in trained.values())
    return Conversion(config, num_parameters, dropped)


def own_gvt_names(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Weights of the published resampler and projector under the names of [`GVTForConditionalGeneration`].

    Args:
        tensors (`dict[str, torch.Tensor]`): by published name; all but those of these two parts are passed over.

    Returns:
        The weights, and the published names in these parts that are not known.
    """
    own: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"perceiver\.layers\.(\d+)\.(.+)", name)
        if name == "perceiver.media_pos_emb" and tensor.ndim == 3:
            tensor = tensor.flatten(0, 1)  # (images, 1, width): GVT has one position for the tokens of an image
        if layer and layer[2] in _IN_LAYER:
            names = _IN_LAYER[layer[2]]
            for inner, part in zip(names, tensor.chunk(len(names))):
                own[f"model.resampler.layers.{layer[1]}.{inner}"] = part.clone() if len(names) > 1 else part
        elif name in _OUTSIDE_LAYERS:
            own[f"model.{_OUTSIDE_LAYERS[name]}"] = tensor
        elif _OWN_PARTS.match(name):
            unknown.append(name)
    return own, unknown


def _published_name(own_name: str) -> str:
    inner = own_name.removeprefix("model.")
    layer = re.fullmatch(r"resampler\.layers\.(\d+)\.(.+)", inner)
    if layer:
        return f"perceiver.layers.{layer[1]}.{next(name for name, own in _IN_LAYER.items() if layer[2] in own)}"
    return next(name for name, own in _OUTSIDE_LAYERS.items() if own == inner)


def _layer(own_name: str) -> int | None:
    match = re.match(r"model\.resampler\.layers\.(\d+)\.", own_name)
    return int(match[1]) if match else None


def _missing(trained: Mapping[str, torch.Tensor], num_layers: int) -> list[str]:
    """Published names of weights that a resampler of so many layers should have."""
    missing = [name for name, own in _OUTSIDE_LAYERS.items() if f"model.{own}" not in trained]
    for layer in range(num_layers):
        start = f"model.resampler.layers.{layer}."
        missing += [
            f"perceiver.layers.{layer}.{name}" for name, own in _IN_LAYER.items() if start + own[0] not in trained
        ]
    return missing


def _gvt_config(
    source: str | os.PathLike,
    trained: Mapping[str, torch.Tensor],
    tower: EvaVisionConfig,
    text: str,
    head_dim: int,
    num_layers: int,
) -> GVTConfig:
    latents = trained["model.resampler.latents"]
    inner_size = trained["model.resampler.layers.0.attention.q_proj.weight"].shape[0]
    problems = (
        [] if latents.ndim == 2 else [f"perceiver.latents has shape {tuple(latents.shape)}, expected two numbers"]
    )
    if inner_size % head_dim:
        problems.append(f"perceiver.layers.0.0.to_q.weight makes {inner_size} channels, no multiple of {head_dim}")
    refuse_misfits(source, "those of GVT", misshapen=problems)
    num_latents, hidden_size = latents.shape
    resampler = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": inner_size // head_dim,
        "head_dim": head_dim,
        "num_latents": num_latents,
        "intermediate_size": trained["model.resampler.layers.0.feed_forward.up_proj.weight"].shape[0],
    }
    path = resolve_checkpoint(text)
    text_config = copy.deepcopy(AutoConfig.from_pretrained(path))
    image_token_id = add_image_token(AutoTokenizer.from_pretrained(path))
    if image_token_id >= text_config.vocab_size:
        text_config.vocab_size = grown_size(image_token_id)
    config: Any = compose_config(GVTConfig, tower, text_config, {"resampler_config": resampler})
    config.image_token_id = image_token_id
    config.base_models = {"vision": f"./{TOWER_FOLDER}", "text": lasting_name(text)}
    config.architectures = [GVTForConditionalGeneration.__name__]
    return config


def _write_adapter(folder: Path, config: GVTConfig, trained: Mapping[str, torch.Tensor], text: str) -> None:
    config.save_pretrained(folder)
    text_config: Any = config.text_config
    try:
        generation_config = GenerationConfig.from_pretrained(resolve_checkpoint(text))
    except OSError:  # optional
        generation_config = GenerationConfig.from_model_config(text_config)
    generation_config.suppress_tokens = [config.image_token_id]
    if generation_config.pad_token_id is None:
        generation_config.pad_token_id = text_config.pad_token_id or text_config.eos_token_id
    generation_config.save_pretrained(folder)
    contiguous = {name: tensor.contiguous() for name, tensor in trained.items()}
    write_safetensors(contiguous, folder / TRAINED_WEIGHTS_NAME)


__all__ = ["TOWER_FOLDER", "convert_gvt", "own_gvt_names"]
