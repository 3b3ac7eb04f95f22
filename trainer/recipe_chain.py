"""Several recipes one after another, each from the folder that one before it left."""

import gc
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..hub_cards.run_results import read_results
from .recipe import load_recipe
from .recipe_sections import Recipe
from .run_lineage import is_checkpoint, run_is_finished, start_of
from .run_recipe import run_recipe

logger = logging.get_logger(__name__)

_OF_ONE = re.compile(r"--(\d+)\.")


def load_recipes(paths: Sequence[str | os.PathLike], overrides: Sequence[str] = ()) -> list[Recipe]:
    """
    Reads recipes that are run one after another.

    Args:
        paths (`list[str]`): YAML files.
        overrides (`list[str]`):
            As in [`load_recipe`], for all of the recipes; `["--2.training.max_steps", "100"]` is for the second alone,
            and counts more.

    Returns:
        `list[Recipe]`: a recipe whose `model` names no checkpoint starts from the output folder of the one before it,
        and a Setokim behind a SeTok has this SeTok as its `vision`.
        Where the output folder of an earlier one is overridden, so is the checkpoint that named it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as in [`load_recipe`]; if an override is for a recipe that is not there; or if two recipes have the
            same output folder.
    """
    of_all, of_one = split_overrides(overrides, len(paths))
    recipes = [load_recipe(path, [*of_all, *of_one[number]]) for number, path in enumerate(paths)]
    if len(recipes) == 1:
        return recipes
    folders = [_folder(recipe) for recipe in recipes]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise ValueError(
                f"{paths[folders.index(folder)]} and {paths[number]} have the same output folder, {folder}: give each "
                f"its own, as with --{number + 1}.training.output_dir."
            )
    moved = {_folder(load_recipe(path)): folder for path, folder in zip(paths, folders)}
    for number, recipe in enumerate(recipes[1:], start=1):
        model: Any = getattr(recipe, "model", None)
        if model is None:
            continue
        if model.checkpoint is None and (model.kind, _kind(recipes[number - 1])) == ("setokim", "setok"):
            model.vision = folders[number - 1]
        elif model.checkpoint is None:
            model.checkpoint, model.vision, model.text = folders[number - 1], None, None
        else:
            model.checkpoint = moved.get(os.path.normpath(model.checkpoint), model.checkpoint)
    return recipes


def split_overrides(overrides: Sequence[str], count: int) -> tuple[list[str], list[list[str]]]:
    """
    Tells overrides of all recipes from those of one.

    Args:
        overrides (`list[str]`): of a command line.
        count (`int`): of recipes.

    Returns:
        The overrides of all, and a list of those of each.

    Raises:
        ValueError: if one is for a recipe that is not there.
    """
    of_all: list[str] = []
    of_one: list[list[str]] = [[] for _ in range(count)]
    into = of_all
    for argument in overrides:
        if argument.startswith("--"):
            match = _OF_ONE.match(argument)
            number = int(match[1]) if match else 0
            if match and not 1 <= number <= count:
                raise ValueError(f"{argument} is for recipe {number}, but there are {count}, numbered from 1.")
            into = of_one[number - 1] if match else of_all
            argument = f"--{argument[match.end() :]}" if match else argument
        into.append(argument)
    return of_all, of_one


def run_recipes(
    recipes: Sequence[Recipe],
    resume: bool | str = "auto",
    command: str | None = None,
    on_end: Callable[[int, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """
    Runs recipes one after another. Those that are finished, with the same recipe and from the same checkpoint, are
    passed over; one that was interrupted goes on.

    Args:
        recipes (`list[Recipe]`): as from [`load_recipes`].
        resume (`bool` or `str`, *optional*, defaults to `"auto"`): as in [`run_recipe`]; `False` runs all anew.
        command (`str`, *optional*): the command line, for the cards.
        on_end (`Callable`, *optional*): told the position of each recipe and its results once it has ended.

    Returns:
        `list[dict]`: the results of each.

    Raises:
        FileNotFoundError: before anything is run, if a recipe starts from a folder that is not there and that none
            before it leaves.
        ValueError: if one checkpoint is given to go on from with several recipes; or as in [`run_recipe`].
    """
    if len(recipes) > 1 and resume not in ("auto", False):
        raise ValueError(f"resume is {resume!r}, but a checkpoint is that of one recipe: run that recipe alone.")
    check_starts(recipes)
    found = []
    for number, recipe in enumerate(recipes):
        if len(recipes) > 1 and resume == "auto" and run_is_finished(recipe):
            logger.info(f"{_folder(recipe)} is finished, and passed over.")
            results = read_results(_folder(recipe))
        else:
            results = run_recipe(recipe, resume=resume, command=command)
            _leave_nothing_behind()
        found.append(results)
        if on_end is not None:
            on_end(number, results)
    return found


def check_starts(recipes: Sequence[Recipe]) -> None:
    """
    Makes sure that each recipe finds what it starts from.

    Args:
        recipes (`list[Recipe]`): in the order in which they are run.

    Raises:
        FileNotFoundError: names the recipe's output folder and what is missing.
    """
    left = set()
    for recipe in recipes:
        checkpoint = start_of(recipe)
        if checkpoint is not None and os.path.normpath(checkpoint) not in left and not _is_there(recipe, checkpoint):
            raise FileNotFoundError(
                f"The run in {_folder(recipe)} starts from {checkpoint}, where there is no trained model: run the "
                "recipe that leaves it first, or both in a row (vistok train FIRST SECOND), or name another one as "
                "model.checkpoint (of a Setokim its SeTok as model.vision)."
            )
        left.add(_folder(recipe))


def _kind(recipe: Recipe) -> str | None:
    return getattr(getattr(recipe, "model", None), "kind", None)


def _is_there(recipe: Recipe, checkpoint: str) -> bool:
    # `runs/first` has the form of a Hub id, too: what lies beside the run's own folder is none.
    beside = Path(checkpoint).parts[0] == Path(_folder(recipe)).parts[0]
    return is_checkpoint(checkpoint) and (not beside or Path(checkpoint).is_dir())


def _folder(recipe: Recipe) -> str:
    return os.path.normpath(recipe.training.get("output_dir") or "trainer_output")


def _leave_nothing_behind() -> None:
    """The next run reads what this one wrote, on all processes, and needs its memory."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["check_starts", "load_recipes", "run_recipes", "split_overrides"]
