"""The command `vistok tokens`."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from .given_options import given_options

PICTURE, TABLE = "tokens.png", "tokens.csv"
OF_PICTURES = ("output", "table")
OF_MEASURES = ("resamples", "skip_empty", "by_background", "batch_size")
OF_COSTS = ("rounds", "scores")
OF_TABLES = ("report", "limit")
OF_TOKENS = ("model", "compare", "method", "tokens", "layer", "image_size")
DEFAULT_MODEL = "vistok:dinov2-small"

SUMMARY = "show and measure the tokens of images"
DESCRIPTION = """
Shows which patches of an image each visual token is made of. Written are a picture (tokens.png) with the image, its
tokens outlined and numbered, the score of every patch (density times distance to a denser patch), the spread of the
scores and the tokens by size; and a table of the tokens (tokens.csv). With --output or --table only what is named. Of
several images each has its own picture, tokens-NAME.png, and one table holds all.

--model is a trained SeTok, or any vision tower: its patches are clustered without training. --compare puts variants
side by side; each says what is different: a method (iterative, threshold, kmeans, grid, single), a setting
(score_threshold=0.4), tokens=8, another tower (model=…, layer=…), or several with commas between them. Settings are
assignment, num_neighbors, score_threshold, stop_threshold, kernel_scale, relative_kernel_scale, min_tokens, max_tokens
and normalize_features. Of a soft assignment the colour of a patch mixes those of its tokens, outlined is where a token
has the largest weight, and the mean of the largest weights is told: with 1 it would be hard.

With --measure, tokens are compared with the objects of a data set instead, beside k-means, a plain grid of as many
tokens, one token, and the objects themselves: adjusted Rand index, best IoU of each object, numbers of tokens and
objects, with 95 % intervals. The file is of COCO's instances, as `vistok scenes` writes it, or panoptic segmentation,
or a folder of SA-1B; IMAGE is the folder of its images, whose features are computed once and kept.

With --costs, what the visual tokens of trained models cost stands side by side (all patches, a fixed number, soft or
hard clusters, a resampler): FLOPs, time of the prefill and of a step of training, and the scores of the reports of
`vistok evaluate` that --scores names.

example:
  vistok tokens photo.jpg
  vistok tokens photo.jpg --compare iterative threshold kmeans grid
  vistok tokens photo.jpg --compare score_threshold=0.4 score_threshold=0.5 score_threshold=0.6
  vistok tokens photo.jpg --tokens 8 --compare model=vistok:dinov2-small model=facebook/convnextv2-tiny-22k-224
  vistok tokens scenes/images --measure scenes/instances.json --tokens objects+1 --compare threshold iterative
  vistok tokens scenes/images --limit 32 --costs all=runs/all hard=runs/hard --scores runs/all/vqa runs/hard/vqa
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, and folders of images")
    parser.add_argument("--model", metavar="MODEL", default=DEFAULT_MODEL, help="a SeTok, or a vision tower of "
                        f"transformers: folder or Hub id (default {DEFAULT_MODEL})")  # fmt: skip
    parser.add_argument("--compare", metavar="VARIANT", nargs="+", default=[], help="variants to put side by side")
    parser.add_argument("--method", help="iterative, threshold, kmeans, grid or single; by default the SeTok's own, "
                        "and threshold of a bare tower")  # fmt: skip
    parser.add_argument("--tokens", metavar="N", help="how many, of which the iterative method drops "
                        "those that win no patch; by default as many as are found; with --measure also "
                        "objects+1")  # fmt: skip
    parser.add_argument("--layer", metavar="L", help="hidden state of a bare tower that patches are read from, or "
                        "final (default -2, and -3 of vistok:dinov2-small)")  # fmt: skip
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="images are resized to squares of this side; "
                        "by default as the SeTok was trained, and 336 of a bare tower")  # fmt: skip
    parser.add_argument("--output", metavar="OUT.png", help="the picture")
    parser.add_argument(
        "--table", metavar="OUT.csv", help="the table, as CSV or, with the tokens of all patches, JSON"
    )
    parser.add_argument("--device", help="such as cuda or cpu; by default a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0, help="of k-means and the bootstrap (default 0)")
    measures = parser.add_argument_group("cluster quality")
    measures.add_argument("--measure", metavar="FILE", help="COCO instances or panoptic JSON, or folder of SA-1B")
    measures.add_argument(
        "--report", metavar="DIR", help="write cluster_quality.json and .md there, or those of costs"
    )
    measures.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    measures.add_argument("--skip-empty", action="store_true", help="leave out objects without a pixel")
    measures.add_argument("--by-background", action="store_true", help="resample the photographs behind scenes, so "
                          "that intervals hold of others too")  # fmt: skip
    measures.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default 8)")
    measures.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap that gives "
                          "intervals (default 2000)")  # fmt: skip
    costs = parser.add_argument_group("costs")
    costs.add_argument("--costs", metavar="[LABEL=]MODEL", nargs="+", default=[], help="trained models that read "
                       "images and answer; ratios are to the first")  # fmt: skip
    costs.add_argument("--scores", metavar="PATH", nargs="+", default=[], help="reports of vistok evaluate of these "
                       "models, or folders of them")  # fmt: skip
    costs.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is timed (default 5)")


def run(options: argparse.Namespace) -> None:
    """`vistok tokens`"""
    from .configuration.optional import require

    # What is wrong or missing is told before a model is loaded.
    _refuse_other_options(options)
    if options.costs:
        _compare_costs(options)
        return
    variants = _variants(options)
    if options.measure:
        images = _masked_images(options)
        require("sklearn.cluster", "evaluation")
        if options.report:
            require("matplotlib.figure", "draw")
        _measure(options, variants, images)
        return
    files = _files(options, variants)
    require("matplotlib.figure", "draw")
    _draw(options, variants, files)


def _refuse_other_options(options: argparse.Namespace) -> None:
    from .evaluation.prediction_checks import check_positive

    if options.measure and options.costs:
        raise ValueError("--measure is about tokens and objects, --costs about models: give one of the two.")
    mode = "costs" if options.costs else "measure" if options.measure else "pictures"
    for names, what, modes in (
        (OF_PICTURES, "pictures of tokens", ("pictures",)),
        (OF_TOKENS, "pictures of tokens and for cluster quality", ("pictures", "measure")),
        (OF_MEASURES, "cluster quality", ("measure",)),
        (OF_COSTS, "costs of models", ("costs",)),
        (OF_TABLES, "cluster quality and costs of models", ("measure", "costs")),
    ):
        if mode not in modes and (given := given_options(options, add_arguments, names)):
            raise ValueError(f"{', '.join(given)} is for {what}: leave it out, or ask for that (--help).")
    check_positive(
        image_size=options.image_size,
        limit=options.limit,
        batch_size=options.batch_size,
        resamples=options.resamples,
        rounds=options.rounds,
    )


def _variants(options: argparse.Namespace) -> list[Any]:
    from .evaluation.token_variants import PER_OBJECT, TokenVariant, parse_layer, parse_tokens, parse_variants

    parsed = {}
    for name, parse in (("tokens", parse_tokens), ("layer", parse_layer)):
        value = getattr(options, name)
        try:
            parsed[name] = None if value is None else parse(value)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}.") from error
    base = TokenVariant(options.model, parsed["layer"], options.method, parsed["tokens"])
    variants = parse_variants(base, options.compare)
    if not options.measure and any(variant.tokens == PER_OBJECT for variant in variants):
        raise ValueError(f"tokens={PER_OBJECT} needs objects that are known: give --measure, or a number of tokens.")
    if variants[0].is_baseline and variants[0].method != "single" and variants[0].tokens is None:
        raise ValueError(
            f"{variants[0].method} makes no number of tokens of its own: give --tokens N, or put a method that does "
            "before it."
        )
    return variants


def _files(options: argparse.Namespace, variants: list[Any]) -> list[Path]:
    from .configuration.optional import require
    from .evaluation.token_maps import check_table_file
    from .processing.images import find_images, load_image

    if any(variant.method == "kmeans" for variant in variants):
        require("sklearn.cluster", "evaluation")
    for name, value in (("--output", options.output), ("--table", options.table)):
        if value and Path(value).is_dir():
            raise ValueError(f"{name} is {value!r}, a folder: name a file.")
    if options.output and Path(options.output).suffix.lower() != ".png":
        raise ValueError(f"--output is {options.output!r}, and a PNG is what is written: let it end with .png.")
    if options.table:
        check_table_file(options.table)
    files = find_images(options.images)
    for file in files:
        load_image(file)
    return files


def _compare_costs(options: argparse.Namespace) -> None:
    from .answering import model_folder
    from .evaluation.processes import Share, local_device
    from .evaluation.token_costs import CostedModel, compare_costs, costs_markdown, write_costs
    from .processing.images import find_images, load_image

    models = [CostedModel.parse(text) for text in options.costs]
    models = [dataclasses.replace(model, path=model_folder(model.path)) for model in models]
    if options.report and Path(options.report).is_file():
        raise ValueError(f"--report is {options.report!r}, a file: name a folder.")
    images = [load_image(file) for file in find_images(options.images)[: options.limit]]
    results = compare_costs(
        models,
        images,
        rounds=options.rounds,
        device=options.device or local_device(Share()),
        reports=options.scores,
    )
    results["command"] = options.command_line
    written = write_costs(results, options.report) if options.report else []
    print(costs_markdown(results))
    print("\n".join(map(str, written)), file=sys.stderr, end="\n" if written else "")


def _masked_images(options: argparse.Namespace) -> list[Any]:
    from .processing.mask_annotations import masked_images

    if len(options.images) != 1 or not Path(options.images[0]).is_dir():
        raise ValueError(
            f"With --measure, IMAGE is the folder of the images that it names; got {' '.join(options.images)}."
        )
    if options.report and Path(options.report).is_file():
        raise ValueError(f"--report is {options.report!r}, a file: name a folder.")
    return masked_images(options.measure, options.images[0])[: options.limit]


def _load(options: argparse.Namespace, variants: list[Any]) -> tuple[list[Any], dict[Any, Any]]:
    """The models of variants, each once, and the variants with the names of their methods."""
    from .answering import explained_hub_errors, model_folder, quiet_loading
    from .evaluation.processes import Share, local_device
    from .evaluation.token_sources import load_token_source

    device = options.device or local_device(Share())
    sources: dict[Any, Any] = {}
    for model, layer in dict.fromkeys((variant.model, variant.layer) for variant in variants):
        folder = model_folder(model)
        with quiet_loading(), explained_hub_errors(folder):
            sources[model, layer] = load_token_source(model, layer, options.image_size, device)
    named = [
        variant
        if variant.label
        else dataclasses.replace(variant, label=sources[variant.model, variant.layer].model.tokenizer.config.method)
        for variant in variants
    ]
    return named, sources


def _draw(options: argparse.Namespace, variants: list[Any], files: list[Path]) -> None:
    from .evaluation.token_maps import read_token_maps, write_token_table
    from .evaluation.token_pictures import draw_token_maps
    from .evaluation.word_map import map_files

    variants, sources = _load(options, variants)
    is_default = not (options.output or options.table)
    output, table = (PICTURE, TABLE) if is_default else (options.output, options.table)
    pictures = map_files(output, [file.name for file in files]) if output else [None] * len(files)
    everything = []
    for file, picture in zip(files, pictures):
        maps = read_token_maps(file, variants, sources, options.seed)
        if picture is not None:
            draw_token_maps(maps, picture, title=f"{file.name}: {options.model}")
            print(picture)
        # The pictures are what memory would be full of.
        everything += [dataclasses.replace(one, image=one.image.resize((1, 1))) for one in maps] if table else []
    if table:
        write_token_table(everything, table)
        print(table)


def _measure(options: argparse.Namespace, variants: list[Any], images: list[Any]) -> None:
    from .evaluation.cluster_measurement import measure_clusters
    from .evaluation.cluster_report import cluster_markdown, write_cluster_quality

    variants, sources = _load(options, variants)
    results = measure_clusters(
        images,
        variants,
        sources,
        batch_size=options.batch_size,
        num_resamples=options.resamples,
        seed=options.seed,
        skip_empty=options.skip_empty,
        by_background=options.by_background,
    )
    results = {
        "model": options.model,
        "annotations": options.measure,
        "command": options.command_line,
        **results,
    }
    written = write_cluster_quality(results, options.report) if options.report else []
    print(written[1].read_text(encoding="utf-8") if written else cluster_markdown(results))
    print("\n".join(map(str, written)), file=sys.stderr, end="\n" if written else "")
