"""The command `vistok evaluate`."""

import argparse
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

SUMMARY = "measure how many answers are right"
DESCRIPTION = """
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
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


def run(options: argparse.Namespace) -> None:
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
