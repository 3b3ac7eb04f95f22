"""Conversations about the same image, gathered so that they can share its visual tokens."""

from collections import defaultdict

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
        `Dataset`: with `conversations`, a list of `messages`, in place of `messages`. Rows keep the order in which
        their images were first met.

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

    for index, images in enumerate(dataset["images"]):
        names = tuple(name(image) for image in images or [])
        groups[names or ("text", index)].append(index)
    rows = [
        indices[start : start + max_conversations]
        for indices in groups.values()
        for start in range(0, len(indices), max_conversations)
    ]
    messages = dataset["messages"]
    firsts = dataset.select([row[0] for row in rows]).remove_columns(["messages"])
    return firsts.add_column("conversations", [[messages[index] for index in row] for row in rows])


__all__ = ["group_by_images"]
