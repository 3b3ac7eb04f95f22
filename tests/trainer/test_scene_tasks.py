"""Expressions, captions to draw from and edits of scenes say what the pixels show, and change nothing else."""

import hashlib
import json
import random
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_cutouts import COLORS as PLANTED
from tests.trainer.planted_scenes import planted_pictures, settings
from vistok.processing.coco_masks import decode_mask
from vistok.processing.images import load_example_images
from vistok.processing.mask_annotations import coco_instance_images
from vistok.trainer.data_sources import load_data_source
from vistok.trainer.image_answers import read_mask
from vistok.trainer.scene_colors import PAINTS, color_name, colors_apart, painted
from vistok.trainer.scene_edits import EDIT_KINDS, PLACES, scene_edits
from vistok.trainer.scene_expressions import EXPRESSION_KINDS, scene_contents, scene_expressions
from vistok.trainer.scene_layers import layered_scene, layers_of
from vistok.trainer.scene_layout import PhotographScene, compose_scene
from vistok.trainer.scene_set import write_scenes_of

ASKED = {"expressions_per_scene": 4, "drawing_captions_per_scene": 2, "edits_per_scene": 4}
HUES = {"apple": "red", "bird": "green", "cow": "blue"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    pictures = planted_pictures(folder)
    write_scenes_of(folder / "set", settings(num_scenes=20, **ASKED), *pictures)
    return folder / "set", pictures


@pytest.fixture(scope="module")
def scenes(planted):
    cutouts, backgrounds = planted[1]
    counts = [{"apple": 1}, {"apple": 2}, {"apple": 1, "cow": 1}, {"bird": 3}, {"apple": 2, "bird": 1}]
    return [
        compose_scene(cutouts, backgrounds, wanted, 64, 0.2, random.Random(seed))
        for seed in range(8)
        for wanted in counts
    ]


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


class TestColors:
    @pytest.mark.parametrize(
        ("rgb", "name"),
        [
            ((250, 10, 10), "red"), ((250, 140, 10), "orange"), ((250, 230, 30), "yellow"), ((20, 160, 40), "green"),
            ((30, 60, 220), "blue"), ((150, 40, 200), "purple"), ((250, 150, 170), "pink"), ((120, 70, 30), "brown"),
            ((10, 12, 9), "black"), ((250, 250, 248), "white"), ((128, 128, 130), "gray"), ((240, 205, 170), None),
        ],
    )  # fmt: skip
    def test_plain_colours_have_their_names(self, rgb, name):
        assert color_name(np.full((50, 3), rgb, dtype=np.uint8)) == name

    def test_what_has_two_colours_has_no_name(self):
        halves = np.array([[255, 0, 0]] * 50 + [[0, 0, 255]] * 50, dtype=np.uint8)
        assert color_name(halves) is None and color_name(halves[:0]) is None
        assert color_name(halves[:60]) == "red"

    @pytest.mark.parametrize("color", PAINTS)
    def test_what_is_painted_has_the_colour_and_its_shape(self, color):
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8), "RGBA")
        after = painted(picture, color)
        assert color_name(np.asarray(after)[..., :3].reshape(-1, 3)) == color
        assert np.array_equal(np.asarray(after)[..., 3], np.asarray(picture)[..., 3])

    def test_colours_that_are_easily_confused_tell_nothing(self):
        assert colors_apart("red", ["blue", "green"]) and colors_apart("red", [])
        for others in (["red"], [None], ["pink"]):
            assert not colors_apart("red", others)
        assert not colors_apart(None, [])


class TestLayers:
    def test_a_scene_is_put_together_again_exactly(self, scenes):
        for scene in scenes:
            again = layered_scene(scene.background, scene.canvas, layers_of(scene))
            assert again.image.tobytes() == scene.image.tobytes()
            assert all(np.array_equal(a.mask, b.mask) for a, b in zip(again.objects, scene.objects))

    def test_a_scene_without_layers_says_so(self, scenes):
        bare = PhotographScene(scenes[0].image, scenes[0].objects, scenes[0].background)
        with pytest.raises(ValueError, match="does not hold its pictures"):
            layers_of(bare)


def _meant(scene, text):
    """Objects that an expression can mean, worked out from its words alone."""
    words = text.removeprefix("the ").split()
    nouns = [word for word in words if word in PLANTED or word == "object"]
    found = [n for n, item in enumerate(scene.objects) if nouns[0] in (item.name, "object")]
    if words[0] in HUES.values():
        found = [n for n in found if HUES[scene.objects[n].name] == words[0]]
    orders = {
        ("leftmost", "on the left"): lambda item: item.center[0],
        ("rightmost", "on the right"): lambda item: -item.center[0],
        ("topmost", "at the top"): lambda item: item.center[1],
        ("lowest", "at the bottom"): lambda item: -item.center[1],
        ("largest", "biggest"): lambda item: -item.area,
        ("smallest",): lambda item: item.area,
    }
    for names, measure in orders.items():
        if any(name in text for name in names):
            measures = [measure(scene.objects[n]) for n in found]
            found = [n for n, value in zip(found, measures) if value == min(measures)]
    return found


class TestExpressions:
    def test_each_means_one_object(self, scenes):
        kinds = Counter()
        for seed, scene in enumerate(scenes):
            expressions = scene_expressions(scene, 20, random.Random(seed))
            assert len({expression.text for expression in expressions}) == len(expressions)
            for expression in expressions:
                assert _meant(scene, expression.text) == [expression.number], expression
                kinds[expression.kind] += 1
        assert kinds.keys() == EXPRESSION_KINDS.keys()

    def test_the_seed_decides(self, scenes):
        first, again = (scene_expressions(scenes[-1], 3, random.Random(1)) for _ in range(2))
        assert first == again and len(first) == 3

    def test_contents_are_counts_and_colours(self, scenes):
        for scene in scenes:
            contents = {entry["name"]: entry for entry in scene_contents(scene)}
            assert {name: entry["count"] for name, entry in contents.items()} == dict(scene.counts)
            assert all(entry["color"] == HUES[name] for name, entry in contents.items())


@pytest.fixture(scope="module")
def edits(planted, scenes):
    """Every scene with each of its edits."""
    cutouts = planted[1][0]
    found = [(scene, scene_edits(scene, cutouts, 4, random.Random(seed))) for seed, scene in enumerate(scenes)]
    return [(scene, edit) for scene, of_scene in found for edit in of_scene]


class TestEdits:
    def test_every_kind_is_found(self, edits):
        kinds = Counter(edit.kind for _, edit in edits)
        assert kinds.keys() == EDIT_KINDS.keys() and min(kinds.values()) > 10

    def test_nothing_else_changes(self, edits):
        for scene, edit in edits:
            touched = np.zeros((64, 64), dtype=bool)
            for shown, index in ((scene, edit.source_object), (edit.target, edit.target_object)):
                if index is not None:
                    item = shown.objects[index]
                    left, top = item.corner
                    touched[top : top + item.picture.height, left : left + item.picture.width] = True
            before, after = (np.asarray(shown.image) for shown in (scene, edit.target))
            assert np.array_equal(before[~touched], after[~touched])
            assert not np.array_equal(before, after)

    def test_the_other_objects_stay_in_their_order(self, edits):
        for scene, edit in edits:
            before = [item for n, item in enumerate(scene.objects) if n != edit.source_object]
            after = [item for n, item in enumerate(edit.target.objects) if n != edit.target_object]
            assert [(item.cutout, item.corner) for item in before] == [(item.cutout, item.corner) for item in after]
            assert all(not (old.mask & ~new.mask).any() for old, new in zip(before, after))

    def test_instructions_say_what_is_done(self, edits):
        for scene, edit in edits:
            text = edit.instruction
            if edit.place is not None:
                column, row = PLACES[edit.place]
                item = edit.target.objects[edit.target_object]
                middle = [corner + side / 2 for corner, side in zip(item.corner, item.picture.size)]
                assert [int(3 * place / 64 - 1e-9) for place in middle] == [column, row]
                assert edit.place.split(" ", 1)[1] in text
            if edit.kind == "recolor":
                item = edit.target.objects[edit.target_object]
                assert edit.color in text and color_name(np.asarray(edit.target.image)[item.mask]) == edit.color
            if edit.kind == "add":
                name = edit.target.objects[edit.target_object].name
                assert name in text and name not in scene.counts
            else:
                referred = next(part for part in _expressions(scene) if f" {part.text} " in text.replace(".", " "))
                assert referred.number == edit.source_object

    def test_a_lone_object_is_not_removed(self, edits):
        assert all(edit.kind != "remove" for scene, edit in edits if len(scene.objects) == 1)


def _expressions(scene):
    found = {e for seed in range(8) for e in scene_expressions(scene, 100, random.Random(seed))}
    return sorted(found, key=lambda expression: -len(expression.text))


class TestFiles:
    def test_the_rest_of_the_set_is_as_without_them(self, planted, tmp_path):
        write_scenes_of(tmp_path / "plain", settings(num_scenes=20), *planted[1])
        names = ["instances.json", "captions.json", "vqa_questions.json", "vqa_annotations.json"]
        names += [f"images/{file.name}" for file in (tmp_path / "plain" / "images").iterdir()]
        assert all((tmp_path / "plain" / n).read_bytes() == (planted[0] / n).read_bytes() for n in names)
        assert {file.name for file in planted[0].iterdir()} - {
            file.name for file in (tmp_path / "plain").iterdir()
        } == {
            "refs(vistok).json",
            "drawing_captions.json",
            "edits",
        }

    def test_the_same_arguments_write_the_same_files(self, planted, tmp_path):
        write_scenes_of(tmp_path / "set", settings(num_scenes=20, **ASKED), *planted[1])
        hashes = [
            {
                file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in folder.rglob("*")
                if file.is_file()
            }
            for folder in (planted[0], tmp_path / "set")
        ]
        assert hashes[0] == hashes[1]

    def test_expressions_are_read_as_refcoco(self, planted):
        examples = load_data_source({"format": "refcoco", "path": str(planted[0]), "split": "train"})
        masks = {
            item["id"]: decode_mask(item["segmentation"], (64, 64))
            for item in read(planted[0], "instances.json")["annotations"]
        }
        assert len(examples) > 40
        for example in examples:
            assert np.array_equal(read_mask(example["images"][1]), masks[int(example["ref_id"])])
            assert example["expression"].split()[0] == "the"
            assert load_example_images(example)[0].size == (64, 64)

    def test_drawing_captions_are_read_as_generation_pairs(self, planted):
        path = str(planted[0] / "drawing_captions.json")
        examples = load_data_source({"format": "generation-pairs", "path": path, "options": {"of": "coco-captions"}})
        annotations = {str(item["id"]): item for item in read(planted[0], "drawing_captions.json")["annotations"]}
        assert len(examples) == 40
        for example in examples:
            item = annotations[example["id"]]
            assert example["messages"][0]["content"][0]["text"] == f"Generate an image: {item['caption']}"
            assert example["images"][0]["path"].endswith(f"{item['image_id']:012d}.jpg")
            for entry in item["contents"]:
                assert (
                    entry["color"] == HUES[entry["name"]]
                    and f"{entry['color']} {entry['name']}" in item["caption"].lower()
                )

    def test_edits_are_read_as_instruct_pix2pix(self, planted):
        examples = load_data_source({"format": "instruct-pix2pix", "path": str(planted[0] / "edits")})
        known = {image["file_name"]: image["edit"] for image in read(planted[0], "edits/instances.json")["images"]}
        assert len(examples) == len(known) > 30
        for example in examples:
            edit = known[f"{example['id'].split('/')[0]}/0_1.jpg"]
            assert example["messages"][0]["content"][1]["text"] == f"Edit the image: {edit['instruction']}"
            source = planted[0] / "images" / f"{edit['source_image_id']:012d}.jpg"
            assert (planted[0] / "edits" / example["id"].split("/")[0] / "0_0.jpg").read_bytes() == source.read_bytes()

    def test_masks_of_edited_images_are_those_of_their_pixels(self, planted):
        edits = planted[0] / "edits"
        kept = []
        for one in coco_instance_images(edits / "instances.json", edits):
            masks, image = one.objects().masks, np.asarray(one.image()).astype(int)
            source = pixels(one.file.with_name("0_0.jpg"))
            blocks = (image != source).any(-1).reshape(8, 8, 8, 8).any((1, 3))
            kept.append(1 - blocks.mean())
            assert len(masks) and masks.sum(0).max() == 1
        assert min(kept) > 0 and np.mean(kept) > 0.5

    def test_train_and_test_share_no_cutout_of_edits(self, planted):
        source = read(planted[0], "SOURCE.json")
        shown = {item["cutout"] for item in read(planted[0], "edits/instances.json")["annotations"]}
        assert shown <= set(source["cutouts"])

    @pytest.mark.parametrize("name", ASKED)
    def test_numbers_out_of_range_are_refused(self, name):
        with pytest.raises(ValueError, match=f"{name} must be a whole number between 0 and"):
            settings(**{name: -1})
