"""Evaluation reports on a card: scores beside the floors that they have to rise above."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from .card_facts import number
from .card_floors import FLOORS, IN_WORDS, floor_name

_RECORDED = (
    *("task", "split", "num_questions", "num_images", "accuracy", "interval", "unanswered", "per_type", "breakdowns"),
    *("floors", "gain", "gains", "measured_by", "metrics", "num_missing", "settings", "num_generated", "seconds"),
    "command",
)
_BEST_GAIN = "gain over the best floor"
_ACCURACY = {"name": "accuracy", "label": "accuracy", "scale": 1}


def normalised_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """
    Brings an evaluation report into the one form in which it is recorded: percentages, and floors that are measured
    like the model.

    Args:
        report (`Mapping`): `task` (a name), `num_questions` and `accuracy`; where there are `split` (a name),
            `interval` (`[low, high]`, 95 %), `per_type` (name → `{accuracy, num_questions, …}`), `breakdowns` (column
            → groups like those of `per_type`), `floors` (name → accuracy, or a `dict` like this one), `unanswered`
            (number of questions), `command` … Accuracies and intervals in percent, or as shares: if none of them is
            above 1 they are shares. With `measured_by` (a list of `{name, label, scale}`, the primary metric first)
            the score need be no accuracy: it has the name of that metric, and further ones are in `metrics` (name →
            `{value, interval}`). They are recorded multiplied by their `scale`.

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
    name = primary_metric(report)["name"]
    recorded = {key: report[key] for key in (*_RECORDED, name) if report.get(key) is not None}
    recorded["floors"] = {
        floor_name: dict(floor) if isinstance(floor, Mapping) else {name: floor}
        for floor_name, floor in (report.get("floors") or {}).items()
        if floor is not None
    }
    values = list(_scores(recorded, name))
    least, most = -1 if name == "ssim" else 0, 100 if name == "accuracy" else math.inf
    for where, value in [(task, recorded.get(name)), *((f"{task}, {where}", value) for where, value in values)]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            expected = "a percentage from 0 to 100 or a share" if name == "accuracy" else f"a number from {least} on"
            raise ValueError(f"The {name} of {where} is {value!r}, expected {expected}.")
    _check_interval(recorded, name)
    if "measured_by" not in recorded:
        return _scaled(recorded, {name: 100 if max(value for _, value in values) <= 1 else 1}, name)
    scales = {metric["name"]: metric["scale"] for metric in recorded["measured_by"]}
    scaled = _scaled(recorded, scales, name)
    scaled["measured_by"] = [{**metric, "scale": 1} for metric in recorded["measured_by"]]
    return scaled


def primary_metric(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    What there is to know of the metric that a report is about first.

    Args:
        report (`Mapping`): a report.

    Returns:
        `Mapping`: `name`, `label` and `scale`.
    """
    return (report.get("measured_by") or [_ACCURACY])[0]


def _score(report: Mapping[str, Any], measured: Mapping[str, Any]) -> float:
    return measured[primary_metric(report)["name"]]


def _scores(measured: Mapping[str, Any], name: str, where: str = "all") -> Iterator[tuple[str, Any]]:
    """Every score and end of an interval, with what it was measured on."""
    if name in measured:
        yield where, measured[name]
    yield from ((f"interval of {where}", end) for end in measured.get("interval") or [])
    for part, entry in (*_parts(measured).items(), *(measured.get("floors") or {}).items()):
        yield from _scores(entry, name, str(part))


def _parts(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured on the questions of each type and of each group of a breakdown, by its name."""
    groups = [measured.get("per_type") or {}, *(measured.get("breakdowns") or {}).values()]
    return {str(name): entry for group in groups for name, entry in group.items()}


def _check_interval(report: Mapping[str, Any], name: str) -> None:
    low, high = report.get("interval") or (report[name], report[name])
    if not low <= report[name] <= high:
        raise ValueError(
            f"The interval of {report['task']} is {low} to {high}, expected one around its {name} of {report[name]}."
        )


def _scaled(value: Any, scales: Mapping[str, float], name: str) -> Any:
    """Multiplies every score and interval, however deep: within `metrics`, by the scale of the metric there."""
    if not isinstance(value, Mapping):
        return value
    scaled = {
        key: {other: _scaled(entry, {"value": scales.get(other, 1)}, "value") for other, entry in part.items()}
        if key == "metrics"
        else _scaled(part, scales, name)
        for key, part in value.items()
    }
    if isinstance(value.get(name), int | float):
        scaled[name] = round(scales[name] * float(value[name]), 4)
    if value.get("interval"):
        scaled["interval"] = [round(scales[name] * float(end), 4) for end in value["interval"]]
    return scaled


def gain_over_floors(report: Mapping[str, Any]) -> tuple[float, str] | None:
    """
    How far a model is above the best floor that was measured on the same questions.

    Args:
        report (`Mapping`): a normalised report.

    Returns:
        `tuple[float, str]`: percentage points, and where the interval lies: `"clear"` (all of it above the floor),
        `"not clear"` or `"below"` (all of it); `None` without such floors.
    """
    best = _best_floor(report)
    if best is None:
        return None
    score = _score(report, report)
    low, high = report.get("interval") or (score, math.inf)
    return score - best[1], "clear" if low > best[1] else "below" if high < best[1] else "not clear"


def _best_floor(report: Mapping[str, Any]) -> tuple[str, float] | None:
    """Of those that were measured on the same questions."""
    floors = {
        name: _score(report, floor) for name, floor in report["floors"].items() if _of_same_questions(report, floor)
    }
    return max(floors.items(), key=lambda floor: floor[1]) if floors else None


def _of_same_questions(report: Mapping[str, Any], floor: Mapping[str, Any]) -> bool:
    return floor.get("num_questions") in (None, report["num_questions"])


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
        row = {"task": str(report["task"]), "split": str(report.get("split") or ""), **_measured_cells(report, report)}
        row |= {floor_name(name): _floor_cell(report, floor, report) for name, floor in report["floors"].items()}
        row |= _gain_cells(report)
        if gain := gain_over_floors(report):
            row[_BEST_GAIN] = f"{gain[0]:+.2f}" + ("" if gain[1] == "clear" else f" ({gain[1]})")
        row["unanswered"] = "" if report.get("unanswered") is None else number(report["unanswered"])
        rows.append(row)
    labels = [primary_metric(report)["label"] for report in reports if primary_metric(report)["name"] != "accuracy"]
    return _table(rows, ["task", "split"], [*map(_gain_name, FLOORS), _BEST_GAIN, "unanswered"], labels)


def evaluation_tables(reports: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
    """
    A table as [`evaluation_table`] makes it for each metric, as others have other floors.

    Args:
        reports (`Sequence[Mapping]`): normalised reports.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        groups.setdefault(primary_metric(report)["label"], []).append(report)
    return [evaluation_table(group) for group in groups.values()]


def _gain_name(floor: str) -> str:
    return f"gain over {floor_name(floor)}"


def _gain_cells(report: Mapping[str, Any]) -> dict[str, str]:
    """Gains with their intervals, which are over the same questions and so narrower than the score's."""
    cells = {}
    for floor, gain in (report.get("gains") or {}).items():
        if isinstance(value := gain.get(primary_metric(report)["name"]), int | float):
            ends = " to ".join(f"{end:+.2f}" for end in gain.get("interval") or [])
            cells[_gain_name(floor)] = f"{value:+.2f}" + (f" ({ends})" if ends else "")
    return cells


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
        row = {"questions about": part, **_measured_cells(report, measured)}
        for name, floor in report["floors"].items():
            if of_part := _parts(floor).get(part):
                row[floor_name(name)] = _floor_cell(report, of_part, measured)
        rows.append(row)
    return _table(rows, ["questions about"], [])


def further_metrics(report: Mapping[str, Any]) -> list[list[str]]:
    """
    What else was measured of a report.

    Args:
        report (`Mapping`): a normalised report.

    Returns:
        `list[list[str]]`: header and rows; empty where nothing was.
    """
    rows = []
    for metric in (report.get("measured_by") or [])[1:]:
        measured = (report.get("metrics") or {}).get(metric["name"])
        if measured and measured.get("value") is not None:
            ends = " – ".join(f"{end:.2f}" for end in measured.get("interval") or [])
            row = {"also measured": metric["label"], "value": f"**{measured['value']:.2f}**", "95 % interval": ends}
            for name, floor in report["floors"].items():
                of_floor = (floor.get("metrics") or {}).get(metric["name"], {}).get("value")
                row[floor_name(name)] = "" if of_floor is None else f"{of_floor:.2f}"
            rows.append(row)
    return _table(rows, ["also measured", "value"], [])


def _measured_cells(report: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, str]:
    name, label = primary_metric(report)["name"], primary_metric(report)["label"]
    low_high = [f"{end:.2f}" for end in measured.get("interval") or []]
    return {
        "questions": number(measured["num_questions"]) if measured.get("num_questions") else "",
        "accuracy (%)" if name == "accuracy" else label: f"**{measured[name]:.2f}**",
        "95 % interval": " – ".join(low_high),
    }


def _floor_cell(report: Mapping[str, Any], floor: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    count = floor.get("num_questions")
    of_fewer = f" (of {number(count)})" if count and count != measured.get("num_questions") else ""
    return f"{_score(report, floor):.2f}{of_fewer}"


def _table(
    rows: list[dict[str, str]], first: list[str], last: list[str], scores: Sequence[str] = ()
) -> list[list[str]]:
    """A table of the columns that are not empty, in one order whatever the rows hold."""
    first = [*first, "questions", "accuracy (%)", *scores, "95 % interval", *FLOORS.values()]
    filled = dict.fromkeys(column for row in rows for column, cell in row.items() if cell)
    others = [column for column in filled if column not in (*first, *last)]
    columns = [column for column in (*first, *others, *last) if column in filled]
    return [columns, *([row.get(column) or "–" for column in columns] for row in rows)] if rows else []


def unclear_gains(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    Sentences, for the limits, on evaluations that are not clearly above their best floor.

    Args:
        reports (`Sequence[Mapping]`): normalised reports.
    """
    sentences = []
    for report in reports:
        gain, best = gain_over_floors(report), _best_floor(report)
        if gain is not None and best is not None and gain[1] != "clear":
            name, score = best
            sentences.append(
                f"On {report_title(report)}, its {_name_in_words(report)} ({_score(report, report):.2f}) is "
                f"{'below' if gain[1] == 'below' else 'not clearly above'} that of "
                f"{IN_WORDS.get(name, floor_name(name))} ({score:.2f})."
            )
    return sentences


def _name_in_words(report: Mapping[str, Any]) -> str:
    metric = primary_metric(report)
    return "accuracy" if metric["name"] == "accuracy" else metric["label"]


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
        }
        metric, name = primary_metric(report)["name"], _name_in_words(report)
        unit = " (%)" if metric == "accuracy" else ""
        floors = {
            floor_name: _score(report, floor)
            for floor_name, floor in report["floors"].items()
            if _of_same_questions(report, floor)
        }
        args = {"floors": floors} if floors else {}
        results.append(_eval_result(about, metric, f"{name}{unit}", report[metric], report, args))
        for part, measured in _parts(report).items():
            results.append(_eval_result(about, metric, f"{name} on {part}{unit}", measured[metric], measured, {}))
        for other in (report.get("measured_by") or [])[1:]:
            entry = (report.get("metrics") or {}).get(other["name"])
            if entry and entry.get("value") is not None:
                results.append(_eval_result(about, other["name"], other["label"], entry["value"], entry, {}))
    return results


def _eval_result(
    about: dict[str, Any], metric: str, name: str, value: float, measured: Mapping[str, Any], args: dict[str, Any]
) -> EvalResult:
    args = {key: measured[key] for key in ("num_questions", "interval") if measured.get(key)} | args
    return EvalResult(**about, metric_type=metric, metric_name=name, metric_value=value, metric_args=args or None)


def measured_while_training(
    metrics: Mapping[str, Any], measured: Mapping[str, tuple[str, float, str]], always: str
) -> list[list[str]]:
    """
    A trainer's own measurements, `eval_<name>_<measure>` or, with one data set, `eval_<measure>`.

    Args:
        metrics (`Mapping`): what the trainer evaluated.
        measured (`Mapping`): by measure what it is called, the factor to the unit that is shown, and its format.
        always (`str`): the measure that every data set has.

    Returns:
        `list[list[str]]`: a header, and a row for each data set, with the measures that any of them has; or nothing.
    """
    names = dict.fromkeys(
        key.removeprefix("eval_").removesuffix(always).strip("_")
        for key in metrics
        if key.startswith("eval_") and key.endswith(always)
    )

    def of(name: str, measure: str) -> Any:
        return metrics.get(f"eval_{name}_{measure}" if name else f"eval_{measure}")

    def shown(name: str, measure: str) -> str:
        value, (_, factor, form) = of(name, measure), measured[measure]
        return "–" if value is None else form.format(factor * value)

    columns = [measure for measure in measured if any(of(name, measure) is not None for name in names)]
    rows = [[name or "evaluation data", *(shown(name, measure) for measure in columns)] for name in names]
    return [["on", *(measured[measure][0] for measure in columns)], *rows] if rows and columns else []


__all__ = [
    "evaluation_table",
    "evaluation_tables",
    "further_metrics",
    "gain_over_floors",
    "measured_while_training",
    "model_index",
    "normalised_report",
    "primary_metric",
    "report_title",
    "type_table",
    "unclear_gains",
]
