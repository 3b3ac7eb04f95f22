"""`vistok ask`: what it prints, and what it tells before a model is loaded."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils import logging

from tests.tiny_setokim import tiny_setokim, tiny_setokim_processor
from tests.vistok.commands import answer_of_generate, fails
from vistok import cli
from vistok.answering import quiet_loading


class TestAsk:
    def test_the_answer_and_nothing_else_is_printed(self, adapter_folder, image_file, capsys):
        question = "is there a dog in the image?"
        assert cli.main(["ask", image_file, question, "--model", adapter_folder, "--max-new-tokens", "5"]) == 0
        expected = answer_of_generate(adapter_folder, Image.open(image_file), question, 5)
        assert expected  # the random model says something, or equality would prove little
        assert capsys.readouterr().out == expected + "\n"

    def test_the_attention_is_drawn_into_a_file(self, adapter_folder, image_file, tmp_path, capsys):
        picture = tmp_path / "new folder" / "attention.png"
        arguments = ["ask", image_file, "what?", "--model", adapter_folder, "--attention", str(picture)]
        assert cli.main([*arguments, "--max-new-tokens", "2"]) == 0
        assert Image.open(picture).width > 1000
        assert str(picture) in capsys.readouterr().err

    def test_a_setokim_that_draws_answers_without_diffusers(self, image_file, tmp_path, monkeypatch, capsys):
        tiny_setokim(draws=True).save_pretrained(tmp_path)
        tiny_setokim_processor(chat_template="chatml").save_pretrained(tmp_path)
        arguments = ["ask", image_file, "what?", "--model", str(tmp_path), "--max-new-tokens", "5"]
        assert cli.main(arguments) == 0
        expected = capsys.readouterr().out
        monkeypatch.setitem(sys.modules, "diffusers", None)
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out == expected != "\n"

    def test_a_missing_image_is_told_before_a_model_is_loaded(self, capsys):
        line = fails(capsys, "ask", "nowhere/photo.png", "what?", "--model", "no/such/model")
        assert "nowhere/photo.png" in line and "does not exist" in line

    def test_a_file_that_is_no_image_is_told(self, tmp_path, capsys):
        (tmp_path / "photo.png").write_text("not a picture")
        assert "not an image" in fails(capsys, "ask", str(tmp_path / "photo.png"), "what?")

    def test_a_folder_without_a_model_is_told(self, image_file, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        line = fails(capsys, "ask", image_file, "what?", "--model", str(tmp_path / "empty"))
        assert "empty" in line and "holds no model" in line

    @pytest.mark.parametrize(
        "name", ["./missing", "~/missing", "runs/of/missing", "{folder}/missing", "{folder}/photo.png"]
    )
    def test_a_path_that_is_no_folder_is_told_and_not_taken_for_a_hub_id(self, image_file, tmp_path, name, capsys):
        name = name.format(folder=tmp_path)
        line = fails(capsys, "ask", image_file, "what?", "--model", name)
        assert f"There is no folder {name!r}" in line and "vistok train" in line

    @pytest.mark.parametrize("name", ["missing", "runs/missing"])
    def test_what_cannot_be_had_from_the_hub_is_named(self, image_file, name, capsys):
        told = fails(capsys, "ask", image_file, "what?", "--model", name, num_lines=2)
        assert f"There is no folder {name!r}, and it cannot be had from the Hub" in told

    def test_without_its_base_models_one_command_is_told_that_fetches_them_all(
        self, adapter_folder, image_file, tmp_path, monkeypatch, capsys
    ):
        copy = tmp_path / "adapter"
        shutil.copytree(adapter_folder, copy)
        config = json.loads((copy / "config.json").read_text())
        config["base_models"] = {"vision": "vistok:dinov2-small", "text": "vistok:smollm2-135m"}
        (copy / "config.json").write_text(json.dumps(config))
        monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
        line = fails(capsys, "ask", image_file, "what?", "--model", str(copy))
        assert "`vistok fetch dinov2-small smollm2-135m` (183 MB" in line and str(tmp_path / "cache") in line

    def test_without_matplotlib_the_attention_is_refused_before_a_model_is_loaded(
        self, image_file, monkeypatch, capsys
    ):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        arguments = ["ask", image_file, "what?", "--model", "no/such/model", "--attention", "out.png"]
        assert 'pip install "vistok[draw]"' in fails(capsys, *arguments)

    def test_progress_bars_are_shown_afterwards_if_they_were_before(self):
        for shown, switch in ((False, logging.disable_progress_bar), (True, logging.enable_progress_bar)):
            switch()
            with quiet_loading():
                assert not logging.is_progress_bar_enabled()
            assert logging.is_progress_bar_enabled() == shown

    def test_truncated_weights_are_told(self, adapter_folder, image_file, tmp_path, capsys):
        for file in Path(adapter_folder).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = tmp_path / "trained_weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "truncated" in fails(capsys, "ask", image_file, "what?", "--model", str(tmp_path))

    @pytest.mark.parametrize(
        ("question", "tokens", "message"), [(" ", "5", "question is empty"), ("what?", "0", "max_new_tokens is 0")]
    )
    def test_senseless_arguments_are_told(self, adapter_folder, image_file, question, tokens, message, capsys):
        arguments = ["ask", image_file, question, "--max-new-tokens", tokens, "--model", adapter_folder]
        assert message in fails(capsys, *arguments)

    def test_without_a_model_the_one_that_ships_is_asked(self, image_file, monkeypatch, capsys):
        from vistok.configuration import shipped

        monkeypatch.setattr(shipped, "_SHIPPED_IN", Path(image_file).parent)  # where nothing ships
        line = fails(capsys, "ask", image_file, "what?")
        assert "'checkpoints/gvt-demo'" in line
