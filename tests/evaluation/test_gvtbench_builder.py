"""Questions built from annotations: planted files whose questions are known, and the official ones of COCO."""

import json
import re

import pytest

from vistok.evaluation.gvtbench_builder import build_questions, question_pool
from vistok.evaluation.gvtbench_names import COCO_CLASSES, class_name, counted_form, identified_form, plural
from vistok.evaluation.gvtbench_questions import load_questions

# All 80 surface forms of the official coco_oc.json (TencentARC/GVT, GVTBench, Apache-2.0), in the order of COCO's ids.
OFFICIAL_PLURALS_TEXT = """
    people,bicycles,cars,motorcycles,airplanes,buses,trains,trucks,boats,traffic lights,fire hydrants,stop signs,
    parking meters,benches,birds,cats,dogs,horses,sheep,cows,elephants,bears,zebras,giraffes,backpacks,umbrellas,
    handbags,ties,suitcases,frisbees,ski,snowboards,sports balls,kites,baseball bats,baseball gloves,skateboards,
    surfboards,tennis rackets,bottles,wine glasses,cups,forks,knives,spoons,bowls,bananas,apples,sandwiches,oranges,
    broccolis,carrots,hot dogs,pizzas,donuts,cakes,chairs,couches,potted plants,beds,dining tables,toilets,tvs,
    laptops,mice,remotes,keyboards,cell phones,microwaves,ovens,toasters,sinks,refrigerators,books,clocks,vases,
    scissors,teddy bears,hair driers,toothbrushes
"""
OFFICIAL_PLURALS = [name.strip() for name in OFFICIAL_PLURALS_TEXT.split(",")]
CATEGORIES = {1: "person", 2: "dog", 3: "knife", 4: "skis", 5: "traffic light"}


def instances(*images, categories=CATEGORIES, file_name="{:012d}.jpg"):
    """A COCO-format document: for each image, the categories of its annotations."""
    return {
        "images": [{"id": number, "file_name": file_name.format(number)} for number in range(len(images))],
        "annotations": [
            {"id": 100 * number + index, "image_id": number, "category_id": category, "iscrowd": int(index == 0)}
            for number, annotated in enumerate(images)
            for index, category in enumerate(annotated)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }


@pytest.fixture
def write(tmp_path):
    def write_json(document, name="instances.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return path

    return write_json


def summary(questions):
    return [(question["image_id"], question["text_in"], question["text_out"]) for question in questions]


class TestCounting:
    def test_the_three_most_frequent_classes_are_counted_those_annotated_first_before_others(self, write):
        path = write(instances([4, 3, 3, 5, 2, 2, 2], [1]))
        assert summary(build_questions(path, "oc")) == [
            (0, "How many dogs are there in the image?", "3"),
            (0, "How many knives are there in the image?", "2"),
            (0, "How many ski are there in the image?", "1"),
            (1, "How many people are there in the image?", "1"),
        ]

    def test_a_class_of_ten_or_more_is_dropped_and_not_replaced(self, write):
        path = write(instances([1] * 10 + [2] * 9 + [3] * 2 + [4]))
        assert [question["text_out"] for question in build_questions(path)] == ["9", "2"]

    def test_all_annotations_are_objects_of_the_image_crowds_too(self, write):
        assert [question["n_obj_exist"] for question in build_questions(write(instances([1] * 10 + [2])))] == [11]


class TestIdentification:
    def test_present_classes_are_asked_for_and_as_many_absent_ones(self, write):
        path = write(instances([1, 2, 1], [5]))
        questions = build_questions(path, "mci")
        assert summary(questions)[:2] == [
            (0, "Does person exist in the image?", "Yes."),
            (0, "Does dog exist in the image?", "Yes."),
        ]
        absent = {text for image, text, answer in summary(questions) if (image, answer) == (0, "No.")}
        assert len(absent) == 2 and absent < {
            f"Does {name} exist in the image?" for name in list(CATEGORIES.values())[2:]
        }
        assert [answer for image, _, answer in summary(questions) if image == 1] == ["Yes.", "No."]

    def test_no_more_absent_classes_are_asked_for_than_there_are(self, write):
        answers = [question["text_out"] for question in build_questions(write(instances([1, 2, 3, 4])), "mci")]
        assert answers == ["Yes."] * 4 + ["No."]

    def test_absent_classes_are_drawn_uniformly_and_by_the_seed(self, write):
        path = write(instances(*[[1]] * 3000))
        drawn = [
            question["text_in"] for question in build_questions(path, "mci", seed=5) if question["text_out"] == "No."
        ]
        counts = [drawn.count(f"Does {name} exist in the image?") for name in list(CATEGORIES.values())[1:]]
        assert sum(counts) == 3000 and all(abs(count - 750) < 120 for count in counts)  # five standard deviations
        assert build_questions(path, "mci", seed=5) == build_questions(path, "mci", seed=5)
        assert build_questions(path, "mci", seed=5) != build_questions(path, "mci", seed=6)

    def test_the_pool_asks_for_every_absent_class(self, write):
        pool = question_pool(write(instances([1, 2], [3])), "mci")
        assert [question["text_out"] for question in pool] == ["Yes."] * 2 + ["No."] * 3 + ["Yes."] + ["No."] * 4


class TestChoice:
    def test_a_choice_is_part_of_the_pool_in_its_order_and_follows_the_seed(self, write):
        path = write(instances(*[[1, 2, 3]] * 40))
        pool = build_questions(path)
        chosen = build_questions(path, num_questions=30, seed=3)
        positions = [pool.index(question) for question in chosen]
        assert len(set(positions)) == 30 and positions == sorted(positions)
        assert chosen == build_questions(path, num_questions=30, seed=3)
        assert chosen != build_questions(path, num_questions=30, seed=4)

    def test_more_than_there_are_gives_all_with_a_warning(self, write, caplog):
        with caplog.at_level("WARNING", logger="vistok"):
            assert len(build_questions(write(instances([1])), num_questions=10_000)) == 1
        assert "gives 1 questions of 'oc', not the 10000" in caplog.messages[0]

    def test_records_can_be_saved_and_loaded(self, write):
        questions = build_questions(write(instances([1, 2], [3], file_name="scene-{}.png")), "mci")
        assert load_questions(write(questions, "questions.json")) == questions
        assert {question["file_name"] for question in questions} == {"scene-0.png", "scene-1.png"}

    def test_images_called_by_their_id_need_no_file_name(self, write):
        assert set(build_questions(write(instances([1])))[0]) == {"image_id", "text_in", "text_out", "n_obj_exist"}


class TestVCR:
    METADATA = {"names": ["person", "person", "diningtable", "wineglass"], "boxes": [[0, 0, 1, 1, 0.9]] * 4}

    @pytest.fixture
    def folder(self, write):
        write({"names": ["skis"]}, "vcr1images/film_b/clip@3.json")
        return write(self.METADATA, "vcr1images/film_a/clip@1.json").parents[1]

    def test_classes_are_plurals_without_spaces(self, folder):
        assert summary(build_questions(folder, "oc")) == [
            ("film_a/clip@1.jpg", "How many people are there in the image?", "2"),
            ("film_a/clip@1.jpg", "How many diningtables are there in the image?", "1"),
            ("film_a/clip@1.jpg", "How many wineglasses are there in the image?", "1"),
            ("film_b/clip@3.jpg", "How many ski are there in the image?", "1"),
        ]
        questions = build_questions(folder, "mci")
        assert questions[0] == {
            "image_id": "film_a/clip@1.jpg",
            "text_in": "Does people exist in the image?",
            "text_out": "Yes.",
            "n_obj_exist": 4,
        }
        assert [question["text_out"] for question in questions].count("No.") == 4
        assert len(question_pool(folder, "mci")) == 2 * len(COCO_CLASSES)

    def test_one_file_of_metadata_will_do(self, folder):
        one = build_questions(folder / "film_a" / "clip@1.json", "oc")
        assert one == build_questions(folder, "oc")[:3]

    def test_the_annotation_file_lists_an_image_once_however_many_questions_it_has(self, write):
        line = json.dumps({"img_fn": "film/x@0.jpg", "objects": ["dog", "dog"], "question": ["Why", [0], "?"]})
        path = write(f"{line}\n{line}\n", "val.jsonl")
        assert summary(build_questions(path)) == [("film/x@0.jpg", "How many dogs are there in the image?", "2")]

    def test_either_spelling_can_be_asked_for(self, folder, write):
        spaced = [text for _, text, _ in summary(build_questions(folder, "oc", names="coco"))]
        assert "How many dining tables are there in the image?" in spaced
        joined = build_questions(write(instances([5])), "mci", names="vcr")
        assert joined[0]["text_in"] == "Does trafficlights exist in the image?"


class TestNames:
    def test_plurals_are_those_of_the_official_files(self):
        assert [counted_form(name) for name in COCO_CLASSES] == OFFICIAL_PLURALS
        assert [counted_form(name, "vcr") for name in COCO_CLASSES] == [
            name.replace(" ", "") for name in OFFICIAL_PLURALS
        ]
        assert [identified_form(name) for name in COCO_CLASSES] == list(COCO_CLASSES)
        assert identified_form("skis", "vcr") == "ski"

    @pytest.mark.parametrize(
        ("name", "several"),
        [
            *[("box", "boxes"), ("baby", "babies"), ("toy", "toys"), ("sneakers", "sneakers"), ("lens", "lenses")],
            *[("gas", "gases"), ("alarm clock", "alarm clocks"), ("old man", "old men"), ("glasses", "glasses")],
            *[("bread knife", "bread knives"), ("iris", "irises"), ("drinking glass", "drinking glasses")],
        ],
    )
    def test_other_classes_have_sensible_plurals(self, name, several):
        assert plural(name) == several

    def test_names_of_other_data_sets_become_words(self):
        assert class_name("Alarm_Clock") == "alarm clock"
        assert class_name("traffic light") == "traffic light"


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"task": "vqa"}, "task is 'vqa', expected 'oc' or 'mci'"),
            ({"num_questions": 0}, "num_questions is 0"),
            ({"names": "lvis"}, "names is 'lvis'"),
        ],
    )
    def test_an_unknown_argument_is_named(self, write, arguments, message):
        with pytest.raises(ValueError, match=message):
            build_questions(write(instances([1])), **arguments)

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ("{", "is not JSON"),
            ([], "no list of 'images'"),
            ({"images": [], "annotations": []}, "no list of 'categories'"),
            (instances(), "holds no image about which"),
            (instances([]), "holds no image about which"),
            (instances([1, 9]), "annotation 1: image_id 0 and category_id 9"),
            ({**instances([1]), "annotations": ["x"]}, "annotation 0: image_id None"),
            ({**instances([1]), "images": [{"file_name": "x"}]}, "an image lacks its id"),
        ],
    )
    def test_a_malformed_file_is_refused(self, write, document, message):
        with pytest.raises(ValueError, match=message):
            build_questions(write(document))

    def test_a_missing_file_and_an_empty_folder_are_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
            build_questions(tmp_path / "absent.json")
        with pytest.raises(ValueError, match="holds no metadata of VCR"):
            build_questions(tmp_path)

    def test_metadata_without_names_is_named_by_its_image(self, write):
        folder = write({"boxes": []}, "vcr1images/film/clip@1.json").parents[1]
        with pytest.raises(ValueError, match=r"objects in 'film/clip@1\.jpg' are None"):
            build_questions(folder)


@pytest.mark.parametrize("task", ["oc", "mci"])
def test_the_pool_on_coco_holds_the_official_questions(outside_data, task):
    annotations = outside_data("coco-val-dev/instances_val2017.json")
    images = {image["id"] for image in json.loads(annotations.read_text(encoding="utf-8"))["images"]}
    official = [
        question
        for question in load_questions(outside_data(f"gvtbench/coco_{task}.json"))
        if question["image_id"] in images
    ]
    pool = question_pool(annotations, task)
    assert len(official) == {"oc": 88, "mci": 98}[task]
    assert [question for question in official if question not in pool] == []
    if task == "mci":
        positive = [question for question in build_questions(annotations, task) if question["text_out"] == "Yes."]
        assert [question for question in official if question["text_out"] == "Yes." and question not in positive] == []


@pytest.mark.parametrize("name", ["coco_oc", "coco_mci", "vcr_oc", "vcr_mci"])
def test_every_official_question_is_spelt_as_built_ones_are(outside_data, name):
    dataset, task = name.split("_")
    form = counted_form if task == "oc" else identified_form
    template = "How many {} are there in the image?" if task == "oc" else "Does {} exist in the image?"
    built = {template.format(form(category, dataset)) for category in COCO_CLASSES}
    questions = load_questions(outside_data(f"gvtbench/{name}.json"), fix_typos=True)
    assert {question["text_in"] for question in questions} <= built
    assert all(
        re.fullmatch(r"[1-9]" if task == "oc" else r"Yes\.|No\.", question["text_out"]) for question in questions
    )
