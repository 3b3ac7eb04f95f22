"""`vistok convert`: folders that transformers loads, and mistakes told in a line."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline

from tests.modeling.published_eva import random_checkpoint
from tests.tiny import save_base_models, tiny_image
from tests.vistok.commands import fails
from vistok import EvaVisionModel, GVTProcessor, cli
from vistok.modeling import convert_gvt


@pytest.fixture
def eva_clip(tmp_path):
    torch.save(random_checkpoint("eva02_clip_l14_visual", dtype=torch.float32), tmp_path / "eva.pt")
    return str(tmp_path / "eva.pt")


def test_a_tower_is_written_and_what_was_dropped_printed(eva_clip, tmp_path, capsys):
    assert cli.main(["convert", eva_clip, str(tmp_path / "tower"), "--kind", "eva-clip", "--num-layers", "2"]) == 0
    written, dropped = capsys.readouterr().out.splitlines()
    model = AutoModel.from_pretrained(tmp_path / "tower")
    assert type(model) is EvaVisionModel
    assert written == f"{tmp_path / 'tower'}: eva_vision, {model.num_parameters():,} parameters converted"
    assert dropped.startswith("dropped, of no use: ") and "visual.head.weight" in dropped
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path / "tower")(tiny_image(), return_tensors="pt")
    assert model(**pixel_values).last_hidden_state.shape == (1, 10, 32)


def test_sizes_that_the_file_does_not_tell_are_options(eva_clip, tmp_path):
    tensors = {name: value for name, value in torch.load(eva_clip).items() if "rope" not in name}
    torch.save(tensors, eva_clip)
    arguments = ["convert", eva_clip, str(tmp_path / "tower"), "--kind", "eva-clip", "--num-layers", "2"]
    assert cli.main([*arguments, "--num-attention-heads", "4", "--rope-grid-size", "9"]) == 0
    config = AutoModel.from_pretrained(tmp_path / "tower").config
    assert (config.num_hidden_layers, config.num_attention_heads, config.rope_grid_size) == (2, 4, 9)


def test_a_gvt_is_written_with_its_processor_and_answers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convert_gvt.convert_gvt, "__defaults__", (10, 2, 2))  # sizes of the tiny GVT
    text = save_base_models(tmp_path / "base")[1]
    torch.save(random_checkpoint("gvt", dtype=torch.float32), tmp_path / "gvt.ckpt")
    arguments = ["convert", str(tmp_path / "gvt.ckpt"), str(tmp_path / "gvt"), "--kind", "gvt", "--text", text]
    assert cli.main(arguments) == 0
    assert "gvt: gvt, " in capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(tmp_path / "gvt")
    assert type(processor) is GVTProcessor and processor.num_image_tokens == 32
    inputs = processor(images=tiny_image(size=(50, 31)), text="<image>Question: what? Answer:", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 24, 24)
    answer = pipeline("image-text-to-text", model=str(tmp_path / "gvt"))(
        images=tiny_image(), text="<image>\nQuestion: what? Answer:", generate_kwargs={"max_new_tokens": 2}
    )
    assert isinstance(answer[0]["generated_text"], str)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "gvt", "gvt.ckpt"]


def test_mistakes_are_told_in_a_line(eva_clip, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert "does not exist" in fails(capsys, "convert", "none.pt", out, "--kind", "eva-clip")
    assert "needs --text" in fails(capsys, "convert", eva_clip, out, "--kind", "gvt")
    assert "--text is for --kind gvt" in fails(capsys, "convert", eva_clip, out, "--kind", "eva-clip", "--text", "x")
    for option in ("--num-attention-heads", "--num-layers", "--rope-grid-size"):
        arguments = ("--kind", "gvt", "--text", "x", option, "0")
        assert f"{option} is for --kind eva-clip" in fails(capsys, "convert", eva_clip, out, *arguments)
    assert "give their number with num_layers (--num-layers)" in fails(
        capsys, "convert", eva_clip, out, "--kind", "eva-clip"
    )
    sizes = ("--num-layers", "2", "--num-attention-heads", "0")
    assert "num_attention_heads is 0" in fails(capsys, "convert", eva_clip, out, "--kind", "eva-clip", *sizes)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    full = fails(capsys, "convert", eva_clip, str(tmp_path / "full"), "--kind", "eva-clip")
    assert "would be overwritten" in full
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_a_list(eva_clip, tmp_path, capsys):
    tensors = torch.load(eva_clip)
    del tensors["visual.norm.bias"], tensors["visual.blocks.1.norm2.bias"]
    torch.save(tensors, eva_clip)
    arguments = (eva_clip, str(tmp_path / "out"), "--kind", "eva-clip", "--num-layers", "2")
    told = fails(capsys, "convert", *arguments, num_lines=3)
    assert told.splitlines()[1:] == ["- missing visual.blocks.1.norm2.bias", "- missing visual.norm.bias"]
