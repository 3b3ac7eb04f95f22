"""What SeTok and Setokim write for the conditions of image tasks, with tiny random models, and the commands whole."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.planted_images import SIDE, PixelProbe, annotation, planted_scenes
from tests.tiny import tiny_image, tiny_image_processor
from tests.tiny_setokim import tiny_setok_config, tiny_setokim, tiny_setokim_processor
from vistok import SeTokForPreTraining, SetokimPipeline
from vistok.evaluation.cluster_baselines import grid_clusters
from vistok.evaluation.contents_scores import TOKEN_METRICS
from vistok.evaluation.image_command import evaluate_images_command
from vistok.evaluation.image_task_files import make_example
from vistok.evaluation.image_writers import CaptionWriter, Drawing, MaskWriter, TokenizerWriter, load_writer
from vistok.modeling.patch_clusters import given_clusters
from vistok.processing.drawn_images import drawing_targets, picture_of, pixels_of
from vistok.trainer.data_sources import load_data_source


@pytest.fixture(scope="module")
def pipeline():
    return SetokimPipeline(tiny_setokim(draws=True), tiny_setokim_processor())


@pytest.fixture(scope="module")
def setok(pipeline):
    return pipeline.model.model.setok


@pytest.fixture
def examples(tmp_path):
    found = []
    for number in range(3):
        files = [tmp_path / f"{number}-{place}.png" for place in range(2)]
        for place, file in enumerate(files):
            tiny_image(number + 10 * place).save(file)
        found.append(make_example("editing", number, files, "a dog", id=f"e{number}"))
    return found


def pixels(written):
    return [np.asarray(image.convert("RGB")).astype(int) for image, _ in written]


class TestTokenizerWriter:
    def test_an_image_is_drawn_from_its_seed_alone_whatever_the_batch(self, setok, examples):
        writer = TokenizerWriter(setok, tiny_image_processor(), Drawing(seed=1))
        together, alone = writer("given", examples), [writer("given", [example])[0] for example in examples]
        for one, other in zip(pixels(together), pixels(alone)):
            assert np.abs(one - other).max() <= 1, "but for rounding"
        another = TokenizerWriter(setok, tiny_image_processor(), Drawing(seed=2))("given", examples)
        assert np.abs(pixels(another)[0] - pixels(together)[0]).max() > 10

    def test_a_grid_has_as_many_tokens_merged_and_drawn_by_the_same_weights(self, setok, examples):
        writer = TokenizerWriter(setok, tiny_image_processor(), Drawing())
        given, grid = writer("given", examples), writer("grid", examples)
        assert [facts["num_tokens"] for _, facts in grid] == [facts["num_tokens"] for _, facts in given]
        assert len(set(given[0][1]["assignment"])) == given[0][1]["num_tokens"]
        encoded = writer.encode([Image.open(examples[0]["images"][-1]["path"])])
        assignment = grid_clusters(encoded.grid_size, grid[0][1]["num_tokens"])[None]
        found = setok.vision_model.tokenizer(encoded.patch_features, encoded.grid_size, assignment=assignment)
        assert (found.assignment == given_clusters(assignment, encoded.grid_size).assignment).all()
        drawn = setok.reconstruct(found.tokens, found.mask, **Drawing().options(examples[:1]))
        assert np.abs(np.asarray(picture_of(drawn[0])).astype(int) - pixels(grid)[0]).max() <= 1

    def test_targets_are_the_images_as_they_are_to_be_drawn(self, setok, examples):
        writer = TokenizerWriter(setok, tiny_image_processor())
        (target, facts) = writer("targets", examples)[1]
        picture = Image.open(examples[1]["images"][-1]["path"])
        wanted = drawing_targets(tiny_image_processor(), [picture], writer.side)[0]
        assert target.size == (writer.side, writer.side) and facts == {}
        assert (pixels_of(target) - wanted).abs().max() < 0.01

    def test_a_model_that_draws_nothing_is_refused(self):
        with pytest.raises(ValueError, match="has no detokenizer"):
            TokenizerWriter(SeTokForPreTraining(tiny_setok_config()), tiny_image_processor())


class TestGivenClusters:
    def test_the_clusters_of_the_tokenizer_given_back_make_its_own_tokens(self, setok):
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        own = setok.vision_model(images)
        again = setok.vision_model(
            patch_features=own.patch_features, grid_size=own.grid_size, assignment=own.assignment
        )
        assert torch.equal(again.mask, own.mask) and torch.equal(again.assignment, own.assignment)
        torch.testing.assert_close(again.tokens, own.tokens)

    def test_numbers_are_brought_in_raster_order_without_gaps(self):
        found = given_clusters(torch.tensor([[7, 7, 2, 2], [3, 5, 3, 5]]), (2, 2))
        assert found.assignment.tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
        assert found.cluster_masks.sum(1).eq(1).all() and found.centers.tolist() == [[0, 2], [0, 1]]
        with pytest.raises(ValueError, match=r"assignment is of 4 patches, the grid of 3 × 2"):
            given_clusters(torch.zeros(1, 4, dtype=torch.long), (3, 2))
        with pytest.raises(ValueError, match="from 0 on"):
            given_clusters(torch.tensor([[-1, 0]]))


class TestCaptionWriter:
    def test_captions_and_edits_are_drawn_through_written_tokens(self, pipeline, examples):
        writer = CaptionWriter(pipeline)
        edited = writer("given", examples)
        drawn = writer("given", [{**example, "images": example["images"][-1:]} for example in examples])
        assert all(1 <= facts["num_tokens"] <= 6 for _, facts in edited + drawn)
        assert np.abs(pixels(edited)[0] - pixels(drawn)[0]).max() > 0
        inputs = pipeline.task_inputs("generate", ["a dog"])
        options = Drawing().options(examples[:1])
        images = pipeline.model.generate_images(**inputs, **options).images
        assert np.abs(np.asarray(picture_of(images[0])).astype(int) - pixels(drawn)[0]).max() <= 1

    def test_facts_hold_the_tokens_that_an_image_was_drawn_from_where_they_are_to_be_kept(self, pipeline, examples):
        captions = [{**example, "images": example["images"][-1:]} for example in examples]
        writer = CaptionWriter(pipeline, keeps_tokens=True)
        inputs = pipeline.task_inputs("generate", [example["text"] for example in captions])
        tokens, mask = pipeline.model.write_image(**inputs)
        encoded = writer.tokenizer.encode([Image.open(example["images"][-1]["path"]) for example in captions])
        for condition, wanted, real in (
            ("given", tokens, mask), ("true_tokens", encoded.tokens, encoded.mask)
        ):  # fmt: skip
            for (_, facts), of_image, is_token in zip(writer(condition, captions), wanted, real.bool()):
                torch.testing.assert_close(torch.tensor(facts["tokens"]), of_image[is_token], atol=6e-5, rtol=0)
        assert all("tokens" not in facts for _, facts in writer("targets", captions))
        assert all("tokens" not in facts for _, facts in CaptionWriter(pipeline)("given", captions))

    def test_true_tokens_are_those_of_the_image_that_is_right_and_a_copy_is_the_source(self, pipeline, examples):
        writer = CaptionWriter(pipeline)
        tokenizer = TokenizerWriter(pipeline.model.model.setok, pipeline.processor.image_processor)
        assert (pixels(writer("true_tokens", examples))[2] == pixels(tokenizer("given", examples))[2]).all()
        source = Image.open(examples[0]["images"][0]["path"])
        copied, target = writer("copied_source", examples)[0][0], writer("targets", examples)[0][0]
        wanted = drawing_targets(pipeline.processor.image_processor, [source], writer.side)[0]
        assert (pixels_of(copied) - wanted).abs().max() < 0.01 and copied.tobytes() != target.tobytes()


@pytest.fixture
def expressions(tmp_path):
    found = []
    for number in range(2):
        image, mask = tmp_path / f"i{number}.png", tmp_path / f"m{number}.png"
        tiny_image(number, (40, 24)).save(image)
        pixels = np.zeros((24, 40), dtype=np.uint8)
        pixels[4:12, 5:20] = 255
        Image.fromarray(pixels).save(mask)
        found.append(make_example("referring", number, [image, mask], "the dog", other="a red circle"))
    return found


class TestMaskWriter:
    def test_masks_are_of_the_size_of_the_image_and_the_best_cluster_is_the_best(self, pipeline, expressions):
        writer = MaskWriter(pipeline)
        found = {
            name: [np.asarray(image) for image, _ in writer(name, expressions)]
            for name in ("given", "shuffled_expressions", "whole_image", "largest_cluster", "best_cluster",
                         "best_token_mask", "targets")
        }  # fmt: skip
        assert {mask.shape for masks in found.values() for mask in masks} == {(24, 40)}
        target = found["targets"][0]
        assert target.sum() == 8 * 15 and found["whole_image"][0].all()

        def iou(mask):
            return (mask & target).sum() / (mask | target).sum()

        assert iou(found["best_cluster"][0]) >= iou(found["largest_cluster"][0])
        own = pipeline.segment(Image.open(expressions[0]["images"][0]["path"]), "the dog")[0]
        assert (found["given"][0] == own).all()

    def test_a_mask_of_another_size_is_told(self, pipeline, expressions, tmp_path):
        Image.new("L", (8, 8), 255).save(tmp_path / "m0.png")
        with pytest.raises(ValueError, match=r"A mask has 8 × 8 pixels .* and its image 24 × 40"):
            MaskWriter(pipeline)("best_cluster", expressions)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, pipeline):
    """A trained Setokim on disk, whose images are large enough for SSIM, and scenes with all that is asked."""
    place = tmp_path_factory.mktemp("image-tasks")
    import tests.tiny_setokim as tiny

    unet = {**tiny.TINY_UNET, "sample_size": 16}
    config = tiny.tiny_setok_config()
    config = type(config)(**{**config.to_dict(), "detokenizer_config": {
        "unet_config": unet, "mapper_config": tiny.TINY_MAPPER, "num_inference_steps": 2}})  # fmt: skip
    model = tiny_setokim(setok_config=config)
    model.save_pretrained(place / "model")
    tiny_setokim_processor().save_pretrained(place / "model")
    planted_scenes(place / "scenes", 5)
    planted_scenes(place / "training", 24, seed=1)
    instances = json.loads((place / "scenes" / "instances.json").read_text())
    found = [{"ref_id": one["id"], "ann_id": one["id"], "split": "test",
              "sentences": [{"sent": f"the {one['id']}", "sent_id": one["id"], "kind": "noun"}]}
             for one in instances["annotations"]]  # fmt: skip
    (place / "scenes" / "refs(vistok).json").write_text(json.dumps(found))
    return place


def evaluate(folders, tasks, output, **options):
    given = {"questions": folders / "scenes", "load_source": load_data_source, "extractor": None, "device": "cpu"}
    given |= {"progress_bar": False, "batch_size": 4, "output": output, "num_shown": 1}
    return evaluate_images_command(folders / "model", tasks, **{**given, **options})


class TestCommand:
    def test_all_tasks_of_a_set_of_scenes_are_evaluated_in_one_go_and_resumed(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("vistok.evaluation.image_command.probe_of_scenes", lambda *_, **__: PixelProbe())
        monkeypatch.setenv("VISTOK_CACHE", str(folders / "cache"))
        tasks, options = ["referring", "generation"], {"probe_scenes": folders / "training", "max_questions": 4}
        first = evaluate(folders, tasks, tmp_path, **options)
        assert list(first) == tasks and first["generation"]["settings"]["num_inference_steps"] is None
        assert 0 <= first["generation"]["class_f1"] <= 1
        names = {file.name for file in tmp_path.iterdir()}
        for task in tasks:
            of_task = {f"{task}-test.{ending}" for ending in ("json", "md", "png", "pictures.png", "images")}
            assert of_task | {f"{task}-test.predictions.jsonl"} <= names
        assert "summary.md" in names
        again = evaluate(folders, tasks, tmp_path, **options)
        assert [result["num_generated"] for result in again.values()] == [0, 0]
        for task in tasks:
            assert again[task]["floors"] == first[task]["floors"] and again[task]["gains"] == first[task]["gains"]

    def test_tokens_that_were_written_are_scored_again_from_the_predictions_file(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("vistok.evaluation.image_command.probe_of_scenes", lambda *_, **__: PixelProbe())
        monkeypatch.setenv("VISTOK_CACHE", str(folders / "cache"))
        options = {"probe_scenes": folders / "training"}
        first = evaluate(folders, ["generation"], tmp_path, **options)["generation"]
        file = tmp_path / "generation-test.predictions.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
        for line in lines:
            facts = json.loads(line["prediction"])
            assert ("tokens" in facts) == (line["images"] in ("given", "true_tokens")), "targets have none"
            if "tokens" in facts:
                assert len(facts["tokens"]) == facts["num_tokens"]
                assert all(round(value, 4) == value for token in facts["tokens"] for value in token)
        conditions = {"given": first, **first["floors"], **first["ceilings"]}
        of_tokens = [metric.name for metric in TOKEN_METRICS]
        for name in ("given", "shuffled_captions", "true_tokens"):
            assert conditions[name]["metrics"]["token_class_f1"]["value"] is not None
        for name in of_tokens:
            assert conditions["targets"]["metrics"][name] == {"value": None, "interval": None}
        monkeypatch.setattr("vistok.evaluation.token_contents_probe.train_token_probe", None)  # is not called again
        monkeypatch.setattr(CaptionWriter, "__call__", None)  # nor is anything written
        before = file.read_bytes()
        again = evaluate(folders, ["generation"], tmp_path, **options)["generation"]
        assert again["num_generated"] == 0 and file.read_bytes() == before
        for name in ("metrics", "floors", "ceilings", "per_type", "token_probe"):
            assert again[name] == first[name]

    def test_a_setok_alone_is_reconstructed_and_nothing_is_kept_without_output(self, folders, setok, tmp_path):
        model = load_writer(folders / "model", "reconstruction")[1].model.setok
        model.save_pretrained(tmp_path / "setok")
        tiny_image_processor().save_pretrained(tmp_path / "setok")
        results = evaluate_images_command(
            tmp_path / "setok", ["reconstruction"], images=folders / "scenes" / "images", extractor=None,
            conditions=["grid"], max_questions=2, progress_bar=False, device="cpu",
        )  # fmt: skip
        assert list(results["reconstruction"]["floors"]) == ["grid"]
        assert [file.name for file in tmp_path.iterdir()] == ["setok"]
        with pytest.raises(ValueError, match=r"Task referring is for models of type setokim, and .* is of type setok"):
            load_writer(tmp_path / "setok", "referring")

    def test_a_probe_of_the_very_images_that_it_reads_is_refused(self, folders, tmp_path):
        with pytest.raises(ValueError, match="5 images of the task generation are among the scenes of --probe-scenes"):
            evaluate(folders, ["generation"], tmp_path / "out", probe_scenes=folders / "scenes")
        assert not (tmp_path / "out").exists()

    def test_what_is_wrong_is_told_before_anything_is_written(self, folders, tmp_path):
        with pytest.raises(ValueError, match="give --probe-scenes"):
            evaluate(folders, ["generation"], tmp_path)
        with pytest.raises(ValueError, match="'grid' is nothing to compare referring with"):
            evaluate(folders, ["referring"], tmp_path, conditions=["grid"])
        with pytest.raises(ValueError, match="Did you mean 'reconstruction'"):
            evaluate(folders, ["reconstructions"], tmp_path)
        with pytest.raises(ValueError, match="num_inference_steps is 0"):
            evaluate(folders, ["reconstruction"], tmp_path, num_inference_steps=0)
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_extra_is_told(self, folders, tmp_path, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ImportError, match=r"vistok\[generation\]"):
            evaluate(folders, ["reconstruction"], tmp_path)


def test_masks_need_no_diffusers_and_drawing_does(folders, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    writer, model, _ = load_writer(folders / "model", "referring")
    assert isinstance(writer, MaskWriter) and model.model.setok.detokenizer is None
    for task in ("reconstruction", "generation", "editing"):
        with pytest.raises(ImportError, match=r"vistok\[generation\]"):
            load_writer(folders / "model", task)


def test_the_planted_mask_has_the_size_of_its_image():
    assert annotation(1, 1, 1, np.ones((SIDE, SIDE), dtype=bool))["segmentation"]["counts"] == [0, SIDE * SIDE]
