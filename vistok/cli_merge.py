"""The command `vistok merge`."""

import argparse
from pathlib import Path

SUMMARY = "make a model of all weights of trained ones and their base models"
DESCRIPTION = """
Loads what was trained together with the models that it names, merges LoRA adapters into their weights, and writes the
whole, with its processor: OUT loads without base models, adapters and peft. FOLDER is what a training ended with, or
an adapter that peft wrote (adapter_config.json), with the parts that were trained in full. FOLDER stays as it is, and
OUT is written whole or not at all.

After QLoRA, adapters are merged into the base models as they are published, not into their quantised weights.

example:
  vistok merge runs/vtlmm/lora runs/vtlmm/merged
  vistok merge runs/gvt-qlora runs/gvt-merged --dtype bfloat16
"""
DTYPES = ("auto", "bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", metavar="FOLDER", help="of trained weights or of an adapter: folder or Hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, which may not exist yet")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="of the weights; auto: that of the base models (default)"
    )


def run(options: argparse.Namespace) -> None:
    """`vistok merge`"""
    from .hub_cards.whole_folder import save_whole
    from .modeling.atomic_folder import write_folder_atomically

    with write_folder_atomically(options.out) as work:
        whole = save_whole(options.folder, work, options.dtype)
    print(f"{options.out}: {whole.model_type}, {whole.num_parameters:,} parameters")
    if whole.processor_from is None:
        print("without a processor: there is none beside the model")
