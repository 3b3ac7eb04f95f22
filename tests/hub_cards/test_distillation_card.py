"""The card of a distilled tower: what was planted in a run's results stands on it, also where little is known."""

import pytest
import yaml

from tests.tiny import tiny_dinov2_config, tiny_eva_config
from vistok.hub_cards.card import write_card

PROBE = {"train": {"format": "images", "path": "photos"}, "test": {"format": "images", "name": "birds"}}
RESULTS = {
    "command": "vistok train mine.yaml",
    "recipe": {
        "trainer": "feature-distillation",
        "teacher": {"model": "org/large-tower", "feature_layer": None, "image_size": 336},
        "student": {"model": "same", "feature_layer": None},
        "data": {"train": [{"format": "images", "name": "photos", "path": "/srv/ada/photos"}]},
        "probe": {**PROBE, "where": {"kind": "bird"}},
        "training": {"mask_ratio": 0.4, "learning_rate": 0.00123},
        "card": {"license": "mit", "limits": ["Is small."]},
    },
    "steps": 1234,
    "train_loss": 0.4321,
    "parameters": {"trained": 20_000_001, "all": 22_000_000},
    "metrics": {
        "eval_photos_loss": 0.0765,
        "eval_photos_cosine_similarity": 0.71,
        "eval_photos_explained_variance": 0.3,
    },
    "representation": {
        **{"majority": 12.5, "num_train": 800, "num_test": 400, "num_classes": 9},
        "before": {"knn": {"accuracy": 31.0, "interval": [27.0, 35.0]}, "linear_probe": {"accuracy": 44.0}},
        "after": {"knn": {"accuracy": 61.0, "interval": [57.0, 65.0]}, "linear_probe": {"accuracy": 71.0}},
    },
}


@pytest.fixture
def folder(tmp_path):
    tiny_dinov2_config(architectures=["Dinov2Model"]).save_pretrained(tmp_path)
    return tmp_path


def test_what_was_measured_and_done_stands_on_the_card(folder):
    text = write_card(folder, RESULTS).read_text(encoding="utf-8")
    for words in (
        "| student before training | 31.0 (27.0 to 35.0) | 44.0 |",
        "| **this model** | 61.0 (57.0 to 65.0) | 71.0 |",
        "| always the most frequent class | 12.5 | 12.5 |",
        "400 labelled images of birds (kind: bird), in 9 classes, with 800 others",
        "| photos | 0.0765 | 0.7100 | 0.3000 |",
        "22,000,000 parameters, 20,000,001 of them trained",
        "| checkpoint | `org/large-tower` |",
        "| features | after its final norm |",
        "| images | 336 × 336 pixels |",
        "40 % of the patches were masked",
        "random weights, the teacher's architecture",
        'vision_feature_layer="final")',
        "- Is small.",
    ):
        assert words in text
    assert "/srv" not in text and "import vistok" not in text
    header = yaml.safe_load(text.split("---")[1])
    assert header["pipeline_tag"] == "image-feature-extraction" and header["tags"] == ["vistok", "dinov2"]
    assert "base_model" not in header  # no weight comes from the teacher
    assert write_card(folder).read_text(encoding="utf-8") == text


def test_the_header_names_the_checkpoint_that_a_student_started_from(folder):
    recipe = {**RESULTS["recipe"], "student": {"model": "org/small-tower", "feature_layer": -2}}
    text = write_card(folder, {**RESULTS, "recipe": recipe}).read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---")[1])["base_model"] == ["org/small-tower"]
    assert "hidden_states[-2]  # what was distilled" in text and "vision_feature_layer=-2)" in text


def test_a_tower_of_our_own_is_imported_first_and_little_is_enough(tmp_path):
    tiny_eva_config().save_pretrained(tmp_path)
    text = write_card(tmp_path, {"recipe": {"trainer": "feature-distillation"}}).read_text(encoding="utf-8")
    assert "import vistok  #" in text and "## Evaluation" not in text and "## Training\n" not in text
