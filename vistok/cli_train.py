"""The command `vistok train`."""

import argparse
import os
from pathlib import Path

SUMMARY = "train as a recipe says"
DESCRIPTION = """
Trains as a recipe says, and ends with a folder that from_pretrained and pipeline load: the trained weights, the
processor, a card, results.json and the loss curve. A run that was killed continues from its last checkpoint.

Behind the recipe any field of it can be overridden by --section.field value. Its sections:
  trainer           visual-language (the default) or feature-distillation
  data              train and eval, lists of data sources; their mixture
  training          any field of transformers' TrainingArguments, and of the trainer's own
  card              title, license, language, description, limits
of visual-language, which trains a multimodal language model on images and conversations:
  model             what it is composed of: vision, text, resampler …
  trainable         frozen, full or lora for each part: vision, resampler, llm
  lora              fields of peft.LoraConfig
of feature-distillation, which trains a vision tower to have another's features:
  teacher           whose features: model, feature_layer …
  student           what learns them: same, wei or a checkpoint
  probe             labelled images for k-NN and linear probe, before and after

example:
  vistok train recipes/gvt/demo.yaml
  vistok train recipes/gvt/demo.yaml --training.max_steps 100 --training.output_dir runs/try
  vistok train recipes/gvt/distill-demo.yaml
"""

TAKES_OVERRIDES = True
USAGE = "vistok train RECIPE [--resume auto|never|FOLDER] [--section.field VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = USAGE
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/gvt/demo.yaml")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|FOLDER",
        help="continue from the last checkpoint in the output folder if there is one (auto, the default), from the "
        "checkpoint in FOLDER, or start anew (never)",
    )


def run(options: argparse.Namespace) -> None:
    """`vistok train`"""
    from .trainer.recipe import load_recipe
    from .trainer.run_recipe import run_recipe

    path = find_recipe(options.recipe)
    if options.rest and not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {path}. RECIPE, a YAML file, comes before the overrides: {USAGE}."
        )
    recipe = load_recipe(path, options.rest)
    resume: bool | str = options.resume if options.resume != "never" else False
    if resume and resume != "auto" and not Path(options.resume).is_dir():
        raise FileNotFoundError(f"There is no checkpoint {resume}: --resume takes auto, never or a folder.")
    results = run_recipe(recipe, resume=resume, command=options.command_line)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        folder = recipe.training.get("output_dir") or "trainer_output"
        print(f"Trained {results['steps']} steps in {results['train_seconds']:.0f} s.")
        for name, value in results["metrics"].items():
            if name.endswith("answer_accuracy"):
                print(f"{name}: {100 * value:.2f} %")
            elif name.endswith(("cosine_similarity", "explained_variance")):
                print(f"{name}: {value:.3f}")
        for name, scores in (results.get("representation") or {}).items():
            if isinstance(scores, dict):
                words = [f"{probe} {score['accuracy']:.1f} %" for probe, score in scores.items()]
                print(f"{name}: {', '.join(words)}")
        print(f"Model, card, results.json and loss.png: {folder}")


def find_recipe(name: str) -> Path:
    """A file as it is named from here, or else the recipe of this name that ships with vistok."""
    from .configuration.shipped import shipped_path

    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    try:
        return shipped_path(path.as_posix())
    except FileNotFoundError:
        return path
