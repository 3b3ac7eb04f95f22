"""The tables of a study's report: those of GVT's Tables 2, 4 and 6, and what stands beside them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..evaluation.seed_replicates import AVERAGE
from ..evaluation.study_tasks import PART_NAMES, TASK_NAMES

FLOOR_NAMES = {"majority": "majority answer", "question_only_prior": "question-only prior"}
MEASURE_NAMES = {**TASK_NAMES, AVERAGE: "Avg", **PART_NAMES}
TUNING_MARKS = {"frozen": "×", "tuned": "✓"}
AT_FLOOR = "†"


def score_table(found: Mapping[str, Any]) -> str:
    """
    All models, a row each, as in Table 2 of GVT: scores with intervals, beneath each what comes from looking,
    the best of a column in bold and the second best underlined; the floors at the end.

    Args:
        found (`dict`): from [`collect_study`].
    """
    measures, encoders, rows = measures_of(found), _by_name(found), found["rows"]
    lines = header(["Tuning", "Supervision", "Visual tokenizer", "# Images", *(MEASURE_NAMES[m] for m in measures)], 4)
    marks = {measure: _marks([row["scores"][measure]["value"] for row in rows]) for measure in measures}
    for tuning in tunings_of(found):
        for number, row in enumerate(rows):
            if row["tuning"] == tuning:
                encoder = encoders[row["encoder"]]
                cells = [
                    f"{with_interval(row['scores'][measure], mark=marks[measure][number])}"
                    f"<br>gain {difference(row['gains'][measure])}"
                    for measure in measures
                ]
                told = [encoder["supervision"], encoder["label"], encoder["num_images"] or "–"]
                lines.append(line([TUNING_MARKS[tuning], *told, *cells]))
    for floor, name in FLOOR_NAMES.items():
        if found["floors"]:
            values = {task: found["floors"][task][floor] for task in found["tasks"]}
            values[AVERAGE] = sum(values.values()) / len(values)
            lines.append(line(["", "", f"*{name}*", "", *(f"*{values[measure]:.1f}*" for measure in measures)]))
    return "\n".join(lines)


def part_table(found: Mapping[str, Any]) -> str:
    """What the VQA score is made of: names and categories, which are semantics, and the rest."""
    labels = labels_of(found)
    lines = header(["Visual tokenizer", "Tuning", *(MEASURE_NAMES[part] for part in found["parts"])], 2)
    marks = {part: _marks([row["parts"][part]["value"] for row in found["rows"]]) for part in found["parts"]}
    for number, row in enumerate(found["rows"]):
        cells = [with_interval(row["parts"][part], mark=marks[part][number]) for part in found["parts"]]
        lines.append(line([labels[row["encoder"]], TUNING_MARKS[row["tuning"]], *cells]))
    return "\n".join(lines)


def method_table(found: Mapping[str, Any]) -> str:
    """Teachers and their students, as in Table 4 of GVT; empty if nothing was distilled."""
    encoders, rows = _by_name(found), {(row["encoder"], row["tuning"]): row for row in found["rows"]}
    chosen = []
    for tuning in tunings_of(found):
        for name in teachers_and_students(found):
            if (name, tuning) in rows:
                ratio = encoders[name]["mask_ratio"]
                mask = "-" if encoders[name]["how"] != "distilled" else "✓" if ratio else "×"
                chosen.append(([encoders[name]["label"], TUNING_MARKS[tuning], mask], rows[name, tuning]))
    return _compact(found, ["Method", "Tuning", "Mask"], chosen)


def before_after_table(found: Mapping[str, Any]) -> str:
    """Frozen teachers and their students without masks, as in Table 6 of GVT; empty if there are none."""
    encoders = _by_name(found)
    rows = {row["encoder"]: row for row in found["rows"] if row["tuning"] == "frozen"}
    chosen = []
    for name in teachers_and_students(found):
        encoder = encoders[name]
        if name in rows and not encoder["mask_ratio"]:
            chosen.append(([encoder["label"], "with" if encoder["how"] == "distilled" else "without"], rows[name]))
    return _compact(found, ["Visual tokenizer", "FD"], chosen)


def _compact(
    found: Mapping[str, Any], names: Sequence[str], chosen: Sequence[tuple[list[str], Mapping[str, Any]]]
) -> str:
    if not chosen:
        return ""
    measures = measures_of(found)
    values = {measure: [row["scores"][measure]["value"] for _, row in chosen] for measure in measures}
    marks = {measure: _marks(values[measure]) for measure in measures}
    lines = header([*names, *(MEASURE_NAMES[measure] for measure in measures)], len(names))
    for number, (texts, _) in enumerate(chosen):
        cells = [marks[measure][number].format(f"{values[measure][number]:.1f}") for measure in measures]
        lines.append(line([*texts, *cells]))
    return "\n".join(lines)


def shuffled_table(found: Mapping[str, Any]) -> str:
    """Each model when it is shown the other scenes: what of its score needs no image."""
    measures, labels = measures_of(found), labels_of(found)
    lines = header(["Shuffled images", *(MEASURE_NAMES[measure] for measure in measures)])
    for row in found["rows"]:
        name = f"{labels[row['encoder']]}, {row['tuning']}"
        lines.append(line([name, *(f"{row['shuffled'][measure]:.1f}" for measure in measures)]))
    return "\n".join(lines)


def pair_table(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The differences of all pairs of a question, and their means."""
    measures = list(asked["pairs"][0]["differences"])
    lines = header(["Difference", *(MEASURE_NAMES[measure] for measure in measures)])

    def cells(differences: Mapping[str, Any]) -> list[str]:
        told = [differences[measure] for measure in measures]
        return [difference(one) + (f" {AT_FLOOR}" if one["at_floor"] else "") for one in told]

    for pair in asked["pairs"]:
        lines.append(line([pair["name"], *cells(pair["differences"])]))
    for group in asked["groups"]:
        if len(group["members"]) > 1:
            lines.append(line([f"**mean of {group['towers']}**", *cells(group["mean"])]))
    return "\n".join(lines)


def distillation_table(found: Mapping[str, Any]) -> str:
    """How well students learned their teachers' features, and what they tell beside teacher and random weights."""
    probes, labels = {probe["encoder"]: probe for probe in found["probes"]}, labels_of(found)
    names = ["explained variance", "cosine", *(f"{probe} {what}" for probe in ("k-NN", "linear probe")
             for what in ("student", "teacher", "random"))]  # fmt: skip
    lines = header(["Student", "Teacher", *names], 2)
    for encoder in found["encoders"]:
        if encoder["how"] == "distilled" and "cost" in encoder:
            metrics, own = encoder.get("metrics") or {}, probes.get(encoder["name"]) or {}
            of_teacher = (probes.get(encoder["teacher"]) or {}).get("made")
            cells = [_metric(metrics, "explained_variance"), _metric(metrics, "cosine_similarity")]
            for probe in ("knn", "linear_probe"):
                cells += [_accuracy(one, probe) for one in (own.get("made"), of_teacher, own.get("random"))]
            lines.append(line([encoder["label"], labels[encoder["teacher"]], *cells]))
    return "\n".join(lines) if len(lines) > 2 else ""


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    """Of the evaluation on the test scenes, whatever their source is called."""
    values = [value for key, value in metrics.items() if key.endswith(name)]
    return f"{values[0]:.3f}".replace("-", "−") if values else "–"


def _accuracy(measured: Mapping[str, Any] | None, probe: str) -> str:
    return "–" if measured is None else f"{measured[probe]['accuracy']:.1f}"


def probe_table(found: Mapping[str, Any]) -> str:
    """What towers tell about objects outside the study's classes, as they were made and after tuning."""
    labels = labels_of(found)
    names = [f"{probe}, {when}" for probe in ("k-NN", "linear probe") for when in ("as made", "tuned")]
    lines = header(["Tower", *names])
    for probe in found["probes"]:
        cells = []
        for name in ("knn", "linear_probe"):
            made, tuned = probe["made"][name], probe["tuned"][name]
            interval = made["interval"]
            cells.append(
                f"{made['accuracy']:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")
            )
            seeds = f" ({min(tuned):.1f} to {max(tuned):.1f})" if len(tuned) > 1 else ""
            cells.append(f"{sum(tuned) / len(tuned):.1f}{seeds}" if tuned else "–")
        lines.append(line([labels[probe["encoder"]], *cells]))
    return "\n".join(lines)


def attention_table(found: Mapping[str, Any]) -> str:
    """How much heads differ, and how much attention lies on objects; then students beside their teachers."""
    labels = labels_of(found)
    lines = header(
        ["Resampler on", "divergence between heads (bits)", "attention on objects (%)", "area of objects (%)"]
    )
    for row in found["attention"]:
        cells = [with_interval(row["head_divergence"], 3), with_interval(_percent(row["share_in_masks"]))]
        area = f"{100 * row['mask_area']:.1f}"
        lines.append(line([f"{labels[row['encoder']]}, {row['tuning']}", *cells, area]))
    for row in found["attention_differences"]:
        name = f"{labels[row['encoder']]} − {labels[row['teacher']]}, {row['tuning']}"
        lines.append(
            line([name, difference(row["head_divergence"], 3), difference(_percent(row["share_in_masks"])), ""])
        )
    return "\n".join(lines)


def _percent(estimate: Mapping[str, Any]) -> dict[str, Any]:
    ends = {name: estimate[name] for name in ("value", "low", "high")}
    return {name: None if value is None else 100 * value for name, value in ends.items()}


def cost_table(found: Mapping[str, Any]) -> str:
    """What encoders and models cost, in minutes of processors."""
    rows, tunings = {(row["encoder"], row["tuning"]): row for row in found["rows"]}, tunings_of(found)
    lines = header(["Encoder", "made by", "layer", "CPU min", *(f"a model, {t}: CPU min" for t in tunings)], 2)
    for encoder in found["encoders"]:
        minutes = [encoder.get("cost"), *(rows.get((encoder["name"], tuning)) for tuning in tunings)]
        told = ["–" if cost is None else f"{cost['cpu_seconds'] / 60:.1f}" for cost in minutes]
        lines.append(line([encoder["label"], _made_by(encoder), str(encoder["feature_layer"]), *told]))
    return "\n".join(lines)


def _made_by(encoder: Mapping[str, Any]) -> str:
    text = encoder["how"]
    if encoder["how"] == "distilled":
        mask = f", mask {encoder['mask_ratio']:g}" if encoder["mask_ratio"] else ""
        text = f"distilled from {encoder['teacher']}{mask}"
    if "mean_average_precision" in encoder:
        text += f" (mAP {encoder['mean_average_precision']:.1f} on the test scenes)"
    return text


def teachers_and_students(found: Mapping[str, Any]) -> list[str]:
    """Each teacher by name, followed by its students; empty where nothing was distilled."""
    students = [encoder for encoder in found["encoders"] if encoder["how"] == "distilled"]
    listed = []
    for teacher in dict.fromkeys(student["teacher"] for student in students):
        listed += [teacher, *(student["name"] for student in students if student["teacher"] == teacher)]
    return list(dict.fromkeys(listed))


def measures_of(found: Mapping[str, Any]) -> list[str]:
    """The columns: the tasks, and their mean."""
    return list(found["rows"][0]["scores"])


def labels_of(found: Mapping[str, Any]) -> dict[str, str]:
    """What tables call the encoders, by name."""
    return {encoder["name"]: encoder["label"] for encoder in found["encoders"]}


def tunings_of(found: Mapping[str, Any]) -> list[str]:
    """Those of which there is a model."""
    return list(dict.fromkeys(row["tuning"] for row in found["rows"]))


def _by_name(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {encoder["name"]: encoder for encoder in found["encoders"]}


def _marks(values: Sequence[float]) -> list[str]:
    """Templates: bold for the best of a column, underlined for the second best, as they are printed."""
    printed = [round(value, 1) for value in values]
    ranked = sorted(set(printed), reverse=True)
    if len(ranked) < 2:
        return ["{}"] * len(printed)
    return ["**{}**" if value == ranked[0] else "<u>{}</u>" if value == ranked[1] else "{}" for value in printed]


def with_interval(estimate: Mapping[str, Any], digits: int = 1, mark: str = "{}") -> str:
    """A score and its interval, which is a dash where nothing is known of it."""
    low, high = estimate["low"], estimate["high"]
    interval = "–" if low is None else f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")
    value = f"{estimate['value']:.{digits}f}".replace("-", "−")
    return mark.format(value) + f" ({interval})"


def difference(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """A difference and its interval, all with a sign."""
    low, high = estimate["low"], estimate["high"]
    interval = "–" if low is None else f"{_signed(low, digits)} to {_signed(high, digits)}"
    return f"{_signed(estimate['value'], digits)} ({interval})"


def half_width(estimate: Mapping[str, Any]) -> str:
    """Half the interval: how small a difference would have been told."""
    return _signed((estimate["high"] - estimate["low"]) / 2).replace("+", "±")


def _signed(value: float, digits: int = 1) -> str:
    """With further digits where it would be printed as zero and is none."""
    if abs(value) < 1e-9:
        return f"{0:.{digits}f}"
    while digits < 6 and not round(value, digits):
        digits += 1
    return f"{value:+.{digits}f}".replace("-", "−")


def header(names: Sequence[str], num_texts: int = 1) -> list[str]:
    """Columns of text are set to the left, the others, of numbers, to the right."""
    return [line(names), line(["---"] * num_texts + ["---:"] * (len(names) - num_texts))]


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


TABLES: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("With and without feature distillation", before_after_table),
    ("Distillation, masks and tuning", method_table),
)
"""Compact tables, with their headings."""

__all__ = [
    "AT_FLOOR",
    "MEASURE_NAMES",
    "TABLES",
    "attention_table",
    "cost_table",
    "difference",
    "distillation_table",
    "half_width",
    "labels_of",
    "measures_of",
    "pair_table",
    "part_table",
    "probe_table",
    "score_table",
    "shuffled_table",
    "teachers_and_students",
    "tunings_of",
]
