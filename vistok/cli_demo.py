"""The command `vistok demo`."""

import argparse

SUMMARY = "see everything in three minutes, with real weights"
DESCRIPTION = """
Shows all of vistok in under three minutes on two CPU cores, after the downloads: loads the model that ships with
vistok onto its base weights, lets it answer questions about photographs and drawings, scores it on a sample of
easy-VQA beside what guessing scores, fine-tunes it for a few steps, saves it, loads it again, and draws what its
queries look at.

example:
  vistok demo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--output", default="vistok-demo", metavar="DIR", help="where files go (default vistok-demo)")
    parser.add_argument("--model", metavar="FOLDER", help="an adapter folder; by default the one that ships")
    parser.add_argument("--questions", type=int, default=300, metavar="N", help="size of the sample (default 300)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of fine-tuning (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of fine-tuning (default 0)")


def run(options: argparse.Namespace) -> int:
    """`vistok demo`"""
    from .demo import run_demo

    results = run_demo(
        options.output, options.model, num_questions=options.questions, num_steps=options.steps, seed=options.seed
    )
    return 0 if results["reloaded_equal"] else 1
