"""SeTok with its decoders: the two phases of stage I, saving and loading, and tokens from elsewhere."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, BertConfig, BertModel

from tests.tiny import pixels, same
from tests.tiny_setok import (
    DRAWN_SIZE,
    GRID,
    SEEN_SIZE,
    TOKEN_SIZE,
    save_diffusion_checkpoint,
    seeds,
    tiny_detokenizer_config,
    tiny_mapper_config,
    tiny_setok,
    tiny_setok_config,
)
from vistok import SeTokForPreTraining, save_trained_weights
from vistok.modeling.losses_segmentation import mask_consistency_loss, soft_iou
from vistok.modeling.mask_matching import linear_assignment
from vistok.modeling.trained_weights import TRAINED_WEIGHTS_NAME, CheckpointError, read_trained_weights
from vistok.modeling.vision_features import build_vision_tower
from vistok.trainer.freezing import set_trainable

TERMS = ("reconstruction", "mask_bce", "mask_dice", "mask_consistency")


def images(count: int = 2) -> torch.Tensor:
    return pixels(count, size=SEEN_SIZE)


def drawn(count: int = 2, size: int = DRAWN_SIZE) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeds(5)[0])


def halves(count: int = 2) -> list[torch.Tensor]:
    masks = torch.zeros(2, SEEN_SIZE, SEEN_SIZE, dtype=torch.bool)
    masks[0, :, : SEEN_SIZE // 2] = True
    masks[1, : SEEN_SIZE // 2] = True
    return [masks[: 2 - index % 2] for index in range(count)]


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def named(output, name):
    return getattr(output, f"loss_{name}")


class TestForward:
    def test_every_term_whose_targets_are_given_is_in_the_weighted_sum(self):
        weights = {f"{name}_weight": weight for name, weight in zip(TERMS, (0.5, 2.0, 3.0, 0.25))}
        model = tiny_setok(**weights)
        output = model(images(), drawn(), halves(), generator=seeds(0)[0])
        expected = sum(model.config.to_dict()[f"{name}_weight"] * named(output, name) for name in TERMS)
        assert all(named(output, name) > 0 for name in TERMS)
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize(
        ("phase", "given", "expected"),
        [
            (None, (), set()),
            (None, ("drawn",), {"reconstruction"}),
            (None, ("masks",), set(TERMS[1:])),
            ("reconstruction", ("drawn", "masks"), {"reconstruction"}),
            ("boundaries", ("masks",), set(TERMS[1:])),
            ("boundaries", ("drawn", "masks"), set(TERMS)),
        ],
    )
    def test_the_phase_decides_which_terms_there_are(self, phase, given, expected):
        output = tiny_setok()(
            images(), drawn() if "drawn" in given else None, halves() if "masks" in given else None, phase=phase
        )
        assert {name for name in TERMS if named(output, name) is not None} == expected
        assert (output.loss is None) == (not expected)
        assert (output.mask_logits is None) == (phase == "reconstruction")

    def test_consistency_is_that_of_soft_or_of_assigned_masks(self):
        model = tiny_setok().train()
        losses = {}
        for model.config.consistency_masks in ("soft", "assigned"):
            output = model(images(), mask_labels=halves())
            losses[model.config.consistency_masks] = output.loss_mask_consistency.item()
            clusters = output.soft_masks if model.config.consistency_masks == "soft" else output.cluster_masks
            image, token, target = output.matches
            objects = torch.stack([halves()[i][k] for i, k in zip(image, target)]).float()
            objects = torch.nn.functional.avg_pool2d(objects[None], SEEN_SIZE // GRID[0])[0].flatten(1)
            expected = mask_consistency_loss(clusters[image, token], objects)
            assert output.loss_mask_consistency.item() == pytest.approx(expected.item(), rel=1e-5)
        assert losses["soft"] != losses["assigned"]

    def test_tokens_are_matched_by_the_patches_that_they_are_made_of_as_much_as_the_config_says(self):
        model = tiny_setok(cluster_matching_weight=1e6).train()
        output = model(images(), mask_labels=halves())
        found = []
        for image, masks in enumerate(halves()):
            objects = torch.nn.functional.avg_pool2d(masks[None].float(), SEEN_SIZE // GRID[0])[0].flatten(1)
            clusters = output.cluster_masks[image].detach()
            costs = [[1 - soft_iou(cluster[None], one[None]).item() for one in objects] for cluster in clusters]
            tokens, targets = linear_assignment(np.array(costs)[output.mask[image].numpy()])
            found += [[image, token, target] for token, target in zip(tokens, targets)]
        assert output.matches.T.tolist() == found

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_gives_the_same_losses_but_for_rounding(self, dtype):
        model = tiny_setok()
        given = {"mask_labels": halves(), "generator": seeds(0)[0]}
        before = model(images(), drawn(), **given)
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(images(), drawn(), **given | {"generator": seeds(0)[0]})
        whole = model.to(dtype)(images(), mask_labels=halves())
        for name in TERMS:
            assert named(mixed, name).item() == pytest.approx(named(before, name).item(), rel=0.1)
        assert whole.loss_mask_dice.item() == pytest.approx(before.loss_mask_dice.item(), rel=0.1)

    def test_what_the_tokenizer_found_comes_with_it(self):
        model = tiny_setok()
        output, encoded = model(images()), model.vision_model(images())
        for name in ("tokens", "mask", "assignment", "cluster_masks", "scores", "centers", "patch_features"):
            assert same(getattr(output, name), getattr(encoded, name)), name
        assert output.grid_size == GRID
        assert output.mask_logits.shape == (2, output.tokens.shape[1], 4 * GRID[0], 4 * GRID[1])

    def test_without_any_object_the_loss_of_masks_is_zero(self):
        output = tiny_setok().train()(images(), mask_labels=[torch.zeros(0, SEEN_SIZE, SEEN_SIZE)] * 2)
        output.loss.backward()
        assert output.loss.item() == 0

    def test_targets_that_are_missing_or_of_another_size_are_named(self):
        model = tiny_setok()
        with pytest.raises(ValueError, match="needs target_pixel_values"):
            model(images(), mask_labels=halves(), phase="reconstruction")
        with pytest.raises(ValueError, match="needs mask_labels"):
            model(images(), drawn(), phase="boundaries")
        with pytest.raises(ValueError, match="phase is 'masks'"):
            model(images(), drawn(), phase="masks")
        with pytest.raises(ValueError, match=r"\(1, 20, 20\).*24 × 24 pixels"):
            model(images(1), mask_labels=[torch.zeros(1, 20, 20)])
        with pytest.raises(ValueError, match=r"\(2, 3, 24, 24\), expected \(batch, 3, 8, 8\)"):
            model(images(), drawn(size=SEEN_SIZE))
        with pytest.raises(ValueError, match="no detokenizer"):
            tiny_setok(detokenizer_config=None)(images(), drawn())


class TestPhases:
    def test_reconstruction_trains_merger_mapper_and_keys_and_values_of_cross_attention(self):
        model = tiny_setok(latent=True)
        model.train_phase("reconstruction")
        modules = dict(model.detokenizer.unet.named_modules())
        attentions = [name for name in modules if name.endswith("attn2")]
        expected = {f"detokenizer.unet.{name}.{part}.weight" for name in attentions for part in ("to_k", "to_v")}
        for owner, prefix in ((model.vision_model.tokenizer.merger, "vision_model.tokenizer.merger"),):
            expected |= {f"{prefix}.{name}" for name, _ in owner.named_parameters()}
        expected |= {f"detokenizer.mapper.{name}" for name, _ in model.detokenizer.mapper.named_parameters()}
        assert len(attentions) == 4
        assert trained(model) == expected

    def test_a_unet_from_scratch_is_trained_whole_and_the_vae_never(self):
        model = tiny_setok(detokenizer_config=tiny_detokenizer_config(latent=True, trained_unet_parts="all"))
        model.train_phase("reconstruction")
        unet = {f"detokenizer.unet.{name}" for name, _ in model.detokenizer.unet.named_parameters()}
        assert unet <= trained(model)
        assert not any(name.startswith(("detokenizer.vae", "vision_model.vision_tower")) for name in trained(model))

    def test_boundaries_trains_mask_decoder_merger_and_clustering(self):
        model = tiny_setok()
        model.train_phase("boundaries")
        tokenizer = {f"vision_model.tokenizer.{name}" for name, _ in model.vision_model.tokenizer.named_parameters()}
        decoder = {f"mask_decoder.{name}" for name, _ in model.mask_decoder.named_parameters()}
        assert trained(model) == tokenizer | decoder
        assert "vision_model.tokenizer.log_kernel_scale" in tokenizer
        assert "vision_model.tokenizer.cluster_projection.weight" in tokenizer

    @pytest.mark.parametrize("phase", ["reconstruction", "boundaries"])
    def test_all_that_a_phase_trains_gets_a_gradient_and_moves_and_nothing_else_does(self, phase):
        model = tiny_setok().train()
        model.train_phase(phase)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        target = {"target_pixel_values": drawn(4)} if phase == "reconstruction" else {"mask_labels": halves(4)}
        model(images(4), **target, phase=phase).loss.backward()
        assert [name for name, p in model.named_parameters() if (p.grad is not None) != p.requires_grad] == []
        optimizer.step()
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert moved <= trained(model)
        parts = ("merger", "unet", "mapper") if phase == "reconstruction" else ("merger", "log_kernel", "mask_decoder")
        assert all(any(part in name for name in moved) for part in parts)

    @pytest.mark.parametrize("phase", ["reconstruction", "boundaries"])
    def test_recipes_that_name_the_same_parts_train_the_same(self, phase):
        model, other = tiny_setok(), tiny_setok()
        model.train_phase(phase)
        set_trainable(other, other.config.phase_trainable(phase))
        assert trained(model) == trained(other)

    def test_every_parameter_belongs_to_one_part(self):
        model = tiny_setok(latent=True)
        parts = [(part,) if isinstance(part, str) else part for part in model.trainable_parts.values()]
        for name, _ in model.named_parameters():
            assert sum(name.startswith(part) for part in parts) == 1, name

    @pytest.mark.parametrize("consistency_masks", ["soft", "assigned"])
    @pytest.mark.parametrize("method", ["iterative", "threshold"])
    def test_consistency_moves_the_scale_and_the_projection_of_clustering(self, method, consistency_masks):
        weights = {"mask_bce_weight": 0.0, "mask_dice_weight": 0.0, "consistency_masks": consistency_masks}
        model = tiny_setok(vision={"method": method}, **weights).train()
        model.train_phase("boundaries")
        model(images(), mask_labels=halves()).loss.backward()
        tokenizer = model.vision_model.tokenizer
        assert tokenizer.log_kernel_scale.grad.abs().sum() > 0
        assert tokenizer.cluster_projection.weight.grad.abs().sum() > 0


class TestTokensFromElsewhere:
    def test_a_single_token_is_drawn_as_a_mask_of_the_image(self):
        model = tiny_setok()
        encoded = model.vision_model(images())
        emitted = torch.randn(2, 1, TOKEN_SIZE)
        logits = model.decode_masks(
            emitted, None, encoded.patch_features, encoded.grid_size, size=(SEEN_SIZE, SEEN_SIZE)
        )
        assert logits.shape == (2, 1, SEEN_SIZE, SEEN_SIZE)

    def test_tokens_are_drawn_as_an_image(self):
        model = tiny_setok()
        image = model.reconstruct(torch.randn(2, 3, TOKEN_SIZE), generator=seeds(1, 2), num_inference_steps=2)
        assert image.shape == (2, 3, DRAWN_SIZE, DRAWN_SIZE)
        with pytest.raises(ValueError, match="no detokenizer"):
            tiny_setok(detokenizer_config=None).reconstruct(torch.randn(2, 3, TOKEN_SIZE))


def save_tower(folder) -> str:
    build_vision_tower(tiny_setok_config().vision_config.vision_config).save_pretrained(folder)
    return str(folder)


SIZES = {
    "output_size": TOKEN_SIZE,
    "max_tokens": 6,
    "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
}


def compose(tower: str, **kwargs) -> SeTokForPreTraining:
    torch.manual_seed(3)
    return SeTokForPreTraining.from_vision_pretrained(tower, **{**SIZES, **kwargs})


class TestFolders:
    def test_all_weights_come_back_through_auto_classes(self, tmp_path):
        model = tiny_setok(latent=True)
        model.save_pretrained(tmp_path)
        for auto_class in (AutoModel, AutoModelForPreTraining):
            loaded = auto_class.from_pretrained(tmp_path)
            assert isinstance(loaded, SeTokForPreTraining)
            weights = loaded.state_dict()
            assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())

    def test_trained_weights_are_saved_without_tower_unet_and_vae(self, tmp_path):
        tower = save_tower(tmp_path / "tower")
        (tmp_path / "sd").mkdir()
        diffusion = save_diffusion_checkpoint(tmp_path / "sd")
        model = compose(tower, diffusion=diffusion, detokenizer_config={"mapper_config": tiny_mapper_config()})
        assert model.config.base_models == {"vision": tower, "diffusion": diffusion}
        model.train_phase("reconstruction")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.train_phase("boundaries")
        save_trained_weights(model, tmp_path / "adapter")
        names = set(read_trained_weights(str(tmp_path / "adapter")))
        assert not any(name.startswith(("vision_model.vision_tower", "detokenizer.vae")) for name in names)
        unet = {name for name in names if name.startswith("detokenizer.unet")}
        assert len(unet) == 8
        assert all(".attn2.to_" in name for name in unet)
        loaded = SeTokForPreTraining.from_pretrained(tmp_path / "adapter")
        weights = loaded.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())

    def test_a_unet_from_scratch_is_among_the_trained_weights(self, tmp_path):
        model = compose(save_tower(tmp_path / "tower"), detokenizer_config=tiny_detokenizer_config().to_dict())
        assert set(model.config.base_models) == {"vision"}
        save_trained_weights(model, tmp_path / "adapter")
        loaded = SeTokForPreTraining.from_pretrained(tmp_path / "adapter")
        assert (tmp_path / "adapter" / TRAINED_WEIGHTS_NAME).exists()
        weights = loaded.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("auto_class", [AutoModel, SeTokForPreTraining])
    @pytest.mark.parametrize("whole", [True, False])
    def test_without_its_detokenizer_it_comes_back_where_diffusers_is_missing(
        self, tmp_path, monkeypatch, whole, auto_class
    ):
        (tmp_path / "sd").mkdir()
        diffusion = save_diffusion_checkpoint(tmp_path / "sd")
        tower = save_tower(tmp_path / "tower")
        model = compose(tower, diffusion=diffusion, detokenizer_config={"mapper_config": tiny_mapper_config()})
        folder = tmp_path / "saved"
        if whole:
            model.save_pretrained(folder)
        else:
            save_trained_weights(model, folder)
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ImportError, match=r'pip install "vistok\[generation\]"'):
            auto_class.from_pretrained(folder)
        loaded, info = auto_class.from_pretrained(folder, detokenizer_config=None, output_loading_info=True)
        assert loaded.detokenizer is None and loaded.config.detokenizer_config is None and not info["unexpected_keys"]
        assert loaded.config.base_models == (None if whole else {"vision": tower})
        rest = {name for name in model.state_dict() if not name.startswith("detokenizer.")}
        assert set(loaded.state_dict()) == rest
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
        with pytest.raises(ValueError, match="has no detokenizer and draws no images"):
            loaded.reconstruct(torch.zeros(1, 2, TOKEN_SIZE))

    def test_weights_of_a_detokenizer_are_foreign_to_a_folder_that_is_to_have_none(self, tmp_path, caplog):
        model = compose(save_tower(tmp_path / "tower"), detokenizer_config=tiny_detokenizer_config().to_dict())
        folders = tmp_path / "whole", tmp_path / "trained"
        model.save_pretrained(folders[0])
        save_trained_weights(model, folders[1])
        for folder in folders:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"detokenizer_config": None}))
        with pytest.raises(CheckpointError, match=r"detokenizer\.\S+ is unknown"):
            SeTokForPreTraining.from_pretrained(folders[1], detokenizer_config=None)
        _, info = SeTokForPreTraining.from_pretrained(folders[0], detokenizer_config=None, output_loading_info=True)
        assert any(name.startswith("detokenizer.") for name in info["unexpected_keys"])

    def test_without_the_detokenizer_other_weights_are_as_strict_as_ever(self, tmp_path):
        model = compose(save_tower(tmp_path / "tower"), detokenizer_config=tiny_detokenizer_config().to_dict())
        foreign = {"detokenizers.weight": torch.zeros(1)}
        for folder, change in (("more", foreign), ("less", {})):
            weights = dict(model.named_parameters()) | change
            if folder == "less":
                del weights["vision_model.tokenizer.log_kernel_scale"]
            save_trained_weights(model, tmp_path / folder, weights)
        with pytest.raises(CheckpointError, match=r"config: detokenizers\.weight is unknown\.$"):
            SeTokForPreTraining.from_pretrained(tmp_path / "more", detokenizer_config=None)
        with pytest.raises(CheckpointError, match=r"config: vision_model\.tokenizer\.log_kernel_scale is missing\.$"):
            SeTokForPreTraining.from_pretrained(tmp_path / "less", detokenizer_config=None)

    def test_the_mapper_starts_from_bert(self, tmp_path):
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
        bert = BertModel(BertConfig(vocab_size=30, **sizes))
        bert.save_pretrained(tmp_path / "bert")
        tower = save_tower(tmp_path / "tower")
        detokenizer = {"detokenizer_config": tiny_detokenizer_config().to_dict()}
        model = compose(tower, bert=str(tmp_path / "bert"), **detokenizer)
        layer = model.detokenizer.mapper.qformer.encoder.layer[2]
        assert torch.equal(layer.intermediate_query.dense.weight, bert.encoder.layer[2].intermediate.dense.weight)
        with pytest.raises(ValueError, match="bert starts the feature mapper"):
            compose(tower, bert=str(tmp_path / "bert"))

    def test_the_seed_alone_decides_on_new_weights(self, tmp_path):
        tower = save_tower(tmp_path / "tower")
        one, other = compose(tower), compose(tower)
        weights = other.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in one.state_dict().items())

    def test_a_tower_that_is_gone_is_named_by_its_entry(self, tmp_path):
        model = compose(save_tower(tmp_path / "tower"))
        model.train_phase("boundaries")
        save_trained_weights(model, tmp_path / "adapter")
        (tmp_path / "tower").rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match=r"base_models\.vision = "):
            SeTokForPreTraining.from_pretrained(tmp_path / "adapter")

    def test_truncated_weights_are_one_clear_error(self, tmp_path):
        tiny_setok(detokenizer_config=None).save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            SeTokForPreTraining.from_pretrained(tmp_path)

    def test_overrides_that_are_no_field_are_named(self, tmp_path):
        with pytest.raises(ValueError, match="num_clusters: no field of SeTokConfig or SeTokVisionConfig"):
            compose(save_tower(tmp_path / "tower"), num_clusters=5)
