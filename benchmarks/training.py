"""
A step of GVT's training, with and without the two savings that leave what is learned as it is.

    vistok fetch
    python -m benchmarks.training

Cached features: a frozen tower runs once per image, not in every step. Shared rows: questions about one image stand in
one row behind its visual tokens, which the resampler and the language model then compute once.

Model and sizes are those of recipes/gvt/demo.yaml. A step makes the batch, runs forward and backward, and lets AdamW
update the resampler: 48 questions, six about each of eight images. CPU time on one thread, the median over rounds that
take turns; the ratio is to the plain step. Memory is the peak of a step above weights, gradients and the optimizer's
state. The loss, before any update, shows that all four learn the same.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from vistok import VisualLanguageCollator
from vistok.processing.feature_cache import FeatureCache
from vistok.trainer.freezing import set_trainable, upcast_trained
from vistok.trainer.model_recipe import build_model
from vistok.trainer.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "gvt" / "demo.yaml"
# As easy-VQA asks and answers.
QUESTIONS = {
    "what color is the shape?": "red",
    "is there a triangle in the image?": "no",
    "what shape is present?": "circle",
    "does the image not contain a blue shape?": "yes",
    "is a circle present?": "yes",
    "what is the color of the form?": "red",
}


def conversation(question: str, answer: str) -> list[dict]:
    image, text = {"type": "image", "text": None}, {"type": "text", "text": question}
    return [
        {"role": "user", "content": [image, text]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def make_rows(folder: Path, num_images: int) -> tuple[list[dict], list[dict]]:
    """Training examples about images of one colour each: a row for each question, and a row for each image."""
    conversations = [conversation(question, answer) for question, answer in QUESTIONS.items()]
    single, shared = [], []
    for number in range(num_images):
        path = folder / f"{number}.png"
        Image.new("RGB", (64, 64), (30 * number, 128, 255 - 30 * number)).save(path)
        example = {"images": [{"path": str(path), "bytes": None}], "row": number, "source": "colours"}
        single += [{**example, "messages": messages} for messages in conversations]
        shared.append({**example, "conversations": conversations})
    return single, shared


class Trainee:
    """The model of a recipe, and what its training does in a step."""

    def __init__(self, model, trainable):
        set_trainable(model, trainable)
        upcast_trained(model)
        self.model = model
        self.optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)

    def loss(self, collator, rows) -> torch.Tensor:
        return self.model(**collator(rows), skip_logits=True).loss

    def step(self, collator, rows) -> None:
        self.optimizer.zero_grad()
        self.loss(collator, rows).backward()
        self.optimizer.step()

    def accumulate(self, collator, rows) -> None:
        self.loss(collator, rows).backward()


def measure(trainee: Trainee, variants: dict[str, tuple], rounds: int) -> list[dict]:
    with torch.no_grad():
        losses = {name: trainee.loss(*variant).item() for name, variant in variants.items()}

    def bind(function, variant) -> Callable[[], None]:
        return lambda: function(*variant)

    steps = {name: bind(trainee.step, variant) for name, variant in variants.items()}
    seconds = interleaved_seconds(steps, rounds)
    plain = next(iter(variants))
    return [
        {
            "step": name,
            "ms per question": 1e3 * statistics.median(seconds[name]) / len(variants[plain][1]),
            "time ratio": median_ratio(seconds[plain], seconds[name]),
            "MiB": peak_bytes(bind(trainee.accumulate, variant)) / 2**20,
            "loss": f"{losses[name]:.4f}",
        }
        for name, variant in variants.items()
    ]


def main() -> None:
    model_options = {"default": None, "help": "in place of the recipe's: name, folder or Hub id"}
    options = parse_arguments(__doc__, rounds=5, vision=model_options, text=model_options)
    given = {"--model.vision": options.vision, "--model.text": options.text}
    recipe = load_recipe(RECIPE, [part for name, value in given.items() if value for part in (name, value)])
    torch.manual_seed(0)
    model, processor = build_model(recipe.model)
    trainee = Trainee(model.train(), recipe.trainable)
    with tempfile.TemporaryDirectory() as folder:
        single, shared = make_rows(Path(folder), num_images=2 if options.quick else 8)
        features = FeatureCache.build(model, processor, shared, folder, progress_bar=False)
        from_pixels = VisualLanguageCollator(processor)
        from_features = VisualLanguageCollator(processor, features=features)
        variants = {
            "plain": (from_pixels, single),
            "cached features": (from_features, single),
            "shared rows": (from_pixels, shared),
            "both": (from_features, shared),
        }
        report(measure(trainee, variants, 1 if options.quick else options.rounds), options.csv)


if __name__ == "__main__":
    main()
