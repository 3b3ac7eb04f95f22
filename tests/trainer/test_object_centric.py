"""Object-centric questions: planted labels of each layout come back as the right questions and answers."""

import json
from collections import Counter

import datasets
import pytest

from tests.trainer.planted_data import assert_canonical, colour, colours, png, write_images
from vistok.processing.images import BadSampleError
from vistok.trainer.data_sources import load_data_source
from vistok.trainer.object_labels import read_instances, read_open_images

CATEGORIES = ["dog", "traffic light", "person", "scissors"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def annotations(image_id, **counts):
    names = {name.replace(" ", "_"): number for number, name in enumerate(CATEGORIES, start=1)}
    return [
        {"image_id": image_id, "category_id": names[name], "bbox": [0, 0, 1, 1], "iscrowd": 0}
        for name, count in counts.items()
        for _ in range(count)
    ]


def write_instances(folder, objects, images=None, categories=CATEGORIES, name="instances_train.json"):
    document = {
        "categories": [{"id": number, "name": text} for number, text in enumerate(categories, start=1)],
        "annotations": objects,
        "images": images or [{"id": n, "file_name": f"{n}.png"} for n in range(4)],
    }
    (folder / name).write_text(json.dumps(document))
    return folder / name


@pytest.fixture
def instances(tmp_path):
    """Image 0 holds two dogs and a traffic light, 1 three persons, 2 scissors and 12 dogs, 3 nothing."""
    write_images(tmp_path / "train")
    objects = annotations(0, dog=2, traffic_light=1) + annotations(1, person=3) + annotations(2, scissors=1, dog=12)
    return write_instances(tmp_path, objects)


def load(path, source=None, **options):
    return load_data_source({"format": "object-centric", "path": str(path), "options": options, **(source or {})})


def asked(dataset, kind):
    """Image, question and answer of each question of a kind."""
    return [
        (row["image_id"], row["messages"][0]["content"][1]["text"], row["messages"][1]["content"][0]["text"])
        for row in dataset
        if row["kind"] == kind
    ]


class TestQuestions:
    def test_examples_are_canonical_and_show_the_image_of_the_labels(self, instances):
        dataset = load(instances)
        assert_canonical(dataset)
        assert all(colours(row) == [colour(int(row["image_id"]))] for row in dataset)
        assert len(set(dataset["id"])) == len(dataset)

    def test_counting_answers_are_the_numbers_of_the_labels(self, instances):
        dataset = load(instances, kinds=["counting"], per_image=4, templates={"counting": "{nouns}: how many?"})
        assert set(asked(dataset, "counting")) == {
            ("0", "dogs: how many?", "2"),
            ("0", "traffic lights: how many?", "1"),
            ("1", "people: how many?", "3"),
            ("2", "scissors: how many?", "1"),
        }

    def test_numbers_up_to_max_count_are_asked_for(self, instances):
        dataset = load(instances, kinds=["counting"], per_image=4, max_count=12)
        assert "12" in dataset["answer"] and set(dataset["kind"]) == {"counting"}

    def test_as_many_absent_as_present_classes_are_asked_about(self, instances):
        dataset = load(instances, kinds="existence", per_image=2, templates={"existence": "{noun}?"})
        present = {"0": {"dog?", "traffic light?"}, "1": {"person?"}, "2": {"scissors?", "dog?"}}
        questions = asked(dataset, "existence")
        for image, held in present.items():
            answers = {question: answer for at, question, answer in questions if at == image}
            assert {question for question, answer in answers.items() if answer == "yes"} <= held
            assert not {question for question, answer in answers.items() if answer == "no"} & held
            assert Counter(answers.values())["yes"] == Counter(answers.values())["no"] > 0

    def test_listing_names_every_class_once(self, instances):
        listed = {image: answer for image, _, answer in asked(load(instances, kinds="listing"), "listing")}
        assert listed == {"0": "dog, traffic light", "1": "person", "2": "dog, scissors"}

    def test_listing_can_say_the_numbers(self, instances):
        dataset = load(instances, kinds="listing", templates="counted-lists")
        listed = {image: answer for image, _, answer in asked(dataset, "listing")}
        assert listed == {"0": "two dogs and a traffic light", "1": "three people", "2": "12 dogs and scissors"}

    def test_the_wording_of_gvtbench(self, instances):
        dataset = load(instances, templates="gvtbench", per_image=4)
        assert ("1", "How many people are there in the image?", "3") in asked(dataset, "counting")
        questions = asked(dataset, "existence")
        assert ("0", "Does dog exist in the image?", "Yes.") in questions
        assert {answer for _, _, answer in questions} == {"Yes.", "No."}

    def test_balanced_absent_classes_make_the_name_say_little(self, tmp_path):
        """A frequent class is asked for in vain about as often as not, which uniform draws do not reach."""
        write_images(tmp_path / "train", 1)
        objects, images = [], [{"id": n, "file_name": "0.png"} for n in range(600)]
        for n in range(600):
            objects += annotations(n, **{("dog" if n % 2 else "person" if n % 4 else "scissors"): 1})
        path = write_instances(tmp_path, objects, images)
        shares = {}
        for absent in ("balanced", "uniform"):
            dataset = load(path, kinds="existence", absent=absent, templates={"existence": "{noun}?"})
            dogs = [answer for _, question, answer in asked(dataset, "existence") if question == "dog?"]
            shares[absent] = Counter(dogs)["yes"] / len(dogs)
        assert abs(shares["balanced"] - 0.5) < 0.12 < shares["uniform"] - 0.5

    def test_the_seed_of_the_questions_changes_them_and_nothing_else_does(self, instances):
        assert load(instances)[:] == load(instances)[:]
        assert any(load(instances, question_seed=seed)["answer"] != load(instances)["answer"] for seed in range(1, 6))

    def test_it_streams_and_takes_a_prompt(self, instances):
        source = {"streaming": True, "prompt": "Question: {question} Answer:"}
        texts = [row["messages"][0]["content"][1]["text"] for row in load(instances, source)]
        assert texts and all(text.startswith("Question: ") and text.endswith(" Answer:") for text in texts)


class TestLayouts:
    def test_a_crowd_is_not_counted_but_is_there(self, tmp_path):
        write_images(tmp_path / "train")
        objects = annotations(0, dog=2, person=1)
        objects[0]["iscrowd"] = 1
        dataset = load(write_instances(tmp_path, objects), per_image=4, templates="counted-lists")
        assert [question[2] for question in asked(dataset, "counting")] == ["1"]
        assert asked(dataset, "listing")[0][2] == "several dogs and a person"

    def test_lvis_knows_absence_from_its_negative_classes_and_counts_what_is_exhaustive(self, tmp_path):
        """Image 0 may hold more dogs than have a box, and persons; image 1 was only looked through for dogs."""
        write_images(tmp_path / "train", 2)
        images = [
            {"id": 0, "coco_url": "http://x/0.png", "neg_category_ids": [4], "not_exhaustive_category_ids": [1]},
            {"id": 1, "coco_url": "http://x/1.png", "neg_category_ids": [], "not_exhaustive_category_ids": []},
        ]
        objects = annotations(0, dog=1, traffic_light=2) + annotations(1, dog=1, person=1, scissors=1)
        path = write_instances(tmp_path, objects, images)
        labelled = read_instances(path).images
        assert [image.absent for image in labelled] == [["scissors"], []]
        assert [image.doubtful for image in labelled] == [{"dog"}, set()]
        for seed in range(5):
            dataset = load(path, per_image=4, question_seed=seed, templates={**COUNT, "existence": "{noun}?"})
            negatives = {(at, question) for at, question, answer in asked(dataset, "existence") if answer == "no"}
            assert negatives == {("0", "scissors?")}
            counted = {(at, question, answer) for at, question, answer in asked(dataset, "counting") if at == "0"}
            assert counted == {("0", "traffic lights: how many?", "2")}

    @pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
    def test_negative_classes_that_the_file_lacks_are_a_bad_sample(self, tmp_path, field):
        write_images(tmp_path / "train", 1)
        objects, image = annotations(0, dog=1), {"id": 0, "file_name": "0.png"}
        path = write_instances(tmp_path, objects, [{**image, field: [99]}])
        with pytest.raises(BadSampleError, match="category_id 99 is not among the categories"):
            load(path)
        path = write_instances(tmp_path, objects, [{**image, field: 3}])
        with pytest.raises(ValueError, match=f"{field} of image 0 must be a list of category ids, got 3"):
            load(path)

    def test_objects365_finds_images_in_patch_folders_and_says_its_names(self, tmp_path):
        """Its file names start with folders that its archives lack, and its classes are written in many ways."""
        (tmp_path / "train" / "patch8").mkdir(parents=True)
        (tmp_path / "train" / "patch8" / "objects365_v1_00420917.jpg").write_bytes(png(7))
        images = [{"id": 420917, "file_name": "images/v1/patch8/objects365_v1_00420917.jpg"}]
        images.append({**images[0], "id": 420918})
        objects = [
            {"image_id": 420917, "category_id": category, "isfake": int(category == 4), "isreflected": 0, "iscrowd": 0}
            for category in (1, 1, 2, 3, 3, 4, 5)
        ]
        objects.append({"image_id": 420918, "category_id": 6})
        names = ["Cabinet/shelf", "Monitor/TV", "Sneakers", "Wild Bird", "Other Shoes", "Bus"]
        path = write_instances(tmp_path, objects, images, names, "zhiyuan_objv2_train.json")
        dataset = load(path, {"images": str(tmp_path / "train")}, per_image=9, templates="counted-lists")
        assert all(colours(row) == [colour(7)] for row in dataset)
        listing, _ = asked(dataset, "listing")
        assert listing[2] == "two cabinets or shelves, sneakers, a monitor or TV and several wild birds"
        counted = [(question, answer) for image, question, answer in asked(dataset, "counting") if image == "420917"]
        assert len(counted) == 3 and not any("bird" in question for question, _ in counted)  # a picture of a bird
        dataset = load(path, {"images": str(tmp_path / "train")}, templates={"existence": "{is_there}?"}, per_image=9)
        questions = [question for image, question, _ in asked(dataset, "existence") if image == "420918"]
        assert questions[0] == "Is there a bus?"
        assert questions[1] in {
            "Is there a cabinet or shelf?",
            "Is there a monitor or TV?",
            "Are there any sneakers?",
            "Is there a wild bird?",
        }

    def test_open_images_knows_absence_from_verified_labels_only(self, tmp_path):
        dataset = load(open_images(tmp_path), **open_images_options(tmp_path), per_image=5)
        negatives = {question for _, question, answer in asked(dataset, "existence") if answer == "no"}
        assert negatives and all("cat" in question for question in negatives)

    def test_open_images_groups_and_pictures_are_not_counted(self, tmp_path):
        dataset = load(
            open_images(tmp_path), **open_images_options(tmp_path), per_image=5, kinds="counting", templates=COUNT
        )
        assert set(asked(dataset, "counting")) == {
            ("aa00", "dogs: how many?", "2"),
            ("aa00", "animals: how many?", "3"),
        }

    def test_open_images_counts_for_the_classes_above(self, tmp_path):
        """Two dogs and another animal are three animals; a mistaken "no animal" beside a dog is not asked."""
        labelled = read_open_images(open_images(tmp_path), **open_images_options(tmp_path))
        assert [image.counts for image in labelled.images] == [{"Dog": 2, "Animal": 3}, {"Dog": 1, "Cat": 1}]
        assert [image.absent for image in labelled.images] == [["Cat"], ["Animal"]]
        dataset = load(tmp_path / "train.csv", **open_images_options(tmp_path), kinds="existence", per_image=5)
        assert "aa01" not in dataset["image_id"]

    def test_open_images_without_verified_labels_has_no_existence_questions(self, tmp_path):
        path, options = open_images(tmp_path), open_images_options(tmp_path)
        del options["image_labels"]
        with pytest.raises(ValueError, match="set `image_labels`"):
            load(path, **options)
        assert set(load(path, **options, kinds=["counting", "listing"])["kind"]) == {"counting", "listing"}

    def test_open_images_needs_its_class_descriptions(self, tmp_path):
        with pytest.raises(ValueError, match="class descriptions: set `classes`"):
            load(open_images(tmp_path))


COUNT = {"counting": "{nouns}: how many?"}


def open_images(folder):
    """aa00: two dogs and an animal; aa01: a group of dogs and a picture of a cat."""
    for name in ("aa00", "aa01"):
        (folder / "train").mkdir(exist_ok=True)
        (folder / "train" / f"{name}.jpg").write_bytes(png(1))
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    boxes = [("aa00", "/m/dog", 0, 0), ("aa00", "/m/dog", 0, 0), ("aa00", "/m/animal", 0, 0)]
    boxes += [("aa01", "/m/dog", 1, 0), ("aa01", "/m/cat", 0, 1)]
    rows = [f"{image},xclick,{label},1,0,1,0,1,0,0,{group},{picture},0" for image, label, group, picture in boxes]
    (folder / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "train.csv"


def open_images_options(folder):
    (folder / "classes.csv").write_text("/m/animal,Animal\n/m/dog,Dog\n/m/cat,Cat\n/m/tree,Tree\n")
    labels = [("aa00", "/m/cat", 0), ("aa00", "/m/tree", 1), ("aa01", "/m/animal", 0), ("aa00", "/m/unknown", 0)]
    text = "ImageID,Source,LabelName,Confidence\n" + "".join(f"{i},verification,{n},{c}\n" for i, n, c in labels)
    (folder / "labels.csv").write_text(text)
    tree = {
        "LabelName": "/m/0bl9f",
        "Subcategory": [
            {"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/dog"}, {"LabelName": "/m/cat"}]},
            {"LabelName": "/m/tree"},
        ],
    }
    (folder / "tree.json").write_text(json.dumps(tree))
    return {
        name: str(folder / file)
        for name, file in (("classes", "classes.csv"), ("image_labels", "labels.csv"), ("hierarchy", "tree.json"))
    }


class TestBadInput:
    def test_a_bad_label_is_a_bad_sample_that_can_be_skipped(self, instances):
        document = json.loads(instances.read_text())
        document["annotations"].append({"image_id": 1, "category_id": 99})
        instances.write_text(json.dumps(document))
        with pytest.raises(BadSampleError, match="category_id 99 is not among the categories"):
            load(instances)
        dataset = load(instances, {"on_error": "skip"})
        assert "1" not in dataset["image_id"] and dataset.skipped_samples.count == 1

    def test_a_missing_image_is_skipped_and_counted(self, instances):
        (instances.parent / "train" / "0.png").unlink()
        dataset = load(instances, {"on_error": "skip"})
        assert set(dataset["image_id"]) == {"1", "2"} and dataset.skipped_samples.count > 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"images": [{"id": 1', "not a whole JSON object"),
            ("[]", "not a whole JSON object"),
            (
                '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}',
                "without 'category_id'",
            ),
            ('{"images": [], "annotations": []}', "it has no "),
            (
                '{"categories": [{"id": 1, "name": "x"}], "images": [{"id": 1, "file_name": "x"}], '
                '"annotations": [{"image_id": 2, "category_id": 1}]}',
                "annotations of 1 images that it does not list, such as 2",
            ),
        ],
    )
    def test_a_file_that_is_no_instances_file_says_so(self, tmp_path, text, message):
        (tmp_path / "images").mkdir()
        (tmp_path / "instances.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "instances.json")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kinds": ["colour"]}, "unknown kind of object-centric question 'colour'"),
            ({"absent": "hard"}, "unknown way to draw absent classes 'hard'"),
            ({"per_image": 0}, "per_image of .* must be a positive whole number, got 0"),
            ({"templates": "mine"}, "unknown set of templates 'mine'"),
            ({"templates": {"counting": "How many {noun"}}, "is not a template"),
            ({"templates": {"counting": "How many {colour}?"}}, "unknown field of the template"),
            ({"templates": {"listing": "What but {names}?"}}, "unknown field of the template"),
            ({"templates": {"existence": {"question": "{noun}?", "answer": "yes"}}}, "unknown part of a template"),
            ({"templates": {"counting": []}}, "must be a list of wordings"),
            ({"classes": "x.csv"}, "there is no file"),
        ],
    )
    def test_an_option_that_cannot_be_is_refused(self, instances, options, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(instances, **options)

    def test_options_of_open_images_are_not_for_json(self, instances):
        with pytest.raises(ValueError, match="are for OpenImages' boxes"):
            load(instances, classes=str(instances))

    def test_without_a_folder_of_images_it_says_which_it_looked_for(self, tmp_path):
        path = write_instances(tmp_path, annotations(0, dog=1))
        with pytest.raises(FileNotFoundError, match=r"there is no image folder .*train; set `images`"):
            load(path)
