"""LLaVA-1.5 and VW-LMM as published: names and shapes of their weights, and tiny checkpoints that have them."""

import itertools
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from tests.tiny import IMAGE_SIZE, PATCH_SIZE, livelier, tiny_clip_config, tiny_image_processor, tiny_tokenizer

LAYOUTS = Path(__file__).parent / "published_layouts"
ORIGINAL_LAYOUTS = ("llava_1_5_7b", "vw_lmm_vicuna_7b", "vw_lmm_mistral_7b")

NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
VOCAB_SIZE = 340  # as many as the tiny tokenizer has tokens
TINY = {"hidden": 48, "kv": 24, "inner": 64, "vocab": VOCAB_SIZE, "frequencies": 6, "tower": 32, "tower_inner": 64}
TINY |= {"positions": 1 + NUM_PATCHES, "patch": PATCH_SIZE, "channels": 3, "num_layers": 2, "num_tower_layers": 2}
_TINY_TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY_TEXT |= {"num_key_value_heads": 2, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 128}
_TINY_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_TOWER |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}


def layout(name: str) -> dict:
    return json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8"))


def shapes_of(published: dict, **sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a layout with its shape, layers written out; `sizes` take the place of the published ones."""
    numbers = {name: published[name] for name in ("num_layers", "num_tower_layers")} | published["sizes"] | sizes
    counts = {"layer_weights": "num_layers", "layer_buffers": "num_layers", "tower_layer_weights": "num_tower_layers"}
    shapes = {}
    for part in ("weights", "buffers", "tower_weights", "layer_weights", "layer_buffers", "tower_layer_weights"):
        for layer in range(numbers[counts[part]] if part in counts else 1):
            for name, shape in published[part].items():
                shapes[name.format(layer=layer)] = tuple(numbers.get(size, size) for size in shape)
    return shapes


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if name.endswith("position_ids") else torch.float32 if name.endswith("inv_freq") else dtype


def random_checkpoint(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes
) -> dict[str, torch.Tensor]:
    """A tiny checkpoint with the names of a layout."""
    generator = torch.Generator().manual_seed(seed)
    published = layout(name)
    more_rows = published["sizes"]["vocab"] - 32_000  # transformers' layout has rows for the placeholder
    sizes = TINY | {"vocab": VOCAB_SIZE + more_rows} | sizes
    tensors = {}
    for key, shape in shapes_of(published, **sizes).items():
        if key.endswith("position_ids"):
            tensors[key] = torch.arange(shape[1]).expand(1, -1)
            continue
        spread = 1.0 if len(shape) < 2 or "embeddings." in key else 3 / math.sqrt(math.prod(shape[1:]))
        is_norm_scale = key.endswith("norm.weight") and len(shape) == 1
        values = torch.randn(shape, generator=generator) * (0.1 if len(shape) < 2 else spread) + is_norm_scale
        tensors[key] = values.to(dtype_of(key, dtype))
    return tensors


def tiny_config(name: str, **fields) -> dict:
    """The published config of a layout with the sizes of the tiny checkpoint."""
    config = layout(name)["config"]
    if "text_config" in config:
        text_config = config["text_config"] | _TINY_TEXT | _TINY_TOKENS | {"vocab_size": VOCAB_SIZE + 64}
        sizes = {"text_config": text_config, "vision_config": config["vision_config"] | TINY_TOWER}
        return config | sizes | {"image_token_index": VOCAB_SIZE, "vocab_size": VOCAB_SIZE + 64} | fields
    return config | _TINY_TEXT | _TINY_TOKENS | {"mm_hidden_size": 32} | fields


def save_checkpoint(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: dict,
    num_shards: int = 2,
    suffix: str = ".bin",
    old_format: bool = False,
    tokenizer=None,
) -> Path:
    """Writes weights, in the shards of their order, with config, generation config and tokenizer."""
    folder.mkdir(parents=True)
    names = list(tensors)
    stem, index = ("pytorch_model", "pytorch_model.bin") if suffix == ".bin" else ("model", "model.safetensors")
    bounds = [number * len(names) // num_shards for number in range(num_shards + 1)]
    weight_map = {}
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = {name: tensors[name].contiguous() for name in names[start:end]}
        file = f"{stem}-{number + 1:05d}-of-{num_shards:05d}{suffix}" if num_shards > 1 else f"{stem}{suffix}"
        weight_map |= dict.fromkeys(part, file)
        if suffix == ".bin":
            torch.save(part, folder / file, _use_new_zipfile_serialization=not old_format)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if num_shards > 1:
        content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{index}.index.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps(config))
    # As LLaVA has it: fields of sampling and no do_sample.
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (tokenizer or tiny_tokenizer(add_bos=True)).save_pretrained(folder)
    return folder


def save_clip(folder: Path, **sizes) -> str:
    """A tiny CLIP, with its text tower, as a checkpoint of LLaVA names it."""
    vision = tiny_clip_config(**sizes)
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
    )
    config = CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=16)
    livelier(CLIPModel(config)).save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return str(folder)
