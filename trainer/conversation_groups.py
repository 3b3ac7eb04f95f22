"""Conversations about the same image, gathered so that they can share its visual tokens."""

from collections import Counter, defaultdict

from datasets import Dataset

from ..processing.images import image_key


def group_by_images(dataset: Dataset, max_conversations: int) -> Dataset:
    """
    Gathers examples about the same images into rows with several conversations, which [`VisualLanguageCollator`] lets
    share their visual tokens. Loss and gradients stay those of separate rows; the cost per question falls.

    Args:
        dataset (`Dataset`): training examples.
        max_conversations (`int`): at most so many per row.

    Returns:
        `Dataset`: with `conversations`, a list of `messages`, in place of `messages`, and the `rows` and `sources` of
        these. Rows keep the order in which their images were first met. An example that a weighted mixture repeats
        never meets itself in a row.

    Raises:
        ValueError: if `max_conversations` is less than 1.
    """
    if max_conversations < 1:
        raise ValueError(f"max_conversations is {max_conversations}, expected at least 1.")
    groups: dict[tuple, list[int]] = defaultdict(list)
    keys: dict[str, str] = {}  # a file is read once, however many questions are about it

    def name(image) -> str:
        if image["bytes"] is not None:
            return image_key(image)
        if image["path"] not in keys:
            keys[image["path"]] = image_key(image)
        return keys[image["path"]]

    repeats = _repeats(dataset)
    for index, images in enumerate(dataset["images"]):
        names = tuple(name(image) for image in images or [])
        groups[(repeats[index], *names) if names else ("text", index)].append(index)
    rows = [
        indices[start : start + max_conversations]
        for indices in groups.values()
        for start in range(0, len(indices), max_conversations)
    ]
    grouped = dataset.select([row[0] for row in rows]).remove_columns(["messages"])
    for column, gathered in (("messages", "conversations"), ("row", "rows"), ("source", "sources")):
        if column in dataset.column_names:
            values = list(dataset[column])
            grouped = grouped.add_column(gathered, [[values[index] for index in row] for row in rows])
    return grouped


def _repeats(dataset: Dataset) -> list[int]:
    """How often each example was met before it."""
    names = ("source", "row", "id")
    if not set(names) <= set(dataset.column_names):
        return [0] * len(dataset)
    met: Counter[tuple] = Counter()
    repeats = []
    for example in zip(*(dataset[name] for name in names)):
        repeats.append(met[example])
        met[example] += 1
    return repeats


__all__ = ["group_by_images"]
