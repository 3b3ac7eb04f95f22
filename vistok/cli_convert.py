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
  llava     LLaVA-1.5, a folder or Hub id in its authors' layout or in that of transformers: OUT is a VT-LMM with its
            processor and a new, random VM head, which is where stage III of VT-LMM starts
  vw-lmm    VW-LMM-Vicuna-7b, -Mistral-7b or -Vicuna-pif-7b, a folder or Hub id: OUT is a VT-LMM with its processor

The weights of a llava or vw-lmm go through memory one by one: 7B needs less than twice its largest file. Its kind is
found in its files. Embeddings and heads without a row for images get eight, the mean of the others.

example:
  vistok convert EVA02_CLIP_L_psz14_s4B.pt eva02-clip-l14 --kind eva-clip
  vistok convert gvt.ckpt gvt-vicuna-7b --kind gvt --text lmsys/vicuna-7b-v1.1
  vistok convert llava-v1.5-7b vtlmm-llava-7b --vision clip-vit-large-patch14-336
  vistok convert VW-LMM-Mistral-7b vtlmm-mistral-7b
"""
KINDS = ("eva-clip", "gvt", "llava", "vw-lmm")
TOWER_SIZES = ("num_attention_heads", "rope_grid_size", "num_layers")
# Option → kinds that it is for.
OPTIONS = {
    "text": KINDS[1:],
    **dict.fromkeys(("vision", "pseudo_image_features"), KINDS[2:]),
    "seed": KINDS[2:3],
    **dict.fromkeys(TOWER_SIZES, KINDS[:1]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="what was published: a file (.pt, .ckpt, .bin or .safetensors), of llava and vw-lmm a folder or Hub id",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, which may not exist yet")
    parser.add_argument("--kind", choices=KINDS, help="what SOURCE holds; needed where it is a file")
    parser.add_argument(
        "--text",
        metavar="LLM",
        help="of kind gvt: its language model (folder, Hub id or vistok:NAME); of kinds llava and vw-lmm: where the "
        "tokenizer is taken from, where SOURCE has none",
    )
    parser.add_argument(
        "--vision",
        metavar="TOWER",
        help="of kinds llava and vw-lmm: the vision tower (folder or Hub id), where SOURCE has none and what its "
        "config names cannot be loaded",
    )
    parser.add_argument(
        "--pseudo-image-features",
        action=argparse.BooleanOptionalAction,
        help="of kind vw-lmm: whether it was trained with these in place of image features; by default, whether its "
        "name says pif",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of kind llava: seed of the new VM head (0)")
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
    if options.kind is None and Path(options.source).is_file():
        raise ValueError(f"{options.source} is a file, which does not say what it holds: give --kind eva-clip or gvt.")
    _refuse_other_options(options)
    if options.kind == "gvt":
        conversion = _convert_gvt(options)
    elif options.kind == "eva-clip":
        from .modeling.convert_eva import convert_eva_clip

        sizes = {name: getattr(options, name) for name in TOWER_SIZES}
        conversion = convert_eva_clip(options.source, options.out, **sizes)
    else:
        conversion = _convert_llava(options)
    print(f"{options.out}: {conversion.config.model_type}, {conversion.num_parameters:,} parameters converted")
    print(f"dropped, of no use: {conversion.dropped_names()}")


def _refuse_other_options(options: argparse.Namespace) -> None:
    for name, kinds in OPTIONS.items():
        if getattr(options, name) is not None and (options.kind or "llava") not in kinds:
            raise ValueError(f"--{name.replace('_', '-')} is for --kind {' or '.join(kinds)}: leave it out.")


def _convert_gvt(options: argparse.Namespace):
    if options.text is None:
        raise ValueError(
            "--kind gvt needs --text, the language model that GVT was trained with: --text lmsys/vicuna-7b-v1.1, or a "
            "folder that holds it. (--kind eva-clip converts the vision tower alone.)"
        )
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


def _convert_llava(options: argparse.Namespace):
    from .modeling.atomic_folder import write_folder_atomically
    from .modeling.convert_vtlmm import plan_llava_conversion
    from .processing.published_llava_processor import published_llava_processor

    with write_folder_atomically(options.out) as work:
        # Everything but the numbers of weights is read before these, which take minutes.
        plan = plan_llava_conversion(
            options.source,
            kind=options.kind,
            vision=options.vision,
            text=options.text,
            pseudo_image_features=options.pseudo_image_features,
            seed=options.seed,
        )
        conversion, processor = plan.conversion, published_llava_processor(plan.conversion)
        plan.write(work)
        processor.save_pretrained(work)
    fed = "pseudo image features" if conversion.config.pseudo_image_features else "image features"
    print(f"kind {conversion.kind}: prompts of {conversion.chat_template}, {fed}")
    if conversion.vision is not None:
        print(f"vision tower: that of {conversion.vision}")
    if conversion.new:
        print(f"new, random (seed {plan.seed}), to be trained in stage III: {', '.join(conversion.new)}")
    return conversion
