"""SeTok behind the projector of transformers' LLaVA: with a token per patch it is LLaVA, with fewer it reads less."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PixtralVisionConfig,
)

from tests.tiny import (
    IMAGE_TOKEN_ID,
    NUM_PATCHES,
    batch,
    pixels,
    same,
    save_base_models,
    tiny_clip_config,
    tiny_gvt,
    tiny_image,
    tiny_llama_config,
    words,
)
from tests.tiny_llava import (
    EVERY_PATCH,
    SLOTS,
    VARIABLE,
    images_of_lengths,
    tiny_llava,
    tiny_llava_processor,
    tiny_setok_llava,
)
from vistok import (
    SeTokLlavaConfig,
    SeTokLlavaForConditionalGeneration,
    SeTokTokenizerConfig,
    plug_setok,
    save_trained_weights,
)
from vistok.trainer.freezing import set_trainable

PARTS = [[words(2, 1), 0, words(4, 2)], [1, words(1, 5), 2, words(2, 3)], [words(3, 4)]]  # a number is an image
ROWS = [[token for part in row for token in (SLOTS if isinstance(part, int) else part)] for row in PARTS]


@pytest.fixture(scope="module")
def model():
    return tiny_setok_llava()


@pytest.fixture(scope="module")
def images(model):
    return images_of_lengths(model)


def positions(inputs):
    """Counted over the mask: transformers' LLaVA counts padding outside of generate."""
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def logits_alone(model, parts, images):
    """Of a row whose images take as many positions as they have tokens, behind its last image."""
    tokens, embed = model.get_image_features(images).pooler_output, model.get_input_embeddings()
    embeddings = torch.cat([tokens[part] if isinstance(part, int) else embed(torch.tensor(part)) for part in parts])
    states = model.model.language_model(inputs_embeds=embeddings[None]).last_hidden_state
    return model.lm_head(states)[0, -len(parts[-1]) :]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vision_feature_layer": [-1, -2]},
        {"vision_feature_select_strategy": "full"},
        {"text_config": tiny_llama_config(tie_word_embeddings=True)},
    ],
    ids=["default", "two layers", "[CLS]", "tied"],
)
def test_with_a_token_for_each_patch_it_is_llava(options):
    plain = tiny_llava(**options)
    plugged = plug_setok(plain, EVERY_PATCH)
    each = NUM_PATCHES + ("full" in options.values())
    image = [IMAGE_TOKEN_ID] * each
    inputs = batch([*words(2, 1), *image, *words(4, 2)], [*image, 7, *image, *words(1, 3)], words(3, 4))
    expected = plain(**inputs, pixel_values=pixels(3), position_ids=positions(inputs)).logits
    found = plugged(**inputs, pixel_values=pixels(3)).logits
    real = inputs["attention_mask"].bool()
    assert same(found[real], expected[real])
    assert sum(p.numel() for p in plugged.parameters()) == sum(p.numel() for p in plain.parameters())
    assert torch.equal(
        plugged.generate(**inputs, pixel_values=pixels(3), max_new_tokens=3, do_sample=False),
        plain.generate(**inputs, pixel_values=pixels(3), max_new_tokens=3, do_sample=False),
    )


def test_one_token_is_the_mean_of_the_projected_patches():
    plain = tiny_llava()
    features = plug_setok(plain, {"max_tokens": 1}).get_image_features(pixels(2))
    expected = plain.get_image_features(pixels(2)).pooler_output
    assert [len(tokens) for tokens in features.pooler_output] == [1, 1]
    for found, patches in zip(features.pooler_output, expected):
        assert same(found[0], patches.mean(0))


def test_a_token_is_the_mean_of_its_cluster(model, images):
    pixel_values, lengths = images
    features = model.get_image_features(pixel_values)
    projected = model.model.multi_modal_projector(model.model.get_vision_features(pixel_values).patch_features)
    for image, length in enumerate(lengths):
        tokens = features.pooler_output[image]
        assert len(tokens) == length and features.assignment[image].max() == length - 1
        for cluster in range(length):
            assert same(tokens[cluster], projected[image][features.assignment[image] == cluster].mean(0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_row_alone_and_costs_its_real_tokens(model, images, side):
    pixel_values, lengths = images
    read = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    inputs = batch(*ROWS, side=side)
    logits = model(**inputs, pixel_values=pixel_values).logits
    hook.remove()
    real = [sum(lengths[part] if isinstance(part, int) else len(part) for part in parts) for parts in PARTS]
    assert read == [max(real)] and logits.shape[1] == inputs["input_ids"].shape[1] > read[0]
    for index, parts in enumerate(PARTS):
        found = logits[index][inputs["attention_mask"][index].bool()][-len(parts[-1]) :]
        assert same(found, logits_alone(model, parts, pixel_values), 1e-4)


def test_generation_equals_reading_everything_anew_at_each_step(model, images):
    pixel_values, _ = images
    inputs = batch(*ROWS)
    written = model.generate(**inputs, pixel_values=pixel_values, max_new_tokens=4, do_sample=False)
    rows = [list(row) for row in ROWS]
    for _ in range(4):
        logits = model(**batch(*rows), pixel_values=pixel_values).logits[:, -1]
        logits[:, IMAGE_TOKEN_ID] = -torch.inf
        rows = [[*row, token] for row, token in zip(rows, logits.argmax(-1).tolist())]
    assert written[:, -4:].tolist() == [row[-4:] for row in rows]
    assert torch.equal(written[:, :-4], inputs["input_ids"])
    beams = model.generate(**inputs, pixel_values=pixel_values, max_new_tokens=2, num_beams=2)
    assert beams.shape == (3, inputs["input_ids"].shape[1] + 2)


def test_the_key_value_cache_holds_real_tokens_alone(model, images):
    pixel_values, lengths = images
    inputs = batch(ROWS[0])
    output = model.generate(
        **inputs, pixel_values=pixel_values[:1], max_new_tokens=2, return_dict_in_generate=True, do_sample=False
    )
    assert output.past_key_values.get_seq_length() == len(ROWS[0]) - NUM_PATCHES + lengths[0] + 1


def test_llavas_own_processor_prepares_it(model):
    processor = tiny_llava_processor()
    pictures = [tiny_image(1, (40, 30)), tiny_image(2, (24, 60))]
    text = ["<image>\nQuestion: is there a dog? Answer:", "a <image>"]
    inputs = processor(images=pictures, text=text, return_tensors="pt", padding=True)
    assert (inputs["input_ids"] == IMAGE_TOKEN_ID).sum() == 2 * NUM_PATCHES
    written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for index in range(2):
        one = processor(images=pictures[index], text=text[index], return_tensors="pt")
        expected = model.generate(**one, max_new_tokens=3, do_sample=False)
        assert written[index, -3:].tolist() == expected[0, -3:].tolist()


def test_it_is_saved_and_loaded_as_any_model(model, images, tmp_path):
    pixel_values, _ = images
    model.save_pretrained(tmp_path)
    tiny_llava_processor().save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is SeTokLlavaForConditionalGeneration
    assert all(getattr(loaded.config.setok_config, name) == value for name, value in VARIABLE.items())
    inputs = batch(*ROWS)
    assert same(loaded(**inputs, pixel_values=pixel_values).logits, model(**inputs, pixel_values=pixel_values).logits)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is LlavaProcessor


def test_what_is_trained_is_saved_alone_and_completed_by_llava(tmp_path):
    tiny_llava().save_pretrained(tmp_path / "llava")
    merged = {**VARIABLE, "merger": "attention", "merger_num_layers": 1}
    model = SeTokLlavaForConditionalGeneration.from_llava_pretrained(str(tmp_path / "llava"), merged)
    set_trainable(model, {"projector": "full", "setok": "full", "llm": "lora"}, {"r": 2})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    save_trained_weights(model, tmp_path / "trained")
    assert not (tmp_path / "trained/model.safetensors").exists()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "trained")
    inputs = batch(ROWS[0]) | {"pixel_values": pixels(1)}
    assert same(loaded(**inputs).logits, model(**inputs).logits)
    (tmp_path / "llava").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"base_models\.llava"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "trained")


def test_the_number_of_tokens_can_be_changed_afterwards(model):
    less = tiny_setok_llava()
    less.config.setok_config.max_tokens = 2
    assert less.get_image_features(pixels(3)).token_mask.sum(1).max() == 2


def test_it_is_composed_of_two_checkpoints(tmp_path):
    parts = save_base_models(tmp_path)
    model = SeTokLlavaForConditionalGeneration.from_vision_text_pretrained(*parts, max_tokens=3, image_size=24)
    assert model.config.setok_config.max_tokens == 3 and model.config.image_seq_length == NUM_PATCHES
    assert model.added_weights == {
        name for name, _ in model.named_parameters() if name.startswith("model.multi_modal_projector.")
    }


def test_gradients_reach_the_projector_and_the_merger_and_labels_of_unused_placeholders_count_nothing():
    model = tiny_setok_llava({**VARIABLE, "merger": "attention", "merger_num_layers": 1})
    inputs = batch(ROWS[0], side="right")
    loss = model(**inputs, pixel_values=pixels(1), labels=inputs["input_ids"]).loss
    loss.backward()
    for part in (model.model.multi_modal_projector, model.model.setok):
        assert all(parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    skipped = model(**inputs, pixel_values=pixels(1), labels=inputs["input_ids"], skip_logits=True)
    assert skipped.logits is None and same(skipped.loss, loss)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(TypeError, match="GVTForConditionalGeneration"):
        plug_setok(tiny_gvt())
    with pytest.raises(ValueError, match=r"setok_config has 'methd'.*did you mean 'method'"):
        plug_setok(tiny_llava(), {"methd": "threshold"})
    assert plug_setok(tiny_llava(), SeTokTokenizerConfig(merger="mean").to_dict()).config.setok_config.merger == "mean"
    with pytest.raises(ValueError, match="output_size is 5"):
        SeTokLlavaConfig(text_config=tiny_llama_config(), setok_config={"output_size": 5})
    with pytest.raises(ValueError, match="Pixtral"):
        SeTokLlavaConfig(vision_config=PixtralVisionConfig(), text_config=tiny_llama_config())
    with pytest.raises(ValueError, match="vision_feature_layer is -9"):
        SeTokLlavaConfig(vision_config=tiny_clip_config(), vision_feature_layer=-9)
    with pytest.raises(ValueError, match="9 visual tokens"):
        model(**batch([*SLOTS[1:], 7]), pixel_values=pixels(1))
    adapted = tiny_llava()
    set_lora(adapted)
    with pytest.raises(ValueError, match="has adapters"):
        plug_setok(adapted)


def set_lora(model: LlavaForConditionalGeneration) -> None:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
