"""The command `vistok train`."""

import argparse
import os
from pathlib import Path
from typing import Any

SUMMARY = "train as a recipe says, or as several say, one after another"
DESCRIPTION = """
Trains as a recipe says, and ends with a folder that from_pretrained and pipeline load: the trained weights, the
processor, a card, results.json and the loss curve. A run that was killed continues from its last checkpoint.

Several recipes run one after another. Each starts from the folder that its model.checkpoint names, which an earlier
one may leave, or from what ships with vistok (vistok:NAME); one that names none starts from the folder of the one
before it, and a Setokim behind a SeTok takes that as its model.vision. Those that are finished, with the same recipe
and the same start, are passed over (--resume never runs all anew).

Behind the recipes any field can be overridden: by --section.field value in all of them, by --2.section.field value in
the second alone. Where that moves an output folder, what starts from it follows. The sections of a recipe:
  trainer           visual-language (the default), visual-modeling, feature-distillation, setok or setokim
  data              train and eval, lists of data sources; their mixture
  training          any field of transformers' TrainingArguments, and of the trainer's own
  card              title, license, language, description, limits
of visual-language, which trains a multimodal language model on images and conversations:
  model             what it is composed of: vision, text, resampler …
  trainable         frozen, full or lora for each part: vision, resampler, llm
  lora              fields of peft.LoraConfig
of visual-modeling, which trains a VT-LMM in one of four stages (training.stage), the same sections
of setok, which trains a SeTok in one of the two phases of stage I (training.phase): model
of setokim, which trains a Setokim in stage II or III (training.stage), the sections of visual-language
of feature-distillation, which trains a vision tower to have another's features:
  teacher           whose features: model, feature_layer …
  student           what learns them: same, wei or a checkpoint
  probe             labelled images for k-NN and linear probe, before and after

example:
  vistok train recipes/gvt/demo.yaml
  vistok train recipes/gvt/demo.yaml --training.max_steps 100 --training.output_dir runs/try
  vistok train recipes/gvt/distill-demo.yaml
  vistok train recipes/vtlmm/demo/1-alignment.yaml recipes/vtlmm/demo/2-instruction.yaml --2.training.max_steps 100
  vistok train recipes/setokim/demo/1-reading.yaml recipes/setokim/demo/2-pretraining.yaml
"""

TAKES_OVERRIDES = True
USAGE = "vistok train RECIPE [RECIPE ...] [--resume auto|never|FOLDER] [--section.field VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = USAGE
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE", help="a YAML file, such as recipes/gvt/demo.yaml, or several"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|FOLDER",
        help="continue from the last checkpoint in the output folder if there is one (auto, the default), from the "
        "checkpoint in FOLDER, or start anew (never)",
    )


def run(options: argparse.Namespace) -> None:
    """`vistok train`"""
    from .trainer.recipe_chain import load_recipes, run_recipes

    paths = [find_recipe(name) for name in options.recipes]
    absent = [path for path in paths if not path.is_file()]
    if options.rest and absent:
        raise FileNotFoundError(
            f"There is no recipe {absent[0]}. RECIPE, a YAML file, comes before the overrides: {USAGE}."
        )
    recipes = load_recipes(paths, options.rest)
    resume: bool | str = options.resume if options.resume != "never" else False
    if resume and resume != "auto" and not Path(options.resume).is_dir():
        raise FileNotFoundError(f"There is no checkpoint {resume}: --resume takes auto, never or a folder.")

    def tell(number: int, results: dict[str, Any]) -> None:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            name = f"{options.recipes[number]}: " if len(paths) > 1 else ""
            _tell(results, recipes[number].training.get("output_dir") or "trainer_output", name)

    run_recipes(recipes, resume=resume, command=options.command_line, on_end=tell)


def _tell(results: dict[str, Any], folder: str, name: str) -> None:
    print(f"{name}Trained {results['steps']} steps in {results['train_seconds']:.0f} s.")
    for metric, value in results["metrics"].items():
        if metric.endswith("answer_accuracy"):
            print(f"{metric}: {100 * value:.2f} %")
        elif metric.endswith(("ciou", "giou")):
            print(f"{metric}: {100 * value:.1f} %")
        elif metric.endswith(("cosine_similarity", "explained_variance", "loss_vm", "loss_visual")):
            print(f"{metric}: {value:.3f}")
    for metric, scores in (results.get("representation") or {}).items():
        if isinstance(scores, dict):
            words = [f"{probe} {score['accuracy']:.1f} %" for probe, score in scores.items()]
            print(f"{metric}: {', '.join(words)}")
    print(f"Model, card, results.json and loss.png: {folder}")


def find_recipe(name: str) -> Path:
    """A file as it is named from here, or else the recipe of this name that ships with vistok."""
    from .configuration.shipped import here_or_shipped

    return here_or_shipped(name)
