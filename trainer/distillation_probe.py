"""The labelled images on which a recipe of feature distillation measures student and teacher."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..evaluation.image_representations import ImageTower, representations_of
from ..evaluation.representation_quality import check_labels, label_floors, representation_qualities
from .data_examples import ROLES
from .data_formats import DataSource
from .data_sources import load_data_source
from .distinct_images import distinct_images

if TYPE_CHECKING:
    from .feature_distillation_recipe import ProbeRecipe


class Probe:
    """
    The labelled images of a recipe, loaded before the training.

    Args:
        recipe ([`ProbeRecipe`]): which, and how they are used.

    Raises:
        ValueError: if there are none, or test images have labels that no training image has.
    """

    def __init__(self, recipe: "ProbeRecipe"):
        self.recipe = recipe
        self.train, self.test = (
            labelled_images(source, recipe.label, recipe.where) for source in (recipe.train, recipe.test)
        )
        check_labels(self.train[1], self.test[1])

    def check(self, towers: Mapping[str, ImageTower]) -> None:
        """
        Finds out on two images what would go wrong with all of them after the training.

        Args:
            towers (`dict[str, ImageTower]`): student and teacher.

        Raises:
            ValueError: if a tower has no features of this pooling.
            BadSampleError: if the first image of either side cannot be read.
        """
        representations_of(towers, [self.train[0][0], self.test[0][0]], self.recipe.pooling)

    def measure(self, towers: Mapping[str, ImageTower], num_workers: int = 0) -> dict[str, Any]:
        """
        Accuracies of each tower's features.

        Args:
            towers (`dict[str, ImageTower]`): by name.
            num_workers (`int`, *optional*, defaults to 0): processes that read images.

        Returns:
            `dict`: as [`representation_qualities`] has it, and what [`label_floors`] says.
        """
        arguments: Any = {"pooling": self.recipe.pooling, "k": self.recipe.k, "num_workers": num_workers}
        found = representation_qualities(towers, self.train, self.test, **arguments)
        return {**label_floors(self.train[1], self.test[1]), **found}


def labelled_images(
    source: Mapping[str, Any], label: str | None = None, where: Mapping[str, Any] | None = None
) -> tuple[list[Any], list[str]]:
    """
    Images of a data source with a label each.

    Args:
        source (`Mapping`): fields of a [`DataSource`].
        label (`str`, *optional*): column with the label; by default the last answer of the conversation.
        where (`Mapping`, *optional*): only examples whose columns have these values.

    Returns:
        `tuple[list, list[str]]`: undecoded images and their labels, the first example of each image.

    Raises:
        ValueError: if a column is unknown, or no example is left.
    """
    described = DataSource.from_dict(source)
    dataset = load_data_source(described)
    for name in [*(where or {}), *([label] if label else [])]:
        if name not in (dataset.column_names or []):
            raise ValueError(f"data source {described.name!r} has no column {name!r}: {dataset.column_names}.")
    if where:
        columns = {name: list(dataset[name]) for name in where}
        rows = [
            row for row in range(len(dataset)) if all(columns[name][row] == value for name, value in where.items())
        ]
        dataset = dataset.select(rows)
    if len(dataset) == 0:
        raise ValueError(f"data source {described.name!r} has no example where {dict(where or {})}.")
    labels = list(dataset[label]) if label else [_last_answer(messages) for messages in dataset["messages"]]
    numbered = dataset.remove_columns("row").add_column("row", list(range(len(dataset))))
    chosen = distinct_images(numbered)
    images = [entry[0] for entry in chosen["images"]]
    return images, [str(labels[row]) for row in chosen["row"]]


def _last_answer(messages: list[Mapping[str, Any]]) -> str:
    answers = [message for message in messages if message["role"] == ROLES[-1]]
    return "".join(part["text"] or "" for part in answers[-1]["content"])


__all__ = ["Probe", "labelled_images"]
