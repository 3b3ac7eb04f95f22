"""The command `vistok plan`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUMMARY = "say what a training would take: parameters, memory, operations, hours"
DESCRIPTION = """
Says what recipes would take on GPUs of a kind, without weights, data or GPUs: numbers of parameters, all and trained;
memory of each GPU for weights, gradients, the optimizer's state and activations; floating-point operations and tokens
of a step and in all; and hours. A step is run on tensors without content, whose operations are counted and whose sizes
are added up while they live. Configurations are read from folders and from the cache of the Hub; well-known models
(CLIP, SigLIP, DINOv2, EVA-02-CLIP, Vicuna, Llama 2, Mistral, SmolLM2, LLaVA-1.5, Stable Diffusion v1.5) need neither.

What the data is like has to be said: --text-tokens of a conversation, --answer-tokens of them that are learned,
--images of a row, and --samples where a recipe counts epochs. Time is operations by the peak rate times --utilisation,
which large trainings on several GPUs seldom have above 0.5; reading data and exchanging gradients are not counted.

How many tokens SeTok makes of an image depends on what it shows: --image-tokens says how many to plan with, by default
the most. In its own training each image has as many objects as --training.max_objects keeps; of Setokim each row
writes what some of its data asks for: its images, a mask, or both. The plan notes what it assumes.

Several recipes are planned as `vistok train` runs them, one after another: one that starts from the folder that an
earlier one leaves has its model. What the data is like is one number for all of them, or one for each, in their order.
Any field can be overridden, as in `vistok train`.

strategies:
  ddp    each GPU has all of it
  zero2  gradients and the optimizer's state are spread (DeepSpeed)
  zero3  weights too (DeepSpeed)
  fsdp   the same by torch

example:
  vistok plan recipes/gvt/instruct.yaml --num-gpus 32 --gpu a100
  vistok plan recipes/vtlmm/{alignment,instruction,visual_tokens,visual_modeling}.yaml --num-gpus 8 --gpu h100 \\
      --samples 558128 665298 558128 665298 --text-tokens 32 256 32 256
  vistok plan recipes/setok/1a-reconstruction.yaml recipes/setok/1b-boundaries.yaml --num-gpus 8 --samples 118287 \\
      --image-tokens 25
  vistok plan recipes/gvt/demo.yaml --gpu t4 --format json --output plan.json
"""

TAKES_OVERRIDES = True
OF_DATA = ("text_tokens", "answer_tokens", "images", "image_tokens", "samples")
USAGE = "vistok plan RECIPE [RECIPE ...] [--num-gpus N] [--gpu KIND] [...] [--section.field VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = USAGE
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a YAML file, such as recipes/gvt/instruct.yaml")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument("--gpu", default="h100", metavar="KIND", help="b200, h200, h100, h100-pcie, a100, a100-40gb, "
                        "l40s, l4, a10, rtx4090, v100, t4 or mi300x (default h100)")  # fmt: skip
    parser.add_argument(
        "--strategy", metavar="NAME", help="ddp, zero2, zero3 or fsdp; by default what the recipe says"
    )
    parser.add_argument("--utilisation", type=float, default=0.4, metavar="SHARE", help="of the peak rate that is "
                        "reached, up to 1 (default 0.4)")  # fmt: skip
    data = parser.add_argument_group("data, of all recipes or of each")
    of_each: dict[str, Any] = {"type": int, "nargs": "+", "metavar": "N"}
    data.add_argument("--text-tokens", **of_each, default=[128], help="of a conversation (default 128)")
    data.add_argument("--answer-tokens", **of_each, help="those of them that are learned (default half)")
    data.add_argument("--images", **of_each, default=[1], help="of a row (default 1)")
    data.add_argument(
        "--image-tokens", **of_each, help="of an image, where what it shows decides; by default the most"
    )
    data.add_argument("--samples", **of_each, help="examples of the training data, for recipes that count epochs")
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown", help="of the plan (default "
                        "markdown)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="where it is written; by default shown")


def run(options: argparse.Namespace) -> None:
    """`vistok plan`"""
    from .cli_train import find_recipe
    from .modeling.atomic_folder import write_text_atomically
    from .trainer.plan_report import plan_json, plan_markdown
    from .trainer.recipe_chain import load_recipes
    from .trainer.training_plan import PlanOptions, plan_recipes

    paths = [find_recipe(name) for name in options.recipes]
    recipes = dict(zip(options.recipes, load_recipes(paths, options.rest)))
    where = {name: getattr(options, name) for name in ("num_gpus", "gpu", "strategy", "utilisation")}
    data: dict[str, Sequence[Any]] = {name: _of_each(name, getattr(options, name), len(recipes)) for name in OF_DATA}
    wanted = [
        PlanOptions(**where, **{name: numbers[place] for name, numbers in data.items()})
        for place in range(len(recipes))
    ]
    plans = plan_recipes(recipes, wanted)
    text = plan_json(plans) if options.format == "json" else plan_markdown(plans)
    if options.output is None:
        print(text, end="")
    else:
        write_text_atomically(options.output, text)


def _of_each(name: str, given: Sequence[int] | None, count: int) -> Sequence[int | None]:
    """A number for each recipe, of one for all or of as many."""
    numbers: Sequence[int | None] = given or [None]
    if len(numbers) not in (1, count):
        raise ValueError(
            f"--{name.replace('_', '-')} has {len(numbers)} numbers for {count} recipes: give one, or one for each."
        )
    return numbers if len(numbers) == count else [numbers[0]] * count
