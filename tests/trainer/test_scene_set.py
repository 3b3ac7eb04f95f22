"""Sets of scenes over photographs: the ground truth is that of the pixels, and files hold what their formats say."""

import hashlib
import json
import os
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_cutouts import COLORS
from tests.trainer.planted_scenes import planted_pictures, settings
from vistok.evaluation.gvtbench_questions import build_questions
from vistok.processing.coco_masks import decode_mask
from vistok.processing.images import load_example_images
from vistok.trainer import scene_set
from vistok.trainer.backgrounds import load_backgrounds
from vistok.trainer.cutouts import COLLECTIONS, load_cutouts
from vistok.trainer.data_sources import load_data_source
from vistok.trainer.scene_annotations import run_lengths
from vistok.trainer.scene_set import SceneSettings, check_scenes_apart, write_scenes, write_scenes_of

PACKAGES = (*COLLECTIONS, "mate-backgrounds", "lomiri-wallpapers", "plasma-wallpapers", "material-kit")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A tiny set of scenes, and the pictures it was made of."""
    folder = tmp_path_factory.mktemp("scenes")
    pictures = planted_pictures(folder)
    write_scenes_of(folder / "set", settings(), *pictures)
    return folder / "set", pictures


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def objects_of(folder):
    """Every image as pixels, with its annotations."""
    instances = read(folder, "instances.json")
    names = {category["id"]: category["name"] for category in instances["categories"]}
    for image in instances["images"]:
        with Image.open(folder / "images" / image["file_name"]) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        found = [item for item in instances["annotations"] if item["image_id"] == image["id"]]
        yield image, pixels, [(names[item["category_id"]], item) for item in found]


class TestFiles:
    def test_boxes_and_areas_are_those_of_the_masks(self, planted):
        for image, _, objects in objects_of(planted[0]):
            for _, item in objects:
                mask = decode_mask(item["segmentation"], (64, 64))
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert item["bbox"] == box and item["area"] == mask.sum()
                assert mask.shape == (image["height"], image["width"]) == (64, 64)

    def test_masks_show_where_the_pixels_have_the_colour_of_the_class(self, planted):
        """Planted cut-outs are plain squares with a black dot: most of a mask has the hue, and nothing else has it."""
        for _, pixels, objects in objects_of(planted[0]):
            for name, color in COLORS.items():
                strongest = int(np.argmax(color))
                others = [channel for channel in range(3) if channel != strongest]
                coloured = pixels[..., strongest] > pixels[..., others].max(axis=-1) + 140
                masks = [decode_mask(item["segmentation"], (64, 64)) for found, item in objects if found == name]
                inside = np.any(masks, axis=0) if masks else np.zeros(pixels.shape[:2], bool)
                assert (coloured & ~inside).sum() <= 0.02 * inside.sum()
                assert coloured[inside].mean() > 0.65 if masks else not coloured.any()

    def test_masks_of_an_image_do_not_overlap_and_little_is_hidden(self, planted):
        for _, _, objects in objects_of(planted[0]):
            masks = [decode_mask(item["segmentation"], (64, 64)) for _, item in objects]
            assert np.sum(masks, axis=0).max() == 1
            assert all(0 <= item["hidden"] <= 0.2 for _, item in objects)

    def test_pycocotools_reads_the_masks(self, planted):
        mask_tools = pytest.importorskip("pycocotools.mask")
        for _, _, objects in objects_of(planted[0]):
            for _, item in objects:
                encoded = mask_tools.frPyObjects(item["segmentation"], 64, 64)
                assert mask_tools.area(encoded) == item["area"]
                assert np.array_equal(mask_tools.decode(encoded), decode_mask(item["segmentation"], (64, 64)))

    def test_images_are_found_by_their_ids_as_in_coco(self, planted):
        images = read(planted[0], "instances.json")["images"]
        assert [image["file_name"] for image in images] == [f"{image['id']:012d}.jpg" for image in images]
        assert sorted(file.name for file in (planted[0] / "images").iterdir()) == [i["file_name"] for i in images]
        assert min(image["id"] for image in images) > 1_000_000  # no id of COCO

    def test_captions_name_every_class_and_number(self, planted):
        words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        counts = {image["id"]: Counter(n for n, _ in objects) for image, _, objects in objects_of(planted[0])}
        captions = read(planted[0], "captions.json")["annotations"]
        assert len(captions) == 5 * len(counts)
        for item in captions:
            text = item["caption"].lower()
            for name, count in counts[item["image_id"]].items():
                said = f"{words[count]} {name}s" if count > 1 else f"{'an' if name == 'apple' else 'a'} {name}"
                assert said in text
        of_first = [item["caption"] for item in captions if item["image_id"] == captions[0]["image_id"]]
        assert len(set(of_first)) == 5

    def test_every_question_has_ten_answers_of_which_most_are_the_answer(self, planted):
        asked = {item["question_id"]: item for item in read(planted[0], "vqa_questions.json")["questions"]}
        answered = read(planted[0], "vqa_annotations.json")["annotations"]
        assert len(asked) == len(answered) > 20 and {item["question_id"] for item in answered} == set(asked)
        for item in answered:
            answers = Counter(answer["answer"] for answer in item["answers"])
            assert answers.total() == 10
            assert answers.most_common(1)[0][0] == item["multiple_choice_answer"]
            assert (item["answer_type"] == "yes/no") == (item["multiple_choice_answer"] in ("yes", "no"))
            assert asked[item["question_id"]]["image_id"] == item["image_id"]

    def test_source_records_settings_pictures_and_hashes(self, planted):
        folder, (cutouts, backgrounds) = planted
        source = read(folder, "SOURCE.json")
        assert source["settings"]["seed"] == 0 and source["settings"]["classes"] == ["apple", "bird", "cow"]
        assert source["cutouts"] == sorted(cutout.key for cutout in cutouts)
        assert source["backgrounds"] == {item.key: item.sha256 for item in backgrounds}
        for name, sha256 in source["files_sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
        assert str(folder.parent) not in (folder / "SOURCE.json").read_text()


class TestUse:
    """The files are read by what reads those of COCO and VQAv2."""

    def test_gvtbench_questions_are_built_from_the_instances(self, planted):
        counts = {image["id"]: Counter(n for n, _ in objects) for image, _, objects in objects_of(planted[0])}
        questions = build_questions(planted[0] / "instances.json", task="oc")
        assert len(questions) == sum(map(len, counts.values()))
        for question in questions:
            noun = question["text_in"].removeprefix("How many ").removesuffix("s are there in the image?")
            assert counts[question["image_id"]][noun] == int(question["text_out"])
            assert question["n_obj_exist"] == counts[question["image_id"]].total()

    @pytest.mark.parametrize(
        ("form", "file"),
        [("coco-captions", "captions"), ("vqa", "vqa_questions"), ("object-centric", "instances")],
    )
    def test_recipes_train_on_them_without_further_words(self, planted, tmp_path, monkeypatch, form, file):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        dataset = load_data_source({"format": form, "path": str(planted[0] / f"{file}.json")})
        assert len(dataset) >= 12 and all(load_example_images(dataset[n])[0].size == (64, 64) for n in range(12))


class TestSameScenes:
    def test_two_processes_write_what_one_writes(self, planted, tmp_path):
        folder, pictures = planted
        write_scenes_of(tmp_path / "two", settings(), *pictures, num_proc=2)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            assert (tmp_path / "two" / file.relative_to(folder)).read_bytes() == file.read_bytes()

    def test_a_larger_set_starts_with_the_smaller_one(self, planted, tmp_path):
        folder, pictures = planted
        write_scenes_of(tmp_path / "larger", settings(num_scenes=14), *pictures)
        larger = read(tmp_path / "larger", "SOURCE.json")["pixels_sha256"]
        assert larger[:12] == read(folder, "SOURCE.json")["pixels_sha256"] and len(set(larger)) == 14

    def test_the_seed_makes_other_scenes(self, planted, tmp_path):
        folder, pictures = planted
        write_scenes_of(tmp_path / "other", settings(seed=1), *pictures)
        pixels = [set(read(place, "SOURCE.json")["pixels_sha256"]) for place in (folder, tmp_path / "other")]
        assert not pixels[0] & pixels[1]

    def test_the_pixels_and_labels_are_the_same_on_every_machine(self, planted):
        # Pinned: where this changes, `REVISION` of scene_set.py must be counted up.
        source = read(planted[0], "SOURCE.json")
        pixels = hashlib.sha256("".join(source["pixels_sha256"]).encode()).hexdigest()
        assert (scene_set.REVISION, pixels[:16]) == (1, "d5a24044bfe057bc")
        assert source["files_sha256"]["instances.json"][:16] == "0fd87d0deeb6892e"
        assert source["files_sha256"]["vqa_questions.json"][:16] == "cd2573f57d268f89"


class TestObjectSizes:
    def test_objects_are_as_large_as_asked_for(self, planted, tmp_path):
        """Planted cut-outs are squares: turned by 20 degrees, 1.28 times as wide; visible from half opacity on."""
        asked = settings(num_scenes=20, max_objects=2, max_overlap=0.0, object_sizes=(0.3, 0.4))
        write_scenes_of(tmp_path / "set", asked, *planted[1])
        sides = [max(item["bbox"][2:]) / 64 for _, _, found in objects_of(tmp_path / "set") for _, item in found]
        assert min(sides) >= 0.3 - 2.5 / 64 and max(sides) <= 0.4 + 0.5 / 64
        default = [max(item["bbox"][2:]) / 64 for _, _, found in objects_of(planted[0]) for _, item in found]
        assert min(default) < 0.25 and max(default) > 0.45
        assert read(tmp_path / "set", "SOURCE.json")["shrunk_objects"] == 0

    def test_objects_without_room_shrink_and_are_counted(self, planted, tmp_path):
        asked = settings(num_scenes=3, count_weights=[0] * 8 + [1], classes_weights=[1], object_sizes=(0.5, 0.5))
        write_scenes_of(tmp_path / "set", asked, *planted[1])
        source = read(tmp_path / "set", "SOURCE.json")
        assert source["objects"] == source["shrunk_objects"] == 27
        sides = [max(item["bbox"][2:]) / 64 for _, _, found in objects_of(tmp_path / "set") for _, item in found]
        assert max(sides) < 0.5 and min(sides) > 0.15


class TestWholeOrNotAtAll:
    def test_an_error_leaves_nothing_behind(self, planted, tmp_path, monkeypatch):
        def fail(*arguments):
            raise RuntimeError("the disk is gone")

        monkeypatch.setattr(scene_set, "documents", fail)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            write_scenes_of(tmp_path / "set", settings(), *planted[1])
        assert os.listdir(tmp_path) == []

    def test_a_folder_that_holds_something_is_left_alone(self, planted, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="exists and would be overwritten"):
            write_scenes_of(tmp_path, settings(), *planted[1])
        assert os.listdir(tmp_path) == ["mine.txt"]

    def test_an_empty_folder_is_filled(self, planted, tmp_path):
        (tmp_path / "set").mkdir()
        write_scenes_of(tmp_path / "set", settings(num_scenes=1), *planted[1])
        assert (tmp_path / "set" / "SOURCE.json").is_file()


class TestApart:
    @pytest.mark.parametrize("what", ["cut-outs", "background photographs", "images"])
    def test_whatever_two_sets_share_is_found(self, planted, tmp_path, what):
        source = read(planted[0], "SOURCE.json")
        other = {"cutouts": ["x/y"], "backgrounds": {"mine": "0" * 64}, "pixels_sha256": ["1" * 64]}
        (tmp_path / "SOURCE.json").write_text(json.dumps(other))
        check_scenes_apart(planted[0], tmp_path)
        shared = {
            "cut-outs": {"cutouts": source["cutouts"][:1]},
            # Under another name: it is the content that counts.
            "background photographs": {"backgrounds": {"mine": next(iter(source["backgrounds"].values()))}},
            "images": {"pixels_sha256": source["pixels_sha256"][-1:]},
        }[what]
        (tmp_path / "SOURCE.json").write_text(json.dumps({**other, **shared}))
        with pytest.raises(ValueError, match=f"share 1 {what}"):
            check_scenes_apart(planted[0], tmp_path)

    def test_a_set_that_is_not_apart_is_not_written(self, planted, tmp_path):
        folder, pictures = planted
        with pytest.raises(ValueError, match="share 3 cut-outs"):
            write_scenes_of(tmp_path / "again", settings(seed=5), *pictures, apart_from=[folder])
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(("shared", "message"), [("cutouts", "3 cut-outs"), ("backgrounds", "3 background")])
    def test_shared_pictures_are_found_before_anything_is_rendered(
        self, planted, tmp_path, monkeypatch, shared, message
    ):
        other = {"cutouts": [], "backgrounds": {}, "pixels_sha256": []}
        (tmp_path / "SOURCE.json").write_text(json.dumps({**other, shared: read(planted[0], "SOURCE.json")[shared]}))
        monkeypatch.setattr(scene_set, "_render", lambda *arguments: pytest.fail("a scene was rendered"))
        with pytest.raises(ValueError, match=f"share {message}"):
            write_scenes_of(tmp_path / "again", settings(), *planted[1], apart_from=[tmp_path])

    def test_a_shared_image_is_found_at_the_end_and_nothing_is_written(self, planted, tmp_path):
        pixels = read(planted[0], "SOURCE.json")["pixels_sha256"][:1]
        other = {"cutouts": [], "backgrounds": {}, "pixels_sha256": pixels}
        (tmp_path / "SOURCE.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="share 1 images"):
            write_scenes_of(tmp_path / "again", settings(num_scenes=1), *planted[1], apart_from=[tmp_path])
        assert os.listdir(tmp_path) == ["SOURCE.json"]

    def test_a_folder_that_is_no_set_is_refused(self, planted, tmp_path):
        with pytest.raises(FileNotFoundError, match="no set of scenes"):
            check_scenes_apart(planted[0], tmp_path)

    @pytest.mark.real_data(*PACKAGES)
    def test_real_train_and_test_scenes_share_nothing(self, tmp_path):
        write_scenes(tmp_path / "train", num_scenes=4)
        write_scenes(tmp_path / "test", split="test", num_scenes=4, apart_from=[tmp_path / "train"])
        classes = [read(tmp_path / split, "SOURCE.json")["settings"]["classes"] for split in ("train", "test")]
        assert classes[0] == classes[1] and len(classes[0]) == 24

    @pytest.mark.real_data(*PACKAGES)
    def test_there_are_forty_real_photographs_and_none_shows_a_class_of_the_scenes(self):
        sides = [load_backgrounds(split) for split in ("train", "test")]
        assert sum(map(len, sides)) >= 40 and min(map(len, sides)) >= 10
        assert not {item.sha256 for item in sides[0]} & {item.sha256 for item in sides[1]}
        without_dogs = load_backgrounds("train", without=["dog"])
        assert without_dogs and not any({"dog", "bird", "bee"} & {*item.shows} for item in without_dogs)


class TestArguments:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"num_scenes": 0}, "num_scenes must be a whole number between 1"),
            ({"size": 20}, "size must be a whole number between 64"),
            ({"max_overlap": 1.0}, "max_overlap must lie between 0 and 0.9"),
            ({"split": "val"}, "unknown split of the scenes 'val'"),
            ({"captions_per_scene": 0}, "captions_per_scene"),
            ({"object_sizes": (0.5, 0.3)}, r"object_sizes must be the smallest and the largest .* got \[0.5, 0.3\]"),
            ({"object_sizes": (0.05, 0.3)}, "between 0.1 and 0.9"),
            ({"object_sizes": (0.3, float("nan"))}, "object_sizes"),
            ({"object_sizes": (0.3,)}, "object_sizes"),
            ({"object_sizes": ("a", "b")}, "object_sizes"),
        ],
    )
    def test_a_setting_out_of_range_is_refused(self, changed, message):
        with pytest.raises(ValueError, match=message):
            settings(**changed)

    def test_processes_must_be_at_least_one(self, planted, tmp_path):
        with pytest.raises(ValueError, match="num_proc"):
            write_scenes_of(tmp_path / "set", settings(), *planted[1], num_proc=0)

    def test_settings_are_complete(self):
        assert set(SceneSettings.__dataclass_fields__) == set(vars(settings()))

    @pytest.mark.real_data(*COLLECTIONS)
    def test_an_unknown_class_and_two_of_one_object_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="unknown class of scenes 'unicorn'"):
            write_scenes(tmp_path / "set", classes=["dog", "unicorn"])
        with pytest.raises(ValueError, match="could be said of one object"):
            write_scenes(tmp_path / "set", classes=["bird", "duck"])
        with pytest.raises(ValueError, match="num_classes must be at most"):
            write_scenes(tmp_path / "set", num_classes=len(load_cutouts().names) + 1)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 7)])
def test_run_lengths_are_those_down_the_columns(shape):
    generator = np.random.default_rng(0)
    for density in (0, 0.3, 0.7, 1):
        mask = generator.random(shape) < density
        encoded = run_lengths(mask)
        pixels = [bool(mask[row, column]) for column in range(shape[1]) for row in range(shape[0])]
        expected, current, length = [], False, 0
        for pixel in pixels:
            if pixel != current:
                expected.append(length)
                current, length = pixel, 0
            length += 1
        assert encoded == {"size": list(shape), "counts": [*expected, length]}
        assert np.array_equal(decode_mask(encoded, shape), mask)
