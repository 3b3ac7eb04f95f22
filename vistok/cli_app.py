"""The command `vistok app`."""

import argparse

SUMMARY = "open a page to chat about images and see visual tokens"
DESCRIPTION = """
Serves a page on this machine: upload an image, choose a system, ask, and see beside the answer where the queries look
(GVT), the words of the patches (VT-LMM) or the clusters (SeTok). It runs offline, on the checkpoints that ship and on
those that --model names; what a missing one needs is told on the page.

example:
  vistok app
  vistok app --model runs/vtlmm-demo/4-visual-modeling --model llava-hf/llava-1.5-7b-hf --port 8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--model", metavar="FOLDER", action="append", default=[], help="folder or Hub id, offered "
                        "first; may be given several times")  # fmt: skip
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on, such as 0.0.0.0 for all machines "
                        "that reach this one (default 127.0.0.1: this one alone)")  # fmt: skip
    parser.add_argument("--port", type=int, metavar="N", help="by default the first free one from 7860 on")


def run(options: argparse.Namespace) -> None:
    """`vistok app`"""
    from .app import build_page, serve

    serve(build_page(options.model), options.host, options.port)
