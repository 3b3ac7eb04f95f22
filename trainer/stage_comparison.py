"""Comparisons of arms of a training in stages: what the last stage brings, against controls that share the others."""

from pathlib import Path

from ..configuration.optional import require
from ..modeling.base_weights import require_fetched
from .stage_comparison_jobs import answer_jobs, plan_comparison
from .stage_comparison_recipe import StageComparison
from .stage_comparison_report import write_comparison
from .study_jobs import job_state
from .study_workers import raise_failures, run_plan


def run_comparison(
    recipe: StageComparison,
    only: str | None = None,
    recompute: bool = False,
    workers: int = 1,
    command: str | None = None,
) -> dict[str, Path]:
    """
    Trains and asks what is not finished yet of a comparison, and writes its report. One that was killed goes on where
    it was, each training at its last checkpoint.

    Args:
        recipe ([`StageComparison`]): the comparison.
        only, recompute, workers, command: as in [`run_study`].

    Returns:
        `dict[str, Path]`: the files of the report; empty for all processes but the first, and as long as no arm is
        finished.

    Raises:
        ImportError: if what draws loss curves is missing.
        FetchError: if base models of vistok are not in the cache; names the command for all of them.
        ValueError: if what lies in the output folder is of another configuration; names what is otherwise.
        StudyError: if a job failed. All others that could be done were done before, and the report was written.
    """
    require("matplotlib.figure", "train")
    model = recipe.recipe_of(next(iter(recipe.stages), f"arms.{next(iter(recipe.arms))}"))["model"]
    require_fetched([name for name in (model.get("vision"), model.get("text")) if name])
    output = Path(recipe.output_dir)
    outcome = run_plan(plan_comparison(recipe), output, recipe.to_dict(), recipe.threads, only, recompute, workers)
    if outcome is None:
        return {}
    asked = {job for jobs in answer_jobs(recipe).values() for job in jobs}
    files = write_comparison(recipe, command) if asked & set(outcome.finished) else {}
    raise_failures(output, outcome)
    return files


def comparison_states(recipe: StageComparison, only: str | None = None) -> dict[str, str]:
    """
    How far each job of a comparison is.

    Args:
        recipe ([`StageComparison`]): the comparison.
        only (`str`, *optional*): as in [`run_comparison`].

    Returns:
        `dict[str, str]`: as [`study_states`] has it.
    """
    output, plan = Path(recipe.output_dir), plan_comparison(recipe)
    return {job.name: job_state(output, plan.configurations[job.name]) for job in plan.chosen(only)}


__all__ = ["comparison_states", "run_comparison"]
