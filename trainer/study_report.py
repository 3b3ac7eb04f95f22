"""The report of a study: tables like those of GVT, the answers to its questions, and what it cost."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hub_cards.published_text import published_values
from ..modeling.atomic_folder import write_text_atomically
from .study_figure import attention_files, draw_attention_figure, draw_study
from .study_tables import (
    AT_FLOOR,
    MEASURE_NAMES,
    TABLES,
    attention_table,
    cost_table,
    difference,
    distillation_table,
    half_width,
    pair_table,
    part_table,
    probe_table,
    score_table,
    shuffled_table,
)

REPORT_FILES = ("study.json", "study.csv", "study.md", "study.png", "attention.png")


def write_report(found: Mapping[str, Any], output: Path, command: str | None = None) -> dict[str, Path]:
    """
    Writes the report of a study: `study.json` (all of it), `study.csv` (a row for each cell), `study.md` (tables and
    answers), and then the figures `study.png` and `attention.png`, each whole or not at all.

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
    has_attention = bool(attention_files(found, output))
    paths = {name: output / name for name in REPORT_FILES if has_attention or name != "attention.png"}
    write_text_atomically(paths["study.json"], json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(paths["study.csv"], study_csv(found))
    write_text_atomically(paths["study.md"], study_markdown(found, has_attention))
    draw_study(found, paths["study.png"])
    if has_attention:
        draw_attention_figure(found, output, paths["attention.png"])
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
    parts.append(f"## All models\n\n{score_table(found)}\n\n{_below_scores(found)}")
    parts += [f"## {heading}\n\n{text}" for heading, table in TABLES if (text := table(found))]
    if found["parts"]:
        parts.append(
            f"## What VQA asks\n\n{part_table(found)}\n\nNames and categories are semantics, as captions are; the "
            "rest are places, sizes and numbers."
        )
    parts.append(f"## Without looking\n\n{shuffled_table(found)}")
    parts += [question_section(found, asked) for asked in found["questions"]]
    if found["questions"]:
        parts.append(_how_to_read(found))
    if text := distillation_table(found):
        parts.append(f"## Did the distillation work?\n\n{text}\n\n{_BELOW_DISTILLATION}")
    if found["probes"]:
        parts.append(f"## What towers tell outside the study's classes\n\n{probe_table(found)}\n\n{_of_probes(found)}")
    if found["attention"]:
        picture = "![attention of one query in two heads](attention.png)\n\n" if has_attention else ""
        parts.append(f"## Attention maps\n\n{picture}{attention_table(found)}\n\n{_below_attention(found)}")
    parts.append(f"## Encoders and cost\n\n{cost_table(found)}\n\n{_below_cost(found)}")
    if found["missing"]:
        listed = ", ".join(found["missing"][:8]) + (" …" if len(found["missing"]) > 8 else "")
        parts.append(f"**Not finished:** {len(found['missing'])} jobs ({listed}).")
    if found.get("command"):
        parts.append(f"`{found['command']}`")
    return "\n\n".join(parts) + "\n"


_BELOW_DISTILLATION = (
    "Explained variance and cosine are of the teacher's whitened features on the test scenes: a student that always "
    "gives their mean explains nothing. Students see the very scenes that the language model is trained on, and few "
    "of them: what they score above a pretrained teacher may come from these scenes and not from "
    "distillation, and what "
    "they score below it, where the explained variance is low, from a training that is too short."
)


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


def _below_scores(found) -> str:
    text = (
        "Best in **bold**, second best <u>underlined</u>. In brackets intervals of 95 %, a dash where resampling "
        "tells nothing. *gain*: how much higher the same questions score with their own scenes than "
        "with one another's, the "
        "part of the score that comes from looking."
    )
    test = found["scenes"].get("scenes/test") or {}
    if "cutouts" in test:
        text += (
            f" Intervals are over other scenes of the same {test['cutouts']} cut-outs and {test['backgrounds']} "
            "photographs: other pictures of the same classes would widen them."
        )
    return text


def question_section(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """A question of the study: its answer in numbers, over each group of towers, and the differences of all pairs."""
    answers = []
    for group in asked["groups"]:
        number = len(group["members"])
        over = f"*{group['towers'].capitalize()}* ({'; '.join(group['members'])})"
        over += f", mean of {number}" if number > 1 else ""
        told = "; ".join(f"{MEASURE_NAMES[name]} {said(group['mean'][name], number)}" for name in asked["about"])
        answers.append(f"{over}: {told}.")
    confound = [asked["confound"]] if asked.get("confound") else []
    floor = any(one["at_floor"] for pair in asked["pairs"] for one in pair["differences"].values())
    marked = [f"{AT_FLOOR} cannot be told: none of these models is above the floor."] if floor else []
    return "\n\n".join([f"## {asked['question']}", *answers, *confound, pair_table(found, asked), *marked])


def said(found: Mapping[str, Any], number: int = 1) -> str:
    """
    A difference in words: its value, its interval, what it could have seen, and which way it goes, if the interval
    excludes zero.

    Args:
        found (`dict`): `value`, `low` and `high`, and `at_floor` if no model in it is above the floor.
        number (`int`, *optional*, defaults to 1): of pairs that it is the mean of.
    """
    low, high = found["low"], found["high"]
    if found.get("at_floor"):
        return f"{difference(found)}: cannot be told: both at the floor"
    if low is None:
        return f"{difference(found)}: cannot be told: all answers alike"
    verdict = "higher" if low > 0 else "lower" if high < 0 else "not told apart from zero"
    some = f", {found['num_at_floor']} of {number} pairs at the floor" if found.get("num_at_floor") else ""
    return f"{difference(found)}, could have seen {half_width(found)}: {verdict}{some}"


def _how_to_read(found) -> str:
    asked = found["questions"]
    number = sum(len(question["pairs"]) * len(question["pairs"][0]["differences"]) for question in asked)
    degrees = max(spread["degrees"] for spread in found["seed_spread"].values())
    seeds = (
        "for other scenes and other seeds; the spread between seeds is pooled over all kinds of models "
        f"({degrees} degrees of freedom)."
        if degrees
        else "for other scenes alone: with one seed, nothing is known of the spread between seeds."
    )
    return (
        f"Intervals are of 95 %, {seeds} Differences are paired by image; half their interval is what a comparison "
        f"could have seen. {_floor_rule(found)}Each encoder was made once: what holds of it need not hold of "
        f"another run of its own training. One in twenty such intervals excludes zero by chance, and there are "
        f"{number} of single pairs here."
    )


def _floor_rule(found) -> str:
    rule = "A model is at the floor if it cannot be told from the better of majority answer and question-only prior. "
    return rule if found["floors"] else ""


def _of_probes(found) -> str:
    floors = found["probes"][0]["floors"]
    return (
        f"Percent of {floors['num_test']:,} pictures of single objects named rightly, of {floors['num_classes']} "
        f"nouns that are no class of the scenes, after {floors['num_train']:,} pictures of other "
        f"cut-outs; always the most "
        f"frequent noun: {floors['majority']:.1f}. In brackets: as made, 95 % intervals over pictures; tuned, the "
        "range over seeds. Lower after tuning than as made is semantics lost."
    )


def _below_attention(found) -> str:
    return (
        f"Mean over {found['attention'][0]['num_scenes']} test scenes, all queries and heads of a layer of the "
        "resampler. Divergence: that of Jensen and Shannon, of pairs of heads. Evenly spread attention is on objects "
        "as far as they cover the image. Differences are paired by scene."
    )


def _below_cost(found) -> str:
    cells, seconds = found["cells"], found["cost"]
    where = sorted({f"{cell['environment']['hardware']}; {cell['environment']['software']}" for cell in cells})
    threads = sorted({str(cell["cost"]["threads"]) for cell in cells})
    kinds = ", ".join(f"{kind} {value / 60:.1f}" for kind, value in seconds.items())
    return (
        f"{sum(seconds.values()) / 3600:.1f} CPU hours in all (minutes: {kinds}), {'/'.join(threads)} thread(s) a "
        f"job. {' / '.join(where)}."
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


__all__ = ["question_section", "said", "study_csv", "study_markdown", "write_report"]
