"""Studies: which vision tower makes a good visual tokenizer, asked of any encoders (GVT, Sections 2 and 3)."""

from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..configuration.optional import require
from ..modeling.base_weights import require_fetched
from .study_jobs import Outcome, job_state
from .study_plan import ANSWERS, plan_study
from .study_recipe import StudyRecipe
from .study_report import write_report
from .study_results import collect_study
from .study_workers import StudyError, raise_failures, run_plan

logger = logging.get_logger(__name__)


def run_study(
    recipe: StudyRecipe,
    only: str | None = None,
    recompute: bool = False,
    workers: int = 1,
    command: str | None = None,
) -> dict[str, Path]:
    """
    Runs the jobs of a study that are not finished yet, and writes its report. A study that was killed goes on where it
    was. Several processes that run the same study, such as those of `accelerate launch` or `torchrun`, share its jobs;
    the first of them waits for all and writes the report. The results are the same as those of one process.

    Args:
        recipe ([`StudyRecipe`]): the study.
        only (`str`, *optional*): runs jobs whose names match this pattern, and what they need.
        recompute (`bool`, *optional*, defaults to `False`): does jobs anew whose folders are of another configuration,
            in place of refusing them.
        workers (`int`, *optional*, defaults to 1): jobs that this process has done at the same time.
        command (`str`, *optional*): the command line, for the report.

    Returns:
        `dict[str, Path]`: the files of the report; empty for all processes but the first, and as long as no cell is
        finished.

    Raises:
        ImportError: if what draws the report or measures captions is missing.
        FetchError: if base models of vistok are not in the cache; names the command for all of them.
        ValueError: if what lies in the output folder is of another configuration; names what is otherwise.
        StudyError: if a job failed. All others that could be done were done before, and the report was written.
    """
    _check_at_hand(recipe)
    output = Path(recipe.output_dir)
    outcome = run_plan(plan_study(recipe), output, recipe.to_dict(), recipe.threads, only, recompute, workers)
    if outcome is None:
        return {}
    files = report_study(recipe, command) if _has_cells(outcome) else {}
    raise_failures(output, outcome)
    return files


def _check_at_hand(recipe: StudyRecipe) -> None:
    """What a study needs in hours is found missing now."""
    require("matplotlib.figure", "train")
    if "caption" in recipe.evaluation["tasks"]:
        require("nltk.tokenize.treebank", "evaluation")
    models = [encoder.get(key) for encoder in recipe.encoders.values() for key in ("model", "architecture")]
    models.append((recipe.protocol.get("model") or {}).get("text"))
    require_fetched([name for name in models if name])


def report_study(recipe: StudyRecipe, command: str | None = None) -> dict[str, Path]:
    """
    Writes the report of what is finished of a study, and runs nothing.

    Args:
        recipe ([`StudyRecipe`]): the study.
        command (`str`, *optional*): the command line, for the report.

    Returns:
        `dict[str, Path]`: the files of the report.

    Raises:
        ValueError: if no cell is finished.
    """
    output = Path(recipe.output_dir)
    return write_report(collect_study(recipe, plan_study(recipe), output), output, command)


def study_states(recipe: StudyRecipe, only: str | None = None) -> dict[str, str]:
    """
    How far each job of a study is.

    Args:
        recipe ([`StudyRecipe`]): the study.
        only (`str`, *optional*): as in [`run_study`].

    Returns:
        `dict[str, str]`: by the name of each job `finished`, `running`, `failed`, `changed`, `interrupted` or
        `not started`.
    """
    output, plan = Path(recipe.output_dir), plan_study(recipe)
    return {job.name: job_state(output, plan.configurations[job.name]) for job in plan.chosen(only)}


def _has_cells(outcome: Outcome) -> bool:
    return any(name.rpartition("/")[2] == ANSWERS for name in outcome.finished)


def summary(states: dict[str, str]) -> dict[str, Any]:
    """How many jobs are in each state."""
    return {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}


__all__ = ["StudyError", "report_study", "run_study", "study_states", "summary"]
