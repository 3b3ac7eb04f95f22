"""The command `vistok evaluate`."""

import argparse
from pathlib import Path
from typing import Any

# As evaluation has them, which the help does not import.
TASKS = (
    *("easy-vqa", "cutout-scenes", "coco_oc", "coco_mci", "vcr_oc", "vcr_mci", "vqa", "caption", "pope"),
    "seed_bench",
)
FLOORS = ("majority", "question_only_prior", "blank_images", "shuffled_images")
IMAGE_TASKS = ("reconstruction", "referring", "generation", "editing")
IMAGE_CONDITIONS = (
    *("grid", "blank_images", "shuffled_images", "shuffled_expressions", "whole_image", "largest_cluster"),
    *("shuffled_captions", "copied_source"),
    *("autoencoder", "best_cluster", "best_token_mask", "true_tokens", "targets"),
)
COMPARED_WITH = tuple(dict.fromkeys((*FLOORS, *IMAGE_CONDITIONS)))
PROBE_TOWER = "vistok:dinov2-small"
OF_IMAGES = (
    *("probe_scenes", "probe_tower", "probe_tower_size", "frechet", "steps", "guidance_scale", "by_background"),
)
OF_WORDS = ("prompt_style", "mode", "fix_typos", "vocabulary", "max_new_tokens", "gallery", "disagreements")
DTYPES = ("auto", "bfloat16", "float16", "float32")
PROMPT_STYLES = ("paper", "reference")
MODES = ("reference", "strict")

SUMMARY = "measure how many answers are right, and how good images and masks are"
DESCRIPTION = """
Lets a model answer questions and reports the share of right answers, in total and for each type of question, beside
what can be had without looking: the most frequent answer, the question alone, blank images, other questions' images.
The model is one of vistok or any image-text-to-text model of transformers.

Tasks, one or several with commas between them:
  easy-vqa, cutout-scenes     9,673 questions about drawings; about 3,000 questions about 600 scenes
  coco_oc, coco_mci, vcr_oc, vcr_mci   GVTBench: counting and identification
  vqa, caption, pope, seed_bench       VQAv2, COCO captions (CIDEr), POPE, SEED-Bench (by likelihood)
  FILE.yaml                   questions and, for the prior of the question alone, training data, as in a recipe:
                                test: {format: llava, path: test.json, images: photos}
                                train: {format: llava, path: train.json, images: photos}

GVTBench and the four below it are read from --questions, a file, or a folder with the files under their official
names (or a COCO-format instances file, or VCR's val.jsonl or vcr1images, from which counting and identification
questions are built), and --images.

Tasks whose answers are images or masks, of a Setokim, the first of a SeTok too; --questions is a folder that `vistok
scenes --expressions 3 --drawing-captions 1 --edits 2` wrote, or a file:
  reconstruction      images from their own tokens: L1 and SSIM, beside a plain grid of as many tokens
  referring           masks for expressions (RefCOCO's format): cIoU and gIoU, beside the best single token
  generation          images for captions alone: classes, counts and colours as a probe reads them in the images, and
                      a second one in the tokens before they are drawn, both trained on --probe-scenes; beside shuffled
                      captions, and the true images through their own tokens
  editing             edited images (InstructPix2Pix's layout): L1 and SSIM, beside the source as it is
Fréchet distances of drawn images name the tower that they were measured in. All of these may be measured in one go.

A run that was killed continues where it was. Several processes share the questions:
  accelerate launch --num_processes 2 -m vistok.cli evaluate …

example:
  vistok evaluate --task easy-vqa --max-questions 500
  vistok evaluate --model runs/gvt-demo --task mine.yaml --output runs/gvt-demo/evaluation
  vistok evaluate --model llava-hf/llava-1.5-7b-hf --task coco_oc,coco_mci --questions gvtbench --images coco/val2017
  vistok evaluate --model runs/setokim --task generation --questions scenes/test --probe-scenes scenes/train
  vistok evaluate --gallery gallery --model A --model B --task coco_mci --questions gvtbench --images coco/val2017
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--model", metavar="FOLDER", action="append", help="folder or Hub id; by default the model "
                        "that ships; twice for a gallery")  # fmt: skip
    parser.add_argument("--task", metavar="TASKS", help="names with commas between them, or a YAML file")
    parser.add_argument("--questions", metavar="PATH", help="question file, or folder with the files of all tasks")
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images")
    parser.add_argument("--prompt-style", default="paper", choices=PROMPT_STYLES, help="paper: Question: … Answer: "
                        "(default); reference: prompts, decoding and image size of GVT's released code")  # fmt: skip
    parser.add_argument("--mode", default="reference", choices=MODES, help="which scoring of GVTBench comes first: "
                        "that of the released code (default) or strict")  # fmt: skip
    parser.add_argument("--fix-typos", default="both", choices=("no", "yes", "both"), help="of vcr_mci, whose "
                        "spelling gives answers away (default both: a report each)")  # fmt: skip
    parser.add_argument("--vocabulary", metavar="FILE", help="annotations of VQAv2's training questions, to whose "
                        "frequent answers GVT's released code restricts its VQA accuracy")  # fmt: skip
    parser.add_argument("--skip-missing-images", action="store_true", help="leave out questions without their image")
    parser.add_argument("--max-questions", type=int, metavar="N", help="ask a random choice of so many")
    parser.add_argument("--max-floor-questions", type=int, metavar="N", help="the same, of blank and shuffled images")
    parser.add_argument("--floors", nargs="*", metavar="FLOOR", choices=COMPARED_WITH,
                        help="which to measure, by default all: "
                        f"{', '.join(FLOORS)}; of images {', '.join(IMAGE_CONDITIONS)}")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="write report, chart and predictions there; resumable")
    parser.add_argument("--update-card", action="store_true", help="add the report to the card in the model's folder")
    parser.add_argument("--batch-size", type=int, metavar="N", help="questions at once (default 64, of images 16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="limit of an answer (default: the task's, 16 "
                        "or 32)")  # fmt: skip
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of the model; auto: as saved (default)")
    parser.add_argument("--device", help="such as cuda or cpu; by default a GPU if there is one")
    parser.add_argument("--attn-implementation", metavar="NAME", help="such as eager or sdpa")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    drawn = parser.add_argument_group("images and masks")
    drawn.add_argument("--probe-scenes", metavar="FOLDER", help="training scenes of the probes that read drawn "
                       "images and their tokens")  # fmt: skip
    drawn.add_argument("--probe-tower", metavar="MODEL", default=PROBE_TOWER, help="whose frozen features that "
                       f"of images reads (default {PROBE_TOWER})")  # fmt: skip
    drawn.add_argument("--probe-tower-size", type=int, default=168, metavar="PIXELS", help="side to which drawn "
                       "images are enlarged for it (default 168)")  # fmt: skip
    drawn.add_argument("--frechet", metavar="MODEL", default=PROBE_TOWER, help="tower that Fréchet distances are "
                       f"measured in, or none (default {PROBE_TOWER})")  # fmt: skip
    drawn.add_argument("--steps", type=int, metavar="N", help="of the diffusion (default: those of the model)")
    drawn.add_argument("--guidance-scale", type=float, metavar="S", help="of the diffusion (default: the model's)")
    drawn.add_argument("--by-background", action="store_true", help="resample the photographs behind scenes, so that "
                       "intervals hold of others too")  # fmt: skip
    gallery = parser.add_argument_group("gallery", "answers of two models side by side, as PNG and HTML")
    gallery.add_argument("--gallery", metavar="OUT", help="write OUT.png and OUT.html")
    gallery.add_argument("--predictions", metavar="FILE", action="append", help="a predictions file of an earlier "
                         "evaluation, once or twice, in place of a --model")  # fmt: skip
    gallery.add_argument("--num-shown", type=int, default=12, metavar="N", help="how many questions, and rows in the "
                         "picture of images (default 12)")  # fmt: skip
    gallery.add_argument("--disagreements", action="store_true", help="only where one model is right, the other wrong")


def run(options: argparse.Namespace) -> None:
    """`vistok evaluate`"""
    if options.gallery:
        _show_gallery(options)
        return
    if options.predictions:
        raise ValueError("--predictions is for a gallery: give --gallery OUT, too.")
    if len(options.model or []) > 1:
        raise ValueError("Two models make a gallery: give --gallery OUT, or evaluate one after the other.")
    _evaluate(options, (options.model or [None])[0], options.output)


def _evaluate(options: argparse.Namespace, model: str | None, output: str | None) -> None:
    from .answering import model_folder
    from .evaluation.processes import join_processes
    from .evaluation.report_table import report_markdown, summary_markdown
    from .hub_cards.card import check_has_results, write_evaluation

    folder = model_folder(model)
    if options.update_card:
        check_has_results(folder)  # now, not after hours of questions
    results = _results(options, folder, output)
    if not join_processes(options.device).is_first:
        return
    print("\n\n".join(report_markdown(found).rstrip() for found in results.values()))
    if len(results) > 1:
        print("\n" + summary_markdown(list(results.values())).rstrip())
    if output:
        print(f"\nReport, chart and predictions: {output}")
    if options.update_card:
        for found in results.values():
            card = write_evaluation(folder, found)
        print(f"\nCard: {card}")


def _results(options: argparse.Namespace, folder: str, output: str | None) -> dict[str, Any]:
    from .evaluation.command import evaluate_command
    from .trainer.data_sources import load_data_source

    if _is_about_images(options):
        return _image_results(options, folder, output)

    return evaluate_command(
        folder,
        _tasks(options.task),
        load_source=load_data_source,
        output=output,
        floors=FLOORS if options.floors is None else options.floors,
        missing_images="skip" if options.skip_missing_images else "error",
        command=options.command_line,
        batch_size=64 if options.batch_size is None else options.batch_size,
        **{
            field: getattr(options, field)
            for field in (
                "questions", "images", "prompt_style", "mode", "fix_typos", "max_questions", "max_floor_questions",
                "max_new_tokens", "dtype", "device", "attn_implementation", "seed", "vocabulary",
            )
        },
    )  # fmt: skip


def _is_about_images(options: argparse.Namespace) -> bool:
    """Whether images or masks are asked for; they are not asked for together with words."""
    from .given_options import given_options

    names = [part.strip() for part in (options.task or "").split(",")]
    about = [name for name in names if name in IMAGE_TASKS]
    if about and len(about) < len(names):
        other = next(name for name in names if name not in IMAGE_TASKS)
        raise ValueError(f"{about[0]} asks for images and {other!r} for words: evaluate one after the other.")
    foreign = given_options(options, add_arguments, OF_WORDS if about else OF_IMAGES)
    if foreign:
        what = "words" if about else f"images ({', '.join(IMAGE_TASKS)})"
        raise ValueError(f"{', '.join(foreign)} is for tasks whose answers are {what}: leave it out.")
    wrong = [name for name in options.floors or () if name not in (IMAGE_CONDITIONS if about else FLOORS)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no floor of {options.task}: leave it out.")
    return bool(about)


def _image_results(options: argparse.Namespace, folder: str, output: str | None) -> dict[str, Any]:
    from .evaluation.image_command import evaluate_images_command
    from .trainer.data_sources import load_data_source

    return evaluate_images_command(
        folder,
        [name.strip() for name in options.task.split(",")],
        load_source=load_data_source,
        output=output,
        conditions=options.floors,
        missing_images="skip" if options.skip_missing_images else "error",
        num_inference_steps=options.steps,
        extractor=None if options.frechet == "none" else options.frechet,
        batch_size=16 if options.batch_size is None else options.batch_size,
        command=options.command_line,
        **{
            field: getattr(options, field)
            for field in (
                "questions", "images", "max_questions", "max_floor_questions", "guidance_scale", "probe_scenes",
                "probe_tower", "probe_tower_size", "by_background", "num_shown", "dtype", "device",
                "attn_implementation", "seed",
            )
        },
    )  # fmt: skip


def _tasks(named: str | None) -> list[Any]:
    """Tasks by name, and those that YAML files describe."""
    from .evaluation.tasks import find_tasks

    if not named:
        raise ValueError(f"There is no task: give --task, one or several of {', '.join(TASKS)}, or a YAML file.")
    names = [named] if Path(named).is_file() else [part.strip() for part in named.split(",") if part.strip()]
    is_file = {name: Path(name).is_file() or Path(name).suffix in (".yaml", ".yml") for name in names}
    return find_tasks([_task_of_file(name) if is_file[name] else name for name in names])


def _task_of_file(path: str) -> Any:
    from .evaluation.tasks import data_source_task
    from .trainer.recipe import read_yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no task {path!r}: give {', '.join(TASKS)} or a YAML file.")
    described = read_yaml(Path(path).read_text(encoding="utf-8"), path)
    sources = described if isinstance(described, dict) else {}
    if "test" not in sources or set(sources) - {"test", "train"}:
        raise ValueError(f"{path} must hold `test` and may hold `train`, each a data source: see evaluate --help.")
    return data_source_task(Path(path).stem, sources["test"], sources.get("train"))


def _show_gallery(options: argparse.Namespace) -> None:
    from .answering import model_folder
    from .evaluation.command import predictions_path
    from .evaluation.gallery import gallery_command
    from .evaluation.processes import join_processes

    options.floors = options.floors or []  # a gallery shows none

    def run_of(number: int, model: str) -> tuple[str, Any]:
        folder, output = model_folder(model), f"{options.output or f'{options.gallery}.evaluations'}/{number}"

        def evaluate() -> list[Path]:
            found = _results(options, folder, output).values()
            return [predictions_path(output, result["task"], result["split"]) for result in found]

        return model, evaluate

    share = join_processes(options.device)
    models = [run_of(number, model) for number, model in enumerate(options.model or [], start=1)]
    written = gallery_command(
        options.gallery, models, options.predictions or [], options.num_shown, options.disagreements, options.seed,
        options.mode, share,
    )  # fmt: skip
    if written:
        print(f"Gallery: {' and '.join(map(str, written))}")
