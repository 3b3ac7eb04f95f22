"""Questions about images of random pixels, and a tiny GVT: with random weights, or taught to answer them."""

import copy

import pytest
import torch

from tests.tiny import assistant, image_bytes, livelier, tiny_gvt, tiny_gvt_config, tiny_processor, user
from vistok import GVTForConditionalGeneration, VisualLanguageCollator

TEXTS = ("a?", "is there a red dog in it?", "how many are there?")
ANSWERS = ("red", "blue", "green")
NUM_IMAGES = 6


@pytest.fixture(scope="session")
def make_question():
    """Makes a training example of one question, its images before it."""

    def make(index, text, answer, *images, **columns):
        messages = [user(*["<image>"] * len(images), text), assistant(answer)]
        row = {"id": f"q{index}", "source": "planted", "row": index, "images": list(images), "messages": messages}
        return {**row, **columns}

    return make


@pytest.fixture(scope="session")
def questions(make_question):
    """
    Eighteen questions of three lengths and two types. There are three about each of six images, but no two neighbours
    are about the same. The image alone decides on the answer: red, blue or green.
    """
    return [
        make_question(
            index,
            TEXTS[index // NUM_IMAGES],
            ANSWERS[index % len(ANSWERS)],
            image_bytes(index % NUM_IMAGES),
            answer_type="colour" if index < 2 * NUM_IMAGES else "other",
        )
        for index in range(len(TEXTS) * NUM_IMAGES)
    ]


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture
def model():
    """Random, so that it says anything, of any length."""
    model = tiny_gvt()
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    return model


@pytest.fixture(scope="session")
def teach():
    """Trains a model, until it knows the answers by heart."""

    def train(text_config, processor, examples):
        torch.manual_seed(0)
        model = GVTForConditionalGeneration._from_config(tiny_gvt_config(text_config=text_config))
        batch = VisualLanguageCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)(examples)
        livelier(model, 3.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(1000):
            loss = model(**batch).loss
            if loss < 0.02:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            raise RuntimeError(f"The model did not learn its answers by heart: the loss is still {loss:.3f}.")
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        return model.eval()

    return train


@pytest.fixture(scope="session")
def _taught(teach, processor, questions):
    return teach(None, processor, questions)


@pytest.fixture
def taught(_taught):
    """A model that looks at the image and gives all of the right answers."""
    return copy.deepcopy(_taught)
