"""What reading an image costs the arms of a comparison: measured in turn, told in a table and drawn beside scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration.optional import require
from ..evaluation.compute_costs import measure_costs
from ..evaluation.image_text_models import ImageTextModel
from ..evaluation.seed_replicates import AVERAGE
from ..hub_cards.card import markdown_table
from ..hub_cards.card_facts import duration
from ..processing.images import image_key, load_example_images
from .data_sources import load_data_source
from .study_figure import FLOOR_LABELS, FLOOR_STYLES, save_figure

COSTS_JOB = "costs"
"""The job that measures them."""

MODEL = "model"
_DEFAULTS = {"num_images": 32, "num_text_tokens": 32, "rounds": 3, "attn_implementation": "eager"}
_AXES = {
    "tokens": "visual tokens per image",
    "prefill_gflop": "prefill of the language model (GFLOP)",
    "cpu_minutes": "training (CPU minutes)",
}


def measure_arms(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Measures what the arms of a comparison pay for the same images: see [`measure_costs`].

    Args:
        config (`dict`): `models`, the job that trained each arm; `costs` of the comparison; `dtype`.
        folder (`Path`): of the job; not used.
        output (`Path`): folder of the comparison.

    Returns:
        `dict[str, dict[str, float]]`: of each arm.

    Raises:
        ValueError: if the data has no images.
    """
    options = {**_DEFAULTS, **config["costs"]}
    images: dict[str, Any] = {}
    for example in load_data_source(options["images"]):
        for image in example.get("images") or []:
            images.setdefault(image_key(image), {**example, "images": [image]})
        if len(images) >= options["num_images"]:
            break
    if not images:
        raise ValueError("costs.images names data without images: give a source whose examples show some.")
    pictures = [load_example_images(example)[0] for example in list(images.values())[: options["num_images"]]]
    models = {}
    for arm, job in config["models"].items():
        loaded = ImageTextModel.from_pretrained(
            output / job / MODEL, config["dtype"], None, options["attn_implementation"]
        )
        models[arm] = (loaded.model, loaded.processor)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, CPU time counts their waiting for one another
    try:
        return measure_costs(models, pictures, options["num_text_tokens"], options["rounds"])
    finally:
        torch.set_num_threads(threads)


def cost_table(found: Mapping[str, Any]) -> str:
    """
    What an image costs each arm, in Markdown.

    Args:
        found (`dict`): from [`collect_comparison`].
    """
    titles = ["arm", "tokens per image", "tokenizer (GFLOP)", "prefill (GFLOP)", "tokenizer (ms)", "prefill (ms)",
              "key-value cache (KiB)", "training (CPU time)"]  # fmt: skip
    rows = []
    for arm, one in found["costs"].items():
        spread = f" ± {one['tokens_sd']:.1f} ({one['tokens_min']:.0f} to {one['tokens_max']:.0f})"
        seconds = _training_seconds(found, arm)
        rows.append([
            found["arms"][arm]["label"] if arm in found["arms"] else arm,
            f"{one['tokens']:.1f}{spread if one['tokens_sd'] else ''}",
            *(f"{one[name]:.3g}" for name in ("tokenizer_gflop", "prefill_gflop")),
            *(f"{one[name]:.1f}" for name in ("tokenizer_ms", "prefill_ms")),
            f"{one['kv_kib']:.0f}",
            duration(seconds) if seconds else "–",
        ])  # fmt: skip
    table = markdown_table([titles, *rows])
    return (
        f"{table}\n\nOf one image and a prompt of {found['recipe']['costs'].get('num_text_tokens', 32)} words, on "
        "average; ± is the standard deviation over images. The vision tower, which is the same, is not counted, and "
        "its features were computed once for all trainings. Times are CPU times on one thread, arms in turn."
    )


def _training_seconds(found: Mapping[str, Any], arm: str) -> float | None:
    """Mean over the seeds of an arm."""
    seconds = [one["cpu_seconds"] for name, one in found["trainings"].items() if name.startswith(f"arms/{arm}-seed")]
    return sum(seconds) / len(seconds) if seconds else None


def draw_costs(found: Mapping[str, Any], path: Path) -> None:
    """
    Draws the scores of all arms, averaged over tasks, against what they cost, a panel for each cost: dots with 95 %
    intervals, crosses where the same model is shown other images, lines at the floors.

    Args:
        found (`dict`): from [`collect_comparison`], with costs.
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    figure = require("matplotlib.figure", "draw").Figure(figsize=(13, 4.6), layout="constrained")
    tasks = list(found["tasks"])
    measure = tasks[0] if len(tasks) == 1 else AVERAGE
    arms = [arm for arm in found["costs"] if arm in found["arms"]]
    panels, handles = figure.subplots(1, len(_AXES), sharey=True), {}
    for axes, (name, title) in zip(panels, _AXES.items()):
        for number, arm in enumerate(arms):
            seconds = _training_seconds(found, arm)
            cost = found["costs"][arm].get(name) if name != "cpu_minutes" else seconds and seconds / 60
            if cost is not None:
                handles[found["arms"][arm]["label"]] = _draw_arm(axes, found["arms"][arm], measure, cost, f"C{number}")
        for floor, (colour, style) in FLOOR_STYLES.items():
            values = [found["arms"][arms[0]]["floors"][task].get(floor) for task in tasks] if arms else []
            if values and None not in values:
                line = axes.axhline(sum(values) / len(values), color=colour, linestyle=style, linewidth=1)
                handles[FLOOR_LABELS[floor]] = line
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    if any(score is not None for arm in arms for score in found["arms"][arm]["shuffled"].values()):
        (handles["other images"],) = panels[0].plot([], [], "x", color="black", alpha=0.7)
    panels[0].set_ylabel(f"right answers (%), {measure}")
    figure.suptitle(found["title"], fontweight="bold")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def _draw_arm(axes: Any, arm: Mapping[str, Any], measure: str, cost: float, colour: str) -> Any:
    """The dot of an arm, its interval, and its cross with other images."""
    score = arm["scores"][measure]
    value, low, high = (score[name] for name in ("value", "low", "high"))
    errors = None if low is None else [[max(value - low, 0)], [max(high - value, 0)]]
    shuffled = [one for one in arm["shuffled"].values() if one is not None]
    if shuffled:
        axes.plot([cost], [sum(shuffled) / len(shuffled)], "x", color=colour, alpha=0.7)
    return axes.errorbar([cost], [value], yerr=errors, fmt="o", color=colour, capsize=3)


__all__ = ["COSTS_JOB", "cost_table", "draw_costs", "measure_arms"]
