"""Reports on paper: tables in Markdown, and the files of an evaluation of one task or several."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..modeling.atomic_folder import write_text_atomically
from .report_figure import FLOOR_NAMES, compared_with, draw_report, draw_summary, floor_label, metric_of, title_of

SUMMARY_STEM = "summary"
UNREADABLE = 1e7  # from here on numbers are written with an exponent


def report_markdown(results: Mapping[str, Any]) -> str:
    """
    Writes results as a table: a row for all questions, and one for each type and each group of a breakdown; and, where
    there are further metrics, a second one of these.

    Args:
        results (`dict`): from [`evaluate_task`].

    Returns:
        `str`: Markdown, accuracies in percent.
    """
    floors, metric = compared_with(results), metric_of(results)
    label = metric["label"] + (", %" if _is_share(metric) else "")
    names = [floor_label(name, floor) for name, floor in floors.items()]
    header = [results.get("asked", "questions"), "number", f"{label} (95 % interval)", *names]
    rows, of_floors = [], [_rows(floor) for floor in floors.values()]
    for name, measured in _rows(results).items():
        cells = [name, f"{measured['num_questions']:,}"]
        cells.append(_with_interval(metric, measured[metric["name"]], measured["interval"]))
        beside = [of_floor.get(name) for of_floor in of_floors]
        cells += ["–" if floor is None else _number(metric, floor[metric["name"]]) for floor in beside]
        rows.append(cells)
    parts = [_table(header, rows, "lr" + "r" * (1 + len(floors)))]
    if further := [other for other in results.get("measured_by", [])[1:] if other["name"] in results["metrics"]]:
        parts.append(_metrics_table(results, further))
    parts += [table for table in (_tokens_table(results), _distances_table(results)) if table]
    return "\n\n".join([*parts, _remarks(results)]) + "\n"


def _metrics_table(results, further: Sequence[Mapping[str, Any]]) -> str:
    floors, rows = compared_with(results), []
    for metric in further:
        measured = results["metrics"][metric["name"]]
        label = metric["label"] + (", %" if _is_share(metric) else "")
        cells = [label, _with_interval(metric, measured["value"], measured["interval"])]
        for floor in floors.values():
            cells.append(_number(metric, floor["metrics"][metric["name"]]["value"]))
        rows.append(cells)
    header = ["also", "this model (95 % interval)", *(floor_label(name, floor) for name, floor in floors.items())]
    return _table(header, rows, "l" + "r" * (1 + len(floors)))


def _tokens_table(results) -> str:
    """How many tokens images were written with, beside how many the images that are right have."""
    found = results.get("num_tokens")
    if not found:
        return ""
    label = {"written": "written" if "true" in found else "of the images", "true": "of the true images"}
    rows = [
        [label[name], f"{counts['mean']:.1f}", f"{counts['std']:.1f}", str(counts["min"]), str(counts["max"])]
        for name in ("written", "true")
        if (counts := found.get(name))
    ]
    return _table(["tokens", "mean", "standard deviation", "least", "most"], rows, "lrrrr")


def _distances_table(results) -> str:
    found = results.get("frechet_distance")
    if not found:
        return ""
    rows = []
    for name, distance in found.items():
        label = "this model" if name == "given" else FLOOR_NAMES.get(name, name)
        counts = f"{distance['num_real']:,} and {distance['num_images']:,}"
        rows.append([label, f"{distance['frechet_distance']:.2f}", counts])
    extractor = next(iter(found.values()))["extractor"]
    return _table([f"Fréchet distance ({extractor})", "distance", "true and other images"], rows, "lrr")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> str:
    lines = [header, [{"l": "---", "r": "---:"}[side] for side in alignment], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rows(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All questions, each type, and each group of a breakdown, by the names of their rows."""
    rows = {"all": measured, **measured.get("per_type", {})}
    for groups in measured.get("breakdowns", {}).values():
        rows |= groups
    return rows


def _remarks(results) -> str:
    sentences = [
        f"{results['model'] or 'The model'}, {results['task']}, {results['split']} split: "
        f"{results['num_questions']:,} {results.get('asked', 'questions')} about {results['num_images']:,} images, "
        f"{results['unanswered']:,} of them left without an answer."
    ]
    sentences += [f"{text}." for text in gain_texts(results)]
    if answer := results["floors"].get("majority", {}).get("answer"):
        label = floor_label("majority", results["floors"]["majority"])
        sentences.append(f"The {label} is “{answer}”.")
    for name, floor in compared_with(results).items():
        if floor["num_questions"] != results["num_questions"]:
            number = f"{floor['num_questions']:,} {results.get('asked', 'questions')}"
            sentences.append(f"{floor_label(name, floor).capitalize()}: on {number}.")
    sentences += results.get("notes", [])
    sentences += _token_texts(results.get("num_tokens", {}))
    if any("warning" in distance for distance in results.get("frechet_distance", {}).values()):
        sentences.append("Fréchet distances of so few images are too large: compare those of equal numbers alone.")
    if missing := results.get("num_missing"):
        sentences.append(f"{missing:,} further questions were left out, their image is missing.")
    over = results.get("resampled", "images")
    sentences.append(
        f"Intervals are bootstrapped over {over}, or exact where all of them are alike; – where there is none."
    )
    settings = results.get("settings", {})
    if style := settings.get("prompt_style"):
        mode = f" Scoring: {settings['mode']} mode." if "mode" in settings else ""
        sentences.append(f"Prompts: {style} style.{mode}")
    if results["command"]:
        sentences.append(f"\n\n`{results['command']}`")
    return " ".join(sentences).replace(" \n\n", "\n\n")


def _token_texts(found: Mapping[str, Any]) -> Iterator[str]:
    if "mean_difference" in found:
        yield f"The number of tokens is {found['mean_difference']:.2f} off the true one on average."
    if (correlation := found.get("rank_correlation")) is not None:
        ends = " to ".join(f"{end:.2f}" for end in correlation["interval"] or [])
        yield f"Rank correlation of both numbers: {correlation['value']:.2f}{f' ({ends})' if ends else ''}."


def gain_texts(results: Mapping[str, Any]) -> Iterator[str]:
    """How far the model is above the majority answer and above the prior, in words."""
    metric = metric_of(results)
    for floor, gain in results.get("gains", {}).items():
        digits = 1 if metric["scale"] == 100 else 3
        points = f"{metric['scale'] * gain[metric['name']]:+.{digits}f}"
        ends = [f"{metric['scale'] * end:+.{digits}f}" for end in gain["interval"] or []]
        over = floor_label(floor, results["floors"].get(floor, {}))
        unit = "points" if metric["scale"] == 100 else metric["label"]
        yield f"{points} {unit}{f' ({ends[0]} to {ends[1]})' if ends else ''} over the {over}"


def summary_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """
    Several tasks in one table: score with interval, floors, and the gain over the better guess.

    Args:
        results (`list[dict]`): from [`evaluate_task`].

    Returns:
        `str`: Markdown.
    """
    names = list(dict.fromkeys(name for result in results for name in compared_with(result)))
    header = ["task", "questions", "metric", "score (95 % interval)", *(FLOOR_NAMES[name] for name in names)]
    header += ["gain over the better guess", "unanswered"]
    rows = []
    for result in results:
        metric = metric_of(result)
        cells = [title_of(result), f"{result['num_questions']:,}", metric["label"]]
        cells.append(_with_interval(metric, result[metric["name"]], result["interval"]))
        for name in names:
            floor = compared_with(result).get(name)
            cells.append("–" if floor is None else _number(metric, floor[metric["name"]]))
        gains = [gain[metric["name"]] for gain in result.get("gains", {}).values()]
        digits = 1 if metric["scale"] == 100 else 3
        cells += [f"{metric['scale'] * min(gains):+.{digits}f}" if gains else "–", f"{result['unanswered']:,}"]
        rows.append(cells)
    table = _table(header, rows, "lrl" + "r" * (3 + len(names)))
    guesses = "Guesses: majority (of VQA and captions the best constant) answer, question-only prior."
    return f"{results[0]['model'] or 'The model'}\n\n{table}\n\n{guesses}\n"


def _is_share(metric: Mapping[str, Any]) -> bool:
    return metric["scale"] == 100 and metric["name"] != "cider"


def _number(metric: Mapping[str, Any], value: float | None) -> str:
    if value is None:
        return "–"
    digits, scale = (1 if metric["scale"] == 100 else 3), metric["scale"]
    value *= scale
    return f"{value:.{digits}f}" if abs(value) < UNREADABLE else f"{value:.3g}"


def _with_interval(metric: Mapping[str, Any], value: float | None, interval: Sequence[float] | None) -> str:
    ends = "–".join(_number(metric, end) for end in interval or [])
    return f"{_number(metric, value)} ({ends or '–'})"


def file_stem(task: str, split: str) -> str:
    """What the files of a report are called, whatever characters the names of task and split have."""
    return re.sub(r"[^\w.-]+", "-", f"{task}-{split}")


def save_report(results: Mapping[str, Any], folder: str | os.PathLike) -> dict[str, Path]:
    """
    Writes results as `<task>-<split>.json`, `.md` (the table) and `.png` (the chart), each whole or not at all.

    Args:
        results (`dict`): from [`evaluate_task`].
        folder (`str`): made if it does not exist.

    Returns:
        `dict[str, Path]`: the files, by `"json"`, `"md"` and `"png"`.

    Raises:
        ImportError: if matplotlib is not installed; the JSON and the table are written all the same.
    """
    files = _files(folder, file_stem(results["task"], results["split"]))
    write_text_atomically(files["json"], json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(files["md"], report_markdown(results))
    draw_report(results, files["png"], list(gain_texts(results)))
    return files


def save_summary(results: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> dict[str, Path]:
    """
    Writes the results of several tasks as `summary.json`, `.md` and `.png`, each whole or not at all.

    Args:
        results (`list[dict]`): from [`evaluate_task`].
        folder (`str`): made if it does not exist.

    Returns:
        `dict[str, Path]`: the files, by `"json"`, `"md"` and `"png"`.

    Raises:
        ImportError: if matplotlib is not installed; the JSON and the table are written all the same.
    """
    files = _files(folder, SUMMARY_STEM)
    write_text_atomically(files["json"], json.dumps(list(results), indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(files["md"], summary_markdown(results))
    draw_summary(results, files["png"])
    return files


def _files(folder: str | os.PathLike, stem: str) -> dict[str, Path]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return {suffix: Path(folder) / f"{stem}.{suffix}" for suffix in ("json", "md", "png")}


__all__ = ["file_stem", "gain_texts", "report_markdown", "save_report", "save_summary", "summary_markdown"]
