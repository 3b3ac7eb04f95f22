"""Tasks whose answers are images: planted writers score what they deserve, floors and ceilings stand beside."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.planted_images import (
    GRID,
    NAMES,
    SIDE,
    PixelProbe,
    annotation,
    image_run,
    planted_scenes,
    true_pictures,
)
from vistok.evaluation.contents_probe import ContentsReading
from vistok.evaluation.image_evaluation import FrechetExtractor, evaluate_images
from vistok.evaluation.image_task_files import make_example
from vistok.evaluation.image_task_pictures import draw_pictures
from vistok.evaluation.image_tasks import IMAGE_TASKS, edit_is_done
from vistok.evaluation.image_writers import true_mask
from vistok.evaluation.predictions import PredictionsFile
from vistok.evaluation.processes import Share
from vistok.evaluation.report_table import report_markdown, save_report
from vistok.evaluation.task_questions import QuestionFiles
from vistok.evaluation.written_images import ImageStore
from vistok.hub_cards.card_evaluation import evaluation_table, normalised_report
from vistok.processing.images import BadSampleError, load_example_images
from vistok.trainer.data_sources import load_data_source


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    planted_scenes(folder)
    return folder


def load(task, folder, **options):
    files = QuestionFiles(folder, load_source=load_data_source, **options)
    return IMAGE_TASKS[task].load(task, files)[0].test


class TestGeneration:
    def measured(self, scenes, folder, writer, **options):
        task, examples = IMAGE_TASKS["generation"], load("generation", scenes)
        return evaluate_images(task, writer, examples, image_run(folder, probe=PixelProbe(), **options))[0]

    def test_a_generator_that_returns_the_true_image_scores_at_the_ceiling(self, scenes, tmp_path):
        results = self.measured(scenes, tmp_path, lambda condition, examples: true_pictures(examples))
        assert results["class_f1"] == 1.0
        assert {entry["value"] for entry in results["metrics"].values()} == {1.0}
        assert results["ceilings"]["true_tokens"]["class_f1"] == results["ceilings"]["targets"]["class_f1"] == 1.0
        assert results["floors"]["shuffled_captions"]["class_f1"] < 0.7
        assert results["gains"]["shuffled_captions"]["class_f1"] > 0.3
        assert results["num_tokens"]["written"]["mean"] == results["num_tokens"]["true"]["mean"] == 3
        assert set(results["per_type"]) == {"1 object", "2 objects", "3 objects"}

    def test_a_generator_that_ignores_the_caption_scores_at_the_floor(self, scenes, tmp_path):
        def writer(condition, examples):
            same = Image.open(scenes / "images" / "000.png")
            return [(same, {"num_tokens": 2})] * len(examples) if condition == "given" else true_pictures(examples)

        results = self.measured(scenes, tmp_path, writer)
        assert results["class_f1"] == results["floors"]["shuffled_captions"]["class_f1"] < 0.7
        assert results["gains"]["shuffled_captions"]["class_f1"] == 0
        assert results["ceilings"]["true_tokens"]["class_f1"] == 1.0

    def test_intervals_may_resample_the_photographs_behind_scenes(self, scenes, tmp_path):
        def writer(condition, examples):
            return true_pictures(examples)

        results = self.measured(scenes, tmp_path, writer, by_background=True)
        assert any("4 photographs" in note for note in results["notes"])
        plain = [{**example, "background": None} for example in load("generation", scenes)]
        with pytest.raises(ValueError, match=r"photograph behind 000\.png is not known"):
            run = image_run(tmp_path / "b", probe=PixelProbe(), by_background=True)
            evaluate_images(IMAGE_TASKS["generation"], writer, plain, run)

    def test_it_needs_a_probe_that_knows_the_classes(self, scenes, tmp_path):
        task, examples = IMAGE_TASKS["generation"], load("generation", scenes)
        with pytest.raises(ValueError, match="give --probe-scenes"):
            evaluate_images(task, true_pictures, examples, image_run(tmp_path / "a"))
        probe = PixelProbe()
        probe.config = replace(probe.config, classes=("dog", *NAMES[1:]))
        with pytest.raises(ValueError, match="Caption 0: contents name 'apple', which the probe was not trained on"):
            run = image_run(tmp_path / "b", probe=probe)
            first = [example for example in examples if example["contents"][0]["name"] == "apple"][:1]
            evaluate_images(task, lambda condition, some: true_pictures(some), [{**first[0], "id": "0"}], run)

    def test_distances_of_features_name_their_extractor(self, scenes, tmp_path, monkeypatch):
        def features(towers, images, pooling, batch_size):
            colours = [np.asarray(Image.open(image).convert("RGB")).mean((0, 1)) for image in images]
            return {"tower": torch.tensor(np.array(colours))}

        monkeypatch.setattr("vistok.evaluation.image_evaluation.representations_of", features)
        tower = type("Tower", (), {"feature_layer": -3})()

        def writer(condition, examples):
            grey = [(Image.new("RGB", (SIDE, SIDE), (9, 9, 9)), {"num_tokens": 1})] * len(examples)
            return grey if condition == "given" else true_pictures(examples)

        results = self.measured(scenes, tmp_path, writer, extractor=FrechetExtractor("mean-colour", tower))
        distances = results["frechet_distance"]
        assert distances["true_tokens"]["frechet_distance"] == pytest.approx(0, abs=1e-6)
        assert distances["given"]["frechet_distance"] > 1000
        assert distances["given"]["extractor"] == "mean-colour, layer -3, mean of patches"
        assert "mean-colour, layer -3" in report_markdown(results) and "halves of the true images" in distances
        run = {"extractor": FrechetExtractor("mean-colour", tower), "max_floor_questions": 5}
        fewer = self.measured(scenes, tmp_path / "fewer", writer, **run)["frechet_distance"]
        assert {(fewer[name]["num_real"], fewer[name]["num_images"]) for name in ("given", "true_tokens")} == {(5, 5)}
        assert fewer["true_tokens"]["frechet_distance"] == pytest.approx(0, abs=1e-6), "of the same examples"


class TestResuming:
    def test_what_was_written_is_not_written_again(self, scenes, tmp_path):
        asked = []

        def writer(condition, examples):
            asked.append((condition, len(examples)))
            if condition == "true_tokens" and len(asked) < 8:
                raise KeyboardInterrupt
            return true_pictures(examples)

        task, examples = IMAGE_TASKS["generation"], load("generation", scenes)
        run = image_run(tmp_path, probe=PixelProbe())
        with pytest.raises(KeyboardInterrupt):
            evaluate_images(task, writer, examples, run)
        assert asked == [("given", 5), ("given", 5), ("given", 2), ("targets", 5), ("targets", 5), ("targets", 2),
                         ("true_tokens", 5)]  # fmt: skip
        (tmp_path / "images" / "given" / "3-6dd28e9b.png").unlink()
        results, _ = evaluate_images(task, writer, examples, run)
        assert asked[7:] == [("given", 5), ("true_tokens", 5), ("true_tokens", 5), ("true_tokens", 2)]
        assert results["class_f1"] == 1.0 and results["num_generated"] == 1

    def test_images_of_another_model_are_not_taken(self, scenes, tmp_path):
        task, examples = IMAGE_TASKS["generation"], load("generation", scenes)
        evaluate_images(task, lambda c, some: true_pictures(some), examples, image_run(tmp_path, probe=PixelProbe()))
        other = image_run(tmp_path, probe=PixelProbe(), known_by={"model": "another"})
        with pytest.raises(ValueError, match="another evaluation"):
            evaluate_images(task, lambda c, some: true_pictures(some), examples, other)


class TestReconstruction:
    def test_true_images_are_equal_and_those_of_others_are_not(self, scenes, tmp_path):
        def writer(condition, examples):
            grey = [(Image.new("RGB", (SIDE, SIDE), (128, 128, 128)), {"num_tokens": 1})] * len(examples)
            return grey if condition in ("grid", "blank_images") else true_pictures(examples)

        task, examples = IMAGE_TASKS["reconstruction"], load("reconstruction", scenes)
        results, written = evaluate_images(task, writer, examples, image_run(tmp_path), split="test")
        assert (results["ssim"], results["metrics"]["l1"]["value"]) == (pytest.approx(1.0), 0.0)
        assert set(results["floors"]) == {"grid", "blank_images", "shuffled_images"} and results["ceilings"] == {}
        assert all(floor["ssim"] < 0.95 for floor in results["floors"].values())
        assert results["floors"]["grid"]["metrics"]["l1"]["value"] > 0.01
        files = save_report(results, tmp_path / "out")
        text = files["md"].read_text("utf-8")
        assert (
            "| images | number | SSIM (95 % interval) | plain grid |" in text and "12 images about 12 images" in text
        )
        assert "SSIM" in text and "points" not in text
        given = [replace(one, facts={"assignment": [0, 0, 1, 1], "grid_size": [2, 2]}) for one in written["given"]]
        draw_pictures(task, examples, {**written, "given": given}, tmp_path / "out" / "p.png", 3)
        width = Image.open(tmp_path / "out" / "p.png").width
        some = {name: images[:2] if name in ("grid", "blank_images") else images for name, images in written.items()}
        draw_pictures(task, examples, {**some, "given": given}, tmp_path / "out" / "few.png", 3, fewer=[4, 9])
        assert Image.open(tmp_path / "out" / "few.png").width == width > 300, "floors of some examples are shown too"

    def test_a_folder_of_pictures_is_enough(self, scenes, tmp_path):
        files = QuestionFiles(images=scenes / "images")
        assert len(IMAGE_TASKS["reconstruction"].load("reconstruction", files)[0].test) == 12
        with pytest.raises(ValueError, match="give --images, a folder, or --questions"):
            IMAGE_TASKS["reconstruction"].load("reconstruction", QuestionFiles())


@pytest.fixture(scope="module")
def references(scenes):
    instances = json.loads((scenes / "instances.json").read_text())
    found = []
    for one in instances["annotations"]:
        kind = "noun" if one["id"] % 2 else "place"
        sentence = {"sent": f"number {one['id']}", "sent_id": one["id"], "kind": kind}
        found.append({"ref_id": one["id"], "ann_id": one["id"], "split": "test", "sentences": [sentence]})
    (scenes / "refs(vistok).json").write_text(json.dumps(found))
    return load("referring", scenes)


class TestReferring:
    def measured(self, references, folder, given):
        """Masks by a writer of what is given; every other condition has the true mask of its own name's example."""

        def writer(condition, examples):
            if condition == "whole_image":
                return [mask_picture(np.ones((SIDE, SIDE), dtype=bool)) for _ in examples]
            if condition == "shuffled_expressions":
                by_text = {example["text"]: example for example in references}
                return [given(by_text[example["other"]]) for example in examples]
            return [
                given(example) if condition == "given" else mask_picture(true_mask(example)) for example in examples
            ]

        task = IMAGE_TASKS["referring"]
        return evaluate_images(task, writer, references, image_run(folder))

    def test_a_perfect_segmenter_has_a_ciou_of_1(self, references, tmp_path):
        results, written = self.measured(references, tmp_path, lambda example: mask_picture(true_mask(example)))
        assert (results["ciou"], results["metrics"]["giou"]["value"]) == (1.0, 1.0)
        assert results["floors"]["whole_image"]["ciou"] == pytest.approx(1 / 16)
        assert results["floors"]["shuffled_expressions"]["ciou"] < 0.3
        assert set(results["per_type"]) == {"noun", "place"}
        assert results["num_images"] == 12 and results["num_questions"] == len(references)
        draw_pictures(IMAGE_TASKS["referring"], references, written, tmp_path / "p.png", 2)

    def test_one_that_ignores_the_expression_scores_at_the_floor(self, references, tmp_path):
        corner = np.zeros((SIDE, SIDE), dtype=bool)
        corner[:8, :8] = True
        results, _ = self.measured(references, tmp_path, lambda example: mask_picture(corner))
        assert results["ciou"] == results["floors"]["shuffled_expressions"]["ciou"]
        assert results["ceilings"]["best_cluster"]["ciou"] == 1.0

    def test_an_empty_mask_counts_as_no_answer_and_a_wrong_size_is_told(self, references, tmp_path):
        empty = mask_picture(np.zeros((SIDE, SIDE), dtype=bool))
        results, _ = self.measured(references, tmp_path / "a", lambda example: empty)
        assert results["unanswered"] == len(references) and results["ciou"] == 0
        small = mask_picture(np.ones((8, 8), dtype=bool))
        with pytest.raises(ValueError, match=r"Expression 'number 1' \(1\): A predicted mask is of shape \(8, 8\)"):
            self.measured(references, tmp_path / "b", lambda example: small)


def mask_picture(mask):
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("1"), {}


@pytest.fixture(scope="module")
def edits(scenes):
    """Each of six scenes loses what it shows first."""
    instances = json.loads((scenes / "instances.json").read_text())
    folder = scenes / "edits"
    folder.mkdir()
    names, images, annotations = [], [], []
    for record in instances["images"][:6]:
        name = f"{100 + record['id']:012d}"
        (folder / name).mkdir()
        gone = next(one for one in instances["annotations"] if one["image_id"] == record["id"])
        source = np.array(Image.open(scenes / "images" / record["file_name"]))
        target = source.copy()
        left, top, width, height = gone["bbox"]
        target[top : top + height, left : left + width] = 128
        for number, pixels in enumerate((source, target)):
            Image.fromarray(pixels).save(folder / name / f"0_{number}.png")
        (folder / name / "prompt.json").write_text(json.dumps({"edit": f"Remove number {gone['id']}."}))
        edit = {"kind": "remove", "source_annotation_id": gone["id"], "target_annotation_id": None, "color": None}
        images.append({**record, "id": 100 + record["id"], "file_name": f"{name}/0_1.jpg", "edit": edit})
        names.append([name, ["0"]])
    (folder / "seeds.json").write_text(json.dumps(names))
    content = {"images": images, "annotations": annotations, "categories": instances["categories"]}
    (folder / "instances.json").write_text(json.dumps(content))
    return load("editing", scenes)


class TestEditing:
    def test_the_true_edit_scores_at_the_ceiling_and_the_copy_beside_it(self, edits, tmp_path):
        def writer(condition, examples):
            if condition == "copied_source":
                return [(load_example_images(example)[0], {}) for example in examples]
            return true_pictures(examples)

        task = IMAGE_TASKS["editing"]
        assert edits[0]["text"] == "Remove number 1.", "the processor of a model says what it is to do"
        results, _ = evaluate_images(task, writer, edits, image_run(tmp_path, probe=PixelProbe()))
        values = {name: entry["value"] for name, entry in results["metrics"].items()}
        assert values == {"l1": 0.0, "l1_changed": 0.0, "l1_kept": 0.0, "done": 1.0}
        copied = results["floors"]["copied_source"]["metrics"]
        assert copied["done"]["value"] == 0 and copied["l1_kept"]["value"] == 0
        assert copied["l1_changed"]["value"] > 0.1 and list(results["per_type"]) == ["remove"]
        assert results["ceilings"]["targets"]["metrics"]["done"]["value"] == 1.0

    def test_what_an_edit_leaves_alone_is_kept_at_any_size(self, edits, tmp_path):
        """Of images that are drawn smaller, edges of what stays are no change."""

        def smaller(picture):
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
            drawn = torch.nn.functional.interpolate(pixels, size=(12, 12), mode="bilinear", antialias=True)[0]
            return Image.fromarray((drawn.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))

        def writer(condition, examples):
            place = 0 if condition == "copied_source" else -1
            return [(smaller(load_example_images(example)[place].convert("RGB")), {}) for example in examples]

        _, written = evaluate_images(IMAGE_TASKS["editing"], writer, edits, image_run(tmp_path))
        score = IMAGE_TASKS["editing"].score
        records = score(edits, written["copied_source"], written["targets"], None)
        boxes = [example["edit"]["source_box"] for example in edits]
        for record, (_, _, width, height) in zip(records, boxes):
            # What lies in the box, and the ring of pixels that mix it with what is around it.
            assert 0 < record["num_changed"] <= (12 * width + 2) * (12 * height + 2)
            assert record["l1_kept"] / record["num_kept"] < 0.02

    def test_without_a_probe_the_distances_remain(self, edits, tmp_path):
        results, _ = evaluate_images(
            IMAGE_TASKS["editing"], lambda c, some: true_pictures(some), edits, image_run(tmp_path)
        )
        assert results["metrics"]["done"]["value"] is None and any("no probe" in note for note in results["notes"])

    def test_every_kind_of_edit_is_found_where_it_is_to_be(self):
        densities, colors = torch.zeros(16, 3), torch.zeros(16, 4)
        densities[0, 0], colors[0, 2] = 1.0, 1.0  # a green apple in the upper left
        reading = ContentsReading(densities, colors, PixelProbe().config)
        here, there = [0, 0, 0.25, 0.25], [0.75, 0.75, 0.25, 0.25]
        for kind in ("add", "move"):
            assert edit_is_done(reading, {"kind": kind, "name": "apple", "target_box": here}) is True
            assert edit_is_done(reading, {"kind": kind, "name": "apple", "target_box": there}) is False
        assert edit_is_done(reading, {"kind": "remove", "name": "apple", "source_box": there}) is True
        assert edit_is_done(reading, {"kind": "remove", "name": "apple", "source_box": here}) is False
        moved = {"kind": "move", "name": "apple", "target_box": here, "source_box": there}
        one = [{"name": "apple", "color": None, "count": 1}]
        assert edit_is_done(reading, {**moved, "contents": one}) is True
        twice = densities.clone()
        twice[15, 0] = 1.0  # and the apple is still where it was
        copied = ContentsReading(twice, colors, PixelProbe().config)
        assert edit_is_done(copied, {**moved, "contents": one}) is False
        painted = {"kind": "recolor", "name": "apple", "target_box": here}
        assert edit_is_done(reading, {**painted, "color": "green"}) is True
        assert edit_is_done(reading, {**painted, "color": "blue"}) is False
        assert edit_is_done(reading, {"kind": "add", "name": "dog", "target_box": here}) is None
        assert edit_is_done(reading, None) is None


class TestRefusals:
    def test_files_that_say_nothing_are_told(self, tmp_path, scenes):
        with pytest.raises(FileNotFoundError, match="holds no questions of task referring"):
            load("referring", tmp_path)
        (tmp_path / "drawing_captions.json").write_text("[]")
        with pytest.raises(ValueError, match="holds no list of images"):
            load("generation", tmp_path)
        plain = {
            "images": [{"id": 1, "file_name": "000.png"}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
        }
        (tmp_path / "drawing_captions.json").write_text(json.dumps(plain))
        with pytest.raises(BadSampleError, match=r"contents are None.*say what a probe can look for"):
            load("generation", tmp_path, images=scenes / "images")
        with pytest.raises(FileNotFoundError, match="no folder of images"):
            load("generation", tmp_path)

    def test_conditions_and_examples_are_checked(self, scenes, tmp_path):
        task = IMAGE_TASKS["reconstruction"]
        examples = load("reconstruction", scenes)
        with pytest.raises(ValueError, match="'whole_image' is nothing to compare reconstruction with"):
            evaluate_images(task, true_pictures, examples, image_run(tmp_path), conditions=["whole_image"])
        with pytest.raises(ValueError, match="there are no images"):
            evaluate_images(task, true_pictures, [], image_run(tmp_path))
        with pytest.raises(ValueError, match="1 images were written for 5 examples"):
            evaluate_images(task, lambda c, some: true_pictures(some[:1]), examples, image_run(tmp_path))

    def test_one_image_has_no_other_to_be_dealt(self, scenes, tmp_path):
        image = scenes / "images" / "000.png"
        examples = [make_example("reconstruction", 0, [image])]
        results, _ = evaluate_images(
            IMAGE_TASKS["reconstruction"], lambda c, some: true_pictures(some), examples, image_run(tmp_path)
        )
        assert "shuffled_images" not in results["floors"] and "are left out" in results["notes"][0]


def test_masks_of_planted_annotations_are_read_as_they_were_written():
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[3:9, 5:20] = True
    assert annotation(1, 1, 1, mask)["bbox"] == [5, 3, 15, 6] and GRID == (4, 4)


class TestProcesses:
    def test_another_process_takes_every_other_batch_and_the_first_finds_its_images(
        self, scenes, tmp_path, monkeypatch
    ):
        """One after the other in this process: what the second wrote is in its part of the predictions."""
        monkeypatch.setattr("vistok.evaluation.predictions.wait_for_all", lambda share: None)
        monkeypatch.setattr("vistok.evaluation.written_images.gather_objects", lambda share, objects: objects)
        examples, asked = load("reconstruction", scenes), []

        def writer(condition, some):
            asked.append([example["id"] for example in some])
            return true_pictures(some)

        def store(share):
            file = PredictionsFile(tmp_path / "p.jsonl", {"model": "planted"}, share)
            return ImageStore(tmp_path / "images", file, share, batch_size=5, progress_bar=False)

        store(Share())  # as the first process does before the second begins
        with pytest.raises(KeyError):  # the images of the others are not gathered here
            store(Share(1, 2)).write("given", examples, writer)
        assert asked == [[str(number) for number in range(5, 10)]]
        found = store(Share()).write("given", examples, writer)
        assert asked[1:] == [[str(number) for number in range(5)], ["10", "11"]] and len(found) == 12
        assert not list(tmp_path.glob("*.part*"))


def test_a_report_of_images_is_put_on_a_card(scenes, tmp_path):
    examples = load("reconstruction", scenes)
    results, _ = evaluate_images(
        IMAGE_TASKS["reconstruction"], lambda c, some: true_pictures(some), examples, image_run(tmp_path)
    )
    recorded = normalised_report(results)
    assert recorded["ssim"] == pytest.approx(1) and "grid" in recorded["floors"] and "ceilings" not in recorded
    (row,) = evaluation_table([recorded])[1:]
    assert "reconstruction" in row
    assert normalised_report({**results, "ssim": -0.1, "interval": [-0.2, 0.0]})["ssim"] == -0.1
