"""GVT's forward pass: images in text, padding, losses, precision, compilation, and what it refuses."""

import shutil
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    DynamicCache,
    LlamaForCausalLM,
)

from tests.tiny import (
    IMAGE,
    IMAGE_TOKEN_ID,
    NUM_LATENTS,
    NUM_PATCHES,
    batch,
    pixels,
    same,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_gvt,
    tiny_gvt_config,
    tiny_llama_config,
    tiny_resampler_config,
    tiny_t5_config,
    words,
)
from vistok import GVTConfig, GVTForConditionalGeneration, GVTModel, VisionFeatures

# One image, two images, none.
ROWS = [[*IMAGE, *words(6)], [*words(2, 1), *IMAGE, *words(1, 2), *IMAGE, *words(4, 3)], words(5, 4)]
IMAGES_OF_ROWS = [[0], [1, 2], []]


def by_hand(model, row, images):
    """Logits of one row alone: tower, resampler, projector, and the language model's own class on the embeddings."""
    core = model.model
    alone = LlamaForCausalLM(model.config.text_config).eval().to(model.dtype)
    alone.model.load_state_dict(core.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    input_ids = torch.tensor([row])
    embeddings = alone.get_input_embeddings()(input_ids)
    if len(images):
        states = core.vision_tower(images, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
        tokens = core.projector(core.resampler(states).tokens)
        embeddings = torch.where((input_ids == IMAGE_TOKEN_ID).unsqueeze(-1), 0, embeddings)
        embeddings[input_ids == IMAGE_TOKEN_ID] = tokens.flatten(0, 1)
    return alone(inputs_embeds=embeddings).logits[0]


def rows_of(logits, inputs):
    return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"])]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_logits_of_mixed_rows_equal_each_row_by_hand(side, layer):
    model = tiny_gvt(vision_feature_layer=layer)
    images, inputs = pixels(3), batch(*ROWS, side=side)
    logits = model(**inputs, pixel_values=images).logits
    assert logits.shape == (3, 13, 384)
    for row, chosen, found in zip(ROWS, IMAGES_OF_ROWS, rows_of(logits, inputs)):
        assert same(found, by_hand(model, row, images[chosen]), 1e-4)


def test_every_image_reaches_its_own_row_and_no_other():
    model = tiny_gvt()
    images, inputs = pixels(3), batch(*ROWS)
    logits = model(**inputs, pixel_values=images).logits
    for image, row in ((0, 0), (1, 1), (2, 1)):
        changed = images.clone()
        changed[image] = pixels(1, seed=9)
        moved = (model(**inputs, pixel_values=changed).logits - logits).abs().amax((1, 2)) > 1e-4
        assert moved.nonzero().flatten().tolist() == [row]


def test_order_of_images_is_the_order_of_their_placeholders():
    model = tiny_gvt()
    inputs = batch([*IMAGE, *words(2), *IMAGE, *words(3)])
    images = pixels(2)
    logits = model(**inputs, pixel_values=images).logits
    assert (model(**inputs, pixel_values=images.flip(0)).logits - logits).abs().max() > 1e-3


def test_text_alone_needs_no_images_and_images_alone_no_text():
    model = tiny_gvt()
    text = batch(words(5), words(7, 1))
    assert same(model(**text).logits[1], by_hand(model, words(7, 1), []), 1e-4)
    image_only = batch(IMAGE, IMAGE)
    images = pixels(2)
    assert same(model(**image_only, pixel_values=images).logits[1], by_hand(model, IMAGE, images[1:]), 1e-4)


def test_attention_mask_may_be_left_out_and_position_ids_given():
    model = tiny_gvt()
    inputs = batch(ROWS[0]) | {"pixel_values": pixels(1)}
    expected = model(**inputs).logits
    del inputs["attention_mask"]
    assert same(model(**inputs).logits, expected)
    positions = torch.arange(len(ROWS[0])).unsqueeze(0)
    assert same(model(**inputs, position_ids=positions).logits, expected)
    assert not same(model(**inputs, position_ids=positions * 2).logits, expected)


def test_embeddings_may_take_the_place_of_ids_with_and_without_images():
    model = tiny_gvt()
    images = pixels(3)
    inputs = batch(*ROWS)
    expected = model(**inputs, pixel_values=images).logits
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert same(model(inputs_embeds=embeddings, **inputs, pixel_values=images).logits, expected)
    text = batch(words(5))["input_ids"]
    assert same(model(inputs_embeds=model.get_input_embeddings()(text)).logits, model(text).logits)


def test_encoded_images_and_cached_features_equal_pixels():
    model = tiny_gvt(vision_feature_layer=-2, vision_feature_select_strategy="default")
    inputs, images = batch(*ROWS), pixels(3)
    expected = model(**inputs, pixel_values=images)
    encoded = model.get_image_features(images)
    assert same(model(**inputs, mm_encoder_outputs={"image": encoded}).logits, expected.logits)
    features = model.model.get_vision_features(images)
    assert isinstance(features, VisionFeatures)
    assert features.patch_features.shape == (3, NUM_PATCHES, 32)
    from_cache = model(**inputs, vision_features=features.patch_features)
    assert model.get_image_features(vision_features=features.patch_features).num_prefix_tokens == 0
    whole = tiny_gvt().get_image_features(vision_features=features.patch_features)
    assert whole.num_prefix_tokens is None, "how many of them are [CLS] and registers, nobody knows"
    assert same(from_cache.logits, expected.logits)
    assert same(from_cache.image_hidden_states, encoded.last_hidden_state)


def test_image_features_are_a_list_of_projected_tokens_per_image():
    model = tiny_gvt()
    output = model.get_image_features(pixels(2))
    assert [tokens.shape for tokens in output.pooler_output] == [(NUM_LATENTS, 48)] * 2
    assert torch.equal(torch.stack(output.pooler_output), output.last_hidden_state)
    assert output.token_mask.all()
    assert (output.grid_size, output.num_prefix_tokens) == ((3, 3), 1)


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
def test_attention_maps_of_both_the_resampler_and_the_language_model(formulation):
    model = tiny_gvt(
        None,
        None,
        tiny_resampler_config(attention_formulation=formulation),
        attn_implementation={"text_config": "eager"},
    )
    output = model(**batch(*ROWS), pixel_values=pixels(3), output_attentions=True, output_hidden_states=True)
    assert [attention.shape for attention in output.image_attentions] == [(3, 2, 3, 1 + NUM_PATCHES + 3)] * 2
    assert [attention.shape for attention in output.attentions] == [(3, 4, 13, 13)] * 2
    assert len(output.hidden_states) == 3
    for attention in output.image_attentions:
        assert same(attention.sum(-1), torch.ones(3, 2, 3))
        assert attention.std() > 1e-3
    assert model(**batch(*ROWS), pixel_values=pixels(3)).image_attentions is None


def test_loss_is_the_mean_cross_entropy_of_the_next_token():
    model = tiny_gvt()
    inputs, images = batch(*ROWS), pixels(3)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 340), -100)
    output = model(**inputs, pixel_values=images, labels=labels)
    total, count = 0.0, 0
    for logits, targets in zip(output.logits.detach().double(), labels):
        for position in range(len(targets) - 1):
            if targets[position + 1] != -100:
                total += float(logits[position].logsumexp(0) - logits[position, targets[position + 1]])
                count += 1
    assert count == 6 + 6 + 5, "of the words only the first of the longest row has nothing before it"
    assert abs(output.loss.item() - total / count) < 1e-4
    divided = model(**inputs, pixel_values=images, labels=labels, num_items_in_batch=5).loss
    assert abs(divided.item() - total / 5) < 1e-3


@pytest.mark.parametrize("num_items", [None, 11])
def test_skipping_logits_changes_neither_loss_nor_gradients(num_items):
    plain, skipping = tiny_gvt(), tiny_gvt()
    skipping.load_state_dict(plain.state_dict())
    inputs = batch(*ROWS) | {"pixel_values": pixels(3), "num_items_in_batch": num_items}
    labels = inputs["input_ids"].clone()
    labels[:, ::2] = -100
    outputs = [plain(**inputs, labels=labels), skipping(**inputs, labels=labels, skip_logits=True)]
    assert outputs[1].logits is None
    assert outputs[0].logits is not None
    assert same(outputs[0].loss, outputs[1].loss)
    for output in outputs:
        output.loss.backward()
    for (name, parameter), (_, other) in zip(plain.named_parameters(), skipping.named_parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or same(parameter.grad, other.grad), name


def test_logits_to_keep_takes_a_number_or_positions():
    model = tiny_gvt()
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    logits = model(**inputs).logits
    assert same(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
    positions = torch.tensor([1, 4, 5])
    assert same(model(**inputs, logits_to_keep=positions).logits, logits[:, positions])


def test_decoding_token_by_token_with_a_cache_equals_one_forward_pass():
    model = tiny_gvt()
    row, images = ROWS[1], pixels(2)
    expected = model(torch.tensor([row]), pixel_values=images).logits
    cache = DynamicCache(config=model.config.text_config)
    prefix = row.index(IMAGE_TOKEN_ID) + len(IMAGE) + 1 + len(IMAGE)
    found = [model(torch.tensor([row[:prefix]]), pixel_values=images, past_key_values=cache, use_cache=True).logits]
    for position in range(prefix, len(row)):
        mask = torch.ones(1, position + 1, dtype=torch.long)
        token = torch.tensor([[row[position]]])
        found.append(model(token, attention_mask=mask, past_key_values=cache, use_cache=True).logits)
    assert same(torch.cat(found, dim=1), expected, 1e-4)


def test_gradient_checkpointing_of_the_whole_model_gives_equal_gradients():
    plain, checkpointed = tiny_gvt().train(), tiny_gvt().train()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.gradient_checkpointing_enable()
    runs = []
    for layers in (checkpointed.model.resampler.layers, checkpointed.model.language_model.layers):
        next(layers[0].children()).register_forward_hook(lambda module, *_: runs.append(type(module).__name__))
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    for model in (plain, checkpointed):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert sorted(runs) == ["LlamaAttention"] * 2 + ["PerceiverAttention"] * 2, "each ran again in the backward pass"
    for (name, parameter), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or same(parameter.grad, other.grad), name


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_half_precision_stays_close(dtype, tolerance):
    model = tiny_gvt()
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    expected = model(**inputs).logits
    output = model.to(dtype)(**inputs, labels=inputs["input_ids"])
    assert output.logits.dtype == dtype
    assert torch.isfinite(output.loss)
    kept = inputs["attention_mask"].bool()
    assert (output.logits.float() - expected)[kept].abs().max() < tolerance * expected[kept].abs().max()


def test_trained_parts_in_float32_fit_between_frozen_ones_in_bfloat16():
    model = tiny_gvt().to(torch.bfloat16)
    model.model.resampler.float()
    model.model.projector.float()
    output = model(**batch(*ROWS), pixel_values=pixels(3), labels=batch(*ROWS)["input_ids"])
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert model.model.resampler.latents.grad.dtype == torch.float32


def test_save_and_load_with_safetensors_and_the_auto_classes(tmp_path):
    model = tiny_gvt()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    expected = model(**inputs).logits
    for loaded in (
        GVTForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path, config=AutoConfig.from_pretrained(tmp_path)),
        GVTForConditionalGeneration.from_pretrained(tmp_path, device_map="auto"),
    ):
        assert type(loaded) is GVTForConditionalGeneration
        assert not loaded.training
        assert same(loaded(**inputs).logits, expected)
    assert type(AutoConfig.from_pretrained(tmp_path)) is GVTConfig
    half = GVTForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_auto_model_loads_the_model_without_its_head(tmp_path):
    model = tiny_gvt()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is GVTModel
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    assert same(loaded(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


def test_sharded_checkpoints_load(tmp_path):
    model = tiny_gvt()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    assert same(GVTForConditionalGeneration.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("text_config", [tiny_llama_config(), tiny_t5_config()], ids=["llama", "t5"])
def test_a_config_may_ask_for_tuples(text_config):
    model = tiny_gvt(text_config=text_config)
    inputs = batch(*ROWS) | {"pixel_values": pixels(3), "labels": batch(*ROWS)["input_ids"]}
    expected = model(**inputs)
    assert same(expected["loss"], expected.loss)
    model.config.return_dict = False
    loss, logits, *_ = model(**inputs)
    assert same(loss, expected.loss)
    assert same(logits, expected.logits)
    assert same(model(**inputs, return_dict=True).logits, expected.logits)


def test_compiles_without_graph_breaks():
    model = tiny_gvt(tiny_clip_config())
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    with torch.no_grad():
        expected = model(**inputs).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert same(compiled(**inputs).logits, expected, 1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
def test_compiles_to_machine_code():
    one_layer = {"num_hidden_layers": 1}
    parts = (tiny_dinov2_config(**one_layer), tiny_llama_config(**one_layer), tiny_resampler_config(**one_layer))
    model = tiny_gvt(*parts)
    inputs = batch(ROWS[0]) | {"pixel_values": pixels(1)}
    with torch.no_grad():
        expected = model(**inputs).logits
        assert same(torch.compile(model, fullgraph=True)(**inputs).logits, expected, 1e-4)


@pytest.mark.parametrize("row", [IMAGE[:-1] + words(3), [*IMAGE, *IMAGE, *words(3)], words(3)])
def test_wrong_number_of_placeholders_names_both_numbers(row):
    model = tiny_gvt()
    placeholders = row.count(IMAGE_TOKEN_ID)
    with pytest.raises(ValueError, match=rf"{placeholders} image placeholders, the 1 images have 3 visual tokens"):
        model(torch.tensor([row]), pixel_values=pixels(1))
    with pytest.raises(ValueError, match=rf"{placeholders} image placeholders, the 1 images have 3 visual tokens"):
        model.generate(torch.tensor([row]), pixel_values=pixels(1), max_new_tokens=1)


def test_cached_features_of_another_tower_are_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"31 wide.*patch_hidden_size=32"):
        tiny_gvt()(**batch(ROWS[0]), vision_features=torch.randn(1, NUM_PATCHES, 31))


def test_inputs_given_twice_or_not_at_all_are_refused():
    model = tiny_gvt()
    inputs, images = batch(ROWS[0]), pixels(1)
    encoded = {"image": model.get_image_features(images)}
    with pytest.raises(ValueError, match="exactly one"):
        model(pixel_values=images)
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
    with pytest.raises(ValueError, match="given twice"):
        model(**inputs, pixel_values=images, mm_encoder_outputs=encoded)
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs, pixel_values=images, vision_features=torch.randn(1, NUM_PATCHES, 32))
    with pytest.raises(ValueError, match="exactly one"):
        model.get_image_features()


def test_parts_are_found_by_the_names_that_recipes_use():
    model = tiny_gvt()
    prefixes = [
        prefix
        for parts in model.trainable_parts.values()
        for prefix in ((parts,) if isinstance(parts, str) else parts)
    ]
    for name, _ in model.named_parameters():
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name


def test_lora_on_the_language_model_leaves_everything_else_alone():
    from peft import LoraConfig, get_peft_model

    model = tiny_gvt()
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    expected = model(**inputs).logits
    adapted = get_peft_model(
        model, LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["projector"])
    )
    assert same(adapted(**inputs).logits, expected)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(("language_model" in name and "lora" in name) or "projector" in name for name in trained)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_embeddings_grow_and_head_follows():
    model = tiny_gvt(text_config=tiny_llama_config(tie_word_embeddings=True))
    model.resize_token_embeddings(400)
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert model(**batch(words(3))).logits.shape[-1] == 400
    assert model.config.text_config.vocab_size == 400


def test_importing_vistok_is_all_that_auto_classes_need(tmp_path):
    tiny_gvt(tiny_dinov2_config(), tiny_llama_config()).save_pretrained(tmp_path)
    code = f"""if True:
        import vistok
        from transformers import AutoConfig, AutoModelForImageTextToText
        print(AutoConfig.from_pretrained({str(tmp_path)!r}).model_type)
        print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__name__)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gvt", "GVTForConditionalGeneration"]


def test_a_placeholder_that_is_no_token_is_refused_with_both_numbers():
    for image_token_id in (384, -1):
        with pytest.raises(ValueError, match=rf"image_token_id is {image_token_id}, .*vocab_size=384.*ids 0 to 383"):
            GVTModel(tiny_gvt_config(image_token_id=image_token_id))


def test_default_model_is_that_of_the_paper():
    with torch.device("meta"):
        model = GVTModel._from_config(tiny_gvt_config(resampler_config={"model_type": "perceiver_resampler_vistok"}))
    assert model.resampler.config.num_latents == 32
    assert model.resampler.config.patch_hidden_size == 32, "follows the tower"
