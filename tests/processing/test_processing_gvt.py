"""The processor writes GVT's prompt around images, and comes back from disk as it was."""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from tests.tiny import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    save_base_models,
    tiny_image,
    tiny_image_processor,
    tiny_processor,
    tiny_tokenizer,
    user,
)
from vistok import GVTProcessor


@pytest.fixture(scope="module")
def base_models(tmp_path_factory):
    return save_base_models(tmp_path_factory.mktemp("base"))


def test_an_image_becomes_begin_text_placeholders_and_end_text():
    processor = tiny_processor()
    inputs = processor(images=tiny_image(), text="<image>\nQuestion: is there a dog? Answer:")
    assert inputs["input_ids"][0].count(IMAGE_TOKEN_ID) == 3
    expected = "<Img> <image><image><image></Img>\nQuestion: is there a dog? Answer:"
    assert processor.decode(inputs["input_ids"][0]) == expected
    other = tiny_processor(num_image_tokens=2, image_start_text="[", image_end_text="]")
    assert other.decode(other(images=tiny_image(), text="a<image>b")["input_ids"][0]) == "a[<image><image>]b"


def test_default_number_of_placeholders_is_that_of_the_paper():
    processor = GVTProcessor(tiny_image_processor(), tiny_tokenizer())
    assert processor(images=tiny_image(), text="<image>")["input_ids"][0].count(IMAGE_TOKEN_ID) == 32


def test_pixels_are_those_of_the_image_processor_in_the_order_of_the_text():
    processor = tiny_processor()
    images = [tiny_image(0), tiny_image(1, (50, 20)), tiny_image(2)]
    texts = ["<image> one", "<image> two <image> three", "no image"]
    expected = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    for nested in (images, [images[:1], images[1:], []]):
        inputs = processor(images=nested, text=texts, padding=True, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], expected)
        assert (inputs["input_ids"] == IMAGE_TOKEN_ID).sum(1).tolist() == [3, 6, 0]
    assert expected.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_prompts_are_padded_on_the_left_so_that_answers_follow_them():
    processor = tiny_processor()
    inputs = processor(text=["one", "one two three four"], padding=True, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == processor.tokenizer.pad_token_id
    assert inputs["attention_mask"][0].tolist() == sorted(inputs["attention_mask"][0].tolist())
    assert "pixel_values" not in inputs
    right = processor(text=["one", "one two three"], padding=True, padding_side="right", return_tensors="pt")
    assert right["attention_mask"][0, 0] == 1


@pytest.mark.parametrize(
    "text, images, numbers",
    [("<image> one", 2, ("1", "2")), ("<image> <image>", 1, ("2", "1")), ("none", 1, ("0", "1"))],
)
def test_wrong_number_of_images_names_both_numbers(text, images, numbers):
    with pytest.raises(ValueError, match=rf"{numbers[0]} <image> tokens and {numbers[1]} images were given"):
        tiny_processor()(images=[tiny_image(seed) for seed in range(images)], text=text)


def test_placeholders_without_images_are_refused():
    with pytest.raises(ValueError, match=r"2 <image> tokens and 0 images were given"):
        tiny_processor()(text="<image> <image>")


@pytest.mark.parametrize(
    "images, message",
    [
        ([[0], [1]], r"Text 0 has 2 <image> tokens and 1 images were given for it"),
        ([[0, 1, 2]], r"2 texts and 1 lists of images were given"),
        ([[0], [1], [2]], r"2 texts and 3 lists of images were given"),
    ],
)
def test_images_in_rows_belong_to_the_text_of_their_row(images, message):
    texts = ["<image> <image> a", "b"] if images == [[0], [1]] else ["<image> <image> a", "<image> b"]
    with pytest.raises(ValueError, match=message):
        tiny_processor()(images=[[tiny_image(seed) for seed in row] for row in images], text=texts)


def test_kinds_of_images_are_converted_to_rgb():
    processor = tiny_processor()
    grey = tiny_image().convert("L")
    for image in (grey, grey.convert("RGBA"), np.asarray(grey.convert("RGB"))):
        expected = processor(images=grey.convert("RGB"), text="<image>", return_tensors="pt")["pixel_values"]
        assert torch.allclose(processor(images=image, text="<image>", return_tensors="pt")["pixel_values"], expected)


def test_chat_messages_with_images_become_inputs():
    processor = tiny_processor()
    message = {"role": "user", "content": [{"type": "image", "image": tiny_image(4)}, {"type": "text", "text": "q"}]}
    inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    expected = processor(images=tiny_image(4), text="<image>\nQuestion: q Answer:", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    conversations = [[message], [user("how many?")]]
    both = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    assert (both["input_ids"] == IMAGE_TOKEN_ID).sum(1).tolist() == [3, 0]
    assert len(both["pixel_values"]) == 1


def test_a_processor_comes_back_from_disk_as_it_was(tmp_path):
    processor = tiny_processor(image_start_text="[", image_end_text="] ", chat_template="vicuna")
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), GVTProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is GVTProcessor
        assert (loaded.image_start_text, loaded.image_end_text, loaded.num_image_tokens) == ("[", "] ", 3)
        assert (loaded.image_token, loaded.image_token_id) == ("<image>", IMAGE_TOKEN_ID)
        assert loaded.chat_template == processor.chat_template
        given = {"images": [tiny_image(3, (31, 60))], "text": "<image>\nq", "return_tensors": "pt"}
        assert all(torch.equal(loaded(**given)[name], value) for name, value in processor(**given).items())


def test_auto_classes_load_the_parts(tmp_path):
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.image_token == "<image>"
    assert tokenizer("a<image>b")["input_ids"] == processor.tokenizer("a<image>b")["input_ids"]
    image_processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = tiny_image(3, (31, 60))
    assert torch.equal(
        image_processor(image, return_tensors="pt")["pixel_values"],
        processor.image_processor(image, return_tensors="pt")["pixel_values"],
    )
    if importlib.util.find_spec("torchvision") is None:
        assert type(image_processor).__name__.endswith("Pil")


def test_processor_of_two_checkpoints(base_models):
    processor = GVTProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=5, chat_template="chatml")
    assert processor.num_image_tokens == 5
    assert "<|im_start|>" in processor.chat_template
    assert processor.image_processor.size == {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    assert processor.image_token_id == IMAGE_TOKEN_ID
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == IMAGE_TOKEN_ID


def test_arguments_that_the_processor_lacks_are_refused_by_name(base_models):
    with pytest.raises(TypeError, match=r"num_latents: no argument .*takes num_image_tokens"):
        GVTProcessor.from_vision_text_pretrained(*base_models, num_latents=16)
    with pytest.raises(TypeError, match="image_start_txt"):
        tiny_processor(image_start_txt="[")


def test_parts_of_the_wrong_kind_are_refused_by_name():
    with pytest.raises(TypeError, match="got no tokenizer"):
        GVTProcessor(tiny_image_processor())
    with pytest.raises(TypeError, match=r"chat_template is a dict: give one Jinja template"):
        tiny_processor(chat_template={"default": "{{ messages }}"})


def test_images_may_be_resized_to_a_square_without_crop(base_models):
    processor = GVTProcessor.from_vision_text_pretrained(*base_models, image_size=40)
    image = tiny_image(1, (80, 20))
    values = processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 40, 40)
    resized = torch.tensor(np.asarray(image.resize((40, 40), 3))).permute(2, 0, 1) / 255  # 3: bicubic
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    expected = (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(values[0], expected, atol=0.02)


def test_a_tokenizer_without_padding_pads_with_its_end(base_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base_models[1])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    processor = GVTProcessor.from_vision_text_pretrained(base_models[0], str(tmp_path))
    assert processor.tokenizer.pad_token == "</s>"


def test_number_of_image_tokens_is_told_to_servers():
    counts = tiny_processor()._get_num_multimodal_tokens(image_sizes=[(10, 20), (30, 40)])
    assert counts.num_image_tokens == [3, 3]
    assert counts.num_image_patches == [1, 1]


def test_answers_are_decoded_without_special_tokens():
    processor = tiny_processor()
    ids = processor.tokenizer(["yes</s>", "three cats</s>"])["input_ids"]
    assert processor.post_process_image_text_to_text(ids) == ["yes", "three cats"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["yes", "three cats"]
