"""Setokim's processor writes [Img], placeholders and [/Img]; its pipeline goes from pictures and text to pictures."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

from tests.modeling.test_setokim_writing import eager_model
from tests.tiny import assistant, example, image_bytes, tiny_image, tiny_tokenizer, user
from tests.tiny_setokim import DRAWN_SIZE, END, MAX_TOKENS, START, tiny_setokim, tiny_setokim_processor
from vistok import SetokimForConditionalGeneration, SetokimPipeline, SetokimProcessor, VisualLanguageCollator
from vistok.processing.images import BadSampleError


@pytest.fixture(scope="module")
def pipe():
    return SetokimPipeline(eager_model(draws=True), tiny_setokim_processor())


def test_each_image_becomes_brackets_around_as_many_placeholders_as_it_may_need():
    processor = tiny_setokim_processor()
    inputs = processor(images=[tiny_image(1)], text="a <image> b", return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    start = ids.index(START)
    assert ids[start : start + MAX_TOKENS + 2] == [START, *[processor.image_token_id] * MAX_TOKENS, END]
    assert processor.decode(ids, skip_special_tokens=True).split() == ["a", "b"]


def test_what_was_generated_is_split_at_its_images():
    processor = tiny_setokim_processor()
    a, b = (processor.tokenizer(text)["input_ids"] for text in ("a dog", "two cats"))
    image = [START, *[processor.image_token_id] * 2, END]
    assert processor.split_at_images(torch.tensor([*a, *image, *image, *b])) == ["a dog", 0, 1, "two cats"]
    assert processor.split_at_images([*image, 1, 2]) == [0]
    assert processor.split_at_images(a) == ["a dog"]


@pytest.mark.parametrize("template", ["vicuna", "chatml"])
def test_a_prompt_for_an_image_is_what_training_shows_up_to_the_image(template):
    processor = tiny_setokim_processor(chat_template=template)
    for task, asked in (("generate", "a dog"), ("edit", "no dog"), ("segment", "the dog")):
        whole = processor.apply_chat_template(processor.task_messages(task, asked), tokenize=False)
        prompt = processor.task_prompt(task, asked)
        assert prompt.endswith("[Img]") and whole.startswith(prompt.removesuffix("[Img]") + "<image>")
        assert prompt.count("<image>") == (task != "generate") and asked in prompt
    with pytest.raises(ValueError, match="task is 'draw': choose one of generate, edit, segment"):
        processor.task_prompt("draw", "a dog")
    with pytest.raises(ValueError, match="The text to segment is ' '"):
        processor.task_prompt("segment", " ")
    for token in ("<image>", "[Img]", "[/Img]"):
        with pytest.raises(ValueError, match=f"has {re.escape(token)} in it, which stands for an image"):
            processor.task_prompt(task, f"a {token} sign")
    with pytest.raises(ValueError, match="leaves out the images of answers"):
        tiny_setokim_processor(chat_template="question-answer").task_prompt("generate", "a dog")


def test_images_of_answers_are_labelled_as_images_to_be_written():
    processor = tiny_setokim_processor()
    answer = {"role": "assistant", "content": [{"type": "text", "text": "here: "}, {"type": "image"}]}
    images = [image_bytes(1), image_bytes(2)]
    batch = VisualLanguageCollator(processor)([example([user("<image>", "another?"), answer], images)])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    placeholders = ids == processor.image_token_id
    assert placeholders.sum() == 2 * MAX_TOKENS
    assert (labels[placeholders][:MAX_TOKENS] == -100).all()
    assert (labels[placeholders][MAX_TOKENS:] == processor.image_token_id).all()
    assert labels.tolist().count(START) == labels.tolist().count(END) == 1
    output = tiny_setokim()(**batch)
    assert output.loss_visual > 0 and output.visual_positions.sum() <= MAX_TOKENS
    text_alone = VisualLanguageCollator(processor)(
        [example([user("<image>", "what?"), assistant("a dog")], images[:1])]
    )
    assert tiny_setokim()(**text_alone).loss_visual == 0


def test_prompts_become_pictures_which_follow_the_seed_alone(pipe):
    prompts = ["a dog", "two cats in the image", "a red circle"]
    together = pipe.generate_images(prompts, seed=3, max_image_tokens=3)
    assert [image.size for image in together] == [(DRAWN_SIZE, DRAWN_SIZE)] * 3
    single = pipe.generate_images(prompts, seed=3, max_image_tokens=3, batch_size=1)
    other = pipe.generate_images(prompts, seed=4, max_image_tokens=3)
    for one, same_seed, other_seed in zip(together, single, other):
        difference = np.abs(np.asarray(one, dtype=int) - np.asarray(same_seed, dtype=int))
        assert difference.max() <= 1, "but for rounding"
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other_seed, dtype=int)).max() > 10
    state = torch.get_rng_state()
    pipe.generate_images("a dog", seed=3, max_image_tokens=1, do_sample=True)
    assert torch.equal(state, torch.get_rng_state())


def test_instructions_become_pictures_of_their_own_source(pipe):
    sources = [tiny_image(1, (31, 17)), tiny_image(2)]
    edited = pipe.edit_images(sources, ["no dog", "a blue circle"], seed=0, max_image_tokens=2)
    assert [image.size for image in edited] == [(DRAWN_SIZE, DRAWN_SIZE)] * 2
    shared = pipe.edit_images(sources[0], ["no dog", "a blue circle"], seed=0, max_image_tokens=2)
    assert np.abs(np.asarray(edited[0], dtype=int) - np.asarray(shared[0], dtype=int)).max() <= 1


def test_expressions_become_masks_of_the_size_of_their_image(pipe):
    images = [tiny_image(1, (31, 17)), tiny_image(2, (20, 40))]
    masks = pipe.segment(images, ["the dog", "a red circle"])
    assert [(mask.shape, mask.dtype) for mask in masks] == [((17, 31), bool), ((40, 20), bool)]
    alone = pipe.segment(images[1], "a red circle")
    assert (alone[0] == masks[1]).mean() > 0.99
    assert len(pipe.segment(images[0], ["the dog", "a cat", "a circle"], batch_size=2)) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": [0]}, TypeError, r"seed is \[0\], expected one whole number"),
        ({"seed": 1.5}, TypeError, "seed is 1.5"),
        ({"seed": True}, TypeError, "seed is True"),
        ({"seed": -1}, ValueError, "seed is -1, expected 0 to 9223372036854775806 for 2 images"),
        ({"seed": 2**63 - 1}, ValueError, "seed is 9223372036854775807, expected 0 to"),
        ({"max_new_tokens": 3}, ValueError, "max_new_tokens is no option here"),
        ({"write_images": False}, ValueError, "write_images is no option here"),
    ],
)
def test_options_that_make_no_sense_are_refused(pipe, options, error, message):
    with pytest.raises(error, match=message):
        pipe.generate_images(["a dog", "a cat"], **options)


def test_options_that_a_mask_decides_on_are_refused(pipe):
    with pytest.raises(ValueError, match="max_image_tokens is no option here"):
        pipe.segment(tiny_image(1), "a dog", max_image_tokens=2)


def test_the_last_seeds_are_as_good_as_any(pipe):
    assert len(pipe.generate_images(np.array(["a dog", "a cat"]), seed=np.int64(2**63 - 2), max_image_tokens=1)) == 2


@pytest.mark.parametrize("texts", [3, None, {"a dog": 1}, ["a dog", 3], tiny_image(1)])
def test_what_is_no_text_is_refused(pipe, texts):
    for call in (pipe.generate_images, lambda told: pipe.segment(tiny_image(1), told)):
        with pytest.raises(TypeError, match=r"What to do is .*expected a text or a list of them"):
            call(texts)
    with pytest.raises(TypeError, match="images and then instructions"):
        pipe.edit_images("Remove the dog.", texts)


def test_wrong_inputs_are_refused(pipe):
    image = tiny_image(1)
    with pytest.raises(ValueError, match="There is no text"):
        pipe.generate_images([])
    with pytest.raises(ValueError, match="2 expressions and no images"):
        pipe.segment(None, ["a", "b"])
    with pytest.raises(ValueError, match="1 images for 2 instructions"):
        pipe.edit_images([image], ["a", "b"])
    with pytest.raises(ValueError, match="The text to segment is ''"):
        pipe.segment(image, "")
    with pytest.raises(ValueError, match="batch_size is 0"):
        pipe.generate_images("a", batch_size=0)
    with pytest.raises(ValueError, match="draws no images"):
        SetokimPipeline(tiny_setokim(), tiny_setokim_processor()).generate_images("a dog")
    with pytest.raises(ValueError, match="num_image_tokens of the processor is 5, of the model 6"):
        SetokimPipeline(tiny_setokim(), tiny_setokim_processor(num_image_tokens=5))
    cropping = SetokimProcessor(
        CLIPImageProcessorPil(crop_size={"height": 24, "width": 24}), tiny_tokenizer(), num_image_tokens=MAX_TOKENS
    )
    with pytest.raises(ValueError, match="crops or pads images"):
        SetokimPipeline(tiny_setokim(), cropping).segment(image, "a dog")
    with pytest.raises(BadSampleError, match="nowhere"):
        pipe.segment("nowhere.png", "a dog")


def test_the_whole_is_loaded_from_one_folder(pipe, tmp_path):
    pipe.model.save_pretrained(tmp_path)
    pipe.processor.save_pretrained(tmp_path)
    loaded = SetokimPipeline.from_pretrained(tmp_path)
    image = tiny_image(3)
    assert (loaded.segment(image, "a dog")[0] == pipe.segment(image, "a dog")[0]).all()
    assert isinstance(loaded.generate_images("a dog", max_image_tokens=1)[0], Image.Image)


def test_model_and_processor_come_from_the_same_revision(pipe, monkeypatch):
    asked = {}

    def loading(of, value):
        return lambda name, **kwargs: asked.update({of: (name, kwargs)}) or value

    monkeypatch.setattr(SetokimForConditionalGeneration, "from_pretrained", loading("model", pipe.model))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", loading("processor", pipe.processor))
    SetokimPipeline.from_pretrained("org/setokim", revision="v2", dtype="bfloat16")
    assert asked["model"] == ("org/setokim", {"revision": "v2", "dtype": "bfloat16"})
    assert asked["processor"] == ("org/setokim", {"revision": "v2"})


def test_instructions_may_have_other_braces():
    processor = tiny_setokim_processor(segmentation_instruction="{} as {json}", chat_template="chatml")
    assert "a {dog} as {json}" in processor.task_prompt("segment", "a {dog}")


@pytest.mark.parametrize("change", [{"generation_instruction": "no place"}, {"segmentation_instruction": "{} and {}"}])
def test_instructions_have_one_place_for_the_text(change):
    with pytest.raises(ValueError, match=r"write \{\} once"):
        tiny_setokim_processor(**change)
    with pytest.raises(TypeError, match="num_latents: no argument of SetokimProcessor"):
        tiny_setokim_processor(num_latents=3)
