"""Several tasks, any model: from files to reports, by generation and by likelihood."""

import json

import pytest

from tests.tiny import tiny_gvt, tiny_image, tiny_processor
from tests.tiny_image_text import tiny_idefics3, tiny_llava
from vistok.evaluation.command import evaluate_command
from vistok.evaluation.image_text_models import ImageTextModel
from vistok.evaluation.report_table import report_markdown, summary_markdown

NUM_IMAGES = 5


@pytest.fixture
def folder(tmp_path):
    """Questions to count and to choose among, about five images."""
    (tmp_path / "images").mkdir()
    counting, choosing = [], []
    for number in range(NUM_IMAGES):
        tiny_image(number).save(tmp_path / "images" / f"{number:012d}.jpg")
        for name in ("bears", "cups"):
            text = f"How many {name} are there in the image?"
            counting.append({"image_id": number, "text_in": text, "text_out": str(1 + number % 2), "n_obj_exist": 3})
        choices = {f"choice_{letter}": text for letter, text in zip("abcd", ["a dog", "two", "three cats", "no"])}
        known = {"question_id": f"s{number}", "question_type_id": 1 + number % 2, "data_id": f"{number:012d}"}
        choosing.append({**known, "question": "what is it?", "answer": "ABCD"[number % 4], **choices})
    (tmp_path / "coco_oc.json").write_text(json.dumps(counting))
    (tmp_path / "SEED-Bench.json").write_text(json.dumps({"questions": choosing}))
    return tmp_path


def gvt():
    return tiny_gvt(), tiny_processor()


@pytest.mark.parametrize("make", [gvt, tiny_llava, tiny_idefics3])
def test_a_model_of_any_kind_is_measured_the_same_way(folder, make):
    answerer = ImageTextModel(*make(), 3)
    options = {"questions": folder, "images": folder / "images", "max_new_tokens": 4, "progress_bar": False}
    results = evaluate_command(answerer, "coco_oc,seed_bench", output=folder / "out", **options)
    assert list(results) == ["coco_oc", "seed_bench"]
    counted, chosen = results.values()
    assert (counted["num_questions"], chosen["num_questions"]) == (2 * NUM_IMAGES, NUM_IMAGES)
    assert counted["settings"]["prompt_style"] == "paper"
    assert chosen["settings"]["answers"] == "by likelihood"
    for result in results.values():
        assert list(result["floors"]) == ["majority", "question_only_prior", "blank_images", "shuffled_images"]
        assert set(result["gains"]) == {"majority", "question_only_prior"}
        assert result["floors"]["majority"]["accuracy"] > 0
        (json.loads(json.dumps(result)) == result) or pytest.fail("the results are no JSON")
    lines = (folder / "out" / "seed_bench-test.predictions.jsonl").read_text("utf-8").splitlines()[1:]
    given = {line["id"]: line["prediction"] for line in map(json.loads, lines) if line["images"] == "given"}
    texts = ["a dog", "two", "three cats", "no"]
    for number in range(NUM_IMAGES):
        prompt, image = "Question: what is it? Answer:", tiny_image_of(folder, number)
        likelihoods = answerer.log_likelihoods([prompt] * 4, [[image]] * 4, texts, own_prompt=True)
        best = max(range(4), key=lambda index: likelihoods[index].total)
        assert given[f"s{number}"] == "ABCD"[best]


def tiny_image_of(folder, number):
    from vistok.processing.images import load_image

    return load_image(folder / "images" / f"{number:012d}.jpg")


def test_several_tasks_have_a_summary(folder):
    options = {"questions": folder, "images": folder / "images", "max_new_tokens": 2, "progress_bar": False}
    results = evaluate_command(ImageTextModel(*gvt(), 4), "coco_oc,seed_bench", output=folder / "out", **options)
    names = {file.name for file in (folder / "out").iterdir()}
    assert {"summary.json", "summary.md", "summary.png", "coco_oc-test.md", "seed_bench-test.png"} <= names
    assert json.loads((folder / "out" / "summary.json").read_text()) == list(results.values())
    rows = [line.split(" | ") for line in summary_markdown(list(results.values())).splitlines() if line[:1] == "|"]
    assert [row[0].strip("| ") for row in rows] == ["task", "---", "coco_oc", "seed_bench"]
    assert len({len(row) for row in rows}) == 1
    text = report_markdown(results["coco_oc"])
    assert "| MAE |" in text and "| RMSE |" in text and "| right, strict, % |" in text
    assert "over the majority answer" in text and "over the question-only prior" in text
    of_dimensions = [line for line in report_markdown(results["seed_bench"]).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in of_dimensions[2:5]] == [
        "| all",
        "| Instance Identity",
        "| Scene Understanding",
    ]
    assert (folder / "out" / "coco_oc-test.md").read_text("utf-8") == text


def test_a_run_on_one_task_only_has_no_summary(folder):
    options = {"questions": folder, "images": folder / "images", "max_new_tokens": 2, "progress_bar": False}
    evaluate_command(ImageTextModel(*gvt(), 4), "coco_oc", output=folder / "out", floors=[], **options)
    assert not (folder / "out" / "summary.json").exists()


def test_everything_is_read_before_anything_is_asked(folder, monkeypatch):
    monkeypatch.setattr(ImageTextModel, "answer", lambda *_: pytest.fail("a question was asked"))
    (folder / "SEED-Bench.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no questions of task seed_bench"):
        evaluate_command(
            ImageTextModel(*gvt()), "coco_oc,seed_bench", questions=folder, images=folder / "images"
        )  # fmt: skip
