"""Plans of trainings as a page and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from .training_plan import TrainingPlan

GB = 1e9


def plan_markdown(plans: Sequence[TrainingPlan]) -> str:
    """
    Plans for a reader.

    Args:
        plans (`list[TrainingPlan]`): of recipes in a row.

    Returns:
        `str`: Markdown.
    """
    parts = [_one(plan) for plan in plans]
    if len(plans) > 1 and all(plan.hours is not None for plan in plans):
        flops = sum((plan.steps or 0) * sum(plan.flops_per_step.values()) for plan in plans)
        hours = sum(plan.hours or 0 for plan in plans)
        parts.append(
            f"All {len(plans)} trainings: {_number(flops / 1e18)} EFLOP, {_hours(hours)}, "
            f"{_number(hours * plans[0].num_gpus)} GPU hours.\n"
        )
    return "\n".join(parts)


def _one(plan: TrainingPlan) -> str:
    memory = {field.name: getattr(plan.memory, field.name) for field in dataclasses.fields(plan.memory)}
    fits = "fits" if plan.fits else "does not fit"
    per_step = sum(plan.flops_per_step.values())
    lines = [
        f"## {plan.name}",
        "",
        f"{plan.num_gpus} × {plan.gpu.name}, {plan.strategy}, {plan.precision}; {plan.global_batch} rows in a step",
        "",
        *_table(
            ("parameters", "all", "trained"),
            [(name, f"{found['all']:,}", f"{found['trained']:,}") for name, found in plan.parameters.items()],
        ),
        "",
        *_table(
            ("memory of a GPU", "GB"),
            [*((name, _number(size / GB)) for name, size in memory.items()), ("all", _number(plan.memory.total / GB))],
        ),
        "",
        f"It {fits} into {plan.gpu.memory_gb:g} GB, with a tenth left for what is not counted: CUDA's own memory, "
        "fragments, and an optimizer's temporary tensors.",
        "",
        *_table(
            ("operations of a step", "TFLOP"),
            [(name, _number(flops / 1e12)) for name, flops in plan.flops_per_step.items()]
            + [("all", _number(per_step / 1e12))],
        ),
        "",
        f"A step: {_tokens(plan)}{plan.seconds_per_step:.3g} s at {100 * plan.utilisation:.0f} % of the peak.",
    ]
    if plan.steps is not None and plan.hours is not None:
        read = f"{_number(plan.steps * plan.tokens_per_step / 1e6)} M tokens, " if plan.tokens_per_step else ""
        lines.append(
            f"All {plan.steps:,} steps: {read}{_number(plan.steps * per_step / 1e18)} EFLOP, {_hours(plan.hours)}, "
            f"{_number(plan.hours * plan.num_gpus)} GPU hours."
        )
    lines += [f"- {note}" for note in plan.notes]
    return "\n".join([*lines, ""])


def _tokens(plan: TrainingPlan) -> str:
    """What is read in a step, where there is a language model, or tokens are what is trained."""
    read = [f"{plan.tokens_per_step:,} tokens of the language model"] if plan.tokens_per_step else []
    if plan.image_tokens:
        read.append(f"{plan.image_tokens} of each image" if read else f"{plan.image_tokens} tokens of each image")
    return f"{', '.join(read)}; " if read else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(hours: float) -> str:
    return f"{_number(hours)} hours" if hours >= 1 else f"{_number(60 * hours)} minutes"


def plan_json(plans: Sequence[TrainingPlan]) -> str:
    """
    Plans for a program: fields as [`TrainingPlan`] has them, and what follows from them.

    Args:
        plans (`list[TrainingPlan]`): of recipes in a row.

    Returns:
        `str`: a JSON list.
    """

    def values(plan: TrainingPlan) -> dict[str, Any]:
        found = dataclasses.asdict(plan)
        found["memory"]["total"] = plan.memory.total
        return {**found, "seconds_per_step": plan.seconds_per_step, "hours": plan.hours, "fits": plan.fits}

    return json.dumps([values(plan) for plan in plans], indent=2) + "\n"


__all__ = ["plan_json", "plan_markdown"]
