"""A study whose results are planted, and a set of scenes small enough for tiny models."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vistok.trainer.study_plan import plan_study
from vistok.trainer.study_recipe import StudyRecipe, study_from_dict

NUM_IMAGES = 40
# What a tower of each kind scores on average; students differ by a planted amount from their teacher.
LEVELS = {
    "dino": {"vqa": 50, "caption": 60, "oc": 40, "mci": 70},
    "fd": {"vqa": 50, "caption": 60, "oc": 52, "mci": 70},
    "fd-masked": {"vqa": 30, "caption": 35, "oc": 30, "mci": 55},
}
PARTS = ["vqa_semantic" if number % 2 else "vqa_spatial" for number in range(NUM_IMAGES)]
OF_TUNING = {"vqa": -15, "caption": -20, "oc": 0, "mci": 0}


def planted_recipe(output: Path, **changes) -> StudyRecipe:
    values = {
        "title": "A planted study",
        "output_dir": str(output),
        "encoders": {
            "dino": {"how": "pretrained", "model": "some/dino", "label": "DINO", "supervision": "self"},
            "fd": {"how": "distilled", "teacher": "dino", "label": "FD"},
            "fd-masked": {"how": "distilled", "teacher": "dino", "mask_ratio": 0.4, "label": "masked FD"},
        },
        "seeds": [0, 1],
        "protocol": {"data": {"train": [{"format": "vqa", "path": "{train}/vqa_questions.json"}]}},
        "evaluation": {"tasks": dict.fromkeys(OF_TUNING)},
        "attention": {"shown": 1, "heads": [0, 1]},
        "probe": {"num_train": 900, "num_test": 300},
    }
    return study_from_dict({**values, **changes})


def plant_study(recipe: StudyRecipe, leave_out: tuple[str, ...] = ()) -> None:
    """Writes results of all jobs but some, as if these had been done."""
    generator, output = np.random.default_rng(1), Path(recipe.output_dir)
    difficulty = generator.normal(0, 10, NUM_IMAGES)
    plan = plan_study(recipe)
    for job in plan.jobs:
        if job.name in leave_out:
            continue
        folder, configuration = output / job.name, plan.configurations[job.name]
        folder.mkdir(parents=True)
        (folder / "configuration.json").write_text(json.dumps(configuration))
        results = _results(job, folder, difficulty, generator)
        cost = {"cpu_seconds": 120.0, "wall_seconds": 130.0, "sessions": 1, "threads": 1}
        environment = {"hardware": "2 cores", "software": "torch"}
        document = {**configuration, "cost": cost, "environment": environment, "results": results}
        (folder / "results.json").write_text(json.dumps(document))


def _results(job, folder: Path, difficulty, generator) -> dict:
    images = [f"{number}.jpg" for number in range(NUM_IMAGES)]
    if job.kind == "scenes":
        return {"images": NUM_IMAGES, "objects": 90, "classes": 8, "cutouts": 31, "backgrounds": 17}
    if job.kind == "floors":
        floors = {"majority": 25.0, "question_only_prior": 30.0}
        values = {name: [floor] * NUM_IMAGES for name, floor in floors.items()}
        return {
            task: {"num_questions": NUM_IMAGES, **floors, "values": values, "images": images} for task in OF_TUNING
        }
    if job.kind == "encoder":
        metrics = {"eval_test_explained_variance": 0.25, "eval_test_cosine_similarity": 0.5, "eval_test_loss": 0.1}
        return {"mean_average_precision": 42.0, "steps": 3, "train_loss": 0.5, "metrics": metrics}
    if job.kind == "probe":
        accuracy = 20.0 if "model" in job.config else 60.0 if job.config["encoder"] == "dino" else 40.0
        tower = {
            name: {"accuracy": accuracy, "interval": [accuracy - 5, accuracy + 5]} for name in ("knn", "linear_probe")
        }
        floors = {"majority": 3.0, "num_train": 900, "num_test": 300, "num_classes": 66}
        beside = {"random": {name: {"accuracy": 7.5} for name in tower}} if "random_seed" in job.config else {}
        return {"tower": tower, "floors": floors, **beside}
    if job.kind == "training":
        return {"steps": 10, "train_loss": 1.5, "parameters": {"trained": 5}}
    encoder, tuning, _ = job.config["model"].split("/")[1].rsplit("-", 2)
    if job.kind == "attention":
        kept = {
            "maps": generator.random((3, 2, 3, 4, 4)).astype(np.float16),
            "pixels": generator.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8),
            "objects": np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((3, 16, 16), dtype=np.uint8)),
        }
        np.savez_compressed(folder / "attention.npz", **kept)
        divergence = 0.4 if encoder == "fd" else 0.1
        attention = {"head_divergence": [divergence, divergence + 0.1], "share_in_masks": [0.5, 0.6]}
        return attention | {"mask_area": [0.2, 0.3], "images": [0, 1]}
    tasks = {}
    for task, level in LEVELS[encoder].items():
        level = level + (OF_TUNING[task] if tuning == "tuned" else 0) + generator.normal(0, 0.5)
        values = level + difficulty + generator.normal(0, 3, NUM_IMAGES)
        places = list(range(0, NUM_IMAGES, 2))
        tasks[task] = {"score": values.mean(), "shuffled": 20.0, "num_questions": NUM_IMAGES, "num_unanswered": 1}
        tasks[task] |= {"values": values.tolist(), "images": images, "parts": [None] * NUM_IMAGES}
        tasks[task] |= {"shuffled_values": [20.0] * len(places), "shuffled_places": places}
    tasks["vqa"]["parts"] = PARTS
    return tasks


CLASSES = ("apple", "ball")


def write_tiny_scenes(folder: Path, seed: int = 0, num_images: int = 6) -> Path:
    """Scenes of squares in the files and formats of `vistok scenes`: a red one is an apple, a blue one a ball."""
    (folder / "images").mkdir(parents=True)
    generator, records = np.random.default_rng(seed), {"images": [], "annotations": [], "captions": [], "asked": []}
    answers = []
    for number in range(num_images):
        pixels, name = generator.integers(0, 90, (24, 24, 3), dtype=np.uint8), f"{number:012d}.jpg"
        for place in range(number % 3 + 1):
            kind = (number + place) % 2
            pixels[2:10, 8 * place : 8 * place + 6, 0 if kind == 0 else 2] = 255
            counts = [8 * place * 24 + 2, *([8, 16] * 5), 8, 24 * 24 - (8 * place + 5) * 24 - 10]
            records["annotations"].append(
                {
                    "id": len(records["annotations"]), "image_id": number, "category_id": kind + 1, "iscrowd": 0,
                    "segmentation": {"size": [24, 24], "counts": counts}, "bbox": [8 * place, 2, 6, 8], "area": 48,
                }
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / name)
        records["images"].append({"id": number, "file_name": name, "height": 24, "width": 24})
        records["captions"] += [{"image_id": number, "id": number, "caption": f"{number % 3 + 1} objects"}]
        records["asked"].append({"question_id": number, "image_id": number, "question": f"How many in {number % 2}?"})
        said = {"answer": str(number % 3 + 1), "answer_id": 1}
        answers.append({"question_id": number, "image_id": number, "answers": [said] * 10, "answer_type": "number"})
    categories = [{"id": number + 1, "name": name, "supercategory": "x"} for number, name in enumerate(CLASSES)]
    documents = {
        "instances": {"images": records["images"], "annotations": records["annotations"], "categories": categories},
        "captions": {"images": records["images"], "annotations": records["captions"]},
        "vqa_questions": {"questions": records["asked"]},
        "vqa_annotations": {"annotations": answers},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder
