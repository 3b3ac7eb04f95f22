"""The command `vistok ask`."""

import argparse
import sys

SUMMARY = "answer a question about an image"
DESCRIPTION = """
Answers a question about an image. Without --model the small model answers that ships with vistok: its card,
checkpoints/gvt-demo/README.md, says what it knows.

example:
  vistok ask photo.jpg "Is there a cat in the image?"
  vistok ask photo.jpg "What object is in the image?" --model runs/gvt-demo --attention attention.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("question", metavar="QUESTION", help="in quotation marks")
    parser.add_argument("--model", metavar="FOLDER", help="folder or Hub id; by default the model that ships")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="limit of the answer (default 32)")
    parser.add_argument("--attention", metavar="OUT.png", help="draw what the queries look at into this file")


def run(options: argparse.Namespace) -> None:
    """`vistok ask`"""
    from .answering import answer_question, load_pipeline
    from .configuration.optional import require
    from .processing.images import load_image

    # What is wrong or missing is told before a model is loaded.
    image = load_image(options.image)
    if options.attention:
        require("matplotlib.figure", "draw")
    answerer = load_pipeline(options.model)
    answer = answer_question(answerer, image, options.question, options.max_new_tokens)
    print(answer)
    if options.attention:
        from .evaluation.attention_maps import draw_query_attention, query_attention, seen_image

        model, processor = answerer.model, answerer.processor
        draw_query_attention(
            seen_image(model, processor, image),
            query_attention(model, processor, image),
            options.attention,
            question=options.question,
            answer=answer,
        )
        print(f"The attention of the queries is drawn in {options.attention}.", file=sys.stderr)
