"""The command `vistok convert`."""

import argparse
from pathlib import Path

SUMMARY = "convert published weights to a transformers folder"
DESCRIPTION = """
Converts weights as their authors published them to a folder that from_pretrained loads, and checks them name by name
and shape by shape. Whatever is missing or unknown ends the conversion with a list; weights without use are dropped
and named. Files of PyTorch are read weights-only: no code in them runs. OUT is written whole or not at all.

kinds of SOURCE:
  eva-clip  an EVA-02 vision transformer (EVA-CLIP, EVA-02, timm's EVA-02, or the tower in GVT's checkpoint): OUT is
            the model with its image processor, for AutoModel or as the vision tower of a GVT
  gvt       the checkpoint of GVT's authors: OUT is a GVT of trained weights with its processor and its vision tower,
            completed by the language model that --text names (Vicuna-7B), which has to be there when it is loaded

example:
  vistok convert EVA02_CLIP_L_psz14_s4B.pt eva02-clip-l14 --kind eva-clip
  vistok convert gvt.ckpt gvt-vicuna-7b --kind gvt --text lmsys/vicuna-7b-v1.1
"""
KINDS = ("eva-clip", "gvt")
TOWER_SIZES = ("num_attention_heads", "rope_grid_size", "num_layers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("source", metavar="SOURCE", help="the published file: .pt, .ckpt, .bin or .safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, which may not exist yet")
    parser.add_argument("--kind", required=True, choices=KINDS, help="what the file holds")
    parser.add_argument(
        "--text", metavar="LLM", help="of kind gvt: its language model (folder, Hub id or vistok:NAME)"
    )
    parser.add_argument(
        "--num-attention-heads",
        type=int,
        metavar="N",
        help="of kind eva-clip: heads of the tower, where they are not 64 wide and the file has no rotary table",
    )
    parser.add_argument(
        "--num-layers",
        type=int,
        metavar="N",
        help="of kind eva-clip: layers of the tower, where no model of its width is published",
    )
    parser.add_argument(
        "--rope-grid-size",
        type=int,
        metavar="N",
        help="of kind eva-clip: reach of the rotary positions in patches, where it is not 16 and the file has no "
        "rotary table",
    )


def run(options: argparse.Namespace) -> None:
    """`vistok convert`"""
    if options.kind == "gvt":
        conversion = _convert_gvt(options)
    else:
        if options.text is not None:
            raise ValueError("--text is for --kind gvt: a vision tower has no language model.")
        from .modeling.convert_eva import convert_eva_clip

        sizes = {name: getattr(options, name) for name in TOWER_SIZES}
        conversion = convert_eva_clip(options.source, options.out, **sizes)
    print(f"{options.out}: {conversion.config.model_type}, {conversion.num_parameters:,} parameters converted")
    print(f"dropped, of no use: {conversion.dropped_names()}")


def _convert_gvt(options: argparse.Namespace):
    if options.text is None:
        raise ValueError(
            "--kind gvt needs --text, the language model that GVT was trained with: --text lmsys/vicuna-7b-v1.1, or a "
            "folder that holds it. (--kind eva-clip converts the vision tower alone.)"
        )
    for name in TOWER_SIZES:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for --kind eva-clip: the sizes of GVT's tower are known.")
    from .modeling.atomic_folder import write_folder_atomically
    from .modeling.convert_gvt import TOWER_FOLDER, convert_gvt
    from .processing.processing_gvt import GVTProcessor

    with write_folder_atomically(options.out) as work:
        conversion = convert_gvt(options.source, work, options.text)
        config = conversion.config
        processor = GVTProcessor.from_vision_text_pretrained(
            str(work / TOWER_FOLDER),
            options.text,
            image_size=config.vision_config.image_size,
            num_image_tokens=config.resampler_config.num_latents,
        )
        processor.save_pretrained(work)
    return conversion
