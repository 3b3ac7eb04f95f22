"""The command `vistok study`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cli_train import find_recipe

SUMMARY = "compare vision towers as visual tokenizers, or arms of a training in stages"
DESCRIPTION = """
Runs a study: for each encoder, frozen or tuned, and each seed a model is trained with one protocol and asked the same
questions. It ends with tables, figures, attention maps, and paired differences with intervals: study.md, study.csv,
study.json, study.png and attention.png. A study that was killed goes on where it was. Several workers, processes and
machines with a common folder share its jobs:

  vistok study recipes/gvt/study.yaml --workers 2
  accelerate launch --num_processes 4 -m vistok.cli study recipes/gvt/study.yaml           (a GPU each)
  torchrun --standalone --nproc_per_node 2 -m vistok.cli study recipes/gvt/study.yaml

A recipe with `study: stages` compares arms of a training in stages, such as visual modelling with language modelling
alone: the stages before are trained once, the last one with each seed, and all arms are asked the same questions. It
ends with comparison.md, comparison.csv, comparison.json, and two pictures: comparison.png (scores and differences) and
comparison-trainings.png (what was logged). Its sections: stages, arms, compare, seeds, changes, evaluation, costs.
With `study: arms` there are no stages before: recipes/setok/demo/comparison.yaml compares visual tokenizers, and also
draws what they score against what they cost (comparison-costs.png).

Behind the recipe any field of it can be overridden by --section.field value, and what is no section by --threads 2,
--title "My towers", --seeds "[0, 1, 2]". Sections of a study of towers:
  scenes            arguments of vistok scenes, of the train and test split
  encoders          what is compared, by name: pretrained, random, supervised or distilled
  tuning, seeds     frozen, tuned or both; seeds of the training
  protocol, tuned   how a model is trained, and what is otherwise where the tower is tuned
  supervision, distillation      how encoders are trained
  evaluation, attention, probe   what is asked and measured, and what is drawn
  output_dir, threads, title     folder of the study, threads of a job, heading

example:
  vistok study recipes/gvt/study.yaml --list
  vistok study recipes/gvt/study.yaml --only 'cells/dinov2-*' --protocol.training.max_steps 20
  vistok study recipes/vtlmm/demo/comparison.yaml --only 'stages/*' --changes.training.max_steps 5
  vistok study recipes/setok/demo/comparison.yaml --output runs/try --changes.training.max_steps 10
  vistok study recipes/gvt/study.yaml --recompute --evaluation.max_new_tokens 30   (asks anew, trains nothing anew)
"""

TAKES_OVERRIDES = True
USAGE = (
    "vistok study RECIPE [--output DIR] [--list | --report] [--only PATTERN] [--workers N] [--recompute] "
    "[--section.field VALUE | --field VALUE ...]"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = USAGE
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/gvt/study.yaml")
    parser.add_argument("--output", metavar="DIR", help="folder of the study, in place of the recipe's output_dir")
    parser.add_argument("--list", action="store_true", help="show how far each job is, and run nothing")
    parser.add_argument("--report", action="store_true", help="write the report of what is finished, and run nothing")
    parser.add_argument("--only", metavar="PATTERN", help="run the jobs of these names, such as 'cells/dinov2-*', and "
                        "what they need")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="jobs to do at the same time (default 1)")
    parser.add_argument("--recompute", action="store_true", help="do jobs anew whose configuration has changed")


def run(options: argparse.Namespace) -> None:
    """`vistok study`"""
    from .trainer.study import summary

    path = find_recipe(options.recipe)
    if options.rest and not path.is_file():
        raise FileNotFoundError(f"There is no study {path}. RECIPE, a YAML file, comes before the overrides: {USAGE}.")
    load, run_it, report, states_of = _functions(path)
    recipe = load(path, options.rest)
    if options.output:
        recipe.output_dir = options.output
    if options.list:
        states = states_of(recipe, options.only)
        for name, state in states.items():
            print(f"{state:<12} {name}")
        print(", ".join(f"{number} {state}" for state, number in summary(states).items()))
        return
    if options.report:
        files = report(recipe, options.command_line)
    else:
        # A launcher ends its processes by this signal; what they started has to end with them.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        files = run_it(recipe, options.only, options.recompute, options.workers, options.command_line)
    if os.environ.get("RANK", "0") == "0":
        for file in files.values():
            print(file)


def _functions(path: Path) -> tuple[Callable[..., Any], ...]:
    """What loads, runs, reports on and lists a study of the kind that its recipe says."""
    from .trainer import stage_comparison, stage_comparison_recipe, stage_comparison_report, study, study_recipe
    from .trainer.recipe import read_yaml

    kind = None
    if path.is_file():
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
        kind = values.get("study") if isinstance(values, dict) else None
    if kind in (stage_comparison_recipe.KIND, stage_comparison_recipe.WITHOUT_STAGES):
        return (
            stage_comparison_recipe.load_comparison,
            stage_comparison.run_comparison,
            stage_comparison_report.write_comparison,
            stage_comparison.comparison_states,
        )
    return study_recipe.load_study, study.run_study, study.report_study, study.study_states
