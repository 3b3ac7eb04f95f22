"""The command `vistok scenes`."""

import argparse

SUMMARY = "write a set of scenes with COCO-format ground truth"
DESCRIPTION = """
Composes pictures of everyday objects over photographs and writes the images with everything that is known of them:
  images/                 {image_id:012d}.jpg
  instances.json          COCO instances: boxes, masks (RLE) of what is visible, classes with supercategories
  captions.json           COCO captions
  vqa_questions.json      VQAv2 questions: names, sizes, places, relations, categories, comparisons
  vqa_annotations.json    VQAv2 answers
  SOURCE.json             settings, pictures and hashes
and, with the options of these names:
  refs(vistok).json       --expressions: each refers to one object, as RefCOCO's refs(unc).p (data format refcoco)
  drawing_captions.json   --drawing-captions: classes, numbers and colours, as COCO captions, to draw images from (data
                          format generation-pairs), with what a probe can look for
  edits/                  --edits: objects moved, removed, painted or added, as InstructPix2Pix's folder (data format
                          instruct-pix2pix), with instances.json of the edited images
From instances.json, evaluation builds GVTBench's counting and existence questions.

The same arguments write the same scenes on every machine. Train and test share no picture and no photograph. What is
needed is fetched by `vistok fetch fluent-emoji noto-emoji tuxpaint-stamps` and, for the photographs, `vistok fetch
mate-backgrounds lomiri-wallpapers plasma-wallpapers material-kit`, or given as --backgrounds.

example:
  vistok scenes scenes/train --num-scenes 6000 --num-classes 24 --preview train.png
  vistok scenes scenes/test --split test --num-scenes 800 --num-classes 24 --apart-from scenes/train
  vistok scenes scenes/tasks --expressions 3 --drawing-captions 1 --edits 2
  vistok scenes scenes/plain --split test --num-scenes 500 --plain-backgrounds
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist, or be empty")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="which pictures (default: train)")
    parser.add_argument("--num-scenes", type=int, default=1000, metavar="N", help="images (default: 1000)")
    parser.add_argument(
        "--num-classes", type=int, default=24, metavar="K", help="classes with most pictures (default: 24)"
    )
    parser.add_argument("--classes", metavar="NAME,…", help="the classes by name, instead of --num-classes")
    parser.add_argument("--size", type=int, default=112, metavar="PIXELS", help="side of an image (default: 112)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument(
        "--backgrounds",
        action="append",
        default=[],
        metavar="FOLDER",
        help="photographs to use instead of the fetched ones; may be repeated",
    )
    parser.add_argument("--plain-backgrounds", action="store_true", help="one colour behind objects, no photograph")
    parser.add_argument("--max-objects", type=int, default=9, metavar="N", help="most objects, 1 to 9 (default: 9)")
    parser.add_argument(
        "--max-overlap", type=float, default=0.2, metavar="PART", help="of an object may be hidden (default: 0.2)"
    )
    parser.add_argument(
        "--object-sizes",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="smallest and largest longer side of objects in sides of the image, where there is room; else they "
        "shrink (default: 0.18 0.8)",
    )
    parser.add_argument(
        "--count-weights",
        metavar="W1,W2,…",
        help="how frequent the numbers 1, 2, … of a class are (default: 30,20,14,…)",
    )
    parser.add_argument(
        "--classes-weights", metavar="W1,W2,…", help="how frequent images of 1, 2, … classes are (default: 50,32,18)"
    )
    parser.add_argument("--questions", type=int, default=4, metavar="N", help="VQA questions of an image (default: 4)")
    parser.add_argument("--captions", type=int, default=5, metavar="N", help="captions of an image (default: 5)")
    parser.add_argument(
        "--expressions", type=int, default=0, metavar="N", help="referring expressions of an image (default: 0)"
    )
    parser.add_argument(
        "--drawing-captions", type=int, default=0, metavar="N", help="captions to draw an image from (default: 0)"
    )
    parser.add_argument("--edits", type=int, default=0, metavar="N", help="edits of an image (default: 0)")
    parser.add_argument("--num-proc", type=int, default=1, metavar="N", help="processes that render (default: 1)")
    parser.add_argument(
        "--apart-from",
        action="append",
        default=[],
        metavar="FOLDER",
        help="another set, with which nothing may be shared; may be repeated",
    )
    parser.add_argument("--preview", metavar="PNG", help="write a sheet of images with boxes and masks drawn")


def run(options: argparse.Namespace) -> None:
    """`vistok scenes`"""
    from .trainer.scene_preview import check_sheet_file, scene_sheet
    from .trainer.scene_set import write_scenes

    given = {
        name: _numbers(f"--{name.replace('_', '-')}", value)
        for name in ("count_weights", "classes_weights")
        if (value := getattr(options, name)) is not None
    }
    if options.object_sizes is not None:
        given["object_sizes"] = options.object_sizes
    if options.preview:
        check_sheet_file(options.preview)
    folder = write_scenes(
        options.out,
        split=options.split,
        num_scenes=options.num_scenes,
        num_classes=options.num_classes,
        classes=[name.strip() for name in options.classes.split(",")] if options.classes else None,
        size=options.size,
        seed=options.seed,
        backgrounds=options.backgrounds,
        plain_backgrounds=options.plain_backgrounds,
        max_objects=options.max_objects,
        max_overlap=options.max_overlap,
        questions_per_scene=options.questions,
        captions_per_scene=options.captions,
        expressions_per_scene=options.expressions,
        drawing_captions_per_scene=options.drawing_captions,
        edits_per_scene=options.edits,
        num_proc=options.num_proc,
        apart_from=options.apart_from,
        **given,
    )
    print(f"{options.num_scenes} scenes ({options.split}): {folder}")
    if options.preview:
        print(f"Preview: {scene_sheet(folder, options.preview)}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} takes numbers separated by commas, got {text!r}.") from error
