"""`vistok app` without a browser: which systems it offers, what they answer and show, what it tells."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.specifiers import SpecifierSet
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.test_package import PYPROJECT
from tests.tiny_setokim import tiny_setokim, tiny_setokim_processor
from tests.vistok.commands import answer_of_generate, fails
from vistok import app_systems
from vistok.app import MAX_PIXELS, NO_IMAGE, NO_QUESTION, Conversations, build_page
from vistok.app_systems import LoadedSystem, Look, System, offered_systems
from vistok.evaluation.word_map import read_word_map
from vistok.evaluation.word_map_picture import word_picture
from vistok.evaluation.word_reference import mean_distribution

ROOT = Path(__file__).parents[2]
QUESTION = "is there a dog in the image?"
needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


def recipes_in(text: str) -> list[str]:
    """Files that a command names, as a shell reads them: `a/{b,c}.yaml` is two."""
    found = []
    for before, names, after in re.findall(r"(recipes/[\w/-]*)(?:\{([^}]*)\})?([\w-]*\.yaml)", text):
        found += [f"{before}{name}{after}" for name in names.split(",")]
    return found


@pytest.fixture(scope="module")
def setokim_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("setokim")
    model = tiny_setokim()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(folder)
    tiny_setokim_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def conversations(adapter_folder, words_folder, setokim_folder, base_models):
    models = {"GVT": adapter_folder, "VT-LMM": words_folder, "Setokim": setokim_folder, "SeTok": base_models[0]}
    systems = [System(name, "", model) for name, model in models.items()]
    return Conversations([*systems, System("Missing", "", None, "Train one.")])


class TestAnswers:
    def test_the_answer_is_that_of_the_model_beside_where_its_queries_look(
        self, conversations, adapter_folder, image_file
    ):
        reply = conversations.ask(image_file, "GVT", f" {QUESTION}\n", [])
        expected = answer_of_generate(adapter_folder, Image.open(image_file), QUESTION, 32)
        assert reply.turns == [(QUESTION, expected)] and reply.is_answered
        assert reply.picture.width > 1000 and "queries look" in reply.note

    def test_a_second_question_follows_the_first_answer(self, conversations, adapter_folder, image_file):
        reply = conversations.ask(image_file, "GVT", QUESTION, [("what?", "a dog")])
        model = AutoModelForImageTextToText.from_pretrained(adapter_folder)
        processor = AutoProcessor.from_pretrained(adapter_folder)
        prompt = f"<image>\nQuestion: what? Answer: a dog</s>\nQuestion: {QUESTION} Answer:"
        inputs = processor(images=[Image.open(image_file)], text=prompt, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert reply.turns == [("what?", "a dog"), (QUESTION, expected)]

    def test_a_vtlmm_shows_the_words_of_its_patches(self, conversations, words_folder, image_file):
        reply = conversations.ask(image_file, "VT-LMM", QUESTION, [])
        model = AutoModelForImageTextToText.from_pretrained(words_folder)
        read = (model, AutoProcessor.from_pretrained(words_folder))
        reference = mean_distribution(*read, [image_file], described="this image")
        word_map = read_word_map(*read, Image.open(image_file), reference=reference)
        assert np.array_equal(reply.picture, word_picture(word_map, shading=True))
        assert "3 × 3 patches" in reply.note and "untrained" in reply.note

    def test_a_setokim_shows_the_clusters_that_its_language_model_reads(
        self, conversations, setokim_folder, image_file
    ):
        reply = conversations.ask(image_file, "Setokim", QUESTION, [])
        model = AutoModelForImageTextToText.from_pretrained(setokim_folder)
        pixel_values = AutoProcessor.from_pretrained(setokim_folder).image_processor(
            Image.open(image_file), return_tensors="pt"
        )["pixel_values"]
        number = int(model.get_image_features(pixel_values).token_mask.sum())
        assert reply.is_answered and reply.note.startswith(f"{number} semantic token")

    def test_a_tower_shows_clusters_and_answers_nothing(self, conversations, image_file):
        reply = conversations.ask(image_file, "SeTok", "", [])
        ((question, answer),) = reply.turns
        assert "no language model" in answer and question
        assert "without any training" in reply.note
        assert reply.picture.width > 950 and reply.picture.width / reply.picture.height == pytest.approx(4 / 3, 0.05)

    def test_a_system_is_loaded_once(self, conversations, image_file, monkeypatch):
        loaded = []
        monkeypatch.setattr(app_systems, "load_token_source", lambda *args, **kwargs: loaded.append(args[0]))
        monkeypatch.setattr(LoadedSystem, "look", lambda self, image: Look(None, str(self._token_source)))
        for _ in range(2):
            conversations.ask(image_file, "SeTok", "", [])
        assert len(loaded) == 1


class TestWhatIsTold:
    @pytest.mark.parametrize(
        ("file", "question", "name", "told"),
        [
            (None, QUESTION, "GVT", NO_IMAGE),
            ("photo.png", " ", "GVT", NO_QUESTION),
            ("photo.png", QUESTION, "Missing", "Train one."),
            ("photo.png", QUESTION, "Nobody", "There is no system 'Nobody': choose GVT"),
            ("text.png", QUESTION, "GVT", "This image cannot be used: "),
            ("cut.png", QUESTION, "GVT", "truncated or damaged"),
            ("vast.png", QUESTION, "GVT", f"more than max_pixels={MAX_PIXELS}"),
        ],
    )
    def test_what_a_user_can_mend_is_told_and_nothing_is_lost(
        self, conversations, image_file, tmp_path, file, question, name, told
    ):
        (tmp_path / "text.png").write_text("not a picture")
        (tmp_path / "cut.png").write_bytes(Path(image_file).read_bytes()[:-300])
        if file == "vast.png":
            Image.new("1", (8000, 8000)).save(tmp_path / "vast.png")
        path = None if file is None else str(tmp_path / file)
        reply = conversations.ask(path, name, question, [("before", "kept")])
        assert reply.turns == [("before", "kept")] and reply.picture is None and not reply.is_answered
        assert told in reply.note and str(tmp_path) not in reply.note

    def test_missing_base_weights_are_told_with_their_command(self, image_file, tmp_path, monkeypatch):
        monkeypatch.setenv("VISTOK_CACHE", str(tmp_path))
        reply = Conversations(offered_systems()).ask(image_file, "GVT", QUESTION, [])
        assert "vistok fetch" in reply.note

    @needs_gradio
    def test_a_model_that_is_not_there_is_told_before_anything_is_served(self, capsys):
        assert "There is no folder './missing'" in fails(capsys, "app", "--model", "./missing")


class TestSystems:
    def test_what_ships_can_be_asked_and_what_does_not_says_how_to_get_it(self):
        systems = {system.name: system for system in offered_systems()}
        assert list(systems) == ["GVT", "VT-LMM", "SeTok", "Setokim"]
        assert systems["GVT"].model and systems["SeTok"].model
        for system in systems.values():
            assert bool(system.model) != bool(system.missing)
            assert system.model or recipes_in(system.missing)
            assert {name for name in recipes_in(system.missing) if not (ROOT / name).is_file()} == set()

    def test_named_models_come_first_each_under_its_own_name(self, adapter_folder, tmp_path):
        other = tmp_path / Path(adapter_folder).name
        shutil.copytree(adapter_folder, other)
        names = [system.name for system in offered_systems([adapter_folder, other])]
        assert names[:3] == [Path(adapter_folder).name, str(other), "GVT"]
        assert len(set(names)) == len(names)


@needs_gradio
def test_the_page_is_built_without_loading_a_model_and_shows_all_systems(adapter_folder):
    config = build_page([adapter_folder]).get_config_file()
    (radio,) = [part for part in config["components"] if part["type"] == "radio"]
    names = [value for value, _ in radio["props"]["choices"]]
    assert names == [Path(adapter_folder).name, "GVT", "VT-LMM", "SeTok", "Setokim"]
    assert config["analytics_enabled"] is False
    assert not (ROOT / "vistok" / "app.pyi").exists(), "gradio writes types of components that are defined there"


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "vistok[app]"' in fails(capsys, "app")


def test_the_space_names_what_it_runs():
    _, front_matter, _ = (ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(front_matter)
    (bound,) = [text for text in PYPROJECT["project"]["optional-dependencies"]["app"] if text.startswith("gradio")]
    assert SpecifierSet(bound.removeprefix("gradio")).contains(values["sdk_version"])
    assert values["sdk"] == "gradio" and (ROOT / "space" / values["app_file"]).is_file()
    assert (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8") == "vistok[app]\n"
