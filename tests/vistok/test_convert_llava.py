"""`vistok convert` of LLaVA-1.5 and VW-LMM: a folder that answers, prepared as in training, or a line on why not."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

from tests.modeling.published_llava import (
    NUM_PATCHES,
    TINY_TOWER,
    VOCAB_SIZE,
    random_checkpoint,
    save_checkpoint,
    save_clip,
    tiny_config,
)
from tests.tiny import IMAGE_SIZE, assistant, tiny_image, user
from tests.vistok.commands import fails
from vistok import VTLMMForCausalLM, VTLMMProcessor, cli
from vistok.modeling import published_llava
from vistok.modeling.checkpoint_shards import ShardWriter

TOWER_NAME = "openai/clip-vit-large-patch14-336"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    monkeypatch.setitem(published_llava.PUBLISHED_TOWERS, TOWER_NAME, TINY_TOWER)


@pytest.fixture
def llava(tmp_path):
    """The folder of a LLaVA-1.5 in its authors' layout, and that of its tower."""
    save_checkpoint(tmp_path / "llava", random_checkpoint("llava_1_5_7b"), tiny_config("llava_1_5_7b"))
    return str(tmp_path / "llava"), save_clip(tmp_path / "clip")


def save_vw_lmm(folder, name="vw_lmm_vicuna_7b", **fields):
    return str(save_checkpoint(folder, random_checkpoint(name), tiny_config(name, **fields)))


def test_a_llava_becomes_the_start_of_stage_three(llava, tmp_path, capsys):
    source, clip = llava
    assert cli.main(["convert", source, str(tmp_path / "out"), "--vision", clip]) == 0
    kind, tower, new, written, dropped = capsys.readouterr().out.splitlines()
    assert kind == "kind llava: prompts of vicuna, image features"
    assert tower == f"vision tower: that of {clip}"
    assert new == "new, random (seed 0), to be trained in stage III: model.vm_head.weight"
    model = VTLMMForCausalLM.from_pretrained(tmp_path / "out")
    assert written == f"{tmp_path / 'out'}: vtlmm, {model.num_parameters():,} parameters converted"
    assert dropped == "dropped, of no use: model.layers.{0-1}.self_attn.rotary_emb.inv_freq"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "llava", "out"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files


def test_the_folder_answers_through_the_auto_classes_and_the_pipeline(tmp_path, capsys):
    source = save_vw_lmm(tmp_path / "vw", "vw_lmm_mistral_7b")
    assert cli.main(["convert", source, str(tmp_path / "out"), "--kind", "vw-lmm"]) == 0
    assert capsys.readouterr().out.startswith("kind vw-lmm: prompts of mistral, image features\n")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is VTLMMForCausalLM
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is VTLMMProcessor and processor.num_image_tokens == NUM_PATCHES
    messages = [user("<image>", "what?"), assistant("a dog"), user("where?")]
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "[INST] <image>\nwhat? [/INST]a dog</s>[INST] where? [/INST]"
    )
    answer = pipeline("image-text-to-text", model=str(tmp_path / "out"))(
        images=tiny_image(), text="[INST] <image>\nwhat? [/INST]", generate_kwargs={"max_new_tokens": 2}
    )
    assert isinstance(answer[0]["generated_text"], str)


def test_images_and_prompts_are_those_of_training(tmp_path):
    source = save_vw_lmm(tmp_path / "vw")
    assert cli.main(["convert", source, str(tmp_path / "out")]) == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = tiny_image(size=(50, 30))
    prompt = processor.apply_chat_template([user("<image>", "what?")], tokenize=False, add_generation_prompt=True)
    assert prompt == f"{SYSTEM}USER: <image>\nwhat? ASSISTANT:"
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == VOCAB_SIZE).sum() == NUM_PATCHES
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    square = Image.new("RGB", (50, 50), tuple(int(channel * 255) for channel in mean))
    square.paste(image, (0, 10))
    expected = (np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)) / 255 - mean) / std
    assert np.abs(inputs["pixel_values"][0].permute(1, 2, 0).numpy() - expected).max() < 0.03  # rounding to 8 bits


def test_images_are_cropped_where_they_were_in_training(tmp_path):
    source = save_vw_lmm(tmp_path / "vw", image_aspect_ratio=None)
    assert cli.main(["convert", source, str(tmp_path / "out")]) == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = Image.new("RGB", (48, 24), "white")
    image.paste("red", (12, 0, 36, 24))  # what the centre crop keeps
    pixel_values = processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.allclose(pixel_values, pixel_values[..., :1, :1], atol=0.05)


@pytest.mark.parametrize("content", ["{not json", '{"image_processor_type": "NoSuchThing"}'])
def test_an_image_processor_that_cannot_be_read_is_told_before_weights_are_written(
    tmp_path, capsys, monkeypatch, content
):
    source = save_vw_lmm(tmp_path / "vw")
    (tmp_path / "vw" / "preprocessor_config.json").write_text(content)
    monkeypatch.setattr(ShardWriter, "write", lambda *_: pytest.fail("weights were written before"))
    assert cli.main(["convert", source, str(tmp_path / "out")]) == 2
    assert "preprocessor_config.json is no image processor that can be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["vw"]


def test_pseudo_image_features_follow_the_name_or_the_option(tmp_path, capsys):
    source = save_vw_lmm(tmp_path / "VW-LMM-Vicuna-pif-7b")
    for name, options in {"a": [], "b": ["--no-pseudo-image-features"]}.items():
        assert cli.main(["convert", source, str(tmp_path / name), *options]) == 0
        fed = "image features" if options else "pseudo image features"
        assert capsys.readouterr().out.startswith(f"kind vw-lmm: prompts of vicuna, {fed}\n")
        assert VTLMMForCausalLM.from_pretrained(tmp_path / name).config.pseudo_image_features is not bool(options)


def test_a_seed_gives_another_head(llava, tmp_path):
    source, clip = llava
    heads = []
    for seed in ("0", "7"):
        assert cli.main(["convert", source, str(tmp_path / seed), "--vision", clip, "--seed", seed]) == 0
        heads.append(VTLMMForCausalLM.from_pretrained(tmp_path / seed).model.vm_head.weight)
    assert not torch.equal(*heads)


def test_mistakes_are_told_in_a_line(llava, tmp_path, capsys):
    source, clip = llava
    out = str(tmp_path / "out")
    assert "--vision FOLDER" in fails(capsys, "convert", source, out)
    assert "has no VM head" in fails(capsys, "convert", source, out, "--kind", "vw-lmm", "--vision", clip)
    assert "does not exist" in fails(capsys, "convert", str(tmp_path / "none"), out)
    assert "is no config of LLaVA-1.5" in fails(capsys, "convert", clip, out)
    told = fails(capsys, "convert", source, out, "--num-layers", "2")
    assert "--num-layers is for --kind eva-clip" in told
    told = fails(capsys, "convert", source, out, "--kind", "vw-lmm", "--seed", "7")
    assert "--seed is for --kind llava" in told
    vw_lmm = save_vw_lmm(tmp_path / "vw")
    assert "has a VM head, and nothing is drawn" in fails(capsys, "convert", vw_lmm, out, "--seed", "0")
    told = fails(capsys, "convert", source, out, "--kind", "gvt", "--text", "x", "--vision", clip)
    assert "--vision is for --kind llava or vw-lmm" in told
    (tmp_path / "file.pt").write_bytes(b"")
    assert "give --kind eva-clip or gvt" in fails(capsys, "convert", str(tmp_path / "file.pt"), out)
    assert "is a file: expected the folder" in fails(
        capsys, "convert", str(tmp_path / "file.pt"), out, "--kind", "llava"
    )
    shard = tmp_path / "llava" / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert f"{shard.name} (1000 bytes) is truncated" in fails(capsys, "convert", source, out, "--vision", clip)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_checkpoint_of_the_hub_is_downloaded_without_its_weights_in_a_second_format(tmp_path, capsys, monkeypatch):
    source = save_vw_lmm(tmp_path / "vw")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, "pytorch_model*" in allow_patterns))
        return source

    monkeypatch.setattr("vistok.modeling.convert_vtlmm.snapshot_download", snapshot_download)
    assert cli.main(["convert", "MYTH-Lab/VW-LMM-Vicuna-pif-7b", str(tmp_path / "out")]) == 0
    assert asked == [("MYTH-Lab/VW-LMM-Vicuna-pif-7b", False), ("MYTH-Lab/VW-LMM-Vicuna-pif-7b", True)]
    assert "pseudo image features" in capsys.readouterr().out

    def unreachable(name, allow_patterns):
        raise OSError("no network here")

    monkeypatch.setattr("vistok.modeling.convert_vtlmm.snapshot_download", unreachable)
    assert "cannot be downloaded from the Hub" in fails(capsys, "convert", "somebody/llava", str(tmp_path / "b"))
