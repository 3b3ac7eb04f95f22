"""A visual tokenizer that no file of the package knows, with as many tokens as the image asks for, works in GVT."""

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, LlamaConfig, PreTrainedConfig
from transformers import initialization as init

from tests.tiny import (
    IMAGE_TOKEN_ID,
    batch,
    livelier,
    pixels,
    same,
    save_base_models,
    tiny_gvt,
    tiny_llama_config,
    tiny_resampler_config,
    words,
)
from vistok import GVTForConditionalGeneration, PerceiverResampler, VisualTokenizer, VisualTokenizerOutput
from vistok.modeling.modeling_gvt import GVTModel
from vistok.modeling.vision_features import extract_vision_features
from vistok.processing.collator import TokenizedConversation, pack_conversations

MAX_TOKENS = 5
SLOTS = [IMAGE_TOKEN_ID] * MAX_TOKENS


@strict
class BrightPatchesConfig(PreTrainedConfig):
    model_type = "bright_patches_of_the_tests"
    patch_hidden_size: int = 32
    max_tokens: int = MAX_TOKENS
    threshold: float = 0.02


class BrightPatches(VisualTokenizer):
    """Keeps the patches whose mean feature is above a threshold, one at least: as many tokens as there are such."""

    config: BrightPatchesConfig
    config_class = BrightPatchesConfig
    variable_num_tokens = True
    required_inputs = ("num_prefix_tokens",)

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.empty(config.patch_hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, BrightPatches):
            init.ones_(module.scale)

    @property
    def output_size(self):
        return self.config.patch_hidden_size

    @property
    def max_num_tokens(self):
        return self.config.max_tokens

    def forward(self, patch_features, grid_size=None, num_prefix_tokens=0, **kwargs):
        patches = patch_features[:, num_prefix_tokens:]
        scores = patches.mean(-1)
        kept = [
            row.topk(max(1, min(int((row > self.config.threshold).sum()), self.config.max_tokens))).indices
            for row in scores
        ]
        # As the interface says: as many columns as the image with the most tokens of this batch needs.
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in kept], batch_first=True)
        weights = patches.new_zeros(len(kept), mask.shape[1], patches.shape[1])
        assignment = torch.full(scores.shape, -1)
        for image, row in enumerate(kept):
            weights[image, torch.arange(len(row)), row] = 1.0
            assignment[image, row] = torch.arange(len(row))
        return VisualTokenizerOutput(
            tokens=weights @ patches * self.scale, mask=mask, scores=scores, weights=weights, assignment=assignment
        )


AutoConfig.register(BrightPatchesConfig.model_type, BrightPatchesConfig)
AutoModel.register(BrightPatchesConfig, BrightPatches)


@strict
class EverythingConfig(PreTrainedConfig):
    model_type = "everything_of_the_tests"
    patch_hidden_size: int = 32


class Everything(VisualTokenizer):
    """Asks the tower for all there is."""

    config_class = EverythingConfig
    required_inputs = ("cls_features", "hidden_states", "cls_attentions")
    output_size = 32
    max_num_tokens = 2

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def forward(self, patch_features, cls_features=None, hidden_states=None, cls_attentions=None, **kwargs):
        patches = hidden_states[1][:, -cls_attentions.shape[-1] :]
        tokens = torch.stack([cls_features, (cls_attentions.mean(1).unsqueeze(-1) * patches).sum(1)], dim=1)
        return VisualTokenizerOutput(tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.bool))


AutoConfig.register(EverythingConfig.model_type, EverythingConfig)
AutoModel.register(EverythingConfig, Everything)


def variable_gvt(text_config=None):
    return tiny_gvt(None, text_config, BrightPatchesConfig())


def three_images(model):
    """Images with different numbers of tokens, none of them the largest possible, and these numbers."""
    for seed in range(200):
        images = pixels(3, seed)
        lengths = [len(tokens) for tokens in model.get_image_features(images).pooler_output]
        if len(set(lengths)) == 3 and max(lengths) < MAX_TOKENS:
            return images, lengths
    raise AssertionError("no such images among 200 seeds")


def compact_embeddings(model, row, images):
    """Embeddings of one row in which an image, an int in `row`, takes as many positions as it has tokens."""
    embed, tower, tokenizer = model.get_input_embeddings(), model.model.vision_tower, model.model.resampler
    parts = []
    for part in row:
        if isinstance(part, int):
            features = extract_vision_features(tower, images[part : part + 1])
            output = tokenizer(
                features.patch_features, features.grid_size, num_prefix_tokens=features.num_prefix_tokens
            )
            parts.append(model.model.projector(output.tokens)[0])
        else:
            parts.append(embed(torch.tensor(part)))
    return torch.cat(parts).unsqueeze(0)


def compact_logits(model, embeddings):
    return model.lm_head(model.model.language_model(inputs_embeds=embeddings).last_hidden_state)[0]


def text_positions(row):
    """Where the last text of a row stands, counted from its end."""
    return len(row[-1])


ROWS = [[words(2), 0, words(4, 1)], [words(1, 2), 1, words(2, 3), 2, words(3, 4)], [words(7, 5)]]


def written_out(rows):
    return [[token for part in row for token in (SLOTS if isinstance(part, int) else part)] for row in rows]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_logits_of_a_padded_batch_equal_those_of_each_image_alone(side, with_mask):
    model = variable_gvt()
    images, lengths = three_images(model)
    rows = ROWS if with_mask else [ROWS[1]]
    inputs = batch(*written_out(rows), side=side)
    used = images if with_mask else images[1:]
    mask = inputs["attention_mask"] if with_mask else None
    logits = model(inputs["input_ids"], pixel_values=used, attention_mask=mask).logits
    for index, row in enumerate(rows):
        expected = compact_logits(model, compact_embeddings(model, row, images))[-text_positions(row) :]
        end = int(inputs["attention_mask"][index].nonzero().max()) + 1
        found = logits[index, end - text_positions(row) : end]
        assert torch.allclose(found, expected, atol=1e-4), (index, (found - expected).abs().max(), lengths)


def test_unused_placeholders_matter_so_that_the_comparison_above_can_fail():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS))
    expected = model(**inputs, pixel_values=images).logits[:, -1]
    type(model.model.resampler).variable_num_tokens = False
    try:
        assert (model(**inputs, pixel_values=images).logits[:, -1] - expected).abs().max() > 0.01
    finally:
        type(model.model.resampler).variable_num_tokens = True


def greedy(model, embeddings, steps):
    """Greedy decoding without a cache, from embeddings."""
    tokens = []
    for _ in range(steps):
        token = compact_logits(model, embeddings)[-1].argmax()
        tokens.append(int(token))
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(token).view(1, 1, -1)], dim=1)
    return tokens


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"attention_mask": None}, {"encoded": True}])
def test_generation_of_a_padded_batch_equals_that_of_each_image_alone(options):
    model = variable_gvt()
    images, _ = three_images(model)
    options = dict(options)
    rows = [ROWS[0]] if "attention_mask" in options else ROWS
    images_of_rows = images[:1] if "attention_mask" in options else images
    inputs = batch(*written_out(rows)) | {"pixel_values": images_of_rows}
    if options.pop("encoded", False):
        inputs["mm_encoder_outputs"] = {"image": model.get_image_features(inputs.pop("pixel_values"))}
    generated = model.generate(**(inputs | options), max_new_tokens=6, do_sample=False)
    for index, row in enumerate(rows):
        expected = greedy(model, compact_embeddings(model, row, images), 6)
        assert generated[index, inputs["input_ids"].shape[1] :].tolist() == expected


def test_beams_of_a_padded_batch_equal_those_of_each_image_alone():
    model = variable_gvt(tiny_llama_config(LlamaConfig))
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS))
    together = model.generate(
        **inputs, pixel_values=images, max_new_tokens=4, num_beams=3, num_return_sequences=3, do_sample=False
    )[:, inputs["input_ids"].shape[1] :].unflatten(0, (3, 3))
    for index, chosen in enumerate([images[:1], images[1:], None]):
        alone = batch(written_out(ROWS)[index])
        expected = model.generate(
            **alone, pixel_values=chosen, max_new_tokens=4, num_beams=3, num_return_sequences=3, do_sample=False
        )[:, alone["input_ids"].shape[1] :]
        assert torch.equal(together[index], expected)


def test_conversations_that_share_a_row_see_only_the_tokens_that_the_image_has():
    model = variable_gvt()
    images, lengths = three_images(model)
    for image in range(3):
        prefix, own = [*words(2), *SLOTS, *words(2, 1)], [words(4, 2), words(3, 3)]
        talks = [TokenizedConversation(prefix + words_of_one, [False] * 10 + [True] * 2) for words_of_one in own]
        packed = pack_conversations(talks, prefix=len(prefix))
        logits = model(
            torch.tensor([packed["input_ids"]]),
            pixel_values=images[image : image + 1],
            attention_mask=packed["mask"][None, None],
            position_ids=torch.tensor([packed["position_ids"]]),
        ).logits[0]
        start = len(prefix)
        for words_of_one in own:
            row = [words(2), image, words(2, 1) + words_of_one]
            expected = compact_logits(model, compact_embeddings(model, row, images))[-len(words_of_one) :]
            assert same(logits[start : start + len(words_of_one)], expected, 1e-4), lengths[image]
            start += len(words_of_one)


def test_image_features_say_which_tokens_are_real():
    model = variable_gvt()
    images, lengths = three_images(model)
    output = model.get_image_features(images)
    assert output.last_hidden_state.shape == (3, MAX_TOKENS, 48), "a slot for each placeholder that processors write"
    assert output.token_mask.sum(1).tolist() == lengths
    for tokens, mask, real in zip(output.last_hidden_state, output.token_mask, output.pooler_output):
        assert mask.tolist() == sorted(mask.tolist(), reverse=True), "padding is at the end"
        assert torch.equal(tokens[mask], real)
        assert not tokens[~mask].any()


def test_linear_tokenizer_is_its_weights_times_the_patches():
    model = variable_gvt()
    images, _ = three_images(model)
    features = extract_vision_features(model.model.vision_tower, images, select_strategy="default")
    output = model.model.resampler(features.patch_features)
    assert (output.weights >= 0).all()
    assert torch.equal(output.weights.sum(-1), output.mask.float())
    assert torch.allclose(output.weights @ features.patch_features, output.tokens)


def test_gradients_reach_the_tokenizer_and_the_projector():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS))
    model(**inputs, pixel_values=images, labels=inputs["input_ids"]).loss.backward()
    assert model.model.resampler.scale.grad.abs().min() > 0
    assert model.model.projector.weight.grad.abs().max() > 0


def test_composed_saved_and_loaded_like_any_other(tmp_path):
    vision, text = save_base_models(tmp_path)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(
        vision, text, resampler_config={"model_type": "bright_patches_of_the_tests", "max_tokens": 4}
    )
    assert type(model.model.resampler) is BrightPatches
    assert model.model.resampler.max_num_tokens == 4
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert type(loaded.model.resampler) is BrightPatches
    inputs = batch([*SLOTS[:4], *words(3)]) | {"pixel_values": pixels(1)}
    assert same(loaded(**inputs).logits, model(**inputs).logits)


def test_tokenizer_gets_the_inputs_that_it_declares():
    model = livelier(tiny_gvt(None, None, EverythingConfig(), attn_implementation={"vision_config": "eager"}))
    images = pixels(2)
    tower = model.model.vision_tower(images, output_hidden_states=True, output_attentions=True)
    attentions, states = tower.attentions[-1][:, :, 0, 1:], tower.hidden_states
    expected = torch.stack(
        [states[-1][:, 0], torch.einsum("bhn,bnd->bd", attentions, states[1][:, 1:]) / attentions.shape[1]], dim=1
    )
    tokens = model.get_image_features(images).last_hidden_state
    assert torch.allclose(tokens, model.model.projector(expected), atol=1e-5)


def test_tokenizer_that_says_it_reads_more_is_given_no_cached_features():
    model = variable_gvt()
    features = model.model.get_vision_features(pixels(1))
    assert features.num_prefix_tokens == 1
    with pytest.raises(ValueError, match=r"BrightPatches reads num_prefix_tokens beside.*give pixel_values"):
        model.get_image_features(vision_features=features.patch_features)


def test_attention_of_cls_needs_an_eager_tower_and_the_error_says_how():
    model = tiny_gvt(None, None, EverythingConfig(), attn_implementation="sdpa")
    with pytest.raises(ValueError, match=r'attn_implementation=\{"vision_config": "eager"\}'):
        model.get_image_features(pixels(1))


def test_an_unfinished_tokenizer_says_what_it_lacks():
    class Unfinished(VisualTokenizer):
        config_class = EverythingConfig

    unfinished = Unfinished(EverythingConfig())
    for ask in (lambda: unfinished.output_size, lambda: unfinished.max_num_tokens, lambda: unfinished(torch.ones(1))):
        with pytest.raises(NotImplementedError, match="Unfinished"):
            ask()


def test_resampler_is_a_tokenizer_of_a_fixed_number():
    model = PerceiverResampler(tiny_resampler_config())
    assert isinstance(model, VisualTokenizer)
    assert (model.output_size, model.max_num_tokens, model.variable_num_tokens) == (24, 3, False)
    assert isinstance(tiny_gvt().model, GVTModel)
