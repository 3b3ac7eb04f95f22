"""VQAv2's files, planted: the answer that most people gave, and the image under each of its names."""

import json

import datasets
import pytest

from tests.trainer.planted_data import assert_canonical, colour, colours, png
from vistok.processing.images import BadSampleError
from vistok.trainer.data_sources import load_data_source
from vistok.trainer.visual_questions import most_frequent_answer

ANSWERS = [["yes"] * 7 + ["no"] * 3, ["two"] * 5 + ["2"] * 5, ["red"] * 10]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def files(tmp_path):
    """Three questions about two images, as VQAv2 calls its files."""
    (tmp_path / "images").mkdir()
    for image_id in (5, 9):
        (tmp_path / "images" / f"COCO_val2014_{image_id:012d}.jpg").write_bytes(png(image_id))
    questions = [
        {"question_id": 10 * n, "image_id": (5, 9, 9)[n], "question": f"Question {n}?"} for n in range(len(ANSWERS))
    ]
    annotations = [
        {
            "question_id": 10 * n,
            "image_id": (5, 9, 9)[n],
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": given[-1],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(given)
            ],
        }
        for n, given in enumerate(ANSWERS)
    ]
    document = {"data_subtype": "val2014", "task_type": "Open-Ended", "questions": questions}
    path = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(json.dumps(document))
    # Shuffled: they belong together by their ids.
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations[::-1]}))
    return path


def load(path, source=None, **options):
    return load_data_source({"format": "vqa", "path": str(path), "options": options, **(source or {})})


def test_questions_have_their_most_frequent_answers_and_images(files):
    dataset = load(files)
    assert_canonical(dataset)
    assert dataset["answer"] == ["yes", "2", "red"]  # of two equally frequent ones the one that VQAv2 names
    assert [row["messages"][1]["content"][0]["text"] for row in dataset] == dataset["answer"]
    assert [row["messages"][0]["content"][1]["text"] for row in dataset] == [f"Question {n}?" for n in range(3)]
    assert [colours(row) for row in dataset] == [[colour(5)], [colour(9)], [colour(9)]]
    assert dataset["id"] == ["0", "10", "20"] and set(dataset["question_type"]) == {"what"}


def test_images_of_later_releases_are_found_by_their_numbers(files):
    for image in (files.parent / "images").iterdir():
        image.rename(image.with_name(image.name.removeprefix("COCO_val2014_")))
    assert [colours(row) for row in load(files)] == [[colour(5)], [colour(9)], [colour(9)]]


def test_images_can_be_called_otherwise(files):
    for image in (files.parent / "images").iterdir():
        image.rename(image.with_name(f"{int(image.stem[-12:])}-val2014.png"))
    assert len([colours(row) for row in load(files, file_name="{image_id}-{split}.png")]) == 3
    with pytest.raises(ValueError, match="is no template"):
        load(files, file_name="{name}.png")


def test_it_streams_and_takes_a_prompt(files):
    rows = load(files, {"streaming": True, "prompt": "Question: {question} Answer:"})
    texts = [row["messages"][0]["content"][1]["text"] for row in rows]
    assert texts == [f"Question: Question {n}? Answer:" for n in range(3)]


def test_other_annotations_are_other_data(files):
    answers = files.parent / "v2_mscoco_val2014_annotations.json"
    assert load(files)["answer"][0] == "yes"
    answers.write_text(answers.read_text().replace('"yes"', '"perhaps"'))
    assert load(files)["answer"][0] == "perhaps"


def test_a_question_without_annotation_is_a_bad_sample(files):
    answers = files.parent / "other.json"
    answers.write_text(json.dumps({"annotations": [{"question_id": 0, "multiple_choice_answer": "yes"}]}))
    with pytest.raises(BadSampleError, match="question_id 10 has no annotation"):
        load(files, annotations=str(answers))
    dataset = load(files, {"on_error": "skip"}, annotations=str(answers))
    assert dataset["answer"] == ["yes"] and dataset.skipped_samples.count == 2


def test_files_of_another_format_say_so(files, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match="with the list 'annotations'"):
        load(files, annotations=str(broken))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(files, annotations=str(tmp_path / "nowhere.json"))
    with pytest.raises(ValueError, match="the list 'questions'"):
        load(broken, annotations=str(broken))
    with pytest.raises(FileNotFoundError, match="no image folder"):
        load(files, {"images": str(tmp_path / "nowhere")})


def test_an_annotation_without_answers_is_a_bad_sample():
    with pytest.raises(BadSampleError, match="no 'answers'"):
        most_frequent_answer({"answers": []})
    assert most_frequent_answer({"multiple_choice_answer": "blue"}) == "blue"
    assert most_frequent_answer({"answers": [{"answer": "a"}, {"answer": "b"}, {"answer": "b"}]}) == "b"
