"""SeTok with its tower: any vision transformer or convolutional network, saved, loaded, trained, inside of MLLMs."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    ConvNextConfig,
    ConvNextV2Config,
    ResNetConfig,
    SiglipVisionConfig,
)

from tests.tiny import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    batch,
    livelier,
    pixels,
    same,
    save_base_models,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_eva_config,
    tiny_gvt,
    tiny_image,
    tiny_image_processor,
    tiny_llama_config,
    words,
)
from tests.tiny_setokim import tiny_setok_config
from vistok import (
    SeTokForPreTraining,
    SeTokTokenizerConfig,
    SeTokVisionConfig,
    SeTokVisionModel,
    VTLMMConfig,
    VTLMMForCausalLM,
    cluster_patches,
)
from vistok.modeling.trained_weights import CheckpointError

STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
TOWERS = {
    "dinov2": tiny_dinov2_config,
    "clip": tiny_clip_config,
    "eva": tiny_eva_config,
    "siglip": lambda: SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=24, patch_size=8
    ),
    "convnext": lambda: ConvNextConfig(**STAGES),
    "convnextv2": lambda: ConvNextV2Config(**STAGES),
    "resnet": lambda: ResNetConfig(embedding_size=6, layer_type="basic", **STAGES),
}
CONVOLUTIONAL = {"convnext": 20, "convnextv2": 20, "resnet": 20}


def model_of(name="dinov2", **options):
    options = {"max_tokens": 7, "relative_kernel_scale": True, "kernel_scale": 0.6, "output_size": 10, **options}
    return livelier(SeTokVisionModel(SeTokVisionConfig(vision_config=TOWERS[name](), **options))).eval()


def images_for(name, count=2):
    return pixels(count, size=64 if name in CONVOLUTIONAL else IMAGE_SIZE)


@pytest.mark.parametrize("layer", [-1, -2, "final"])
@pytest.mark.parametrize("name", TOWERS)
def test_patches_of_any_tower_become_tokens(name, layer):
    model, images = model_of(name, vision_feature_layer=layer), images_for(name)
    with torch.no_grad():
        output = model(images)
        states = model.vision_tower(images, output_hidden_states=True)
    if name in CONVOLUTIONAL:
        stage = states.last_hidden_state if layer == "final" else states.hidden_states[layer]
        expected, grid_size = stage.flatten(2).transpose(1, 2), tuple(stage.shape[-2:])
        assert grid_size == ((4, 4) if layer == -2 else (2, 2))
    else:
        grid_size = (3, 3)
        if layer != "final":
            expected = states.hidden_states[layer][:, -9:]
            assert same(output.patch_features, expected)
        expected = output.patch_features
    assert output.grid_size == grid_size
    assert same(output.patch_features, expected)
    assert output.tokens.shape == (2, int(output.mask.sum(-1).max()), 10)
    assert output.last_hidden_state is output.tokens
    clusters = cluster_patches(
        output.patch_features,
        method="iterative",
        kernel_scale=0.6,
        relative_kernel_scale=True,
        max_tokens=7,
        grid_size=grid_size,
    )
    for field in ("assignment", "mask", "centers", "scores"):
        assert torch.equal(output[field], clusters[field]), field


@pytest.mark.parametrize("name", ["clip", "convnext"])
def test_save_and_load_by_the_auto_classes_with_the_image_processor(name, tmp_path):
    model = model_of(name, method="threshold", score_threshold=0.1, cluster_projection_size=6)
    with torch.no_grad():
        model.tokenizer.log_kernel_scale.fill_(-0.2)
    model.save_pretrained(tmp_path)
    tiny_image_processor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SeTokVisionConfig
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SeTokVisionModel
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    for auto_class in (AutoImageProcessor, AutoProcessor):
        processor = auto_class.from_pretrained(tmp_path)
        inputs = processor(images=[tiny_image(), tiny_image(1)], return_tensors="pt")
        if name == "clip":
            assert torch.equal(loaded(**inputs).tokens, model(**inputs).tokens)


def test_config_keeps_the_names_of_the_paper_and_follows_the_tower(tmp_path):
    config = SeTokVisionConfig(vision_config=tiny_clip_config(), method="threshold", num_neighbors=3, output_size=9)
    assert config.patch_hidden_size == 32
    tokenizer_config = config.tokenizer_config
    assert type(tokenizer_config) is SeTokTokenizerConfig
    assert (tokenizer_config.method, tokenizer_config.num_neighbors) == ("threshold", 3)
    assert tokenizer_config.output_size == 9
    assert tokenizer_config.patch_hidden_size == 32
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (saved["model_type"], saved["num_neighbors"]) == ("setok_vision", 3)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    default = SeTokVisionConfig()
    assert (default.patch_hidden_size, default.vision_config.image_size) == (1024, 336)
    stages = SeTokVisionConfig(vision_config=ConvNextConfig(**STAGES))
    assert stages.patch_hidden_size == 16, "of the last stage but one"
    with pytest.raises(ValueError, match="vision_feature_layer is 9, but a tower of 2 layers"):
        SeTokVisionConfig(vision_config=tiny_clip_config(), vision_feature_layer=9)
    with pytest.raises(ValueError, match="min_tokens=9 is more than max_tokens=8"):
        SeTokVisionConfig(min_tokens=9, max_tokens=8)


@pytest.mark.parametrize("name", ["dinov2", "convnextv2"])
def test_training_reaches_tower_and_tokenizer_also_with_gradient_checkpointing(name):
    model = model_of(name, cluster_projection_size=10, vision_feature_layer=-1).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(images_for(name)).tokens.square().sum().backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    for part in ("tokenizer.merger", "tokenizer.cluster_projection", "tokenizer.log_kernel_scale", "vision_tower"):
        assert any(key.startswith(part) and gradient.any() for key, gradient in gradients[0].items()), part
    assert gradients[0].keys() == gradients[1].keys()
    assert all(same(gradients[1][key], value, 1e-3) for key, value in gradients[0].items())


def test_backend_is_that_of_the_model_and_can_be_changed():
    config = SeTokVisionConfig(vision_config=tiny_dinov2_config(), max_tokens=7)
    eager = SeTokVisionModel._from_config(config, attn_implementation="eager").eval()
    assert eager.tokenizer.config._attn_implementation == "eager"
    assert eager.vision_tower.config._attn_implementation == "eager"
    expected = eager(pixels(2)).tokens
    eager.set_attn_implementation("sdpa")
    assert eager.tokenizer.config._attn_implementation == "sdpa"
    assert same(eager(pixels(2)).tokens, expected)


def test_half_precision_and_outputs_as_a_tuple():
    model = model_of().bfloat16()
    output = model(pixels(2))
    assert output.tokens.dtype == torch.bfloat16
    assert output.tokens.isfinite().all()
    assert torch.equal(model(pixels(2), return_dict=False)[0], output.tokens)


def test_pretrained_towers_are_taken_as_they_are(tmp_path):
    vision, text = save_base_models(tmp_path)
    model = SeTokVisionModel.from_vision_pretrained(vision, max_tokens=5, vision_feature_layer=-1, merger="mean")
    expected = AutoModel.from_pretrained(vision).state_dict()
    found = model.vision_tower.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not model.training
    model.save_pretrained(tmp_path / "setok")
    loaded = AutoModel.from_pretrained(tmp_path / "setok")
    assert torch.equal(loaded(pixels(2)).tokens, model(pixels(2)).tokens)
    half = SeTokVisionModel.from_vision_pretrained(vision, vision_kwargs={"dtype": torch.bfloat16})
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="max_token: no field of SeTokVisionConfig"):
        SeTokVisionModel.from_vision_pretrained(vision, max_token=5)
    with pytest.raises(CheckpointError, match="has to be a vision transformer, such as DINOv2"):
        SeTokVisionModel.from_vision_pretrained(text)


def setok(**options):
    sizes = {"patch_hidden_size": 32, "max_tokens": 5, "relative_kernel_scale": True, "kernel_scale": 1.2}
    return SeTokTokenizerConfig(**sizes | options)


def in_vtlmm(tokenizer_config):
    config = VTLMMConfig(
        vision_config=tiny_clip_config(),
        text_config=tiny_llama_config(),
        adapter_config=tokenizer_config,
        image_token_id=IMAGE_TOKEN_ID,
        vision_feature_layer=-1,
    )
    return livelier(VTLMMForCausalLM(config)).eval()


def images_of_different_counts(model):
    """Three images of different numbers of tokens, all below the largest possible."""
    for seed in range(100):
        images = pixels(3, seed)
        counts = [len(tokens) for tokens in model.get_image_features(images).pooler_output]
        if len(set(counts)) > 1 and max(counts) < 5:
            return images
    raise AssertionError("no such images among 100 seeds")


@pytest.mark.parametrize("build", [lambda config: tiny_gvt(None, None, config), in_vtlmm], ids=["GVT", "VT-LMM"])
def test_it_takes_the_place_of_the_visual_tokenizer_of_other_models(build, tmp_path):
    model = build(setok())
    images = images_of_different_counts(model)
    rows = [[*[IMAGE_TOKEN_ID] * 5, *words(4 + index, index)] for index in range(3)]
    together = model(**batch(*rows), pixel_values=images)
    for index, row in enumerate(rows):
        alone = model(**batch(row), pixel_values=images[index : index + 1])
        assert torch.allclose(together.logits[index, -4:], alone.logits[0, -4:], atol=1e-4)
    generated = model.generate(**batch(*rows), pixel_values=images, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] == batch(*rows)["input_ids"].shape[1] + 3
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert same(loaded(**batch(*rows), pixel_values=images).logits, together.logits, 1e-4)


def test_a_convolutional_tower_works_inside_of_gvt():
    model = tiny_gvt(TOWERS["convnext"](), None, setok(), vision_feature_layer=-2)
    assert model.model.resampler.config.patch_hidden_size == 16
    row = batch([*[IMAGE_TOKEN_ID] * 5, *words(4)])
    assert model(**row, pixel_values=images_for("convnext", 1)).logits.isfinite().all()
    features = model.model.get_vision_features(images_for("convnext", 1))
    assert features.grid_size == (4, 4)


def test_it_learns_inside_of_another_model():
    model = tiny_gvt(None, None, setok(cluster_projection_size=32)).train()
    inputs = batch([*[IMAGE_TOKEN_ID] * 5, *words(6)], [*[IMAGE_TOKEN_ID] * 5, *words(6, 1)])
    model(**inputs, pixel_values=pixels(2), labels=inputs["input_ids"]).loss.backward()
    parameters = dict(model.model.resampler.named_parameters())
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
    for name in ("log_kernel_scale", "cluster_projection.weight", "merger.within_layers.0.attention.v_proj.weight"):
        assert parameters[name].grad.any(), name


def test_a_whole_setok_is_no_tokenizer_alone_with_random_weights(tmp_path):
    whole = SeTokForPreTraining(tiny_setok_config())
    whole.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a SeTok with decoders, not SeTokVisionModel alone"):
        SeTokVisionModel.from_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).vision_model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), whole.vision_model.parameters()))
