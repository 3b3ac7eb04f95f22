"""
Questions per second of an evaluation, against asking one question after the other with `generate`.

Both answer the same questions of easy-VQA's test split with the same model, in one process and in turn, greedily and
with the same limit. The plain loop is what one writes first: the processor's chat template, one image, one `generate`.
The evaluation encodes each image once, shares the computation of what prompts have in common, and works in batches.
Answers of both are compared: in bfloat16 a tie between two tokens may fall differently.

    python -m benchmarks.evaluation                       # the demo that ships, in its own dtype and in float32
    python -m benchmarks.evaluation --model FOLDER --questions 400
"""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vistok.answering import model_folder
from vistok.evaluation.generation_settings import GenerationSettings
from vistok.evaluation.image_text_models import ImageTextModel
from vistok.processing.images import load_example_images

from ._measure import interleaved_seconds, median_ratio, parse_arguments, report

MAX_NEW_TOKENS = 16


def easy_vqa_questions(number: int) -> dict[str, list[dict[str, Any]]]:
    """So many test questions: chosen at random, nearly each about an image of its own, and all there are about the
    first few images, as the whole split asks them."""
    from vistok import load_data_source

    data = load_data_source({"format": "easy-vqa", "name": "easy-VQA test", "split": "test", "seed": 0})
    of_image: dict[str, list[int]] = {}
    for row, images in enumerate(data["images"]):
        of_image.setdefault(images[0]["path"], []).append(row)
    grouped = [row for rows in of_image.values() for row in rows][:number]
    return {"chosen at random": [data[row] for row in range(number)], "all of some images": [data[r] for r in grouped]}


def planted_questions(number: int) -> list[dict[str, Any]]:
    """Questions about plain images, where the real ones are not needed."""
    from PIL import Image

    from vistok.evaluation.task_questions import make_question

    questions = []
    for row in range(number):
        question = make_question("planted", row, "", f"is it of colour {row % 3}?", "yes")  # type: ignore[arg-type]
        questions.append({**question, "images": [Image.new("RGB", (24, 24), (40 * (row // 3) % 256, 0, 99))]})
    return questions


def plain_loop(model, processor, questions: list[dict[str, Any]]) -> list[str]:
    """One question after the other."""
    answers = []
    for example in questions:
        images = iter(load_example_images(example))
        content = [
            {"type": "image", "image": next(images)} if part["type"] == "image" else part
            for part in example["messages"][0]["content"]
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        start = inputs["input_ids"].shape[1]
        answers.append(processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip())
    return answers


def evaluation(model, processor, questions: list[dict[str, Any]], batch_size: int) -> list[str]:
    """What `vistok evaluate` does; images are forgotten from one round to the next."""
    answerer = ImageTextModel(model, processor, batch_size)
    answers = answerer.answer(questions, GenerationSettings(MAX_NEW_TOKENS))
    return [answers[index] for index in range(len(questions))]


def compare(model, processor, kind: str, questions, rounds: int, batch_size: int, dtype: str) -> list[dict[str, Any]]:
    """Rows of both ways to ask."""
    said: dict[str, list[str]] = {}
    ways = {
        "plain generate, batch 1": lambda: plain_loop(model, processor, questions),
        f"evaluation, batch {batch_size}": lambda: evaluation(model, processor, questions, batch_size),
    }

    def runs(name: str):
        return lambda: said.__setitem__(name, ways[name]())

    seconds = interleaved_seconds({name: runs(name) for name in ways}, rounds, warm_up=0)
    (plain, baseline), *_ = seconds.items()
    return [
        {
            "dtype": dtype,
            "questions": f"{len(questions)}, {kind}",
            "way": name,
            "images": len({str(example["images"]) for example in questions}),
            "questions per second": len(questions) / sorted(times)[len(times) // 2],
            "ratio to plain": median_ratio(baseline, times),
            "same answers, %": 100 * sum(one == other for one, other in zip(said[plain], said[name])) / len(questions),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    options = parse_arguments(
        __doc__, rounds=1, model={"help": "folder of a trained model (default: the demo that ships)"},
        questions={"type": int, "default": 200, "metavar": "N", "help": "how many (default 200)"},
    )  # fmt: skip
    folder = model_folder(options.model)
    asked = {"planted": planted_questions(6)} if options.quick else easy_vqa_questions(options.questions)
    rows = []
    for dtype in ("auto", "float32"):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        name = str(model.dtype).removeprefix("torch.")
        processor = AutoProcessor.from_pretrained(folder)
        for kind, questions in asked.items():
            rows += compare(model, processor, kind, questions, options.rounds, 64, name)
    report(rows, options.csv)


if __name__ == "__main__":
    main()
