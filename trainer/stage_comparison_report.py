"""What a comparison of arms has found: scores with intervals, paired differences, and what they allow to conclude."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.seed_replicates import (
    AVERAGE,
    ImageScores,
    Replicates,
    SeedVariance,
    draw_images,
    estimate_difference,
    estimate_score,
    pooled_seed_variance,
)
from ..hub_cards.card import markdown_table
from ..hub_cards.card_facts import duration, number
from ..hub_cards.published_text import published_values
from ..modeling.atomic_folder import write_text_atomically
from .loss_curve import series
from .stage_comparison_costs import COSTS_JOB, cost_table, draw_costs
from .stage_comparison_figure import LOGGED, draw_comparison, draw_trainings, has_curves
from .stage_comparison_jobs import TRAINING, answer_jobs, plan_comparison
from .stage_comparison_recipe import StageComparison
from .study_jobs import RESULTS, is_finished, read_json

REPORT_FILES = ("comparison.json", "comparison.csv", "comparison.md")
LEAST_GAIN, LEAST_QUESTIONS = 10.0, 2000
"""Nothing is concluded unless the arm that stops before the others beats the prior of the question alone by so many
points, on so many questions."""

_PER_QUESTION = ("values", "images")


def collect_comparison(recipe: StageComparison) -> dict[str, Any]:
    """
    Gathers the results of all jobs that are finished.

    Args:
        recipe ([`StageComparison`]): the comparison.

    Returns:
        `dict`: `title`, `tasks`, `trainings` (of each stage and arm what it was trained on and for how long), `logs`
        (steps and values of what they logged), `arms` (of each its scores with intervals, those with shuffled images,
        `floors`, and `models`, one for each of `seeds`), `costs` (of each arm what reading an image costs),
        `differences` (of each pair and measure, see [`Estimate`]), `enough` (of each task whether it allows a
        conclusion), `cost` in CPU seconds, `missing` (jobs that are not finished) and `recipe`.

    Raises:
        ValueError: if no arm is finished.
    """
    output, plan = Path(recipe.output_dir), plan_comparison(recipe)
    finished = {
        job.name: read_json(output / job.name / RESULTS)
        for job in plan.jobs
        if is_finished(output, plan.configurations[job.name])
    }
    asked = {arm: [job for job in jobs if job in finished] for arm, jobs in answer_jobs(recipe).items()}
    seeds = {
        arm: [seed for seed, job in zip(recipe.seeds, jobs) if job in finished]
        for arm, jobs in answer_jobs(recipe).items()
        if recipe.arms[arm].get("recipe") is not None
    }
    asked = {arm: jobs for arm, jobs in asked.items() if jobs}
    if not asked:
        raise ValueError(f"No arm of the comparison in {output} is finished: there is nothing to report yet.")
    tasks = list(finished[next(iter(asked.values()))[0]]["results"])
    found = {arm: [finished[job]["results"] for job in jobs] for arm, jobs in asked.items()}
    scores = _Scores(found, tasks, without_seeds=set(found) - set(seeds))
    arms = {
        arm: {
            "label": recipe.label_of(arm),
            "seeds": seeds.get(arm, [None]),
            "scores": {measure: asdict(scores.score(arm, measure)) for measure in scores.measures},
            "shuffled": {task: _mean([one[task]["shuffled"] for one in found[arm]]) for task in tasks},
            "floors": {task: found[arm][0][task]["floors"] for task in tasks},
            "models": [_without(one) for one in found[arm]],
        }
        for arm in found
    }
    trainings = {name: document for name, document in finished.items() if name.endswith(f"/{TRAINING}")}
    counts = {task: found[next(iter(found))][0][task]["num_questions"] for task in tasks}
    return {
        "title": recipe.title,
        "tasks": counts,
        "trainings": {name: _training(document) for name, document in trainings.items()},
        "logs": {name: _logged(document) for name, document in trainings.items()},
        "arms": arms,
        "differences": [
            _difference(scores, arms, first, second)
            for first, second in recipe.compare
            if {first, second} <= set(found)
        ],
        "seed_spread": {measure: asdict(scores.variances[measure]) for measure in scores.measures},
        "enough": {task: _is_enough(recipe, arms, task, counts[task]) for task in tasks},
        "costs": finished[COSTS_JOB]["results"] if COSTS_JOB in finished else {},
        "cost": {name: results["cost"]["cpu_seconds"] for name, results in finished.items()},
        "missing": [job.name for job in plan.jobs if job.name not in finished],
        "recipe": recipe.to_dict(),
    }


class _Scores:
    """
    Scores of all arms on the same images. Of an arm without seeds of its own, which stops after a stage that others
    share, there is one replicate, and the spread of seeds is none of its own.
    """

    def __init__(
        self, found: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Sequence[str], without_seeds: Collection[str]
    ):
        self.measures = [*tasks, *([AVERAGE] if len(tasks) > 1 else [])]
        # Images of two tasks may have the same name, and are drawn apart.
        images = sorted(
            {(task, image) for arm in found.values() for task in tasks for image in arm[0][task]["images"]}
        )
        self._weights = draw_images(len(images))
        self.arms: dict[str, Replicates] = {
            arm: {
                task: [
                    ImageScores.from_questions(
                        one[task]["values"], [(task, image) for image in one[task]["images"]], images
                    )
                    for one in replicates
                ]
                for task in tasks
            }
            for arm, replicates in found.items()
        }
        self.variances = {m: pooled_seed_variance(self.arms.values(), m, self._weights) for m in self.measures}
        self._without_seeds = without_seeds

    def score(self, arm: str, measure: str):
        variance = SeedVariance(0.0, 0) if arm in self._without_seeds else self.variances[measure]
        return estimate_score(self.arms[arm], measure, self._weights, variance, bounds=(0.0, 100.0))

    def difference(self, first: str, second: str, measure: str):
        return estimate_difference(
            self.arms[first],
            self.arms[second],
            measure,
            self._weights,
            self.variances[measure],
            bounds=(-100.0, 100.0),
            without_seeds=[self.arms[arm] for arm in self._without_seeds],
        )


def _difference(scores: _Scores, arms: Mapping[str, Any], first: str, second: str) -> dict[str, Any]:
    estimates = {measure: asdict(scores.difference(first, second, measure)) for measure in scores.measures}
    if arms[first]["seeds"] != arms[second]["seeds"]:  # as long as some are not finished, others stand side by side
        estimates = {measure: {**estimate, "seeds": ()} for measure, estimate in estimates.items()}
    return {"arms": [first, second], **estimates}


def _training(document: Mapping[str, Any]) -> dict[str, Any]:
    results = document["results"]
    kept = {name: results.get(name) for name in ("examples", "rows", "steps", "epochs", "train_loss", "metrics")}
    return {**kept, "parameters": results.get("parameters"), "cpu_seconds": document["cost"]["cpu_seconds"]}


def _logged(document: Mapping[str, Any]) -> dict[str, Any]:
    history = document["results"].get("log_history") or []
    curves = {name: series(history, name) for name in LOGGED}
    return {name: [steps, values] for name, (steps, values) in curves.items() if steps}


def _is_enough(recipe: StageComparison, arms: Mapping[str, Any], task: str, count: int) -> dict[str, Any]:
    """
    How far above the prior of the question alone the arm is that stops before the others, unknown as long as it was
    not asked; where none stops, the weakest one. Where arms share nothing, one that learns nothing says something of
    itself: the strongest one counts.
    """
    stops = [arm for arm, entry in recipe.arms.items() if entry.get("recipe") is None] or list(arms)
    if missing := [arm for arm in stops if arm not in arms]:
        return {"arm": missing[0], "gain": None, "num_questions": count, "is_enough": False}
    which = min if recipe.stages else max
    weakest = which(stops, key=lambda arm: arms[arm]["scores"][task]["value"])
    prior = arms[weakest]["floors"][task].get("question_only_prior")
    gain = None if prior is None else arms[weakest]["scores"][task]["value"] - prior
    return {
        "arm": weakest,
        "gain": gain,
        "num_questions": count,
        "is_enough": gain is not None and gain >= LEAST_GAIN and count >= LEAST_QUESTIONS,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _without(one: Mapping[str, Any]) -> dict[str, Any]:
    return {task: {k: v for k, v in measured.items() if k not in _PER_QUESTION} for task, measured in one.items()}


def write_comparison(recipe: StageComparison, command: str | None = None) -> dict[str, Path]:
    """
    Writes the report of what is finished: `comparison.json` (all of it), `comparison.csv` (a row for each trained
    model), `comparison.md` (tables, and what they allow to conclude), `comparison.png` (scores and differences),
    `comparison-trainings.png` (curves of what was logged) and, where costs were measured, `comparison-costs.png`, each
    whole or not at all.

    Args:
        recipe ([`StageComparison`]): the comparison.
        command (`str`, *optional*): the command line.

    Returns:
        `dict[str, Path]`: the files, by name.

    Raises:
        ValueError: if no arm is finished.
        ImportError: if matplotlib is missing; names the extra.
    """
    found = published_values({**collect_comparison(recipe), "command": command})
    paths = {name: Path(recipe.output_dir) / name for name in REPORT_FILES}
    write_text_atomically(paths["comparison.json"], json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(paths["comparison.csv"], _csv(found))
    write_text_atomically(paths["comparison.md"], comparison_markdown(found))
    for name, (draw, is_there) in _figures(found).items():
        if is_there:
            paths[name] = Path(recipe.output_dir) / name
            draw(found, paths[name])
    return paths


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """What draws each figure, and whether there is anything to draw."""
    return {
        "comparison.png": (draw_comparison, True),
        "comparison-trainings.png": (draw_trainings, has_curves(found)),
        "comparison-costs.png": (draw_costs, bool(found["costs"])),
    }


def _csv(found: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = ("score", "num_questions", "shuffled", "num_shuffled")
    costs = found["costs"]
    measured = list(next(iter(costs.values()))) if costs else []
    titles = (f"{task} {measure}" for task in found["tasks"] for measure in measures)
    writer.writerow(["arm", "seed", *titles, *(["training CPU seconds", *measured] if costs else [])])
    for arm, entry in found["arms"].items():
        for seed, one in zip(entry["seeds"], entry["models"]):
            values = [one[task][measure] for task in found["tasks"] for measure in measures]
            if costs:
                training = found["trainings"].get(f"arms/{arm}-seed{seed}/{TRAINING}") or {}
                of_arm = costs.get(arm) or {}
                values += [training.get("cpu_seconds"), *(of_arm.get(name) for name in measured)]
            writer.writerow([arm, seed, *(round(v, 3) if isinstance(v, float) else v for v in values)])
    return text.getvalue()


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """
    The report in Markdown.

    Args:
        found (`dict`): from [`collect_comparison`].
    """
    sections = [
        f"# {found['title']}",
        "Scores are shares of right answers in percent, on held-out questions, with 95 % intervals: images are "
        "resampled, all questions about one together and the same ones for all arms; the spread of seeds is pooled "
        "over all arms." + _of_stages(found),
        "## Trainings",
        _training_table(found),
        *(["![What the trainings logged](comparison-trainings.png)", _of_logs(found)] if has_curves(found) else []),
        *(["## Visual tokens on held-out images", tokens] if (tokens := _visual_token_table(found)) else []),
        "## Arms",
        "![Scores of the arms and their differences](comparison.png)",
        _arm_table(found),
        *(["## Differences", _difference_table(found)] if found["differences"] else []),
        *(["## Costs", "![Scores against costs](comparison-costs.png)", cost_table(found)] if found["costs"] else []),
        "## Conclusion",
        conclusion(found),
        *([f"Not finished: {', '.join(found['missing'])}."] if found["missing"] else []),
        *([f"```bash\n{found['command']}\n```"] if found.get("command") else []),
    ]
    return "\n\n".join(sections) + "\n"


def _of_stages(found: Mapping[str, Any]) -> str:
    if found["recipe"]["stages"]:
        return " Stages that the arms share were trained once: other seeds of them are in no interval."
    alone = " There is one seed, so the interval holds images alone." if len(found["recipe"]["seeds"]) == 1 else ""
    return f" Every arm was trained from the same start.{alone}"


def _of_logs(found: Mapping[str, Any]) -> str:
    drawn = "Thin lines are seeds, thick ones their means." if len(found["recipe"]["seeds"]) > 1 else ""
    if not any("loss_vm" in log for log in found["logs"].values()):
        return drawn
    return (
        f"{drawn} The loss of images is that of each stage: KL(Q ‖ P') where the VM head learns, KL(P' ‖ Q) in visual "
        "modelling. Perplexity, entropy and punctuation are those of the last batch before each log."
    ).strip()


def _training_table(found: Mapping[str, Any]) -> str:
    rows = [["training", "examples", "rows", "steps", "epochs", "loss (mean)", "trained parameters", "CPU time"]]
    for name, one in found["trainings"].items():
        counts = [number(one[key]) if one[key] is not None else "–" for key in ("examples", "rows", "steps")]
        epochs, loss = (f"{one[key]:.3g}" if one[key] is not None else "–" for key in ("epochs", "train_loss"))
        trained = number((one["parameters"] or {}).get("trained", "–"))
        rows.append([name.removesuffix(f"/{TRAINING}"), *counts, epochs, loss, trained, duration(one["cpu_seconds"])])
    return markdown_table(rows)


def _visual_token_table(found: Mapping[str, Any]) -> str:
    """What was measured of visual tokens at the end of each training; empty if none was."""
    titles = {
        "loss_lm": "loss of text", "loss_vm": "loss of images", "visual_perplexity": "perplexity of visual tokens",
        "visual_entropy": "their entropy (nats)", "punctuation_share": "most probable word a punctuation mark",
    }  # fmt: skip
    rows = []
    for name, one in found["trainings"].items():
        metrics = one["metrics"] or {}
        for data in [key[: -len("_loss_vm")] for key in metrics if key.endswith("_loss_vm")]:
            values = [metrics.get(f"{data}_{measure}") for measure in titles]
            told = ["–" if v is None else f"{100 * v:.0f} %" if m == "punctuation_share" else f"{v:.3g}"
                    for m, v in zip(titles, values)]  # fmt: skip
            rows.append([name.removesuffix(f"/{TRAINING}"), data.removeprefix("eval").strip("_"), *told])
    return markdown_table([["training", "data", *titles.values()], *rows]) if rows else ""


def _arm_table(found: Mapping[str, Any]) -> str:
    measures = [*found["tasks"], *([AVERAGE] if len(found["tasks"]) > 1 else [])]
    counts = {task: f"{task} ({number(count)} questions)" for task, count in found["tasks"].items()}
    rows = [["arm", "seeds", *(counts.get(measure, measure) for measure in measures)]]
    for arm in found["arms"].values():
        values = [_with_interval(arm["scores"][measure]) for measure in measures]
        rows.append([arm["label"], str(len(arm["models"])), *values])
        shuffled = [arm["shuffled"].get(measure) for measure in measures]
        rows.append([f"{arm['label']}, other images", "", *("" if v is None else f"{v:.1f}" for v in shuffled)])
        blank = [arm["floors"].get(measure, {}).get("blank_images") for measure in measures]
        if any(value is not None for value in blank):
            rows.append([f"{arm['label']}, blank images", "", *("" if v is None else f"{v:.1f}" for v in blank)])
    first = next(iter(found["arms"].values()))
    for floor, label in (("question_only_prior", "question only"), ("majority", "majority answer")):
        values = [first["floors"].get(measure, {}).get(floor) for measure in measures]
        rows.append([f"*{label}*", "", *("" if value is None else f"*{value:.1f}*" for value in values)])
    return markdown_table(rows)


def _difference_table(found: Mapping[str, Any]) -> str:
    measures = [*found["tasks"], *([AVERAGE] if len(found["tasks"]) > 1 else [])]
    labels = {arm: entry["label"] for arm, entry in found["arms"].items()}
    rows = [["difference (points)", *measures]]
    for entry in found["differences"]:
        first, second = entry["arms"]
        rows.append([f"{labels[first]} − {labels[second]}", *(_with_interval(entry[m], "+.1f") for m in measures)])
    return markdown_table(rows)


def _with_interval(estimate: Mapping[str, Any], form: str = ".1f") -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:{form}}"
    seeds = f"; {', '.join(f'{seed:{form}}' for seed in estimate['seeds'])}" if len(estimate["seeds"]) > 1 else ""
    return f"{estimate['value']:{form}} ({estimate['low']:{form}} to {estimate['high']:{form}}{seeds})"


def conclusion(found: Mapping[str, Any]) -> str:
    """
    What the differences allow to say, in words.

    Args:
        found (`dict`): from [`collect_comparison`].
    """
    labels = {arm: entry["label"] for arm, entry in found["arms"].items()}
    named = {arm: entry.get("label") or arm for arm, entry in found["recipe"]["arms"].items()}
    poor = [task for task, entry in found["enough"].items() if not entry["is_enough"]]
    told = []
    for task in poor:
        entry = found["enough"][task]
        gain = "unknown" if entry["gain"] is None else f"{entry['gain']:.1f} points"
        told.append(
            f"- {task}: no conclusion. {named[entry['arm']]}: {gain} above the prior of the question alone, on "
            f"{number(entry['num_questions'])} questions; {LEAST_GAIN:g} points on {number(LEAST_QUESTIONS)} are "
            "needed."
        )
    for entry in found["differences"]:
        first, second = (labels[arm] for arm in entry["arms"])
        for task in found["tasks"]:
            one = entry[task]
            if task in poor or one["low"] is None:
                continue
            clear = one["low"] > 0 or one["high"] < 0
            verdict = (
                f"{first} scores {'higher' if one['value'] > 0 else 'lower'}" if clear else "no difference is shown"
            )
            told.append(
                f"- {task}, {first} against {second}: {verdict} ({one['value']:+.1f} points, {one['low']:+.1f} to "
                f"{one['high']:+.1f})."
            )
    return "\n".join(told) or "There is nothing to compare yet."


__all__ = ["collect_comparison", "comparison_markdown", "conclusion", "write_comparison"]
