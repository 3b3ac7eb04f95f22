"""Conversion of published weights to transformers folders: DINOv2-small from ONNX, SmolLM2-135M-Instruct from GGUF."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    GenerationConfig,
    GgufConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..configuration.optional import require
from .atomic_folder import FetchError

if TYPE_CHECKING:
    from onnx import GraphProto

logger = logging.get_logger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BACKBONE = "backbone."
_MASK_TOKEN = "embeddings.mask_token"
_POSITIONS = "embeddings.position_embeddings"

SMOLLM2_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
"""Special tokens of SmolLM2-Instruct: a turn ends with `<|im_end|>`, which also pads."""

SMOLLM2_CONTEXT = 8192


def convert_dinov2_onnx(file: Path, folder: Path, config: Dinov2Config | None = None) -> None:
    """Writes a `Dinov2Model` folder, with its image processor, from an ONNX graph that holds a DINOv2 backbone.

    The image processor resizes the shorter side to 224 pixels and crops the centre; DINOv2 itself resizes to 256
    first, which would cut away a border that questions may be about.

    Args:
        file (`Path`): an ONNX file whose backbone's initialisers carry transformers' names under `backbone.`.
        folder (`Path`): an existing folder to write to.
        config (`Dinov2Config`, *optional*): the architecture. Defaults to DINOv2-small at 518 pixels.

    Raises:
        FetchError: if the graph's tensors are not exactly the architecture's, with a list of the differences.
        ImportError: without the extra `convert`.
    """
    onnx = require("onnx", "convert")
    tensors = dinov2_state_dict(onnx.load(str(file)).graph)
    model = load_exactly(tensors, config or dinov2_small_config())
    model.save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    ).save_pretrained(folder)


def dinov2_small_config() -> Dinov2Config:
    """The architecture of DINOv2-small as published: 12 layers, 384 channels, 37 x 37 patches of 14 pixels."""
    return Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)


def dinov2_state_dict(graph: "GraphProto") -> dict[str, torch.Tensor]:
    """Reads a DINOv2 backbone's tensors, under transformers' published names, out of an ONNX graph.

    Biases, norms and the patch projection keep their names in the graph. The exporter folded transpositions into the
    weights of linear layers and a slice into the position embeddings and left these constants anonymous; the nodes
    that use them still carry the module's path.

    Args:
        graph (`onnx.GraphProto`): the graph; what lies outside `backbone` is ignored.

    Returns:
        `dict[str, torch.Tensor]`: float32 tensors by name. The mask token, which only masked pretraining uses and no
        inference graph contains, is zero.
    """
    numpy_helper = require("onnx.numpy_helper", "convert")
    constants = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    tensors = {name.removeprefix(_BACKBONE): value for name, value in constants.items() if name.startswith(_BACKBONE)}
    positions = []
    for node in graph.node:
        module, _, _ = node.name.lstrip("/").replace("/", ".").rpartition(".")
        if not f"{module}.".startswith(_BACKBONE):
            continue
        anonymous = [name for name in node.input if name in constants and not name.startswith(_BACKBONE)]
        for name in anonymous:
            if node.op_type == "MatMul":
                tensors[f"{module.removeprefix(_BACKBONE)}.weight"] = constants[name].T.contiguous()
            elif module == "backbone.embeddings" and constants[name].ndim == 3:
                positions.append(constants[name])
    if positions:
        # Two slices of one tensor: the class token's single position comes first.
        tensors[_POSITIONS] = torch.cat(sorted(positions, key=lambda slice_: slice_.shape[1]), dim=1)
    if "embeddings.cls_token" in tensors:
        tensors[_MASK_TOKEN] = torch.zeros_like(tensors["embeddings.cls_token"][0])
    return tensors


def load_exactly(tensors: Mapping[str, torch.Tensor], config: Dinov2Config) -> Dinov2Model:
    """Builds a `Dinov2Model` from tensors that must be exactly its own.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): by published name.
        config (`Dinov2Config`): the architecture.

    Returns:
        `Dinov2Model`: in evaluation mode.

    Raises:
        FetchError: listing every missing, unexpected and wrongly shaped tensor.
    """
    model, report = Dinov2Model.from_pretrained(
        None, config=config, state_dict=dict(tensors), output_loading_info=True, ignore_mismatched_sizes=True
    )
    problems = [f"missing {name}" for name in sorted(report["missing_keys"])]
    problems += [f"unexpected {name}" for name in sorted(report["unexpected_keys"])]
    problems += [
        f"{name} has shape {tuple(found)}, expected {tuple(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    if problems:
        raise FetchError("The weights do not fit the architecture:\n" + "\n".join(f"- {line}" for line in problems))
    return model


def convert_smollm2_gguf(file: Path, folder: Path) -> None:
    """Writes a bfloat16 `LlamaForCausalLM` folder, with its tokenizer, from SmolLM2-Instruct in GGUF.

    Args:
        file (`Path`): the GGUF file, of any quantisation that transformers reads.
        folder (`Path`): an existing folder to write to.

    Raises:
        FetchError: if the file's tensors or special tokens are not those of SmolLM2-Instruct.
        ImportError: without the extra `convert`.
    """
    require("gguf", "convert")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _restore_smollm2_tokenizer(tokenizer, file)
    model, report = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    problems = {
        kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(problems.values()):
        raise FetchError(f"{file.name} does not fit a {model.config.model_type} model: {problems}")
    # The weights are plain tensors by now; with these two, transformers would refuse to save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # GGUF keeps it as the nearest float32, 9.999999747e-06.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    tokens: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(tokens)
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _restore_smollm2_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    found = {key: getattr(tokenizer, key) for key in SMOLLM2_TOKENS}
    if found != SMOLLM2_TOKENS or not tokenizer.chat_template:
        raise FetchError(
            f"{file.name} is not SmolLM2-Instruct: special tokens {found}, expected {SMOLLM2_TOKENS}, and a chat "
            f"template ({'present' if tokenizer.chat_template else 'missing'})."
        )
    from tokenizers import pre_tokenizers

    # GGUF only names the rule ("smollm"), which transformers does not know: SmolLM splits off every digit before the
    # GPT-2 rule, which matters for white space in front of a number.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = SMOLLM2_CONTEXT
