"""The report of a study: tables like those of GVT, the answers to its questions, and what it cost."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.seed_replicates import AVERAGE
from ..evaluation.study_tasks import TASK_NAMES
from ..hub_cards.published_text import published_values
from ..modeling.atomic_folder import write_text_atomically
from .study_figure import draw_attention_figure, draw_study

FLOOR_NAMES = {"majority": "majority answer", "question_only_prior": "question-only prior"}
MEASURE_NAMES = {**TASK_NAMES, AVERAGE: "Avg"}
REPORT_FILES = ("study.json", "study.csv", "study.md", "study.png", "attention.png")


def write_report(found: Mapping[str, Any], output: Path, command: str | None = None) -> dict[str, Path]:
    """
    Writes the report of a study: `study.json` (all of it), `study.csv` (a row for each cell), `study.md` (tables and
    answers), `study.png` and `attention.png`, each whole or not at all.

    Args:
        found (`dict`): from [`collect_study`].
        output (`Path`): folder of the study.
        command (`str`, *optional*): the command line.

    Returns:
        `dict[str, Path]`: the files that were written, by name.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    found = published_values({**found, "command": command})
    paths = {name: output / name for name in REPORT_FILES}
    write_text_atomically(paths["study.json"], json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(paths["study.csv"], study_csv(found))
    draw_study(found, paths["study.png"])
    if not draw_attention_figure(found, output, paths["attention.png"]):
        paths.pop("attention.png")
    write_text_atomically(paths["study.md"], study_markdown(found, "attention.png" in paths))
    return paths


def study_csv(found: Mapping[str, Any]) -> str:
    """
    A row for each cell: what it is, its scores, those with shuffled images, and its cost.

    Args:
        found (`dict`): from [`collect_study`].

    Returns:
        `str`: CSV with a header.
    """
    encoders = {encoder["name"]: encoder for encoder in found["encoders"]}
    rows = []
    for cell in found["cells"]:
        encoder = encoders[cell["encoder"]]
        row = {key: encoder[key] for key in ("label", "supervision", "teacher", "mask_ratio", "feature_layer")}
        row = {"encoder": cell["encoder"], **row, "tuning": cell["tuning"], "seed": cell["seed"]}
        for task, measured in cell["tasks"].items():
            row |= {f"{task}_{key}": _rounded(value) for key, value in measured.items()}
        cost = {f"cost_{key}": value for key, value in cell["cost"].items()}
        rows.append(row | {"train_loss": _rounded(cell["training"]["train_loss"])} | cost | {"hash": cell["hash"]})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def study_markdown(found: Mapping[str, Any], has_attention: bool = True) -> str:
    """
    The report as text.

    Args:
        found (`dict`): from [`collect_study`].
        has_attention (`bool`, *optional*, defaults to `True`): whether there is a figure of attention maps.

    Returns:
        `str`: Markdown.
    """
    parts = [f"# {found['title']}", _introduction(found), "![scores of all models](study.png)"]
    tunings = list(dict.fromkeys(row["tuning"] for row in found["rows"]))
    parts += [f"## Tower {tuning}\n\n{score_table(found, tuning)}" for tuning in tunings]
    parts.append(f"## Without looking\n\n{floor_table(found)}")
    parts += [question_section(found, asked) for asked in found["questions"]]
    if found["questions"]:
        parts.append(_how_to_read(found))
    if found["attention"]:
        picture = "![attention of one query in two heads](attention.png)\n\n" if has_attention else ""
        parts.append(f"## Attention maps\n\n{picture}{attention_table(found)}")
    parts.append(f"## Encoders and cost\n\n{cost_table(found)}")
    if found["missing"]:
        listed = ", ".join(found["missing"][:8]) + (" …" if len(found["missing"]) > 8 else "")
        parts.append(f"**Not finished:** {len(found['missing'])} jobs ({listed}).")
    if found.get("command"):
        parts.append(f"`{found['command']}`")
    return "\n\n".join(parts) + "\n"


def _introduction(found) -> str:
    cells, scenes = found["cells"], found["scenes"]
    encoders, seeds = (len({cell[key] for cell in cells}) for key in ("encoder", "seed"))
    text = (
        f"{_count(len(cells), 'trained model')}: {_count(encoders, 'encoder')}, {_count(seeds, 'seed')}. "
        "VQA, OC and MCI in percent, captions as CIDEr (×100). Counts, yes and no are read in "
        f"{found['recipe']['evaluation'].get('mode', 'strict')} mode."
    )
    for name, counted in scenes.items():
        text += (
            f" {name.rpartition('/')[2].capitalize()} scenes: {counted['images']:,}, of {counted['classes']} classes."
        )
    steps = sorted({cell["training"]["steps"] for cell in cells})
    return text + f" Training: {' or '.join(f'{step:,}' for step in steps)} steps."


def score_table(found: Mapping[str, Any], tuning: str) -> str:
    """The models of one tuning, a row each, as in Tables 2, 4 and 6 of GVT; the floors beneath."""
    measures = _measures(found)
    encoders = {encoder["name"]: encoder for encoder in found["encoders"]}
    lines = _header(["Supervision", "Visual tokenizer", *(MEASURE_NAMES[m] for m in measures)], 2)
    for row in found["rows"]:
        if row["tuning"] == tuning:
            encoder = encoders[row["encoder"]]
            cells = [_with_interval(row["scores"][measure]) for measure in measures]
            lines.append(_line([encoder["supervision"], encoder["label"], *cells]))
    for floor, name in FLOOR_NAMES.items():
        if found["floors"]:
            values = {task: found["floors"][task][floor] for task in found["tasks"]}
            values[AVERAGE] = sum(values.values()) / len(values)
            lines.append(_line(["", f"*{name}*", *(f"*{values[measure]:.1f}*" for measure in measures)]))
    return "\n".join(lines)


def floor_table(found: Mapping[str, Any]) -> str:
    """Each model when it is shown the other scenes: what of its score needs no image."""
    measures = _measures(found)
    labels = {encoder["name"]: encoder["label"] for encoder in found["encoders"]}
    lines = _header(["Shuffled images", *(MEASURE_NAMES[measure] for measure in measures)])
    for row in found["rows"]:
        name = f"{labels[row['encoder']]}, {row['tuning']}"
        lines.append(_line([name, *(f"{row['shuffled'][measure]:.1f}" for measure in measures)]))
    return "\n".join(lines)


def question_section(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """A question of the study: its answer in numbers, and the differences of all pairs."""
    measures = _measures(found)
    labels = {encoder["name"]: encoder["label"] for encoder in found["encoders"]}
    lines = _header(["Difference", *(MEASURE_NAMES[measure] for measure in measures)])
    for pair in asked["pairs"]:
        (first, tuning), (second, other) = pair["first"], pair["second"]
        name = f"{labels[first]}: {tuning} − {other}" if first == second else f"{labels[first]} − {labels[second]}"
        lines.append(_line([name, *(_difference(pair["differences"][measure]) for measure in measures)]))
    if len(asked["pairs"]) > 1:
        lines.append(_line(["**mean**", *(_difference(asked["mean"][measure]) for measure in measures)]))
    over = "" if len(asked["pairs"]) == 1 else f"Mean of {len(asked['pairs'])} pairs: "
    told = "; ".join(f"{MEASURE_NAMES[task]} {said(asked['mean'][task])}" for task in asked["about"])
    return f"## {asked['question']}\n\n{over}{told}.\n\n" + "\n".join(lines)


def said(difference: Mapping[str, Any]) -> str:
    """
    A difference in words: its value, its interval, and which way it goes, if the interval excludes zero.

    Args:
        difference (`dict`): `value`, `low` and `high`.
    """
    low, high = difference["low"], difference["high"]
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference seen"
    return f"{_difference(difference)}: {verdict}"


def _how_to_read(found) -> str:
    asked = found["questions"]
    number = sum(len(question["pairs"]) * len(question["pairs"][0]["differences"]) for question in asked)
    degrees = max(spread["degrees"] for spread in found["seed_spread"].values())
    seeds = (
        "for other images and other seeds; the spread between seeds is pooled over all kinds of models "
        f"({degrees} degrees of freedom)."
        if degrees
        else "for other images alone: with one seed, nothing is known of the spread between seeds."
    )
    return (
        f"Intervals are of 95 %, {seeds} Differences are paired by image. Each encoder was made once: what holds of "
        f"it need not hold of another run of its own training. One in twenty such intervals excludes zero by "
        f"chance, and there are {number} of single pairs here."
    )


def attention_table(found: Mapping[str, Any]) -> str:
    """How much heads differ, and how much attention lies on objects."""
    labels = {encoder["name"]: encoder["label"] for encoder in found["encoders"]}
    lines = _header(
        ["Resampler on", "divergence between heads (bits)", "attention on objects (%)", "area of objects (%)"]
    )
    for row in found["attention"]:
        share = {name: 100 * row["share_in_masks"][name] for name in ("value", "low", "high")}
        cells = [_with_interval(row["head_divergence"], 3), _with_interval(share), f"{100 * row['mask_area']:.1f}"]
        lines.append(_line([f"{labels[row['encoder']]}, {row['tuning']}", *cells]))
    number = found["attention"][0]["num_scenes"]
    return "\n".join(lines) + (
        f"\n\nMean over {number} test scenes, all queries and heads of a layer of the resampler. Divergence: that of "
        "Jensen and Shannon, of pairs of heads. Evenly spread attention is on objects as far as they cover the image."
    )


def cost_table(found: Mapping[str, Any]) -> str:
    """What encoders and models cost, in minutes of processors."""
    rows = {(row["encoder"], row["tuning"]): row for row in found["rows"]}
    tunings = list(dict.fromkeys(row["tuning"] for row in found["rows"]))
    lines = _header(["Encoder", "made by", "layer", "CPU min", *(f"a model, {t}: CPU min" for t in tunings)], 2)
    for encoder in found["encoders"]:
        minutes = [encoder.get("cost"), *(rows.get((encoder["name"], tuning)) for tuning in tunings)]
        told = ["–" if cost is None else f"{cost['cpu_seconds'] / 60:.1f}" for cost in minutes]
        lines.append(_line([encoder["label"], _made_by(encoder), str(encoder["feature_layer"]), *told]))
    total = sum(encoder["cost"]["cpu_seconds"] for encoder in found["encoders"] if "cost" in encoder)
    total += sum(cell["cost"]["cpu_seconds"] for cell in found["cells"])
    where = sorted(
        {f"{cell['environment']['hardware']}; {cell['environment']['software']}" for cell in found["cells"]}
    )
    threads = sorted({str(cell["cost"]["threads"]) for cell in found["cells"]})
    return "\n".join(lines) + (
        f"\n\n{total / 3600:.1f} CPU hours in all, {'/'.join(threads)} thread(s) a job. {' / '.join(where)}."
    )


def _made_by(encoder: Mapping[str, Any]) -> str:
    text = encoder["how"]
    if encoder["how"] == "distilled":
        text = f"distilled from {encoder['teacher']}" + (
            f", mask {encoder['mask_ratio']:g}" if encoder["mask_ratio"] else ""
        )
    if "mean_average_precision" in encoder:
        text += f" (mAP {encoder['mean_average_precision']:.1f} on the test scenes)"
    return text


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _measures(found) -> list[str]:
    return list(found["rows"][0]["scores"])


def _with_interval(estimate: Mapping[str, Any], digits: int = 1) -> str:
    return f"{estimate['value']:.{digits}f} ({estimate['low']:.{digits}f} to {estimate['high']:.{digits}f})"


def _difference(estimate: Mapping[str, Any]) -> str:
    return f"{_signed(estimate['value'])} ({_signed(estimate['low'])} to {_signed(estimate['high'])})"


def _signed(value: float) -> str:
    rounded = round(value, 1) + 0.0  # no negative zero
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def _header(names: Sequence[str], num_texts: int = 1) -> list[str]:
    """Columns of text are set to the left, the others, of numbers, to the right."""
    return [_line(names), _line(["---"] * num_texts + ["---:"] * (len(names) - num_texts))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


__all__ = ["question_section", "said", "score_table", "study_csv", "study_markdown", "write_report"]
