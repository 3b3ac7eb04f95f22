"""What a server needs of our models and processors, as docs/vllm.md lists it: see serving_backend.py."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from tests.modeling.serving_backend import ServingBackend, prompt_by_replacements, serving_attention
from tests.tiny import IMAGE_SIZE, IMAGE_TOKEN_ID, NUM_PATCHES, pixels, same, save_base_models, tiny_image, words
from tests.tiny_kinds import every_kind
from tests.tiny_llava import EVERY_PATCH, tiny_llava_processor, tiny_setok_llava
from tests.tiny_llava import images_of_lengths as llava_images_of_lengths
from tests.tiny_setokim import images_of_lengths, tiny_setokim
from vistok.configuration.shipped import shipped_path
from vistok.processing.composed_llava_processor import compose_llava_processor


@pytest.fixture(autouse=True)
def attention():
    with serving_attention():
        yield


@every_kind
def test_the_server_computes_what_the_model_computes(kind):
    model = kind.make()
    assert AutoModel._model_mapping[type(model.config)].is_backend_compatible()
    server = ServingBackend(model.config, model.state_dict())
    assert server.unknown == set()
    images, row = pixels(2), kind.rows[1]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([row]), pixel_values=images).logits[0]
    embeddings = server.image_embeddings(images)
    assert [image.shape[0] for image in embeddings] == [kind.num_tokens] * 2
    assert same(server.logits(row, embeddings, IMAGE_TOKEN_ID), expected, 1e-4)
    assert set(server.attention_instances.values()) == {1}, "each layer attends through the server"


def test_a_llava_whose_patches_are_all_tokens_of_setok_is_served_with_llavas_processor():
    model, processor = tiny_setok_llava(EVERY_PATCH), tiny_llava_processor()
    server = ServingBackend(model.config, model.state_dict())
    assert server.unknown == set()
    image, prompt = tiny_image(), "<image>\nis there a dog?"
    assert processor._get_num_multimodal_tokens(image_sizes=[(40, 30)])["num_image_tokens"] == [NUM_PATCHES]
    inputs = processor(images=[image], text=prompt, return_tensors="pt")
    row = prompt_by_replacements(processor, prompt, [image])
    assert row == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        expected = model(**inputs).logits[0]
    embeddings = server.image_embeddings(inputs["pixel_values"])
    assert same(server.logits(row, embeddings, IMAGE_TOKEN_ID), expected, 1e-4)


def test_a_composed_llava_processor_counts_what_it_writes(tmp_path):
    processor = compose_llava_processor(*save_base_models(tmp_path), image_size=2 * IMAGE_SIZE)
    assert not processor.image_processor.do_center_crop
    inputs = processor(images=[tiny_image()], text="<image>", return_tensors="pt")
    (counted,) = processor._get_num_multimodal_tokens(image_sizes=[(40, 30)])["num_image_tokens"]
    assert (inputs["input_ids"] == processor.image_token_id).sum() == counted == 4 * NUM_PATCHES


@every_kind
def test_the_server_finds_tower_and_language_model(kind):
    core = kind.make().model
    assert core.get_encoder(modality="image") is core.vision_tower
    assert core.get_decoder() is core.language_model
    assert any("language_model" in name for name in core.tp_plan), "its language model can be split among GPUs"


@every_kind
def test_the_processor_tells_how_many_tokens_an_image_has_and_what_it_is_written_as(kind):
    processor = kind.processor()
    counts = processor._get_num_multimodal_tokens(image_sizes=[(10_000, 10_000), (3, 5)])
    assert counts["num_image_tokens"] == [kind.num_tokens] * 2
    assert counts["num_image_patches"] == [1, 1]
    images = [tiny_image(0), tiny_image(1, size=(40, 20))]
    prompt = "USER: <image>\nwhat is there? <image> two\nASSISTANT:"
    inputs = processor(images=images, text=prompt, return_tensors="pt", return_mm_token_type_ids=True)
    assert inputs["pixel_values"].shape[0] == 2
    assert inputs["mm_token_type_ids"].sum() == 2 * kind.num_tokens
    assert prompt_by_replacements(processor, prompt, images) == inputs["input_ids"][0].tolist()


def test_prompts_of_the_shipped_model_are_tokenised_as_by_its_processor():
    processor = AutoProcessor.from_pretrained(shipped_path("checkpoints/gvt-demo"))
    image = tiny_image()
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Is there a cat in the image?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = processor(images=[image], text=prompt, return_tensors="pt")["input_ids"][0].tolist()
    assert prompt_by_replacements(processor, prompt, [image]) == expected


@pytest.mark.parametrize(
    ("make", "find"), [(tiny_setokim, images_of_lengths), (tiny_setok_llava, llava_images_of_lengths)]
)
def test_a_number_of_tokens_that_follows_the_image_leaves_placeholders_that_no_server_fills(make, find):
    # What docs/vllm.md says cannot be served: the number is known only when the image was seen.
    model = make()
    images, lengths = find(model)
    server = ServingBackend(model.config, model.state_dict())
    embeddings = server.image_embeddings(images[:1])
    assert len(embeddings[0]) == lengths[0]
    row = [*[IMAGE_TOKEN_ID] * (max(lengths) + 1), *words(3)]
    with pytest.raises(ValueError, match="placeholders"):
        server.logits(row, embeddings, IMAGE_TOKEN_ID)
