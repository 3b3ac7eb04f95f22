"""The command `vistok words`."""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .given_options import given_options

SHIPPED_MODEL = "checkpoints/vtlmm-demo"
DTYPES = ("auto", "bfloat16", "float16", "float32")
PICTURE, PAGE = "words.png", "words.html"
OF_MAPS = ("output", "html", "nearest", "distinctive", "relative_to", "top_k", "shading", "patch_size", "font")
OF_STATISTICS = ("batch_size", "resamples", "seed", "skip_unreadable")

SUMMARY = "read images as words"
DESCRIPTION = """
Shows what a VT-LMM reads in an image: for each patch the most probable words of its visual-token distribution. Written
are a picture with a word in each patch (words.png) and a page where the pointer or the arrow keys show the words of a
patch with their probabilities (words.html); with --output or --html only what is named. Of several images each has its
own picture, words-NAME.png, and one page holds all, or several that are linked, words-2.html …, of 16 MB each.

Without --model the small VT-LMM reads that ships with vistok: its card, checkpoints/vtlmm-demo/README.md, says what it
was trained on.

With --distinctive, the words by which a patch stands out: where the most probable word of nearly every patch is a
punctuation mark, these are the words that lie behind it. Each word of its distribution P' is ranked by its part of
the KL divergence from a reference, P' log(P' / P̄): P̄ is the mean of P' over all patches of the images, or of other
images with --relative-to. Of a single image alone these are the words by which its patches differ from one another;
relative to many images, those of the image. The picture says which; the page shows the most probable words too.

With --statistics, the language statistics of all images instead: rank and frequency with Zipf's law, entropies, new
words per image, kinds of words. IMAGE may be a folder, whose images are read one after the other, however many.

Labels: "dog" begins a word, "·ing" joins on to the one before; ␣ ↵ ⇥ are white space, [BEL] and [U+200B] control
characters, <0xE4> a byte that is no whole character, [#49152] an id that the tokenizer does not have.

example:
  vistok words photo.jpg
  vistok words photo.jpg --model runs/vtlmm --top-k 8 --shading
  vistok words a.jpg b.jpg --model runs/vtlmm --nearest --html nearest.html
  vistok words photo.jpg --model runs/vtlmm --distinctive --relative-to photos/
  vistok words photos/ --model runs/vtlmm --statistics runs/vtlmm/words
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, and folders of images")
    parser.add_argument("--model", metavar="FOLDER", help="a VT-LMM: folder or Hub id; by default the one that ships")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="words of a patch (default 5)")
    parser.add_argument("--output", metavar="OUT.png", help="the picture")
    parser.add_argument("--html", metavar="OUT.html", help="the page")
    parser.add_argument("--nearest", action="store_true", help="the words whose embeddings are closest to the visual "
                        "token, by cosine similarity, in place of the most probable ones")  # fmt: skip
    parser.add_argument("--distinctive", action="store_true", help="the words by which a patch stands out against the "
                        "mean of all patches of the images, in place of the most probable ones")  # fmt: skip
    parser.add_argument("--relative-to", metavar="FOLDER", help="with --distinctive: take the mean over the images in "
                        "this folder")  # fmt: skip
    parser.add_argument("--shading", action="store_true", help="colour the patches of the picture by the score of the "
                        "word, such as its probability")  # fmt: skip
    parser.add_argument("--patch-size", type=int, metavar="PIXELS", help="width of a patch in the picture, at least "
                        "56; by default so that the picture has 1600 pixels")  # fmt: skip
    parser.add_argument("--font", metavar="FILE", help="font of the picture for words that DejaVu Sans lacks, such as "
                        "Chinese ones")  # fmt: skip
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of the model; auto: as saved (default)")
    parser.add_argument("--device", help="such as cuda or cpu; by default a GPU if there is one")
    statistics = parser.add_argument_group("language statistics")
    statistics.add_argument("--statistics", metavar="DIR", help="write token_statistics.json, .md and .png there")
    statistics.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default 8)")
    statistics.add_argument("--resamples", type=int, default=200, metavar="N", help="of the bootstrap that gives "
                            "intervals (default 200)")  # fmt: skip
    statistics.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    statistics.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")


def run(options: argparse.Namespace) -> None:
    """`vistok words`"""
    from .configuration.optional import require
    from .processing.images import find_images

    # What is wrong or missing is told before a model is loaded.
    files = find_images(options.images)
    require("matplotlib.figure", "draw")
    _check(options, files)
    model, processor = _load(options)
    if options.statistics:
        _write_statistics(options, model, processor, files)
    else:
        _write_maps(options, model, processor, files)


def _check(options: argparse.Namespace, files: list[Path]) -> None:
    from .evaluation.prediction_checks import check_positive
    from .evaluation.word_map_picture import check_patch_size
    from .processing.images import find_images

    _refuse_other_options(options)
    check_positive(top_k=options.top_k, batch_size=options.batch_size)
    if options.statistics:
        if options.resamples < 0:
            raise ValueError(f"resamples is {options.resamples}, expected at least 0.")
        return
    check_patch_size(options.patch_size)
    if options.distinctive and options.nearest:
        raise ValueError("--distinctive is of distributions, which --nearest has none of: leave out one of them.")
    if options.relative_to is not None:
        if not options.distinctive:
            raise ValueError("--relative-to is for --distinctive: give that too, or leave it out.")
        find_images([options.relative_to])
    for name, value in (("--output", options.output), ("--html", options.html)):
        if value and Path(value).is_dir():
            raise ValueError(f"{name} is {value!r}, a folder: name a file.")
    if options.output and Path(options.output).suffix.lower() != ".png":
        raise ValueError(f"--output is {options.output!r}, and a PNG is what is written: let it end with .png.")
    _refuse_overwriting(options, files)
    _open_all(files, options)


def _refuse_overwriting(options: argparse.Namespace, files: list[Path]) -> None:
    from .evaluation.word_map import map_files

    output, page = _written(options)
    pictures = map_files(output, [file.name for file in files]) if output else []
    images = {file.resolve() for file in files}
    for path in [*pictures, *([Path(page)] if page else [])]:
        if path.resolve() in images:
            raise ValueError(f"{path} is one of the images: give the picture another name with --output OUT.png.")
    if page and Path(page).resolve() in {picture.resolve() for picture in pictures}:
        raise ValueError(f"--output and --html are both {page}: name two files.")


def _written(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """Where the picture and the page go, of which one may not be wanted."""
    return (options.output, options.html) if options.output or options.html else (PICTURE, PAGE)


def _refuse_other_options(options: argparse.Namespace) -> None:
    given = given_options(options, add_arguments, OF_MAPS if options.statistics else OF_STATISTICS)
    if given and options.statistics:
        raise ValueError(f"{', '.join(given)} is for maps of words: leave it out, or leave out --statistics.")
    if given:
        raise ValueError(f"{', '.join(given)} is for language statistics: leave it out, or give --statistics DIR.")


def _open_all(files: list[Path], options: argparse.Namespace) -> None:
    """Finds what cannot be read before a model is loaded, and a font that is none."""
    from .evaluation.word_map_picture import Fonts
    from .processing.images import load_image

    for file in files:
        load_image(file)
    Fonts(options.font).files  # noqa: B018


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from .answering import explained_hub_errors, model_folder, quiet_loading
    from .evaluation.processes import Share, local_device

    folder = model_folder(options.model, SHIPPED_MODEL)
    with quiet_loading(), explained_hub_errors(folder):
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "vtlmm":
            raise ValueError(
                f"{folder} is a model of the kind {kind}, which has no visual modelling head to read images as words "
                "with: give a VT-LMM, such as the folder that a run of recipes/vtlmm ended with."
            )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=options.dtype)
        processor = AutoProcessor.from_pretrained(folder)
    return model.to(options.device or local_device(Share())).eval(), processor


def _write_maps(options: argparse.Namespace, model: Any, processor: Any, files: list[Path]) -> None:
    from .evaluation.word_map_page import write_word_page

    output, page = _written(options)
    word_maps = _drawn_maps(options, model, processor, files, output)
    if page:
        what = "nearest words" if options.nearest else "distinctive words" if options.distinctive else "words"
        model_name = options.model or SHIPPED_MODEL
        title = f"Images as {what}: {Path(model_name).name or model_name}"
        files = write_word_page(word_maps, page, title)
        further = f" and {len(files) - 1} further pages, to {files[-1].name}" if len(files) > 1 else ""
        print(f"{page}{further}")
    else:
        deque(word_maps, maxlen=0)


def _drawn_maps(
    options: argparse.Namespace, model: Any, processor: Any, files: list[Path], output: str | None
) -> Iterator[Any]:
    """The maps of images, one after the other, each of which is drawn before."""
    from .evaluation.word_map import map_files, read_word_map
    from .evaluation.word_map_picture import draw_word_map
    from .processing.token_labels import TokenLabels

    labels = TokenLabels(processor.tokenizer)
    reference = _reference(options, model, processor, files) if options.distinctive else None
    pictures = map_files(output, [file.name for file in files]) if output else [None] * len(files)
    for file, picture in zip(files, pictures):
        word_map = read_word_map(model, processor, file, options.top_k, options.nearest, labels, reference)
        if picture is not None:
            draw_word_map(word_map, picture, shading=options.shading, patch_size=options.patch_size, font=options.font)
            print(picture)
        yield word_map


def _reference(options: argparse.Namespace, model: Any, processor: Any, files: list[Path]) -> Any:
    from .evaluation.word_reference import mean_distribution
    from .processing.images import find_images

    described = "this image" if len(files) == 1 else f"these {len(files):,} images"
    if options.relative_to is not None:
        files = find_images([options.relative_to])
        name = Path(options.relative_to).resolve().name
        described = f"{len(files):,} images ({name})" if len(files) > 1 else f"the image {name}"
    return mean_distribution(model, processor, files, described=described)


def _write_statistics(options: argparse.Namespace, model: Any, processor: Any, files: list[Path]) -> None:
    from .evaluation.token_statistics_images import measure_token_statistics
    from .evaluation.token_statistics_report import token_statistics_markdown, write_token_statistics

    results = measure_token_statistics(
        model,
        processor,
        files,
        batch_size=options.batch_size,
        num_resamples=options.resamples,
        seed=options.seed,
        skip_unreadable=options.skip_unreadable,
    )
    results = {
        "model": options.model or SHIPPED_MODEL,
        "images": options.images,
        "command": options.command_line,
        **results,
    }
    written = write_token_statistics(results, options.statistics)
    print(token_statistics_markdown(results))
    print("\n".join(map(str, written)), file=sys.stderr)
