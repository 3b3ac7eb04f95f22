"""VT-LMM's processor writes LLaVA-1.5's prompts and pads images to squares, and comes back from disk as it was."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil

from tests.tiny import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    assistant,
    example,
    image_bytes,
    save_base_models,
    tiny_image,
    tiny_image_processor,
    tiny_tokenizer,
    user,
)
from tests.tiny_kinds import tiny_vtlmm_processor
from vistok import VisualLanguageCollator, VTLMMProcessor
from vistok.processing.collator import tokenize_conversation
from vistok.processing.square_images import prepared_side, square_image_processor

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def base_models(tmp_path_factory):
    return save_base_models(tmp_path_factory.mktemp("base"))


def padded_by_hand(image: Image.Image, side: int) -> torch.Tensor:
    """
    What LLaVA-1.5 shows its tower (haotian-liu/LLaVA, llava/mm_utils.py, expand2square): the image in the middle of a
    square of the mean colour, an odd pixel more behind it, then resized, bicubically, and normalised.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    longest = max(height, width)
    square = np.empty((longest, longest, 3), dtype=np.uint8)
    for channel, mean in enumerate(MEAN):
        square[..., channel] = int(mean * 255)
    top, left = (longest - height) // 2, (longest - width) // 2
    square[top : top + height, left : left + width] = pixels
    resized = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)) / 255.0
    return torch.tensor((resized - np.array(MEAN)) / np.array(STD), dtype=torch.float32).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(50, 20), (20, 50), (31, 30), (30, 31), (24, 24), (7, 100)])
def test_images_are_padded_as_llava_pads_them(base_models, size):
    processor = VTLMMProcessor.from_vision_text_pretrained(*base_models)
    image = tiny_image(1, size)
    found = processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.allclose(found[0], padded_by_hand(image, IMAGE_SIZE), atol=1e-5)
    alone = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(alone, found), "also when the image processor is called by itself"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_are_padded_with_the_same_colour(base_models, mode):
    processor = VTLMMProcessor.from_vision_text_pretrained(*base_models)
    image = tiny_image(1, (50, 20)).convert("L").convert(mode)
    found = processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]
    assert torch.allclose(found[0], padded_by_hand(image, IMAGE_SIZE), atol=1e-5)


def test_collators_pad_images_too(base_models):
    processor = VTLMMProcessor.from_vision_text_pretrained(*base_models)
    collator = VisualLanguageCollator(processor)
    batch = collator([example([user("<image>", "what?"), assistant("a dog")], [image_bytes(1)])])
    assert torch.allclose(batch["pixel_values"][0], padded_by_hand(tiny_image(1), IMAGE_SIZE), atol=1e-5)
    assert (batch["input_ids"] == IMAGE_TOKEN_ID).sum() == 9
    answer = batch["labels"][batch["labels"] != -100]
    assert processor.decode(answer) == " a dog</s>"


def test_other_sizes_have_other_numbers_of_tokens(base_models):
    processor = VTLMMProcessor.from_vision_text_pretrained(*base_models, image_size=40)
    assert processor.num_image_tokens == 25
    inputs = processor(images=tiny_image(1, (80, 20)), text="<image> a", return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE_TOKEN_ID).sum() == 25
    assert torch.allclose(inputs["pixel_values"][0], padded_by_hand(tiny_image(1, (80, 20)), 40), atol=1e-5)
    assert VTLMMProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=10).num_image_tokens == 10


def test_without_padding_images_are_prepared_as_the_tower_prepares_them(base_models):
    processor = VTLMMProcessor.from_vision_text_pretrained(*base_models, pad_to_square=False)
    image = tiny_image(1, (50, 20))
    expected = tiny_image_processor()(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=image, text="<image>", return_tensors="pt")["pixel_values"], expected)
    assert processor.num_image_tokens == 9
    larger = VTLMMProcessor.from_vision_text_pretrained(*base_models, pad_to_square=False, image_size=40)
    assert larger(images=image, text="<image>", return_tensors="pt")["pixel_values"].shape == (1, 3, 40, 40)
    assert larger.num_image_tokens == 25


def test_side_of_the_squares_is_that_of_the_towers_images():
    cropping = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24})
    assert prepared_side(cropping) == 24
    assert square_image_processor(cropping).size == {"height": 24, "width": 24}
    free = CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    assert prepared_side(free) is None
    assert prepared_side(CLIPImageProcessorPil(do_resize=False, do_center_crop=False)) is None
    with pytest.raises(ValueError, match=r"no fixed square .*shortest_edge.*give image_size"):
        square_image_processor(free)
    other = square_image_processor(tiny_image_processor(image_mean=[0.5] * 3, image_std=[0.4] * 3, resample=2))
    assert (tuple(other.image_mean), tuple(other.image_std), other.resample) == ((0.5,) * 3, (0.4,) * 3, 2)


def test_sizes_that_nobody_knows_are_asked_for(tmp_path):
    vision, text = save_base_models(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(vision)
    with pytest.raises(ValueError, match=r"give image_size or num_image_tokens"):
        VTLMMProcessor.from_vision_text_pretrained(vision, text, pad_to_square=False)
    assert VTLMMProcessor.from_vision_text_pretrained(vision, text, image_size=32).num_image_tokens == 16


def test_an_image_becomes_its_placeholders_and_nothing_else():
    processor = tiny_vtlmm_processor()
    inputs = processor(images=[tiny_image(), tiny_image(1)], text="a<image>b <image>\nc", return_tensors="pt")
    tokens = "<image>" * 9
    assert processor.decode(inputs["input_ids"][0]) == f"a{tokens}b {tokens}\nc"
    assert VTLMMProcessor(tiny_image_processor(), tiny_tokenizer()).num_image_tokens == 576


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
QUESTIONS = [user("<image>", "Is there a dog?"), assistant("Yes."), user("What else?")]
ANSWERED = [*QUESTIONS, assistant("A cat.")]
# By get_prompt() of haotian-liu/LLaVA, llava/conversation.py, of conv_vicuna_v1 and conv_mistral_instruct.
PROMPTS = {
    "vicuna": f"{SYSTEM} USER: <image>\nIs there a dog? ASSISTANT: Yes.</s>USER: What else? ASSISTANT:",
    "mistral": "[INST] <image>\nIs there a dog? [/INST] Yes. </s>[INST] What else? [/INST]",
}
CONVERSATIONS = {"vicuna": PROMPTS["vicuna"] + " A cat.</s>", "mistral": PROMPTS["mistral"] + " A cat. </s>"}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_those_of_llava(name):
    processor = tiny_vtlmm_processor(chat_template=name)
    for add_generation_prompt in (False, True):
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        assert processor.apply_chat_template(QUESTIONS, **options) == PROMPTS[name]
    assert processor.apply_chat_template(ANSWERED, tokenize=False) == CONVERSATIONS[name]


def test_vicuna_is_the_default_and_has_a_system_prompt_that_may_be_another():
    processor = tiny_vtlmm_processor()
    assert processor.apply_chat_template(QUESTIONS, tokenize=False) == PROMPTS["vicuna"]
    messages = [{"role": "system", "content": "Be brief."}, user("Why?")]
    assert processor.apply_chat_template(messages, tokenize=False) == "Be brief. USER: Why? ASSISTANT:"
    processor = tiny_vtlmm_processor(chat_template="mistral")
    expected = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]"
    assert processor.apply_chat_template(messages, tokenize=False) == expected


@pytest.mark.parametrize(
    "message, expected",
    [
        (user("What is this?\n", "<image>"), "<image>\nWhat is this?"),
        (user("<image>", " What is this? "), "<image>\nWhat is this?"),
        (user("<image>"), "<image>"),
        (user("<image>", "<image>", "Which?"), "<image>\n<image>\nWhich?"),
        (user(" Why? "), " Why? "),
    ],
)
def test_images_come_first_as_llava_moves_them(message, expected):
    written = tiny_vtlmm_processor().apply_chat_template([message], tokenize=False)
    assert written == f"{SYSTEM} USER: {expected} ASSISTANT:"


def test_captions_alone_are_written_for_alignment():
    processor = tiny_vtlmm_processor(chat_template="plain")
    messages = [user("<image>", "Describe it."), assistant("A dog.")]
    assert processor.apply_chat_template(messages, tokenize=False) == "<image>A dog.\n"
    conversation = tokenize_conversation(processor, messages)
    assert conversation.supervised == [False] * 9 + [True] * (len(conversation.input_ids) - 9)
    assert processor.decode(conversation.input_ids[9:]) == "A dog.\n"


def test_names_of_templates_are_the_processors_own():
    processor = tiny_vtlmm_processor(chat_template="question-answer")
    assert processor.named_chat_template("vicuna") == processor.named_chat_template("vicuna-v1")
    assert "curious user" in processor.named_chat_template("vicuna")
    assert processor.named_chat_template("{{ messages }}") == "{{ messages }}"
    with pytest.raises(ValueError, match="'alpaca' is no chat template"):
        tiny_vtlmm_processor(chat_template="alpaca")


def test_a_processor_comes_back_from_disk_as_it_was(base_models, tmp_path):
    processor = VTLMMProcessor.from_vision_text_pretrained(*base_models, image_size=32, chat_template="mistral")
    processor.save_pretrained(tmp_path)
    given = {"images": tiny_image(3, (31, 60)), "text": "<image>\nq", "return_tensors": "pt"}
    for loaded in (AutoProcessor.from_pretrained(tmp_path), VTLMMProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is VTLMMProcessor
        assert loaded.num_image_tokens == 16
        assert loaded.chat_template == processor.chat_template
        assert all(torch.equal(loaded(**given)[name], value) for name, value in processor(**given).items())
    alone = AutoImageProcessor.from_pretrained(tmp_path)
    expected = padded_by_hand(tiny_image(3, (31, 60)), 32)
    assert torch.allclose(alone(tiny_image(3, (31, 60)), return_tensors="pt")["pixel_values"][0], expected, atol=1e-5)
    assert isinstance(processor.image_processor, LlavaImageProcessorPil)


def test_chat_messages_with_images_become_inputs():
    processor = tiny_vtlmm_processor()
    message = {"role": "user", "content": [{"type": "image", "image": tiny_image(4)}, {"type": "text", "text": "q"}]}
    inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    expected = processor(images=tiny_image(4), text=f"{SYSTEM} USER: <image>\nq ASSISTANT:", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


def test_what_does_not_fit_is_refused(base_models):
    with pytest.raises(ValueError, match=r"1 <image> tokens and 2 images were given"):
        tiny_vtlmm_processor()(images=[tiny_image(), tiny_image(1)], text="<image>")
    with pytest.raises(TypeError, match=r"image_start_text: no argument of VTLMMProcessor"):
        VTLMMProcessor.from_vision_text_pretrained(*base_models, image_start_text="[")
    with pytest.raises(TypeError, match="VTLMMProcessor got no tokenizer"):
        VTLMMProcessor(tiny_image_processor())


@pytest.mark.parametrize("number", [0, -1, "9", 9.0, None])
def test_an_image_has_at_least_one_visual_token(number):
    with pytest.raises(ValueError, match=f"num_image_tokens is {number!r}: give the number"):
        tiny_vtlmm_processor(num_image_tokens=number)
