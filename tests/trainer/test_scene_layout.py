"""Numbers and classes of objects have the distribution asked for; objects find places where they can be seen."""

import random
from collections import Counter

import numpy as np
import pytest

from tests.trainer.planted_cutouts import unseen_library
from tests.trainer.planted_scenes import CLASSES, planted_pictures
from vistok.trainer.backgrounds import PHOTOGRAPHS, background_split, load_backgrounds
from vistok.trainer.cutout_vocabulary import NOUNS
from vistok.trainer.cutouts import COLLECTIONS, load_cutouts
from vistok.trainer.scene_layout import (
    CLASSES_WEIGHTS,
    COUNT_WEIGHTS,
    CountDistribution,
    choose_classes,
    compose_scene,
)


class TestNumbers:
    @pytest.mark.parametrize("counts", [COUNT_WEIGHTS, (26, 18, 14, 12, 10, 8, 5, 4, 3)])
    def test_the_numbers_of_a_class_have_the_weights_asked_for(self, counts):
        distribution, rng = CountDistribution(count_weights=counts), random.Random(0)
        drawn = Counter(number for _ in range(20_000) for number in distribution.draw("abcdef", rng).values())
        shares = [100 * drawn[number] / drawn.total() for number in range(1, 10)]
        assert shares == pytest.approx([100 * weight / sum(counts) for weight in counts], abs=1.0)

    def test_always_one_is_no_good_answer_to_how_many(self):
        assert max(COUNT_WEIGHTS) <= 0.35 * sum(COUNT_WEIGHTS)

    def test_scenes_of_one_two_and_three_classes_have_their_weights(self):
        distribution, rng = CountDistribution(), random.Random(0)
        drawn = [distribution.draw("abcdef", rng) for _ in range(20_000)]
        numbers = Counter(map(len, drawn))
        assert [numbers[n] / 200 for n in (1, 2, 3)] == pytest.approx(CLASSES_WEIGHTS, abs=1.0)
        assert max(sum(counts.values()) for counts in drawn) == 9 and min(sum(c.values()) for c in drawn) == 1

    def test_every_class_is_drawn_equally_often(self):
        distribution, rng = CountDistribution(), random.Random(0)
        drawn = Counter(name for _ in range(12_000) for name in distribution.draw("abcdef", rng))
        assert max(drawn.values()) / min(drawn.values()) < 1.08

    def test_fewer_objects_and_one_class_are_possible(self):
        rng = random.Random(0)
        few = CountDistribution(max_objects=2)
        assert {sum(few.draw("abc", rng).values()) for _ in range(200)} == {1, 2}
        one = CountDistribution(classes_weights=(1,))
        assert {len(one.draw("abc", rng)) for _ in range(50)} == {1}
        assert {len(CountDistribution().draw("a", rng)) for _ in range(50)} == {1}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"max_objects": 0}, "max_objects must lie between 1 and 9, got 0"),
            ({"max_objects": 10}, "max_objects"),
            ({"count_weights": ()}, "count_weights"),
            ({"count_weights": (1, -1)}, "count_weights"),
            ({"count_weights": (0, 0, 1), "max_objects": 2}, "count_weights gives no weight to 1 to max_objects=2"),
            ({"classes_weights": (0, 0)}, "classes_weights"),
            ({"classes_weights": (0, 1), "max_objects": 1}, "classes_weights"),
        ],
    )
    def test_weights_that_cannot_be_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            CountDistribution(**arguments)


class TestPlaces:
    def test_objects_have_an_area_that_can_be_seen_and_stand_out(self, tmp_path):
        cutouts, backgrounds = planted_pictures(tmp_path)
        for seed in range(20):
            scene = compose_scene(cutouts, backgrounds, {"cow": 5, "apple": 4}, 112, 0.1, random.Random(seed))
            assert scene.counts == {"cow": 5, "apple": 4}
            assert min(item.area for item in scene.objects) >= 0.75 * (0.12 * 112) ** 2
            assert max(item.hidden for item in scene.objects) <= 0.1

    def test_objects_that_find_no_place_are_an_error(self, tmp_path, monkeypatch):
        cutouts, backgrounds = planted_pictures(tmp_path)
        monkeypatch.setattr("vistok.trainer.scene_layout._SHRINKINGS", 1)
        monkeypatch.setattr("vistok.trainer.scene_layout._LEAST_AREA", 0.7)
        with pytest.raises(ValueError, match="9 objects do not fit into 64 pixels"):
            compose_scene(cutouts, backgrounds, {"cow": 9}, 64, 0.0, random.Random(0))

    def test_the_image_is_the_photograph_where_no_object_is(self, tmp_path):
        cutouts, backgrounds = planted_pictures(tmp_path)
        scene = compose_scene(cutouts, backgrounds, {"cow": 1}, 64, 0.2, random.Random(0))
        outside = np.asarray(scene.image)[~scene.objects[0].mask].astype(int)
        grey = np.ptp(outside, axis=1) == 0  # planted photographs are grey; the object's soft edge is not
        assert grey.mean() > 0.9


class TestClasses:
    @pytest.mark.real_data(*COLLECTIONS)
    def test_classes_have_pictures_on_both_sides_and_could_not_be_confused(self):
        train, test = load_cutouts(split="train"), load_cutouts(split="test")
        classes = choose_classes(train, test, 24)
        assert len(set(classes)) == 24
        assert all(len(test.of(name)) >= 2 and len(train.of(name)) >= 4 for name in classes)
        assert not any(train.related(name) & ({*classes} - {name}) for name in classes)
        categories = Counter(train.nouns[name].category for name in classes)
        assert max(categories.values()) <= 8 and len(categories) >= 5
        assert not {"flower", "tree", "glass"} & {*classes}

    def test_too_many_classes_are_refused_with_the_most_there_are(self):
        library = unseen_library([noun for noun in NOUNS if noun.name in CLASSES])
        assert len(choose_classes(library, library, 2)) == 2
        with pytest.raises(ValueError, match=r"num_classes must be at most 3, .* got 4"):
            choose_classes(library, library, 4)


class TestBackgrounds:
    def test_a_photograph_is_on_one_side_under_any_name_and_in_any_folder(self, tmp_path):
        _, backgrounds = planted_pictures(tmp_path)
        copies = tmp_path / "copies" / "deeper"
        copies.mkdir(parents=True)
        for number, item in enumerate(backgrounds):
            (copies / f"renamed-{number}.PNG").write_bytes(item.path.read_bytes())
        sides = {background_split(item.sha256) for item in backgrounds}
        found = [item for side in sides for item in load_backgrounds(side, [tmp_path / "copies"])]
        assert {item.sha256 for item in found} == {item.sha256 for item in backgrounds}
        assert all(item.split == background_split(item.sha256) for item in found)

    def test_a_photograph_that_lies_twice_counts_once(self, tmp_path):
        _, backgrounds = planted_pictures(tmp_path)
        first = backgrounds[0]
        (tmp_path / "twice").mkdir()
        for name in ("a.png", "b.png"):
            (tmp_path / "twice" / name).write_bytes(first.path.read_bytes())
        assert len(load_backgrounds(background_split(first.sha256), [tmp_path / "twice"])) == 1

    def test_about_a_quarter_is_for_testing(self):
        sides = Counter(background_split(f"{number:064x}") for number in range(2000))
        assert 0.22 < sides["test"] / 2000 < 0.28

    def test_a_folder_without_photographs_of_a_side_says_so(self, tmp_path):
        _, backgrounds = planted_pictures(tmp_path)
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "a.png").write_bytes(backgrounds[0].path.read_bytes())
        other = {"train": "test", "test": "train"}[background_split(backgrounds[0].sha256)]
        with pytest.raises(ValueError, match=f"none of the 1 photographs .* is on the {other} side"):
            load_backgrounds(other, [tmp_path / "one"])
        (tmp_path / "none").mkdir()
        with pytest.raises(FileNotFoundError, match="holds no image"):
            load_backgrounds("train", [tmp_path / "none"])
        with pytest.raises(FileNotFoundError, match="no folder of backgrounds"):
            load_backgrounds("train", [tmp_path / "nowhere"])

    def test_packages_that_were_not_fetched_are_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VISTOK_CACHE", str(tmp_path))
        with pytest.raises(RuntimeError, match="vistok fetch mate-backgrounds lomiri-wallpapers plasma-wallpapers"):
            load_backgrounds("train")

    def test_what_photographs_show_are_nouns_of_the_vocabulary(self):
        shown = {noun for photographs in PHOTOGRAPHS.values() for nouns in photographs.values() for noun in nouns}
        assert shown <= {noun.name for noun in NOUNS}
