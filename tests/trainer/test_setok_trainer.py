"""Training of SeTok: both phases on a few drawn boxes, exact resuming, named losses, pictures and bad input."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch.utils.data import BatchSampler
from transformers import EvalPrediction, ViTImageProcessorPil

from tests.tiny_setok import (
    tiny_detokenizer_config,
    tiny_mapper_config,
    tiny_setok,
    tiny_setok_config,
    tiny_unet_config,
)
from tests.trainer.planted_boxes import save_boxes
from vistok import SeTokForPreTraining, SeTokTrainer, SeTokTrainingConfig, load_data_source
from vistok.configuration.shipped import here_or_shipped, shipped_path
from vistok.modeling.object_contrast import (
    object_contrast_loss,
    patch_objects,
    patch_weights_by_coverage,
    squared_kernel_scale,
)
from vistok.processing.images import BadSampleError, image_key, load_image
from vistok.trainer import setok_recipe
from vistok.trainer.kept_tokens import KeptTokens
from vistok.trainer.recipe import load_recipe
from vistok.trainer.recipe_chain import check_starts
from vistok.trainer.run_lineage import start_of
from vistok.trainer.setok_measures import image_metrics
from vistok.trainer.setok_recipe import SeTokModelRecipe, build_setok

PROCESSOR = ViTImageProcessorPil(size={"height": 24, "width": 24}, do_resize=True)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    save_boxes(folder)
    return folder


def make_trainer(boxes, folder, phase, steps=4, data=None, config=None, **kwargs):
    torch.manual_seed(0)
    model = tiny_setok(vision={"cluster_projection_layers": 1}, object_contrast_weight=1.0, **(config or {}))
    data = load_data_source({"format": "object-masks", "path": str(boxes)}) if data is None else data
    options = {"per_device_train_batch_size": 2, "logging_steps": 1, "sample_steps": 2, "num_samples": 2}
    options |= {"sample_inference_steps": 2, "save_steps": 2, "eval_strategy": "steps", "eval_steps": steps}
    options |= {"learning_rate": 1e-3, **kwargs}
    args = SeTokTrainingConfig(
        phase=phase, output_dir=str(folder), max_steps=steps, report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return SeTokTrainer(model, args, data, data, PROCESSOR)


def test_reconstruction_trains_what_the_paper_names(boxes, tmp_path):
    trainer = make_trainer(boxes, tmp_path, "reconstruction", steps=2)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any(name.startswith("detokenizer.mapper.") for name in moved)
    assert not any(name.startswith(("vision_model.vision_tower.", "mask_decoder.")) for name in moved)
    logged = trainer.state.log_history
    assert {"loss_reconstruction", "tokens_mean", "tokens_min", "tokens_max"} <= set(logged[0])
    assert any("eval_total_loss" in entry for entry in logged)
    picture = Image.open(tmp_path / "samples" / "step-000002.png")
    assert picture.width > 4 * 256
    trainer.save_final(tmp_path / "final")
    loaded = type(trainer.model).from_pretrained(tmp_path / "final")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, dict(trainer.model.named_parameters())[name]), name


def test_boundaries_resume_exactly_with_cached_features(boxes, tmp_path):
    options = {"cache_features": True, "feature_cache_dir": str(tmp_path / "cache"), "reconstruct_boundaries": True}
    whole = make_trainer(boxes, tmp_path / "run", "boundaries", **options)
    whole.train()
    names = {"bce", "dice", "consistency"}
    terms = {f"loss_mask_{name}" for name in names} | {"loss_reconstruction", "loss_object_contrast"}
    entry = whole.state.log_history[0]
    assert terms <= set(entry)
    assert entry["loss"] == pytest.approx(sum(entry[name] for name in terms), rel=1e-4)
    evaluated = next(entry for entry in whole.state.log_history if "eval_ari" in entry)
    assert -1 <= evaluated["eval_ari"] <= 1 and 0 <= evaluated["eval_iou"] <= 1
    resumed = make_trainer(boxes, tmp_path / "run", "boundaries", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(parameter, other), name


def test_both_phases_find_the_same_features(boxes, tmp_path):
    options = {"cache_features": True, "feature_cache_dir": str(tmp_path / "cache")}
    trainers = [make_trainer(boxes, tmp_path / phase, phase, **options) for phase in ("boundaries", "reconstruction")]
    assert len({trainer.collator.features.folder for trainer in trainers}) == 1


def test_images_with_masks_are_read_as_they_are_stored_in_every_phase(boxes, tmp_path):
    shutil.copytree(boxes, tmp_path / "turned")
    file = tmp_path / "turned" / "images" / "0.png"
    picture = Image.open(file)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(file, exif=exif)
    data = load_data_source({"format": "object-masks", "path": str(tmp_path / "turned")})
    options = {"cache_features": True, "feature_cache_dir": str(tmp_path / "cache"), "feature_cache_dtype": "float32"}
    trainer = make_trainer(boxes, tmp_path / "out", "reconstruction", data=data, **options)
    stored = trainer.source.patch_features([load_image(file, apply_exif_orientation=False)])[0]
    assert torch.allclose(trainer.collator.features[image_key(str(file))], stored, atol=1e-5)


def test_accumulated_batches_make_the_same_step(boxes, tmp_path):
    moved = []
    for size, accumulated in ((4, 1), (2, 2)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "sample_steps": 0}
        options |= {"learning_rate": 1e-2, "optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0}
        trainer = make_trainer(boxes, tmp_path / str(size), "boundaries", steps=1, save_strategy="no", **options)
        trainer.model.config.object_contrast_weight = 0.0
        trainer.train()
        moved.append(trainer.model.mask_decoder.state_dict())
    for name, parameter in moved[0].items():
        torch.testing.assert_close(parameter, moved[1][name], rtol=1e-4, atol=1e-6)


def test_accumulated_batches_of_which_other_shares_lose_their_tokens_make_the_same_step(boxes, tmp_path):
    mapper = tiny_mapper_config(num_queries=4, query_grid=True)
    config = {"detokenizer_config": tiny_detokenizer_config(mapper_config=mapper, condition_dropout=0.5)}
    moved = []
    for size, accumulated in ((6, 1), (2, 3)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "sample_steps": 0}
        options |= {"learning_rate": 1e-2, "optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0}
        options |= {"max_grad_norm": 0.0, "save_strategy": "no"}
        trainer = make_trainer(boxes, tmp_path / str(size), "reconstruction", steps=1, config=config, **options)
        trainer.train()
        moved.append((trainer.model.detokenizer.query_grid.state_dict(), trainer.state.log_history[0]))
    for name, parameter in moved[0][0].items():
        torch.testing.assert_close(parameter, moved[1][0][name], rtol=1e-4, atol=1e-6)
    for name in ("loss", "loss_preview", "loss_placement"):
        assert moved[0][1][name] == pytest.approx(moved[1][1][name], rel=1e-4), name


@pytest.mark.parametrize("num_images", [1, 2, 3, 5, 6])
def test_images_that_fill_up_the_last_batches_of_processes_do_not_count(boxes, tmp_path, num_images, monkeypatch):
    """What two processes with batches of two tell, put together as accelerate does, is what one tells of all."""
    data = load_data_source({"format": "object-masks", "path": str(boxes)})
    examples = [data[number % len(data)] for number in range(num_images)]
    trainer = make_trainer(boxes, tmp_path, "boundaries", data=data)
    model = trainer.model.eval()
    _, rows, _ = trainer.prediction_step(model, trainer._eval_collator(examples), False)
    expected = trainer.compute_metrics(EvalPrediction(rows.numpy(), None))

    sampler = BatchSampler(range(num_images), 2, drop_last=False)
    shards = [list(BatchSamplerShard(sampler, num_processes=2, process_index=process)) for process in range(2)]
    gathered = []
    for step, batches in enumerate(zip(*shards, strict=True)):
        is_last = step == len(shards[0]) - 1
        remainder = num_images % 4 if is_last else 0
        state = SimpleNamespace(end_of_dataloader=is_last, remainder=remainder)
        monkeypatch.setattr(trainer.accelerator, "gradient_state", state)
        told = []
        for process, batch in enumerate(batches):
            monkeypatch.setattr(type(trainer.args), "process_index", process)
            inputs = trainer._eval_collator([examples[number] for number in batch])
            told.append(trainer.prediction_step(model, inputs, False)[1])
        gathered.append(torch.cat(told)[: remainder or None])
    rows = torch.cat(gathered)
    assert len(rows) == num_images
    assert trainer.compute_metrics(EvalPrediction(rows.numpy(), None)) == pytest.approx(expected, rel=1e-5)


def test_pairs_of_patches():
    coverage = torch.tensor([[[1.0, 0.9, 0.0, 0.4], [0.0, 0.0, 0.0, 0.3]]])
    labels = patch_objects(coverage, torch.ones(1, 2, dtype=torch.bool))
    assert labels.tolist() == [[1, 1, 0, -1]]
    apart = torch.tensor([[[0.0], [0.0], [9.0], [4.0]]])
    mixed = torch.tensor([[[0.0], [9.0], [0.0], [4.0]]])
    scale = torch.ones(1, 1, 1)
    assert object_contrast_loss(apart, labels, scale) < 1e-3 < object_contrast_loss(mixed, labels, scale)
    with pytest.raises(ValueError, match="one for each patch"):
        object_contrast_loss(apart, labels[:, :2], scale)


def test_a_patch_at_an_edge_counts_as_much_on_either_side():
    # Two objects of 2.5 and 1.5 patches, the second of which shares one half and half with a background of 96.
    coverage = torch.zeros(1, 3, 100)
    coverage[0, 0, :3] = torch.tensor([1.0, 1.0, 0.5])
    coverage[0, 1, 3:5] = torch.tensor([1.0, 0.5])
    coverage[0, 2] = 1.0  # padding
    weights = patch_weights_by_coverage(coverage, torch.tensor([[True, True, False]]))
    assert weights[0, :3].tolist() == pytest.approx([1 / 2.5, 1 / 2.5, 0.5 / 2.5 + 0.5 / 96])
    assert weights[0, 4] == pytest.approx(0.5 / 1.5 + 0.5 / 96) and weights[0, 50] == pytest.approx(1 / 96)
    assert weights.sum() == pytest.approx(3), "objects and the background weigh the same"

    features = torch.randn(1, 100, 4, generator=torch.Generator().manual_seed(0))
    labels, scale = torch.ones(1, 100, dtype=torch.long), torch.ones(1, 1, 1)
    labels[0, 50:] = 0
    counted = torch.ones(1, 100)
    counted[0, 10:] = 0.0
    some = object_contrast_loss(features[:, :10], labels[:, :10], scale, counted[:, :10])
    torch.testing.assert_close(object_contrast_loss(features, labels, scale, counted), some, rtol=1e-4, atol=0)


def test_pairs_of_patches_are_compared_in_full_precision_wherever_features_lie():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 12, 64, generator=generator) + 300
    labels = torch.arange(12).expand(2, 12) // 4
    scale = torch.full((1, 1, 1), 2.0)
    squared = torch.cdist(features.double(), features.double()).square() / 64
    with torch.autocast("cpu", torch.bfloat16):
        found = object_contrast_loss(features, labels, scale)
        relative = squared_kernel_scale(features, 0.7, True)
    expected = (0.7 * squared.sqrt().mean((1, 2), keepdim=True)) ** 2
    torch.testing.assert_close(relative.double(), expected, rtol=1e-3, atol=0)
    same = labels[:, :, None] == labels[:, None]
    apart = -torch.log(1 - torch.exp(-squared / 2) + 1e-4)
    # Three labels of four patches each: every pair weighs the same.
    expected = torch.stack([(squared / 2)[same].mean(), apart[~same].mean()]).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_the_object_contrast_trains_clusters_that_no_other_loss_reaches():
    vision = {"method": "threshold", "straight_through": False}
    for weight, trains in ((0.0, False), (1.0, True)):
        config = tiny_setok_config(vision=vision, object_contrast_weight=weight)
        assert ("clustering" in config.phase_trainable("boundaries")) == trains
    with pytest.raises(ValueError, match="mask_dice_weight is nan"):
        tiny_setok_config(mask_dice_weight=float("nan"))


def test_images_without_masks_have_no_correlation():
    rows = np.array([[3, np.nan, np.nan, np.nan, np.nan], [5, np.nan, np.nan, np.nan, np.nan]])
    assert image_metrics(rows) == {"tokens_mean": 4.0, "tokens_min": 3.0, "tokens_max": 5.0}


def test_bad_input(boxes, tmp_path):
    with pytest.raises(ValueError, match="unknown phase"):
        SeTokTrainingConfig(phase="borders", output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="mask_scale is 0"):
        SeTokTrainingConfig(mask_scale=0, output_dir=str(tmp_path))
    plain = load_data_source({"format": "object-masks", "path": str(boxes)}).remove_columns("masks")
    with pytest.raises(BadSampleError, match="has no masks"):
        make_trainer(boxes, tmp_path / "plain", "boundaries", data=plain).train()
    with pytest.raises(FileNotFoundError):
        load_data_source({"format": "object-masks", "path": str(boxes / "nothing.json")})


class TestKeptTokens:
    OPTIONS = {"cache_features": True, "feature_cache_dtype": "float32", "trainable": {"merger": "frozen"}}

    def test_a_training_with_them_is_that_without(self, boxes, tmp_path):
        options = {**self.OPTIONS, "feature_cache_dir": str(tmp_path / "cache")}
        runs = [
            make_trainer(boxes, tmp_path / str(keeps), "reconstruction", keep_tokens=keeps, **options)
            for keeps in (False, True)
        ]
        for trainer in runs:
            trainer.train()
        assert len(runs[1].collator.tokens) == len(runs[1].train_dataset)  # in four steps of two, more than once
        logs = [[entry for entry in trainer.state.log_history if "eval_runtime" not in entry] for trainer in runs]
        for one, other in zip(*logs):
            assert one.keys() == other.keys()
            timed = {name for name in one if name.endswith(("runtime", "per_second", "flos"))}
            assert all(one[name] == pytest.approx(other[name], rel=1e-3) for name in one.keys() - timed)
        for (name, parameter), other in zip(runs[0].model.named_parameters(), runs[1].model.parameters()):
            assert torch.allclose(parameter, other, atol=1e-4), name

    @pytest.mark.parametrize("assignment", ["hard", "soft"])
    def test_a_batch_is_what_the_tokenizer_makes_of_it(self, assignment):
        model = tiny_setok(vision={"assignment": assignment}).vision_model
        features = dict(zip("abcd", torch.randn(4, 36, 32, generator=torch.Generator().manual_seed(3))))
        kept = KeptTokens(model, features, (6, 6))
        kept.batch("ab")
        batch = kept.batch("bcdc")
        with torch.no_grad():
            expected = model(patch_features=torch.stack([features[key] for key in "bcdc"]), grid_size=(6, 6))
        assert len(kept) == 4 and batch["grid_size"] == (6, 6)
        assert torch.equal(batch["mask"], expected.mask) and torch.equal(batch["assignment"], expected.assignment)
        for name in ("tokens", "cluster_masks"):
            assert torch.allclose(batch[name], expected[name], atol=1e-5), name

    @pytest.mark.parametrize(
        "otherwise",
        [{"phase": "boundaries"}, {"trainable": None}, {"cache_features": False}, {"dataloader_num_workers": 2},
         {"trainable": {"merger": "frozen", "clustering": "full"}}],
    )  # fmt: skip
    def test_tokens_that_change_are_not_kept(self, otherwise, tmp_path):
        fields = {**self.OPTIONS, "phase": "reconstruction", "output_dir": str(tmp_path), **otherwise}
        with pytest.raises(ValueError, match="keep_tokens is for the phase reconstruction with a frozen merger"):
            SeTokTrainingConfig(keep_tokens=True, use_cpu=True, **fields)


class TestStart:
    """A recipe that starts from a SeTok which draws nothing yet."""

    DETOKENIZER = {"mapper_config": tiny_mapper_config(), "unet_config": tiny_unet_config(), "vae_config": None}

    @pytest.fixture
    def folder(self, tmp_path):
        tiny_setok(detokenizer_config=None).save_pretrained(tmp_path / "setok")
        PROCESSOR.save_pretrained(tmp_path / "setok")
        return str(tmp_path / "setok")

    def test_it_is_given_a_detokenizer_beside_its_own_weights(self, folder):
        config = {"detokenizer_config": self.DETOKENIZER, "mask_dice_weight": 0.5}
        model, _ = build_setok(SeTokModelRecipe(checkpoint=folder, config=config))
        plain = SeTokForPreTraining.from_pretrained(folder).state_dict()
        found = model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
        assert {name.split(".")[1] for name in found.keys() - plain.keys()} == {"mapper", "unet"}
        assert model.config.detokenizer_config.mapper_config.token_size == model.config.mask_decoder_config.token_size
        assert model.config.mask_dice_weight == 0.5
        assert not any(module.training for module in model.modules())
        assert model._no_split_modules == tiny_setok()._no_split_modules
        model.train_phase("reconstruction")

    def test_one_that_has_a_detokenizer_keeps_it(self, tmp_path):
        model = tiny_setok()
        model.save_pretrained(tmp_path)
        PROCESSOR.save_pretrained(tmp_path)
        recipe = SeTokModelRecipe(checkpoint=str(tmp_path), config={"detokenizer_config": self.DETOKENIZER})
        loaded, _ = build_setok(recipe)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name

    def test_how_a_detokenizer_is_trained_may_change(self, tmp_path):
        tiny_setok().save_pretrained(tmp_path)
        PROCESSOR.save_pretrained(tmp_path)
        fields = {"snr_bounds": [1, 10.0], "condition_dropout": 0.2, "mapper_config": {"num_queries": 3}}
        recipe = SeTokModelRecipe(checkpoint=str(tmp_path), config={"detokenizer_config": fields})
        model, _ = build_setok(recipe)
        assert model.detokenizer.config is model.config.detokenizer_config
        assert (model.detokenizer.config.snr_bounds, model.detokenizer.config.condition_dropout) == ([1, 10.0], 0.2)
        model.save_pretrained(tmp_path)
        kept = SeTokModelRecipe(checkpoint=str(tmp_path), config={"detokenizer_config": {}})
        assert build_setok(kept)[0].detokenizer.config.snr_bounds == [1, 10.0]
        off = SeTokModelRecipe(checkpoint=str(tmp_path), config={"detokenizer_config": {"snr_bounds": None}})
        assert build_setok(off)[0].detokenizer.config.snr_bounds is None
        recipe.config["detokenizer_config"]["snr_bounds"] = [10.0, 1]
        with pytest.raises(ValueError, match=r"snr_bounds is \[10.0, 1\]"):
            build_setok(recipe)

    def test_one_that_has_another_detokenizer_is_no_start(self, tmp_path):
        tiny_setok().save_pretrained(tmp_path)
        PROCESSOR.save_pretrained(tmp_path)
        mapper = tiny_mapper_config(num_queries=4, query_grid=True)
        recipe = SeTokModelRecipe(
            checkpoint=str(tmp_path), config={"detokenizer_config": {**self.DETOKENIZER, "mapper_config": mapper}}
        )
        with pytest.raises(ValueError, match=r"detokenizer_config\.mapper_config\.num_queries is 4, but .* has 3"):
            build_setok(recipe)

    def test_what_ships_is_found_by_its_name(self, folder, monkeypatch):
        monkeypatch.setattr(setok_recipe, "resolve_checkpoint", {"vistok:mine": folder}.__getitem__)
        assert build_setok(SeTokModelRecipe(checkpoint="vistok:mine"))[0].detokenizer is None
        monkeypatch.undo()
        recipe = load_recipe(here_or_shipped("recipes/setok/demo/1c-reconstruction.yaml"),
                             ["--model.checkpoint", "vistok:setok-demo"])  # fmt: skip
        assert start_of(recipe) == str(shipped_path("checkpoints/setok-demo"))
        check_starts([recipe])
