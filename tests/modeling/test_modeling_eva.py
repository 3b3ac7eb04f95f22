"""The EVA-02 vision transformer computes what its authors published, whichever way it is run."""

import copy

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, LlavaConfig, LlavaModel

from tests.modeling.published_eva import layout, random_checkpoint, shapes_of, slow_angles, slow_norm, slow_tower
from tests.tiny import (
    IMAGE_SIZE,
    compose,
    inputs_for,
    livelier,
    pixels,
    same,
    save_base_models,
    tiny_eva_config,
    tiny_llama_config,
)
from vistok import EvaVisionConfig, EvaVisionForImageClassification, EvaVisionModel
from vistok.modeling.convert_eva import own_names
from vistok.modeling.modeling_eva import EvaVisionLayer, rotary_angles
from vistok.modeling.stochastic_depth import DropPath


def tiny_eva(dtype=torch.float32, attn_implementation="eager", **kwargs) -> EvaVisionModel:
    config = tiny_eva_config(**kwargs)
    return livelier(EvaVisionModel._from_config(config, attn_implementation=attn_implementation)).to(dtype).eval()


@pytest.fixture
def published():
    """Random weights under the names of EVA-CLIP, and a float64 model that has them."""
    tensors = random_checkpoint("eva02_clip_l14_visual")
    own, unknown = own_names({name.removeprefix("visual."): tensor for name, tensor in tensors.items()})
    assert unknown == []
    model = EvaVisionModel._from_config(tiny_eva_config(use_final_norm=True), attn_implementation="eager").double()
    model.load_state_dict(own)
    return tensors, model.eval()


class TestEquations:
    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("size", [(24, 24), (40, 24), (16, 32), (21, 47)])
    def test_every_layer_is_what_the_published_equations_say(self, published, size, attn_implementation):
        tensors, model = published
        model.set_attn_implementation(attn_implementation)
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            output = model(images, output_hidden_states=True, interpolate_pos_encoding=size != (24, 24))
        for number, image in enumerate(images):
            states = slow_tower(tensors, image, "visual.")
            assert len(output.hidden_states) == len(states) == 3
            for found, expected in zip(output.hidden_states, states):
                assert np.abs(found[number].numpy() - expected).max() < 1e-9
                assert expected.std() > 0.5

    def test_the_final_norm_acts_on_the_last_hidden_state_alone(self, published):
        tensors, model = published
        output = model(pixels(1, dtype=torch.float64), output_hidden_states=True)
        last = output.hidden_states[-1]
        centred = last - last.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = expected * tensors["visual.norm.weight"] + tensors["visual.norm.bias"]
        assert same(output.last_hidden_state, expected, 1e-10)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
        without = tiny_eva()(pixels(1), output_hidden_states=True)
        assert torch.equal(without.last_hidden_state, without.hidden_states[-1])

    @pytest.mark.parametrize("grid", [(16, 16), (3, 3), (5, 2), (1, 7)])
    def test_rotary_positions_of_any_grid_have_the_same_reach(self, grid):
        found = rotary_angles(grid, 16, dtype=torch.float64).numpy()
        assert np.abs(found - slow_angles(grid, 16)).max() < 1e-12
        wider = rotary_angles(grid, 16, theta=100.0, rope_grid_size=24, dtype=torch.float64).numpy()
        assert np.abs(wider - slow_angles(grid, 16, reach=24, theta=100.0)).max() < 1e-12

    def test_neither_norm_is_there_without_its_flag(self):
        names = {
            name for name, _ in tiny_eva(use_attention_norm=False, use_feed_forward_norm=False).named_parameters()
        }
        assert not any("inner_norm" in name for name in names)
        assert sum("inner_norm" in name for name, _ in tiny_eva().named_parameters()) == 2 * 2 * 2


class TestSizes:
    def test_the_defaults_are_the_published_tower_of_gvt(self):
        with torch.device("meta"):
            model = EvaVisionModel(EvaVisionConfig())
        unused = ("fc_norm.", "head.", "rope.")
        shapes = {
            name: shape
            for name, shape in shapes_of(layout("gvt")).items()
            if name.startswith("visual_encoder.") and not any(part in name for part in unused)
        }
        assert len(shapes) == len(model.state_dict()) == 508
        assert model.num_parameters() == sum(torch.Size(shape).numel() for shape in shapes.values()) == 303_315_904
        assert not model.config.use_final_norm and model.config.grid_size == (16, 16)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
            ({"num_attention_heads": 3}, "gives 3 heads a width of 10.6667"),
            ({"hidden_size": 12}, "gives 2 heads a width of 6: .* multiple of four"),
            ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0: a probability"),
            ({"image_size": 7}, "image_size=7 is smaller than patch_size=8"),
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, fields, message):
        with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
            tiny_eva_config(**fields)

    def test_images_need_not_be_square(self):
        model = tiny_eva(image_size=(16, 40), patch_size=(8, 4))
        assert model(torch.randn(1, 3, 16, 40)).last_hidden_state.shape == (1, 1 + 2 * 10, 32)


class TestBackends:
    def test_sdpa_gives_what_eager_gives(self):
        model = tiny_eva()
        expected = model(pixels(2)).last_hidden_state
        model.set_attn_implementation("sdpa")
        assert same(model(pixels(2)).last_hidden_state, expected)

    def test_eager_returns_attention_that_sums_to_one(self):
        attentions = tiny_eva()(pixels(2), output_attentions=True).attentions
        assert [tuple(attention.shape) for attention in attentions] == [(2, 2, 10, 10)] * 2
        assert same(attentions[1].sum(-1), torch.ones(2, 2, 10))
        assert attentions[0].std() > 0.02

    def test_half_precision_stays_close(self):
        model = tiny_eva(attn_implementation="sdpa")
        expected = model(pixels(2)).last_hidden_state
        half = copy.deepcopy(model).to(torch.bfloat16)
        found = half(pixels(2)).last_hidden_state
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).abs().max() < 0.04 * expected.abs().max()

    def test_the_rest_of_the_batch_changes_nothing(self):
        model = tiny_eva(attn_implementation="sdpa")
        together = model(pixels(3)).last_hidden_state
        for number in range(3):
            assert same(model(pixels(3)[number : number + 1]).last_hidden_state, together[number : number + 1])

    def test_gradient_checkpointing_gives_the_same_gradients(self):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(1)
            model = tiny_eva().train()
            if checkpointing:
                model.gradient_checkpointing_enable()
                assert all(layer.gradient_checkpointing for layer in model.layers)
            model(pixels(2)).last_hidden_state.square().mean().backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert all(gradient is not None for gradient in gradients[0].values())
        assert all(same(gradients[1][name], gradient) for name, gradient in gradients[0].items())


class TestTraining:
    def test_layers_are_dropped_more_often_the_deeper_they_lie(self):
        model = EvaVisionModel(tiny_eva_config(num_hidden_layers=4, drop_path_rate=0.3))
        rates = [layer.drop_path.rate for layer in model.layers]
        assert np.allclose(rates, [0.0, 0.1, 0.2, 0.3])
        (only,) = EvaVisionModel(tiny_eva_config(num_hidden_layers=1, drop_path_rate=0.3)).layers
        assert only.drop_path.rate == 0.0

    def test_drop_path_leaves_out_whole_images_and_keeps_the_mean(self):
        drop_path = DropPath(0.25).train()
        dropped = drop_path(torch.ones(4000, 2, 3))
        per_image = dropped.flatten(1)
        assert torch.equal(per_image.amin(1), per_image.amax(1))
        assert np.allclose(per_image[:, 0].unique(), [0.0, 4 / 3])
        assert abs(dropped.mean().item() - 1) < 0.05
        assert torch.equal(drop_path.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))

    def test_drop_path_acts_in_training_only(self):
        model = tiny_eva(drop_path_rate=0.9)
        assert torch.equal(model(pixels(4)).last_hidden_state, model(pixels(4)).last_hidden_state)
        model.train()
        assert not torch.equal(model(pixels(4)).last_hidden_state, model(pixels(4)).last_hidden_state)

    def test_a_random_student_starts_with_smaller_updates_in_deeper_layers(self):
        config = tiny_eva_config(hidden_size=64, num_hidden_layers=4, intermediate_size=128, use_mask_token=True)
        model = EvaVisionModel(config)
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, EvaVisionLayer)
            assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
            for projection in (layer.attention.o_proj, layer.mlp.down_proj):
                assert projection.weight.std().item() == pytest.approx(0.02 / (2 * (number + 1)) ** 0.5, rel=0.1)
        for parameter in (
            model.embeddings.position_embeddings,
            model.embeddings.cls_token,
            model.embeddings.mask_token,
        ):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3)

    def test_masked_patches_are_replaced_and_their_pixels_without_influence(self):
        model = tiny_eva(use_mask_token=True)
        mask = torch.zeros(1, 9, dtype=torch.bool)
        mask[0, [1, 8]] = True
        images = pixels(1)
        output = model(images, bool_masked_pos=mask, output_hidden_states=True)
        embedded, positions = output.hidden_states[0], model.embeddings.position_embeddings
        assert same(embedded[0, 2], model.embeddings.mask_token[0, 0] + positions[0, 2])
        changed = images.clone()
        changed[..., :8, 8:16] += 1.0
        assert torch.equal(model(changed, bool_masked_pos=mask).last_hidden_state, output.last_hidden_state)
        assert not torch.equal(model(changed).last_hidden_state, model(images).last_hidden_state)


class TestErrors:
    def test_another_size_is_refused_unless_positions_are_interpolated(self):
        model = tiny_eva()
        with pytest.raises(ValueError, match="40 × 24 pixels, the model was trained at 24 × 24"):
            model(torch.randn(1, 3, 40, 24))
        assert model(torch.randn(1, 3, 40, 24), interpolate_pos_encoding=True).last_hidden_state.shape == (1, 16, 32)

    def test_another_number_of_channels_is_refused(self):
        with pytest.raises(ValueError, match=r"shape \(1, 4, 24, 24\), expected \(batch, 3, height, width\)"):
            tiny_eva()(torch.randn(1, 4, IMAGE_SIZE, IMAGE_SIZE))

    def test_masking_without_a_mask_token_is_refused(self):
        with pytest.raises(ValueError, match="use_mask_token=True"):
            tiny_eva()(pixels(1), bool_masked_pos=torch.ones(1, 9, dtype=torch.bool))


class TestFolders:
    def test_a_saved_model_comes_back_as_it_was(self, tmp_path):
        model = tiny_eva(use_final_norm=True)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
        assert type(loaded) is EvaVisionModel
        assert isinstance(AutoConfig.from_pretrained(tmp_path), EvaVisionConfig)
        assert torch.equal(loaded(pixels(2)).last_hidden_state, model(pixels(2)).last_hidden_state)

    def test_it_is_a_tower_of_gvt(self, tmp_path):
        base_models = save_base_models(tmp_path, vision_config=tiny_eva_config(use_final_norm=True))
        model = compose(base_models, vision_feature_layer=-2)
        inputs = inputs_for(model)
        tower = AutoModel.from_pretrained(base_models[0])
        expected = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[1]
        assert same(model.model.get_vision_features(inputs["pixel_values"]).patch_features, expected)
        assert torch.isfinite(model(**inputs).logits).all()

    def test_it_is_a_tower_of_llava(self, tmp_path):
        tower = tiny_eva(image_size=24)
        tower.save_pretrained(tmp_path)
        text_config = tiny_llama_config()
        config = LlavaConfig(
            vision_config=AutoConfig.from_pretrained(tmp_path), text_config=text_config, image_token_index=340
        )
        llava = LlavaModel(config).eval()
        llava.vision_tower = AutoModel.from_pretrained(tmp_path)
        expected = tower(pixels(1), output_hidden_states=True).hidden_states[-2][:, 1:]
        features = llava.get_image_features(pixels(1), vision_feature_layer=-2).pooler_output[0]
        assert same(features, llava.multi_modal_projector(expected)[0])

    @pytest.mark.parametrize("use_final_norm", [False, True])
    def test_a_classifier_computes_what_eva_02_is_fine_tuned_with(self, use_final_norm, tmp_path):
        tensors = random_checkpoint("gvt")
        tower = {n.removeprefix("visual_encoder."): t for n, t in tensors.items() if n.startswith("visual_encoder.")}
        own, unknown = own_names(tower)
        assert unknown == []
        model = EvaVisionForImageClassification(tiny_eva_config(use_final_norm=use_final_norm, num_labels=12)).double()
        own = {f"eva_vision.{name}": value for name, value in own.items()}
        own |= {f"norm.{kind}": tower[f"fc_norm.{kind}"] for kind in ("weight", "bias")}
        own |= {f"classifier.{kind}": tower[f"head.{kind}"] for kind in ("weight", "bias")}
        model.load_state_dict(own)
        images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
        with torch.no_grad():
            logits = model.eval()(images).logits
        weights = {name: value.numpy() for name, value in tower.items()}
        for image, found in zip(images, logits):
            patches = slow_tower(tower, image, "")[-1][1:]
            pooled = slow_norm(patches.mean(0), weights, "fc_norm", 1e-6)
            assert np.abs(found.numpy() - (weights["head.weight"] @ pooled + weights["head.bias"])).max() < 1e-9

    def test_a_classifier_is_without_the_final_norm_of_its_tower_also_when_saved(self, tmp_path):
        tower = tiny_eva(use_final_norm=True)
        torch.nn.init.normal_(tower.final_norm.weight)
        tower.save_pretrained(tmp_path / "tower")
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "tower", num_labels=3)
        plain = tower(pixels(2), output_hidden_states=True).hidden_states[-1]
        assert same(model.eval().eva_vision(pixels(2)).last_hidden_state, plain)
        model.save_pretrained(tmp_path / "classifier")
        again, info = AutoModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
        assert not info["missing_keys"] and same(again(pixels(2)).last_hidden_state, plain)
        assert tower.config.use_final_norm  # that of the tower is not touched

    def test_a_classifier_takes_up_the_weights_of_a_tower_and_learns(self, tmp_path):
        tower = tiny_eva()
        tower.save_pretrained(tmp_path / "tower")
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "tower", num_labels=3)
        assert type(model) is EvaVisionForImageClassification
        assert same(model.eval().eva_vision(pixels(2)).last_hidden_state, tower(pixels(2)).last_hidden_state)
        labels = torch.tensor([2, 0])
        output = model(pixels(2), labels=labels)
        expected = -torch.log_softmax(output.logits, -1)[[0, 1], labels].mean()
        assert output.logits.shape == (2, 3) and same(output.loss, expected)
        output.loss.backward()
        assert model.eva_vision.layers[0].mlp.gate_proj.weight.grad.abs().max() > 0
        model.save_pretrained(tmp_path / "classifier")
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
        assert same(loaded(pixels(2)).logits, output.logits)
        assert same(
            AutoModel.from_pretrained(tmp_path / "classifier")(pixels(1)).pooler_output, tower(pixels(1)).pooler_output
        )
