"""Variants of tokens: how they are written, and what they make of a tower's patches."""

import sys

import pytest
import torch
from transformers import ConvNextConfig, ConvNextImageProcessorPil, ConvNextModel

from tests.tiny import (
    compose,
    save_base_models,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_image,
    tiny_image_processor,
)
from tests.tiny_setokim import tiny_setok_config, tiny_setokim
from vistok import SeTokForPreTraining
from vistok.evaluation.token_sources import TOWER_SETTINGS, load_token_source, resized_processor
from vistok.evaluation.token_variants import (
    PER_OBJECT,
    TokenVariant,
    cluster_image,
    clustered_features,
    parse_layer,
    parse_tokens,
    parse_variants,
)
from vistok.modeling.modeling_setok_vision import SeTokVisionModel
from vistok.modeling.patch_clusters import cluster_patches
from vistok.modeling.vision_features import build_vision_tower

BASE = TokenVariant("some/tower", -3, None, None, {"num_neighbors": 7})


class TestParsing:
    def test_a_variant_says_what_is_different(self):
        first, second, third, fourth = parse_variants(
            BASE,
            [
                "iterative",
                "kmeans,tokens=8",
                "method=threshold, score_threshold=0.4,num_neighbors=9",
                "tokens=objects+1",
            ],
        )
        assert (first.method, first.settings, first.layer) == ("iterative", {"num_neighbors": 7}, -3)
        assert (second.method, second.tokens, second.is_baseline) == ("kmeans", 8, True)
        assert third.settings == {"num_neighbors": 9, "score_threshold": 0.4} and third.method == "threshold"
        assert fourth.tokens == PER_OBJECT and fourth.label == "tokens=objects+1"
        assert parse_variants(BASE, []) == [BASE]

    def test_the_layer_of_one_tower_is_not_that_of_another(self):
        other, same, chosen = parse_variants(BASE, ["model=other", "model=some/tower", "model=other,layer=final"])
        assert (other.layer, same.layer, chosen.layer) == (None, -3, "final")

    def test_truth_is_written_as_words(self):
        (variant,) = parse_variants(BASE, ["normalize_features=False"])
        assert variant.settings["normalize_features"] is False

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("meanshift", "'meanshift' cannot be compared: method is 'meanshift'"),
            ("sigma=3", "'sigma' is none of method, model, layer, tokens"),
            ("score_threshold=high", "'high' is no number"),
            ("num_neighbors=2.5", "'2.5' is no whole number"),
            ("normalize_features=2", "neither true nor false"),
            ("tokens=0", "tokens is 0, expected at least 1"),
            ("tokens=", "'' is no whole number"),
            ("", "method has no value"),
        ],
    )
    def test_what_cannot_be_understood_is_quoted(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_variants(BASE, [text])

    def test_no_variant_is_compared_with_itself(self):
        with pytest.raises(ValueError, match="'grid' is to be compared with itself"):
            parse_variants(BASE, ["grid", "kmeans", "grid"])

    def test_numbers_of_the_command_line(self):
        assert (parse_layer("final"), parse_layer("-3")) == ("final", -3)
        assert (parse_tokens(PER_OBJECT), parse_tokens("4")) == (PER_OBJECT, 4)


def save_tower(folder, tower, processor=None):
    tower.save_pretrained(folder)
    (processor or tiny_image_processor()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = save_tower(tmp_path_factory.mktemp("tower"), build_vision_tower(tiny_dinov2_config()))
    return load_token_source(folder, layer=-1, image_size=48)


@pytest.fixture(scope="module")
def features(source):
    return source.patch_features([tiny_image(1)])[0]


class TestSources:
    def test_a_bare_tower_is_read_whole_and_in_squares(self, source, features):
        assert source.grid_size == (48 // source.model.config.vision_config.patch_size,) * 2
        assert features.shape == (source.grid_size[0] ** 2, 32)
        assert not source.is_trained and source.feature_layer == -1
        assert dict(source.image_processor.size)["height"] == 48 and source.image_processor.do_normalize

    def test_an_image_processor_that_crops_no_longer_does(self):
        cropping = tiny_image_processor(size={"shortest_edge": 20}, do_center_crop=True, crop_size=16)
        whole = resized_processor(cropping, 24)
        assert whole(images=[tiny_image(0, (40, 30))], return_tensors="pt")["pixel_values"].shape[-2:] == (24, 24)
        assert cropping.do_center_crop
        image = tiny_image(0, (24, 24))
        alike = tiny_image_processor(size={"height": 24, "width": 24})
        pixels = [one(images=[image], return_tensors="pt")["pixel_values"] for one in (whole, alike)]
        assert torch.equal(*pixels)

    @pytest.mark.parametrize("kind", ["clip", "convnext"])
    def test_other_towers_make_tokens_too(self, tmp_path, kind):
        if kind == "clip":
            tower = build_vision_tower(tiny_clip_config())
        else:
            tower = ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16]))
        processor = ConvNextImageProcessorPil() if kind == "convnext" else None
        source = load_token_source(save_tower(tmp_path, tower, processor), image_size=64)
        found = cluster_image(TokenVariant(source.name), source, source.patch_features([tiny_image(0)])[0])
        assert len(found.assignment) == source.grid_size[0] * source.grid_size[1]
        assert found.num_tokens >= 1 and found.scores.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_saved_setok_is_read_as_it_was_trained(self, tmp_path, dtype):
        config = {"method": "iterative", "max_tokens": 4, "vision_feature_layer": -1, "cluster_projection_size": 8}
        save_tower(tmp_path / "tower", build_vision_tower(tiny_dinov2_config()))
        model = SeTokVisionModel.from_vision_pretrained(str(tmp_path / "tower"), merger_num_heads=2, **config)
        model.to(dtype).save_pretrained(tmp_path / "setok")
        tiny_image_processor().save_pretrained(tmp_path / "setok")
        source = load_token_source(tmp_path / "setok")
        assert source.is_trained and source.model.tokenizer.config.method == "iterative"
        image = tiny_image(2)
        pixels = source.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixels)
        found = cluster_image(TokenVariant("setok"), source, source.patch_features([image])[0])
        assert torch.equal(found.assignment, expected.assignment[0])
        torch.testing.assert_close(found.scores, expected.scores[0])
        assert torch.equal(found.centers, expected.centers[0])
        with pytest.raises(ValueError, match="was trained on layer -1"):
            load_token_source(tmp_path / "setok", layer=-2)

    @pytest.mark.parametrize("kind", ["setok", "setokim"])
    def test_of_a_model_that_draws_the_tokens_need_no_diffusers(self, tmp_path, monkeypatch, kind):
        model = SeTokForPreTraining(tiny_setok_config(draws=True)) if kind == "setok" else tiny_setokim(draws=True)
        model.save_pretrained(tmp_path)
        tiny_image_processor().save_pretrained(tmp_path)
        expected = (model if kind == "setok" else model.model.setok).vision_model.state_dict()
        monkeypatch.setitem(sys.modules, "diffusers", None)
        source = load_token_source(tmp_path)
        assert source.is_trained
        found = source.model.state_dict()
        assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)

    def test_a_language_model_is_refused(self, tmp_path):
        from transformers import LlamaConfig

        LlamaConfig().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="llama"):
            load_token_source(tmp_path)

    def test_a_model_in_which_a_tower_lies_is_no_tower(self, tmp_path):
        compose(save_base_models(tmp_path)).save_pretrained(tmp_path / "gvt")
        tiny_image_processor().save_pretrained(tmp_path / "gvt")
        with pytest.raises(ValueError, match="holds a model of type gvt, a language model with images"):
            load_token_source(tmp_path / "gvt")


class TestClusters:
    def test_density_peaks_are_those_of_the_settings(self, source, features):
        settings = {"num_neighbors": 3, "normalize_features": False, "score_threshold": 0.1}
        found = cluster_image(TokenVariant("tower", method="threshold", settings=settings), source, features)
        expected = cluster_patches(
            features[None], method="threshold", num_neighbors=3, score_threshold=0.1, grid_size=source.grid_size
        )
        assert torch.equal(found.assignment, expected.assignment[0]) and torch.equal(found.scores, expected.scores[0])
        assert source.model.tokenizer.config.normalize_features is TOWER_SETTINGS["normalize_features"]

    def test_a_soft_assignment_is_told_with_its_weights(self, source, features):
        settings = {"assignment": "soft", "kernel_scale": 0.8, "max_tokens": 6}
        found = cluster_image(TokenVariant("tower", method="iterative", settings=settings), source, features)
        config = source.model.tokenizer.config
        expected = cluster_patches(
            clustered_features(TokenVariant("tower"), source, features)[None],
            method="iterative",
            assignment="soft",
            kernel_scale=0.8,
            max_tokens=6,
            num_neighbors=config.num_neighbors,
            grid_size=source.grid_size,
        )
        assert torch.equal(found.weights, expected.cluster_masks[0]) and found.num_tokens == len(found.weights)
        assert torch.equal(found.assignment, expected.assignment[0])
        assert cluster_image(TokenVariant("tower"), source, features).weights is None

    def test_a_plain_background_breaks_no_object_of_a_bare_tower(self, source):
        """Patches of an object differ by 0.7, and their number of tokens does not follow what is behind them."""
        num_patches, width = source.grid_size[0] ** 2, 32
        generator = torch.Generator().manual_seed(1)
        kinds = torch.arange(num_patches) * 6 // num_patches  # two thirds are background, the rest two objects
        kinds = (kinds - 3).clamp(min=0)
        for background in (0.05, 0.5):
            spread = torch.tensor([background, 0.55, 0.55])[kinds, None] / (width - 3) ** 0.5
            features = torch.eye(width)[kinds]
            features[:, 3:] += spread * torch.randn(num_patches, width - 3, generator=generator)
            found = cluster_image(TokenVariant("tower", method="iterative"), source, 40 * features)
            assert found.num_tokens == 3
            assert len(set(zip(kinds.tolist(), found.assignment.tolist()))) == 3

    @pytest.mark.parametrize("method", ["threshold", "kmeans", "grid"])
    def test_exactly_so_many_tokens_as_asked(self, source, features, method):
        assert cluster_image(TokenVariant("tower", method=method), source, features, tokens=5).num_tokens == 5

    def test_a_number_of_tokens_leaves_no_room_for_its_own(self, source, features):
        found = cluster_image(TokenVariant("tower", method="iterative"), source, features, tokens=3)
        assert found.num_tokens <= 3
        assert cluster_image(TokenVariant("tower", method="single"), source, features).num_tokens == 1

    def test_clusters_of_kmeans_are_in_raster_order(self, source, features):
        assignment = cluster_image(TokenVariant("tower", method="kmeans"), source, features, tokens=4).assignment
        rows = torch.arange(len(assignment)) // source.grid_size[1]
        centres = [rows[assignment == number].double().mean().item() for number in range(4)]
        assert centres == sorted(centres)

    def test_a_baseline_needs_a_number(self, source, features):
        with pytest.raises(ValueError, match="kmeans makes no number of tokens of its own"):
            cluster_image(TokenVariant("tower", method="kmeans"), source, features)

    def test_settings_out_of_range_are_told(self, source, features):
        variant = TokenVariant("tower", settings={"min_tokens": 9, "max_tokens": 3})
        with pytest.raises(ValueError, match="min_tokens=9"):
            cluster_image(variant, source, features)
