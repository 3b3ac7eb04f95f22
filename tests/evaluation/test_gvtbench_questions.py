"""GVTBench's question files: what is refused and warned of, the floors, and the official files themselves."""

import json
import random
from statistics import fmean, pstdev

import pytest

from tests.tiny import tiny_image
from vistok.evaluation import gvtbench_questions
from vistok.evaluation.gvtbench_questions import (
    OFFICIAL_FILES,
    OTHER_COCO_OC,
    drop_duplicates,
    find_image,
    fix_question_typos,
    image_path,
    load_questions,
    majority,
    official_name,
    question_clusters,
    two_fold_priors,
)
from vistok.evaluation.gvtbench_scoring import score_multi_class_identification, score_object_counting
from vistok.evaluation.measures import measure
from vistok.evaluation.vqa import two_fold_priors as priors_of_examples

# The first records of the official files (TencentARC/GVT, GVTBench, Apache-2.0).
EXCERPT = [
    {"image_id": 42102, "text_in": "How many people are there in the image?", "text_out": "1", "n_obj_exist": 3},
    {
        "image_id": 135604,
        "text_in": "How many sports balls are there in the image?",
        "text_out": "1",
        "n_obj_exist": 3,
    },
    {"image_id": 574425, "text_in": "How many buses are there in the image?", "text_out": "2", "n_obj_exist": 2},
]
VCR_IMAGE = "movieclips_The_Long_Riders/zSCukxfXdAQ@23.jpg"


@pytest.fixture
def write(tmp_path):
    def write_questions(questions, name="questions.json"):
        path = tmp_path / name
        path.write_text(questions if isinstance(questions, str) else json.dumps(questions), encoding="utf-8")
        return path

    return write_questions


class TestLoading:
    def test_records_come_back_as_they_are_written(self, write):
        assert load_questions(write(EXCERPT)) == EXCERPT

    def test_a_file_that_is_not_official_is_warned_of(self, write, caplog):
        with caplog.at_level("WARNING", logger="vistok"):
            load_questions(write(EXCERPT))
        assert len(caplog.messages) == 1 and "none of the official files" in caplog.messages[0]

    @pytest.mark.parametrize(
        ("known", "warned"), [("official", None), ("other", "second coco_oc.json of TencentARC/GVT")]
    )
    def test_files_are_known_by_their_hash_and_not_their_name(self, write, monkeypatch, caplog, known, warned):
        path = write(EXCERPT, "renamed.json")
        sha256 = gvtbench_questions._sha256(path.read_bytes())
        if known == "official":
            monkeypatch.setattr(gvtbench_questions, "OFFICIAL_FILES", {"coco_oc": sha256})
        else:
            monkeypatch.setattr(gvtbench_questions, "OTHER_COCO_OC", sha256)
        with caplog.at_level("WARNING", logger="vistok"):
            load_questions(path)
        assert official_name(path) == ("coco_oc" if known == "official" else None)
        assert caplog.messages == [] if warned is None else warned in caplog.messages[0]

    def test_the_second_file_of_the_authors_repository_is_not_official(self):
        assert OTHER_COCO_OC.startswith("bf5c31c8") and OTHER_COCO_OC not in OFFICIAL_FILES.values()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[", "is not JSON"),
            ("{}", "holds no list of questions"),
            ("[]", "holds no list of questions"),
            ([EXCERPT[0], "How many?"], "row 1: expected a record"),
            ([EXCERPT[0], {**EXCERPT[1], "text_in": None}], "row 1: 'text_in' is None, expected text"),
            ([{**EXCERPT[0], "n_obj_exist": "3"}], "row 0: 'n_obj_exist' is '3', expected a whole number"),
            ([{**EXCERPT[0], "image_id": 1.5}], "row 0: 'image_id' is 1.5, expected a whole number or text"),
            ([{key: EXCERPT[0][key] for key in ("image_id", "text_in", "n_obj_exist")}], "row 0: 'text_out' is None"),
        ],
    )
    def test_a_malformed_file_is_refused_by_row_and_field(self, write, content, message):
        with pytest.raises(ValueError, match=message):
            load_questions(write(content))

    def test_a_missing_file_is_named_with_what_was_expected(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.json is no file: expected a question file of GVTBench"):
            load_questions(tmp_path / "absent.json")

    def test_typos_are_fixed_and_duplicates_dropped_when_asked(self, write):
        wrong = {"image_id": VCR_IMAGE, "text_in": "Does ties exis in the image?", "text_out": "No.", "n_obj_exist": 2}
        right = {**wrong, "text_in": "Does ties exist in the image?", "text_out": "Yes."}
        path = write([wrong, right, wrong, {**right, "n_obj_exist": 3}])
        assert [question["text_in"] for question in load_questions(path, fix_typos=True)] == [right["text_in"]] * 4
        assert load_questions(path, deduplicate=True) == [wrong, right, {**right, "n_obj_exist": 3}]
        assert load_questions(path)[0] == wrong
        assert fix_question_typos([wrong])[0] is not wrong and drop_duplicates([right, right]) == [right]


class TestImages:
    def test_paths_are_those_of_the_data_sets(self):
        assert image_path(EXCERPT[0]) == "val2017/000000042102.jpg"
        assert image_path({"image_id": VCR_IMAGE}) == f"vcr1images/{VCR_IMAGE}"
        assert image_path({"image_id": 7, "file_name": "scene-7.png"}) == "scene-7.png"

    @pytest.mark.parametrize("place", ["val2017/000000042102.jpg", "000000042102.jpg", "images/000000042102.jpg"])
    def test_an_image_is_found_in_the_data_set_or_beside_its_likes(self, tmp_path, place):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
        assert find_image(EXCERPT[0], tmp_path) == tmp_path / place

    def test_an_image_that_is_nowhere_is_named_with_the_places(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"How many people.*about 42102.*val2017.000000042102\.jpg and"):
            find_image(EXCERPT[0], tmp_path)


def asked(image_id, text_in, text_out):
    return {"image_id": image_id, "text_in": text_in, "text_out": text_out, "n_obj_exist": 1}


class TestFloors:
    def test_the_majority_is_the_most_frequent_answer(self):
        assert majority(EXCERPT) == ["1"] * 3
        assert majority([asked(1, "?", "2"), asked(1, "?", "1")]) == ["1", "1"]
        with pytest.raises(ValueError, match="no questions"):
            majority([])

    def test_the_prior_learns_from_other_images_only(self):
        # About each of two images, a question that the other half answers otherwise, and one that only it has.
        questions = [
            asked("a", "both?", "1"),
            asked("a", "mine?", "3"),
            asked("b", "both?", "2"),
            asked("b", "his?", "2"),
        ]
        assert two_fold_priors(questions) == [["2", "2", "1", "1"]] * 16

    def test_the_prior_takes_the_most_frequent_answer_of_the_same_text(self):
        questions = [asked(index, f"{index % 2}?", str(index % 2)) for index in range(40)]
        right = [question["text_out"] for question in questions]
        assert all(guessed == right for guessed in two_fold_priors(questions))

    def test_the_prior_divides_images_and_does_so_by_the_seed(self):
        questions = [asked(index // 2, f"{index % 3}?", str(index % 4)) for index in range(60)]
        assert two_fold_priors(questions) == two_fold_priors(questions)
        assert two_fold_priors(questions, 1) != two_fold_priors(questions)

    def test_the_prior_is_that_of_the_report_of_the_same_questions(self, make_question):
        generator = random.Random(0)
        records = [asked(index // 3, f"{index % 5}?", str(generator.randrange(4))) for index in range(90)]
        examples = [
            make_question(index, record["text_in"], record["text_out"], tiny_image(index // 3, (3, 3)))
            for index, record in enumerate(records)
        ]
        of_examples = priors_of_examples(examples)
        assert two_fold_priors(records) == of_examples
        predictions, *others = of_examples
        measured = measure(predictions, examples, others=others)
        shares = [measure(guessed, examples)["accuracy"] for guessed in of_examples]
        assert len(set(shares)) > 1
        assert measured["accuracy"] == pytest.approx(fmean(shares))

    def test_the_prior_of_few_images_hardly_depends_on_the_seed(self):
        generator = random.Random(1)
        records = [asked(index // 2, f"{index % 3}?", str(generator.choice("1123"))) for index in range(80)]
        score = score_object_counting
        single, mean = [], []
        for seed in range(12):
            scores = [score(guessed, records)["accuracy"] for guessed in two_fold_priors(records, seed)]
            single.append(scores[0])
            mean.append(fmean(scores))
        assert pstdev(mean) < 0.5 * pstdev(single)

    def test_one_image_has_no_other_half(self):
        with pytest.raises(ValueError, match="these are about 1"):
            two_fold_priors([asked(1, "?", "1")] * 3)

    def test_questions_about_one_image_are_one_cluster(self):
        assert question_clusters([asked(1, "?", "1"), asked("x", "?", "1"), asked(1, "!", "2")]) == [1, "x", 1]


# From the table of floors that goes with the benchmark: the majority exactly, the prior up to the draw of the halves.
OFFICIAL = {
    "coco_oc": {"images": 4825, "accuracy": 54.27, "mae": 1.151, "rmse": 2.132, "prior": 53.5, "distinct": 10_000},
    "coco_mci": {"images": 4116, "accuracy": 50.35, "prior": 65.3, "distinct": 10_000},
    "vcr_oc": {
        "images": 5901,
        "accuracy": 36.17,
        "mae": 1.694,
        "rmse": 2.653,
        "prior": 47.3,
        "distinct": 10_000 - 1726,
    },
    "vcr_mci": {"images": 5923, "accuracy": 50.42, "prior": 99.96, "distinct": 10_000 - 354},
}


@pytest.mark.parametrize("name", OFFICIAL)
class TestOfficialFiles:
    """Run with `pytest --outside-data FOLDER`, where FOLDER holds `gvtbench/coco_oc.json`."""

    @pytest.fixture
    def path(self, outside_data, name):
        return outside_data(f"gvtbench/{name}.json")

    def test_the_file_is_known_and_read_without_a_warning(self, path, name, caplog):
        with caplog.at_level("WARNING", logger="vistok"):
            questions = load_questions(path)
        assert (official_name(path), len(questions), caplog.messages) == (name, 10_000, [])
        assert len(set(question_clusters(questions))) == OFFICIAL[name]["images"]
        assert len(drop_duplicates(questions)) == OFFICIAL[name]["distinct"]

    def test_its_floors_are_the_published_ones(self, path, name):
        expected, questions = OFFICIAL[name], load_questions(path)
        score = score_object_counting if name.endswith("oc") else score_multi_class_identification
        constant = score(majority(questions), questions)
        for metric in ("accuracy", "mae", "rmse"):
            if metric in expected:
                assert constant[metric] == pytest.approx(expected[metric], abs=0.0006)
        prior = fmean(score(guessed, questions)["accuracy"] for guessed in two_fold_priors(questions))
        assert prior == pytest.approx(expected["prior"], abs=0.5)

    def test_the_spelling_no_longer_gives_the_answer_away_once_it_is_fixed(self, path, name):
        questions = load_questions(path, fix_typos=True)
        if name != "vcr_mci":
            assert questions == load_questions(path)
            return
        prior = fmean(
            score_multi_class_identification(guessed, questions)["accuracy"] for guessed in two_fold_priors(questions)
        )
        assert prior == pytest.approx(85.6, abs=0.5)
