"""Results of evaluations as the Hub reads them from a repository: files in `.eval_results`, one per benchmark."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .card_evaluation import primary_metric
from .card_facts import is_hub_id, number
from .card_floors import FLOORS

FOLDER = ".eval_results"
_DEFAULT_TASK = "default"


def eval_result_files(reports: Sequence[Mapping[str, Any]], benchmarks: Mapping[str, str]) -> dict[str, str]:
    """
    Reports as the files from which the Hub fills a model's page and the table of a benchmark (huggingface/hub-docs,
    eval_results.yaml). The Hub knows a benchmark by the id of its data set, which nobody but the user can tell.

    Args:
        reports (`Sequence[Mapping]`): normalised reports (see [`normalised_report`]).
        benchmarks (`Mapping[str, str]`): the data set, `owner/name` or `owner/name:task`, by the task of a report.

    Returns:
        `dict[str, str]`: YAML by the path of its file; of reports without a benchmark there is none.

    Raises:
        ValueError: if a benchmark is none of the Hub's names, or there is no report on it.
    """
    check_benchmarks(benchmarks)
    tasks = [str(report["task"]) for report in reports]
    if missing := [task for task in benchmarks if task not in tasks]:
        raise ValueError(
            f"There is no evaluation of {missing[0]!r} in results.json, which has {', '.join(tasks) or 'none'}: "
            "evaluate it (vistok evaluate), or leave the benchmark out."
        )
    entries: dict[str, list[EvalResultEntry]] = {}
    for report in reports:
        if benchmark := benchmarks.get(str(report["task"])):
            dataset, _, task = benchmark.partition(":")
            path = f"{FOLDER}/{re.sub(r'[^A-Za-z0-9._-]+', '-', dataset.replace('/', '--'))}.yaml"
            value = report[primary_metric(report)["name"]]
            entry = EvalResultEntry(dataset, task or _DEFAULT_TASK, value, notes=_notes(report))
            entries.setdefault(path, []).append(entry)
    return {
        path: yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True)
        for path, found in sorted(entries.items())
    }


def check_benchmarks(benchmarks: Any) -> None:
    """
    Checks which data sets of the Hub evaluations are said to be of.

    Args:
        benchmarks (`Mapping[str, str]`): see [`eval_result_files`].

    Raises:
        ValueError: if it is no mapping of texts, or a data set is none of the Hub's names.
    """
    if not isinstance(benchmarks, Mapping):
        raise ValueError(f"benchmarks of the card is {benchmarks!r}, expected data sets of the Hub by tasks.")
    for task, benchmark in benchmarks.items():
        dataset, colon, of_dataset = str(benchmark).partition(":")
        if not is_hub_id(dataset) or (colon and not re.fullmatch(r"[\w.-]+", of_dataset)):
            raise ValueError(
                f"The benchmark of {task} is {benchmark!r}, expected the id of a data set of the Hub: owner/name, or "
                "owner/name:task where it has several."
            )


def _notes(report: Mapping[str, Any]) -> str:
    """What a bare number does not say: of what, how sure, and what is reached without eyes."""
    metric = primary_metric(report)
    told = [metric["label"] + (" in percent" if metric["name"] == "accuracy" else "")]
    told.append(f"{number(report['num_questions'])} questions")
    if report.get("split"):
        told.append(f"split {report['split']}")
    if interval := report.get("interval"):
        told.append(f"95 % interval {interval[0]:g} to {interval[1]:g}")
    for name, floor in report["floors"].items():
        told.append(f"{FLOORS.get(name, name.replace('_', ' '))} {floor[metric['name']]:g}")
    return "; ".join(told)


__all__ = ["FOLDER", "check_benchmarks", "eval_result_files"]
