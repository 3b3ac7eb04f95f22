"""The forward pass of every composed model: images in text, padding, losses, precision, compilation, refusals."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, DynamicCache, LlamaForCausalLM

from tests.tiny import (
    IMAGE_TOKEN_ID,
    NUM_PATCHES,
    batch,
    pixels,
    same,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_llama_config,
    words,
)
from tests.tiny_kinds import KINDS, every_kind

IMAGES_OF_ROWS = [[0], [1, 2], []]  # of `kind.rows`


def by_hand(kind, model, row, images):
    """Logits of one row alone: its visual tokens, and the language model's own class on the embeddings."""
    core = model.model
    alone = LlamaForCausalLM(model.config.text_config).eval().to(model.dtype)
    alone.model.load_state_dict(core.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    input_ids = torch.tensor([row])
    embeddings = alone.get_input_embeddings()(input_ids)
    if len(images):
        embeddings = torch.where((input_ids == IMAGE_TOKEN_ID).unsqueeze(-1), 0, embeddings)
        embeddings[input_ids == IMAGE_TOKEN_ID] = kind.tokens(model, images).flatten(0, 1)
    return alone(inputs_embeds=embeddings).logits[0]


def rows_of(logits, inputs):
    return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"])]


@every_kind
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_logits_of_mixed_rows_equal_each_row_by_hand(kind, side, layer):
    model = kind.make(vision_feature_layer=layer)
    images, inputs = pixels(3), batch(*kind.rows, side=side)
    logits = model(**inputs, pixel_values=images).logits
    assert logits.shape == (3, 7 + 2 * kind.num_tokens, 384)
    for row, chosen, found in zip(kind.rows, IMAGES_OF_ROWS, rows_of(logits, inputs)):
        assert same(found, by_hand(kind, model, row, images[chosen]), 1e-4)


@every_kind
def test_every_image_reaches_its_own_row_and_no_other(kind):
    model = kind.make()
    images, inputs = pixels(3), batch(*kind.rows)
    logits = model(**inputs, pixel_values=images).logits
    for image, row in ((0, 0), (1, 1), (2, 1)):
        changed = images.clone()
        changed[image] = pixels(1, seed=9)
        moved = (model(**inputs, pixel_values=changed).logits - logits).abs().amax((1, 2)) > 1e-4
        assert moved.nonzero().flatten().tolist() == [row]


@every_kind
def test_order_of_images_is_the_order_of_their_placeholders(kind):
    model = kind.make()
    inputs = batch([*kind.image, *words(2), *kind.image, *words(3)])
    images = pixels(2)
    logits = model(**inputs, pixel_values=images).logits
    assert (model(**inputs, pixel_values=images.flip(0)).logits - logits).abs().max() > 1e-3


@every_kind
def test_text_alone_needs_no_images_and_images_alone_no_text(kind):
    model = kind.make()
    text = batch(words(5), words(7, 1))
    assert same(model(**text).logits[1], by_hand(kind, model, words(7, 1), []), 1e-4)
    image_only = batch(kind.image, kind.image)
    images = pixels(2)
    assert same(model(**image_only, pixel_values=images).logits[1], by_hand(kind, model, kind.image, images[1:]), 1e-4)


@every_kind
def test_attention_mask_may_be_left_out_and_position_ids_given(kind):
    model = kind.make()
    inputs = batch(kind.rows[0]) | {"pixel_values": pixels(1)}
    expected = model(**inputs).logits
    del inputs["attention_mask"]
    assert same(model(**inputs).logits, expected)
    positions = torch.arange(len(kind.rows[0])).unsqueeze(0)
    assert same(model(**inputs, position_ids=positions).logits, expected)
    assert not same(model(**inputs, position_ids=positions * 2).logits, expected)


@every_kind
def test_embeddings_may_take_the_place_of_ids_with_and_without_images(kind):
    model = kind.make()
    images = pixels(3)
    inputs = batch(*kind.rows)
    expected = model(**inputs, pixel_values=images).logits
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert same(model(inputs_embeds=embeddings, **inputs, pixel_values=images).logits, expected)
    text = batch(words(5))["input_ids"]
    assert same(model(inputs_embeds=model.get_input_embeddings()(text)).logits, model(text).logits)


@every_kind
def test_loss_is_the_mean_cross_entropy_of_the_next_token(kind):
    model = kind.make()
    inputs, images = batch(*kind.rows), pixels(3)
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


@every_kind
@pytest.mark.parametrize("num_items", [None, 11])
def test_skipping_logits_changes_neither_loss_nor_gradients(kind, num_items):
    plain, skipping = kind.make(), kind.make()
    skipping.load_state_dict(plain.state_dict())
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3), "num_items_in_batch": num_items}
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


@every_kind
def test_logits_to_keep_takes_a_number_or_positions(kind):
    model = kind.make()
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    logits = model(**inputs).logits
    assert same(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
    positions = torch.tensor([1, 4, 5])
    assert same(model(**inputs, logits_to_keep=positions).logits, logits[:, positions])


@every_kind
def test_decoding_token_by_token_with_a_cache_equals_one_forward_pass(kind):
    model = kind.make()
    row, images = kind.rows[1], pixels(2)
    expected = model(torch.tensor([row]), pixel_values=images).logits
    cache = DynamicCache(config=model.config.text_config)
    prefix = row.index(IMAGE_TOKEN_ID) + len(kind.image) + 1 + len(kind.image)
    found = [model(torch.tensor([row[:prefix]]), pixel_values=images, past_key_values=cache, use_cache=True).logits]
    for position in range(prefix, len(row)):
        mask = torch.ones(1, position + 1, dtype=torch.long)
        token = torch.tensor([[row[position]]])
        found.append(model(token, attention_mask=mask, past_key_values=cache, use_cache=True).logits)
    assert same(torch.cat(found, dim=1), expected, 1e-4)


@every_kind
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_half_precision_stays_close(kind, dtype, tolerance):
    model = kind.make()
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    expected = model(**inputs).logits
    output = model.to(dtype)(**inputs, labels=inputs["input_ids"])
    assert output.logits.dtype == dtype
    assert torch.isfinite(output.loss)
    kept = inputs["attention_mask"].bool()
    assert (output.logits.float() - expected)[kept].abs().max() < tolerance * expected[kept].abs().max()


@every_kind
def test_save_and_load_with_safetensors_and_the_auto_classes(kind, tmp_path):
    model = kind.make()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    expected = model(**inputs).logits
    for loaded in (
        kind.model_class.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path, config=AutoConfig.from_pretrained(tmp_path)),
        kind.model_class.from_pretrained(tmp_path, device_map="auto"),
    ):
        assert type(loaded) is kind.model_class
        assert not loaded.training
        assert same(loaded(**inputs).logits, expected)
    assert type(AutoConfig.from_pretrained(tmp_path)) is kind.model_class.config_class
    half = kind.model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@every_kind
def test_auto_model_loads_the_model_without_its_head(kind, tmp_path):
    model = kind.make()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is kind.core_class
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    assert same(loaded(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


@every_kind
def test_sharded_checkpoints_load(kind, tmp_path):
    model = kind.make()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    assert same(kind.model_class.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)


@every_kind
def test_compiles_without_graph_breaks(kind):
    model = kind.make(tiny_clip_config())
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    with torch.no_grad():
        expected = model(**inputs).logits
        # Rows of images with different numbers of tokens are as long as these make them.
        whole = not model.model.visual_tokenizer.variable_num_tokens
        compiled = torch.compile(model, fullgraph=whole, backend="aot_eager")
        assert same(compiled(**inputs).logits, expected, 1e-4)


@every_kind
@pytest.mark.parametrize("times", [-1, 2, 0], ids=["one too few", "two images", "none"])
def test_wrong_number_of_placeholders_names_both_numbers(kind, times):
    model = kind.make()
    row = [*(kind.image[:-1] if times == -1 else kind.image * times), *words(3)]
    message = f"{row.count(IMAGE_TOKEN_ID)} image placeholders, the 1 images have {kind.num_tokens} visual tokens"
    with pytest.raises(ValueError, match=message):
        model(torch.tensor([row]), pixel_values=pixels(1))
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([row]), pixel_values=pixels(1), max_new_tokens=1)


@every_kind
def test_inputs_given_twice_or_not_at_all_are_refused(kind):
    model = kind.make()
    inputs, images = batch(kind.rows[0]), pixels(1)
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


@every_kind
def test_parts_are_found_by_the_names_that_recipes_use(kind):
    model = kind.make()
    prefixes = [
        prefix
        for parts in model.trainable_parts.values()
        for prefix in ((parts,) if isinstance(parts, str) else parts)
    ]
    for name, _ in model.named_parameters():
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name


@every_kind
def test_embeddings_grow_and_head_follows(kind):
    model = kind.make(text_config=tiny_llama_config(tie_word_embeddings=True))
    model.resize_token_embeddings(400)
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert model(**batch(words(3))).logits.shape[-1] == 400
    assert model.config.text_config.vocab_size == 400


@pytest.mark.parametrize("kind", [KINDS["gvt"], KINDS["vtlmm"]], ids=["gvt", "vtlmm"])
def test_importing_vistok_is_all_that_auto_classes_need(kind, tmp_path):
    kind.make(tiny_dinov2_config(), tiny_llama_config()).save_pretrained(tmp_path)
    code = f"""if True:
        import vistok
        from transformers import AutoConfig, AutoModelForImageTextToText
        print(AutoConfig.from_pretrained({str(tmp_path)!r}).model_type)
        print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__name__)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kind.model_class.config_class.model_type, kind.model_class.__name__]
