"""Evaluation images are recognised in whatever file names them, and never trained on unawares."""

import json

import datasets
import pytest

from tests.trainer.planted_data import write_images
from vistok.evaluation.gvtbench_images import gvtbench_coco_images
from vistok.trainer.data_sources import load_data_source
from vistok.trainer.evaluation_images import image_stem, images_to_exclude

# Two of the official coco_oc.json (TencentARC/GVT, GVTBench, Apache-2.0), as they stand there.
OFFICIAL_EXCERPT = [
    {"image_id": 42102, "text_in": "How many people are there in the image?", "text_out": "1", "n_obj_exist": 3},
    {"image_id": 58350, "text_in": "Does cell phone exist in the image?", "text_out": "No.", "n_obj_exist": 6},
]
FILES = {
    "gvtbench.json": json.dumps(OFFICIAL_EXCERPT),
    "vcr.json": json.dumps([{"image_id": "lsmdc_1054/x_42102@1.jpg"}, {"image_id": "movie/000000042102.jpg"}]),
    "instances.json": json.dumps({"images": [{"id": 7, "file_name": "val2017/000000042102.jpg"}], "annotations": []}),
    "lvis.json": json.dumps({"images": [{"id": 42102, "coco_url": "x"}], "annotations": []}),
    "vqa.json": json.dumps({"questions": [{"image_id": 42102, "question": "?", "question_id": 1}]}),
    "pope.json": '{"image": "COCO_val2014_000000042102.jpg"}\n{"image": "COCO_val2014_000000000001.jpg"}\n',
    "one.jsonl": '{"image_id": 42102}\n',
    "names.txt": "train/a/000000042102.jpg\n\n",
    "ids.txt": "42102\n1\n",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class TestImagesToExclude:
    @pytest.mark.parametrize("name", FILES)
    def test_an_image_is_found_in_every_kind_of_file(self, tmp_path, name):
        (tmp_path / name).write_text(FILES[name])
        images = images_to_exclude(str(tmp_path / name))
        for file_name in ("000000042102.jpg", "val2014/COCO_val2014_000000042102.jpg", "x\\000000042102.png"):
            assert images.holds(file_name, 5)
        assert not images.holds("000000042103.jpg", 5)

    def test_ids_and_names_can_be_listed(self):
        images = images_to_exclude([42102, "patch8/objects365_v1_00420917.jpg"])
        assert images.holds("000000042102.jpg") and images.holds("anything.jpg", 42102)
        assert images.holds("images/v1/patch8/objects365_v1_00420917.jpg", 3)
        assert not images.holds("objects365_v2_00420917.jpg", 3)

    def test_ids_of_question_files_are_those_of_coco_only(self, tmp_path):
        """Another data set may number an image of its own 42102."""
        (tmp_path / "coco_oc.json").write_text(FILES["gvtbench.json"])
        assert not images_to_exclude([str(tmp_path / "coco_oc.json")]).holds("objects365_v1_00042102.jpg", 42102)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("{", "not valid JSON"), ("[]", "none says its image"), ('[{"question": "?"}]', "none says its image")],
    )
    def test_a_file_that_names_no_images_is_refused(self, tmp_path, text, message):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            images_to_exclude(str(tmp_path / "x.json"))

    def test_a_missing_file_and_a_thing_that_is_no_image_are_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            images_to_exclude(str(tmp_path / "coco_oc.json"))
        with pytest.raises(ValueError, match=r"file names and image ids, got 1\.5"):
            images_to_exclude([1.5])

    @pytest.mark.parametrize("name", ["COCO_train2014_000000000009.jpg", "a/b/000000000009.jpeg", "000000000009"])
    def test_the_stem_of_an_image_of_coco_is_its_number(self, name):
        assert image_stem(name) == "000000000009"


class TestOfficialImages:
    def test_images_of_the_official_questions_are_known(self):
        images = gvtbench_coco_images()
        assert len(images) == 4904 and {item["image_id"] for item in OFFICIAL_EXCERPT} <= images
        assert 9 not in images and max(images) < 600_000

    def test_they_are_those_of_the_official_files(self, outside_data):
        named = set()
        for name in ("coco_oc", "coco_mci"):
            named |= {item["image_id"] for item in json.loads(outside_data(f"gvtbench/{name}.json").read_text())}
        assert gvtbench_coco_images() == named


@pytest.fixture
def with_evaluation_image(tmp_path):
    """Labels of three images, of which the second is one of the official questions'."""
    write_images(tmp_path / "train", 1)
    names = ["0.png", "val2017/000000042102.jpg", "0.png"]
    document = {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": number, "category_id": 1 + number % 2} for number in range(3)],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(document))
    return str(tmp_path / "instances_train.json")


def load(path, **options):
    return load_data_source({"format": "object-centric", "path": path, "options": options})


class TestObjectCentricData:
    def test_images_of_the_official_questions_stop_the_loading(self, with_evaluation_image):
        with pytest.raises(ValueError, match=r"1 images of COCO val2017 .*/000000042102.jpg: .*`exclude: gvtbench`"):
            load(with_evaluation_image)

    def test_they_can_be_left_out_and_are_counted(self, with_evaluation_image, tmp_path, caplog):
        (tmp_path / "coco_oc.json").write_text(FILES["gvtbench.json"])
        for exclude in ("gvtbench", [str(tmp_path / "coco_oc.json")], [1], ["000000042102.jpg"]):
            dataset = load(with_evaluation_image, exclude=exclude)
            assert set(dataset["image_id"]) == {"0", "2"}
        assert "1 of 3 images are left out by `exclude`" in caplog.text

    def test_they_can_be_asked_for(self, with_evaluation_image):
        assert "1" in load(with_evaluation_image, allow_evaluation_images=True)["image_id"]

    def test_real_labels_of_coco_are_asked_about_truthfully(self, outside_data):
        """A recount, straight from the file, of what is said about real images."""
        path = outside_data("coco-train-mini/instances_train2017.json")
        document = json.loads(path.read_text())
        names = {item["id"]: item["name"] for item in document["categories"]}
        present = {(str(item["image_id"]), names[item["category_id"]]) for item in document["annotations"]}
        dataset = load(str(path), kinds="existence", per_image=3, templates={"existence": "{noun}"})
        assert len(dataset) > 200
        for row in dataset:
            noun = row["messages"][0]["content"][1]["text"]
            asked = next(name for name in names.values() if name.lower() == noun.lower())
            assert ((row["image_id"], asked) in present) == (row["answer"] == "yes")

    def test_real_evaluation_images_are_refused(self, outside_data):
        with pytest.raises(ValueError, match="40 images of COCO val2017"):
            load(str(outside_data("coco-val-dev/instances_val2017.json")))
