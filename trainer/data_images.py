"""The data format `images`: all images below a folder, without texts, for trainers that read none."""

import os
from pathlib import Path

from datasets import Dataset, Features, Value

from ..processing.images import IMAGE_SUFFIXES, image_names
from .data_examples import FEATURES, image_file
from .data_formats import DataSource, known, register_data_format


@register_data_format("images")
def images_below(source: DataSource) -> Dataset:
    """All images below a folder, in the order of their paths: ImageNet's, or any other collection.

    Args:
        source (`DataSource`): `path` is the folder; `split`, if set, the folder in it. Files that are no images by
            their suffix are passed over.

    Returns:
        examples without messages, with the further column `label`: the folder that an image lies in, which is its
        class where every class has a folder.

    Raises:
        FileNotFoundError: if there is no such folder, or no image below it.
    """
    folder = Path(str(source.path)).expanduser().absolute()
    if source.path is None or not folder.is_dir():
        raise FileNotFoundError(
            f"data source {source.name!r} needs a folder of images as `path`, got {source.path!r}."
        )
    if source.split is not None:
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        folder = folder / known(f"split of data source {source.name!r}", source.split, splits)
    names = image_names(folder)
    if not names:
        raise FileNotFoundError(
            f"data source {source.name!r}: no image lies below {folder} (files with the suffixes "
            f"{', '.join(IMAGE_SUFFIXES)})."
        )
    columns = {
        "id": names,
        "source": [source.name] * len(names),
        "row": list(range(len(names))),
        "images": [[image_file(str(folder / name))] for name in names],
        "messages": [[] for _ in names],
        "label": [os.path.basename(os.path.dirname(folder / name)) for name in names],
    }
    return Dataset.from_dict(columns, features=Features({**FEATURES, "label": Value("string")}))
