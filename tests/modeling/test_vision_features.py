"""Every vision transformer that the README names gives its patches, of any layer, at any size, in row-major order."""

import pytest
import torch
from transformers import (
    DeiTConfig,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    OwlViTVisionConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
)

from tests.tiny import (
    IMAGE,
    IMAGE_SIZE,
    NUM_PATCHES,
    PATCH_SIZE,
    batch,
    livelier,
    pixels,
    same,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_eva_config,
    tiny_gvt,
    words,
)
from vistok import GVTForConditionalGeneration
from vistok.modeling.vision_features import build_vision_tower, extract_vision_features, patch_grid

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}

# Config, and how many tokens come before the first patch.
TOWERS = {
    "clip": (tiny_clip_config(), 1),
    "siglip": (SiglipVisionConfig(**SIZES), 0),
    "dinov2": (tiny_dinov2_config(), 1),
    "dinov2-registers": (Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=4), 5),
    "dinov3": (DINOv3ViTConfig(**SIZES, num_register_tokens=2), 3),
    "vit": (ViTConfig(**SIZES), 1),
    "deit": (DeiTConfig(**SIZES), 2),
    "vit-mae": (ViTMAEConfig(**SIZES, mask_ratio=0.0, decoder_hidden_size=32, decoder_num_attention_heads=2), 1),
    "eva": (tiny_eva_config(), 1),
    "owlvit": (OwlViTVisionConfig(**SIZES), 1),
}
every_tower = pytest.mark.parametrize("name", TOWERS)


def tower_of(name):
    config, num_prefix_tokens = TOWERS[name]
    return livelier(build_vision_tower(config)).eval(), num_prefix_tokens


def layers_of(tower):
    """The list of transformer layers, found by its length."""
    return next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)


@every_tower
def test_any_layer_is_what_went_into_the_layer_after_it(name):
    tower, _ = tower_of(name)
    entering = []
    for layer in layers_of(tower):
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    images = pixels(2)
    for layer in range(2):
        entering.clear()
        features = extract_vision_features(tower, images, feature_layer=layer).patch_features
        assert features.std() > 0.1
        assert same(features, entering[layer])
        counted_from_the_end = extract_vision_features(tower, images, feature_layer=layer - 3).patch_features
        assert same(counted_from_the_end, features)


@every_tower
def test_last_layer_is_the_last_of_the_hidden_states_of_the_tower(name):
    tower, _ = tower_of(name)
    images = pixels(2)
    found = extract_vision_features(tower, images)
    noise = {"noise": torch.arange(NUM_PATCHES).expand(2, -1)} if name == "vit-mae" else {}
    assert same(found.patch_features, tower(images, output_hidden_states=True, **noise).hidden_states[-1])
    assert same(found.patch_features, extract_vision_features(tower, images, feature_layer=2).patch_features)


@every_tower
def test_prefix_tokens_are_kept_and_counted_or_dropped(name):
    tower, num_prefix_tokens = tower_of(name)
    images = pixels(2)
    full = extract_vision_features(tower, images)
    assert full.num_prefix_tokens == num_prefix_tokens
    assert full.patch_features.shape == (2, num_prefix_tokens + NUM_PATCHES, 32)
    patches = extract_vision_features(tower, images, select_strategy="default")
    assert patches.num_prefix_tokens == 0
    assert same(patches.patch_features, full.patch_features[:, num_prefix_tokens:])


@every_tower
@pytest.mark.parametrize("size", [(IMAGE_SIZE, IMAGE_SIZE), (40, 24), (16, 48), (45, 31)])
def test_patches_are_in_row_major_order_at_any_image_size(name, size):
    tower, num_prefix_tokens = tower_of(name)
    height, width = size[0] // PATCH_SIZE, size[1] // PATCH_SIZE
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, *size, generator=generator)
    features = extract_vision_features(tower, images, feature_layer=0)
    assert features.grid_size == (height, width)
    assert features.patch_features.shape[1] == num_prefix_tokens + height * width
    for row, column in {(0, 0), (0, width - 1), (height - 1, 0), (height - 1, 1)}:
        changed = images.clone()
        top, left = row * PATCH_SIZE, column * PATCH_SIZE
        changed[..., top : top + PATCH_SIZE, left : left + PATCH_SIZE] += torch.randn(PATCH_SIZE, PATCH_SIZE)
        embeddings = extract_vision_features(tower, changed, feature_layer=0).patch_features
        moved = (embeddings - features.patch_features).abs().amax((0, 2)) > 1e-5
        assert moved.nonzero().flatten().tolist() == [num_prefix_tokens + row * width + column]


@every_tower
def test_evaluation_is_deterministic(name):
    tower, _ = tower_of(name)
    first = extract_vision_features(tower, pixels(2)).patch_features
    assert same(extract_vision_features(tower, pixels(2)).patch_features, first)


def test_vit_mae_without_masking_is_the_vit_of_the_same_weights():
    tower, _ = tower_of("vit-mae")
    vit = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).eval()
    loaded = vit.load_state_dict(tower.state_dict(), strict=False)
    assert not loaded.missing_keys
    expected = vit(pixels(2), output_hidden_states=True)
    for layer in (0, 1, 2):
        found = extract_vision_features(tower, pixels(2), feature_layer=layer).patch_features
        assert torch.allclose(found, expected.hidden_states[layer], atol=1e-5)


def test_vit_mae_drops_no_patch_in_gvt_whatever_its_checkpoint_masked():
    model = tiny_gvt(ViTMAEConfig(**SIZES, mask_ratio=0.75))
    assert model.get_image_features(pixels(1)).last_hidden_state.shape == (1, 3, 48)
    assert model.model.get_vision_features(pixels(1)).patch_features.shape[1] == NUM_PATCHES + 1


@every_tower
@pytest.mark.parametrize("strategy", ["full", "default"])
def test_gvt_learns_on_every_tower_and_comes_back_from_disk(name, strategy, tmp_path):
    model = tiny_gvt(TOWERS[name][0], vision_feature_layer=-2, vision_feature_select_strategy=strategy)
    inputs = batch([*IMAGE, *words(4)], [*words(2), *IMAGE]) | {"pixel_values": pixels(2)}
    output = model(**inputs, labels=inputs["input_ids"])
    output.loss.backward()
    assert model.model.resampler.latents.grad.abs().max() > 0
    other = inputs | {"pixel_values": pixels(2, seed=1)}
    assert (model(**other).logits - output.logits).abs().max() > 1e-4, "the images change nothing"
    model.save_pretrained(tmp_path)
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.model.vision_tower) is type(model.model.vision_tower)
    assert same(loaded(**inputs).logits, output.logits)


@pytest.mark.parametrize("name", ["clip", "dinov2-registers", "deit", "eva"])
def test_required_inputs_come_from_the_chosen_layer(name):
    config, num_prefix_tokens = TOWERS[name]
    tower = build_vision_tower(config).eval()
    tower.set_attn_implementation("eager")
    livelier(tower)
    wanted = ("cls_features", "hidden_states", "cls_attentions")
    reference = tower(pixels(2), output_hidden_states=True, output_attentions=True)
    for layer, attention_layer in ((1, 0), (2, 1), (-1, 1), (-2, 0)):
        found = extract_vision_features(tower, pixels(2), layer, "default", wanted)
        assert same(found.cls_features, reference.hidden_states[layer][:, 0])
        assert all(same(a, b) for a, b in zip(found.hidden_states, reference.hidden_states, strict=True))
        expected = reference.attentions[attention_layer][:, :, 0, num_prefix_tokens:]
        assert same(found.cls_attentions, expected)
    assert extract_vision_features(tower, pixels(2)).cls_features is None


@pytest.mark.parametrize("layer", [0, -3])
def test_embeddings_have_no_attention(layer):
    tower = build_vision_tower(tiny_clip_config())
    tower.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=rf"attention of \[CLS\], and layer {layer} is the embeddings"):
        extract_vision_features(tower, pixels(1), layer, required_inputs=("cls_attentions",))


def test_tower_without_cls_cannot_serve_a_tokenizer_that_reads_it():
    tower, _ = tower_of("siglip")
    with pytest.raises(ValueError, match=r"reads \[CLS\], and SiglipVisionModel has none"):
        extract_vision_features(tower, pixels(1), required_inputs=("cls_features",))


def test_image_smaller_than_a_patch_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="4 × 24 pixels, smaller than one patch of 8 × 8"):
        patch_grid(tiny_dinov2_config(), (4, 24))


def test_tower_that_merges_patches_is_refused():
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2)
    with pytest.raises(ValueError, match=r"SwinModel returned \d+ tokens for 64 patches \(8 × 8\)"):
        extract_vision_features(build_vision_tower(config), pixels(1, size=32))


def test_pixels_take_the_type_of_the_tower():
    tower = build_vision_tower(tiny_dinov2_config()).to(torch.bfloat16)
    assert extract_vision_features(tower, pixels(1)).patch_features.dtype == torch.bfloat16
