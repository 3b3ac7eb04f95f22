"""
Memory, speed and answers of a model whose vision tower and language model are quantised with bitsandbytes.

The same model four times: in float32, in bfloat16, and in bfloat16 with the linear layers of tower and language model
in 8 bits and in 4 (NF4). Measured are the bytes of all weights; the peak of memory above these while a batch is
answered, and while adapters of the language model and the visual tokenizer learn one step (of NF4 that is QLoRA);
generated tokens per second, of a batch of eight, in turns; and answers to held-out questions of easy-VQA and of
cut-out scenes, with 95 % intervals over images: of the accuracy, and of its difference to float32 on the same.

    python -m benchmarks.quantization                       # the demo that ships, 200 questions of each
    python -m benchmarks.quantization --model FOLDER --questions 400
"""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.utils import logging

from vistok.answering import model_folder
from vistok.evaluation.bootstrap import bootstrap_interval
from vistok.evaluation.vqa import answer_of
from vistok.modeling.quantized_weights import num_weight_bytes
from vistok.processing.collator import VisualLanguageCollator
from vistok.processing.images import load_example_images
from vistok.trainer.freezing import set_trainable

from ._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from .evaluation import evaluation, planted_questions

HELD_OUT = {
    "easy-VQA": {"format": "easy-vqa", "split": "test", "seed": 0},
    "cut-outs": {"format": "cutout-scenes", "split": "test", "seed": 0, "options": {"num_scenes": 600}},
}
LOADED: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.bfloat16, "quantization_config": {"load_in_8bit": True}},
    "nf4": {
        "dtype": torch.bfloat16,
        "quantization_config": {
            **{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        },
    },
}
BATCH_SIZE, NEW_TOKENS = 8, 32


def load(folder: str, weights: str) -> Any:
    """A model with its weights in so many bits."""
    options = dict(LOADED[weights])
    if "quantization_config" in options:
        options["quantization_config"] = BitsAndBytesConfig(**options["quantization_config"])
    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", **options).eval()


def held_out(number: int) -> dict[str, list[dict[str, Any]]]:
    """So many questions of each data set that the demo was not trained on."""
    from vistok import load_data_source

    found = {name: load_data_source({**source, "max_samples": number}) for name, source in HELD_OUT.items()}
    return {name: [data[row] for row in range(len(data))] for name, data in found.items()}


def prompts(processor, questions: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of questions without their answers."""
    conversations = []
    for example in questions:
        images = iter(load_example_images(example))
        content = [
            {"type": "image", "image": next(images)} if part["type"] == "image" else part
            for part in example["messages"][0]["content"]
        ]
        conversations.append([{"role": "user", "content": content}])
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def generate(model, inputs: dict[str, torch.Tensor], count: int) -> None:
    """So many tokens of each row, whatever they say."""
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)


def peak_of_a_step(model, processor, questions: list[dict[str, Any]]) -> int:
    """Peak of memory of a forward and a backward pass. The model has adapters then."""
    part = next(name for name in type(model).trainable_parts if name not in ("vision", "llm"))
    set_trainable(model, {part: "full", "llm": "lora"})
    batch = VisualLanguageCollator(processor)(questions)
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    model.train()
    return peak_bytes(lambda: model(**batch, skip_logits=True).loss.backward())


def scores(name: str, said: list[str], reference: list[str], questions: list[dict[str, Any]]) -> dict[str, str]:
    """Accuracy and its difference to the reference, each with its interval, in percent."""
    images = [str(example["images"]) for example in questions]
    right, before = ([float(a == answer_of(q)) for a, q in zip(answers, questions)] for answers in (said, reference))
    differences = [after - earlier for after, earlier in zip(right, before)]
    return {
        f"{name}, %": _with_interval(right, images, (0.0, 1.0)),
        f"{name}, to float32": _with_interval(differences, images, (-1.0, 1.0)),
        f"{name}, same answers, %": f"{100 * sum(a == b for a, b in zip(said, reference)) / len(said):.1f}",
    }


def _with_interval(values: list[float], images: list[str], bounds: tuple[float, float]) -> str:
    low, high = bootstrap_interval(values, images, bounds=bounds) or (float("nan"), float("nan"))
    return f"{100 * sum(values) / len(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    options = parse_arguments(
        __doc__, rounds=2, model={"help": "folder of a trained model (default: the demo that ships)"},
        questions={"type": int, "default": 200, "metavar": "N", "help": "of each data set (default 200)"},
    )  # fmt: skip
    logging.disable_progress_bar()
    folder = model_folder(options.model)
    asked = {"planted": planted_questions(6)} if options.quick else held_out(options.questions)
    processor = AutoProcessor.from_pretrained(folder)
    models = {weights: load(folder, weights) for weights in LOADED}
    some = next(iter(asked.values()))[:BATCH_SIZE]
    inputs, count = prompts(processor, some), 2 if options.quick else NEW_TOKENS
    seconds = interleaved_seconds(
        {weights: lambda model=model: generate(model, inputs, count) for weights, model in models.items()},
        options.rounds,
    )
    said: dict[str, dict[str, list[str]]] = {}
    rows = []
    for weights, model in models.items():
        said[weights] = {name: evaluation(model, processor, questions, 32) for name, questions in asked.items()}
        row = {
            "weights": weights,
            "MB of weights": num_weight_bytes(model) / 1e6,
            "peak MB, answering": peak_bytes(lambda model=model: generate(model, inputs, 2)) / 1e6,
            "tokens per second": len(some) * count / sorted(seconds[weights])[len(seconds[weights]) // 2],
            "speed to float32": median_ratio(seconds["float32"], seconds[weights]),
        }
        for name, questions in asked.items():
            row |= scores(name, said[weights][name], said["float32"][name], questions)
        rows.append({**row, "peak MB, training": peak_of_a_step(model, processor, some) / 1e6})
    report(rows, options.csv)


if __name__ == "__main__":
    main()
