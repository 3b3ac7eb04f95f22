"""Evaluation reports on a card: scores beside the floors that they have to rise above."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from .card_facts import number

# What a model without eyes reaches, in the order in which it is shown.
FLOORS = {
    "majority": "majority answer",
    "question_only_prior": "question only",
    "blank_images": "blank images",
    "shuffled_images": "shuffled images",
}
_RECORDED = (
    *("task", "split", "num_questions", "num_images", "accuracy", "interval", "unanswered", "per_type", "breakdowns"),
    *("floors", "gain", "settings", "num_generated", "seconds", "command"),
)


def normalised_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """
    Brings an evaluation report into the one form in which it is recorded: percentages, and floors that are measured
    like the model.

    Args:
        report (`Mapping`): `task` (a name), `num_questions` and `accuracy`; where there are `split` (a name),
            `interval` (`[low, high]`, 95 %), `per_type` (name → `{accuracy, num_questions, …}`), `breakdowns` (column
            → groups like those of `per_type`), `floors` (name → accuracy, or a `dict` like this one), `unanswered`
            (number of questions), `command` … Accuracies and intervals in percent, or as shares: if none of them is
            above 1 they are shares.

    Returns:
        `dict`: the report in percent, without what a card has no use for.

    Raises:
        ValueError: if a value is missing, no accuracy, or outside its own interval.
    """
    if not report.get("task"):
        raise ValueError(f"The report has no task, expected the name of what was evaluated; it has {sorted(report)}.")
    task = report["task"]
    if not isinstance(report.get("num_questions"), int) or report["num_questions"] < 1:
        raise ValueError(f"num_questions of {task} is {report.get('num_questions')!r}, expected a positive number.")
    recorded = {key: report[key] for key in _RECORDED if report.get(key) is not None}
    recorded["floors"] = {
        name: dict(floor) if isinstance(floor, Mapping) else {"accuracy": floor}
        for name, floor in (report.get("floors") or {}).items()
        if floor is not None
    }
    values = list(_accuracies(recorded))
    for where, value in [(task, recorded.get("accuracy")), *((f"{task}, {where}", value) for where, value in values)]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise ValueError(f"The accuracy of {where} is {value!r}, expected a percentage from 0 to 100 or a share.")
    _check_interval(recorded)
    return _scaled(recorded, 100 if max(value for _, value in values) <= 1 else 1)


def _accuracies(measured: Mapping[str, Any], where: str = "all") -> Iterator[tuple[str, Any]]:
    """Every accuracy and end of an interval, with what it was measured on."""
    if "accuracy" in measured:
        yield where, measured["accuracy"]
    yield from ((f"interval of {where}", end) for end in measured.get("interval") or [])
    for name, entry in (*_parts(measured).items(), *(measured.get("floors") or {}).items()):
        yield from _accuracies(entry, str(name))


def _parts(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured on the questions of each type and of each group of a breakdown, by its name."""
    groups = [measured.get("per_type") or {}, *(measured.get("breakdowns") or {}).values()]
    return {str(name): entry for group in groups for name, entry in group.items()}


def _check_interval(report: Mapping[str, Any]) -> None:
    low, high = report.get("interval") or (report["accuracy"], report["accuracy"])
    if not low <= report["accuracy"] <= high:
        raise ValueError(
            f"The interval of {report['task']} is {low} to {high}, expected one around its accuracy of "
            f"{report['accuracy']}."
        )


def _scaled(value: Any, factor: float) -> Any:
    """Multiplies every `accuracy` and `interval`, however deep."""
    if not isinstance(value, Mapping):
        return value
    scaled = {key: _scaled(entry, factor) for key, entry in value.items()}
    if isinstance(value.get("accuracy"), int | float):
        scaled["accuracy"] = round(factor * float(value["accuracy"]), 4)
    if value.get("interval"):
        scaled["interval"] = [round(factor * float(end), 4) for end in value["interval"]]
    return scaled


def gain_over_floors(report: Mapping[str, Any]) -> tuple[float, bool] | None:
    """
    How far a model is above the best floor.

    Args:
        report (`Mapping`): a normalised report.

    Returns:
        `tuple[float, bool]`: percentage points, and whether the whole interval lies above the floor; `None` without
        floors.
    """
    floors = [floor["accuracy"] for floor in report["floors"].values()]
    if not floors:
        return None
    low = (report.get("interval") or [report["accuracy"]])[0]
    return report["accuracy"] - max(floors), low > max(floors)


def evaluation_table(reports: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """
    Reports as one table: a row each, with columns only for what at least one of them holds.

    Args:
        reports (`Sequence[Mapping]`): normalised reports.

    Returns:
        `list[list[str]]`: header and rows; empty without reports.
    """
    rows = []
    for report in reports:
        row = {"task": str(report["task"]), "split": str(report.get("split") or ""), **_measured_cells(report)}
        row |= {_floor_name(name): _floor_cell(floor, report) for name, floor in report["floors"].items()}
        if gain := gain_over_floors(report):
            row["gain over the best floor"] = f"{gain[0]:+.2f}" + ("" if gain[1] else " (not clear)")
        row["unanswered"] = number(report["unanswered"]) if report.get("unanswered") else ""
        rows.append(row)
    return _table(rows, ["task", "split"], ["gain over the best floor", "unanswered"])


def type_table(report: Mapping[str, Any]) -> list[list[str]]:
    """
    A report per type of question, and per group of its breakdowns.

    Args:
        report (`Mapping`): a normalised report.

    Returns:
        `list[list[str]]`: header and rows; empty where it has neither.
    """
    rows = []
    for part, measured in _parts(report).items():
        row = {"questions about": part, **_measured_cells(measured)}
        for name, floor in report["floors"].items():
            if of_part := _parts(floor).get(part):
                row[_floor_name(name)] = _floor_cell(of_part, measured)
        rows.append(row)
    return _table(rows, ["questions about"], [])


def _measured_cells(measured: Mapping[str, Any]) -> dict[str, str]:
    low_high = [f"{end:.2f}" for end in measured.get("interval") or []]
    return {
        "questions": number(measured["num_questions"]) if measured.get("num_questions") else "",
        "accuracy (%)": f"**{measured['accuracy']:.2f}**",
        "95 % interval": " – ".join(low_high),
    }


def _floor_name(name: str) -> str:
    return FLOORS.get(name, name.replace("_", " "))


def _floor_cell(floor: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    count = floor.get("num_questions")
    of_fewer = f" (of {number(count)})" if count and count != measured.get("num_questions") else ""
    return f"{floor['accuracy']:.2f}{of_fewer}"


def _table(rows: list[dict[str, str]], first: list[str], last: list[str]) -> list[list[str]]:
    """A table of the columns that are not empty, in one order whatever the rows hold."""
    first = [*first, "questions", "accuracy (%)", "95 % interval", *FLOORS.values()]
    filled = dict.fromkeys(column for row in rows for column, cell in row.items() if cell)
    others = [column for column in filled if column not in (*first, *last)]
    columns = [column for column in (*first, *others, *last) if column in filled]
    return [columns, *([row.get(column) or "–" for column in columns] for row in rows)] if rows else []


def unclear_gains(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    Sentences, for the limits, on evaluations that do not show that the model sees.

    Args:
        reports (`Sequence[Mapping]`): normalised reports.
    """
    return [
        f"On {report_title(report)}, its accuracy is not clearly above what is reached without seeing the images."
        for report in reports
        if (gain := gain_over_floors(report)) is not None and not gain[1]
    ]


def report_title(report: Mapping[str, Any]) -> str:
    """What was evaluated, in words: `easy-vqa, test`."""
    return ", ".join(str(report[key]) for key in ("task", "split") if report.get(key))


def model_index(reports: Sequence[Mapping[str, Any]], task_type: str) -> list[EvalResult]:
    """
    Reports as the machine-readable results of a card's header.

    Args:
        reports (`Sequence[Mapping]`): normalised reports.
        task_type (`str`): the Hub's name of the task.

    Returns:
        `list[EvalResult]`: accuracy, over all, per type and per group of a breakdown, of each report.
    """
    results = []
    for report in reports:
        about: dict[str, Any] = {
            "task_type": task_type,
            "dataset_type": str(report["task"]),
            "dataset_name": report_title(report),
            "dataset_split": str(report["split"]) if report.get("split") else None,
            "metric_type": "accuracy",
        }
        floors = {name: floor["accuracy"] for name, floor in report["floors"].items()}
        results.append(_eval_result(about, "accuracy (%)", report, {"floors": floors} if floors else {}))
        for name, measured in _parts(report).items():
            results.append(_eval_result(about, f"accuracy on {name} (%)", measured, {}))
    return results


def _eval_result(about: dict[str, Any], name: str, measured: Mapping[str, Any], args: dict[str, Any]) -> EvalResult:
    args = {key: measured[key] for key in ("num_questions", "interval") if measured.get(key)} | args
    return EvalResult(**about, metric_name=name, metric_value=measured["accuracy"], metric_args=args or None)


__all__ = [
    "evaluation_table",
    "gain_over_floors",
    "model_index",
    "normalised_report",
    "report_title",
    "type_table",
    "unclear_gains",
]
