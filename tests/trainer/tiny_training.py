"""What tests of training are made of: questions about random images, and what changed in a model."""

import torch
from datasets import Dataset

from tests.tiny import assistant, image_bytes, user
from vistok.trainer.data_examples import FEATURES

QUESTIONS = ("a dog?", "how many are there?", "is there a red dog in the image?")
# Of one to many tokens: a mean over batches is not a mean over tokens.
ANSWERS = ("no", "two blue squares and a cat", "yes", "a red circle")


def question(index: int, image: int | None = None, text: str | None = None, answer: str | None = None) -> dict:
    """A training example of one question, about an image of random pixels or about none."""
    parts = ["<image>"] if image is not None else []
    messages = [
        user(*parts, text or QUESTIONS[index % len(QUESTIONS)]),
        assistant(answer or ANSWERS[index % len(ANSWERS)]),
    ]
    images = [image_bytes(image)] if image is not None else []
    return {"id": f"q{index}", "source": "planted", "row": index, "images": images, "messages": messages}


def questions(count: int, per_image: int = 1) -> Dataset:
    """Questions about different images, or several about each."""
    return Dataset.from_list([question(i, i // per_image) for i in range(count)], features=FEATURES)


def losses(trainer) -> list[float]:
    """The losses that were logged, step by step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that are not what they were, or were not there."""
    return {
        name
        for name, parameter in model.named_parameters()
        if name not in before or not torch.equal(parameter, before[name])
    }


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)
