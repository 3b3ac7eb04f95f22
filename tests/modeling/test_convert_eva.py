"""Published EVA-02 towers become transformers folders that compute the same, or a list of what does not fit."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel

from tests.modeling.published_eva import layout, random_checkpoint, shapes_of, slow_angles, slow_tower
from tests.tiny import tiny_image
from vistok import EvaVisionConfig, EvaVisionModel
from vistok.modeling import convert_eva
from vistok.modeling.convert_eva import convert_eva_clip, infer_config, own_names
from vistok.modeling.published_checkpoints import folded
from vistok.modeling.trained_weights import CheckpointError

TINY_FIELDS = {"hidden_size": 32, "intermediate_size": 43, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_FIELDS |= {"image_size": 24, "patch_size": 8, "rope_grid_size": 16}


def convert_tiny(source, folder, **kwargs):
    """As no model of 32 channels is published, nothing but the caller knows how many layers it has."""
    return convert_eva_clip(source, folder, **{"num_layers": 2, **kwargs})


def saved(tensors, path, container=None):
    torch.save(tensors if container is None else {container: tensors, "epoch": 3}, path)
    return path


def eva_clip(**kwargs):
    """A tiny EVA-CLIP with what its checkpoint holds beside the tower."""
    text = {"text.positional_embedding": torch.zeros(77, 8), "logit_scale": torch.zeros(())}
    return random_checkpoint("eva02_clip_l14_visual", **kwargs) | text


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def published_rope(shapes):
    """The real tables of a layout, in place of empty ones."""
    angles = torch.tensor(slow_angles((16, 16), 64)).repeat_interleave(2, -1)
    return {name: angles.cos() if name.endswith("cos") else angles.sin() for name in shapes if ".rope." in f".{name}"}


class TestPublishedLayout:
    @pytest.mark.parametrize(
        ("name", "prefix", "final_norm"),
        [("eva02_clip_l14_visual", "visual.", True), ("gvt", "visual_encoder.", False)],
    )
    def test_every_name_and_shape_of_l14_has_its_place(self, name, prefix, final_norm):
        shapes = shapes_of(layout(name))
        assert len(shapes) == layout(name)["num_tensors"]
        parameters = {key: shape for key, shape in shapes.items() if "rope.freqs" not in key}
        assert sum(torch.Size(shape).numel() for shape in parameters.values()) == layout(name)["num_parameters"]
        tower = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        published = meta(tower) | published_rope(tower)
        own, unknown = own_names(published)
        assert unknown == []
        config = infer_config("file", prefix, published, own)
        assert config.to_diff_dict() == EvaVisionConfig(use_final_norm=final_norm).to_diff_dict()
        with torch.device("meta"):
            model = EvaVisionModel(config)
        assert {key: tensor.shape for key, tensor in own.items()} == {
            key: tensor.shape for key, tensor in model.state_dict().items()
        }
        unused = (
            {"head.weight", "head.bias"}
            if final_norm
            else {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
        )
        dropped = sum(torch.Size(tower[key]).numel() for key in unused)
        of_tower = sum(torch.Size(shape).numel() for key, shape in tower.items() if "rope.freqs" not in key)
        assert model.num_parameters() == of_tower - dropped

    def test_the_tower_of_eva_clip_has_as_many_parameters_as_its_paper_says(self):
        assert round(layout("eva02_clip_l14_visual")["num_parameters"] / 1e6) == 304


def computes_the_same(folder, tensors, prefix, size=24, num_heads=2):
    model = AutoModel.from_pretrained(folder, dtype=torch.float64)
    assert type(model) is EvaVisionModel and not model.training
    image = torch.randn(3, size, size, dtype=torch.float64)
    with torch.no_grad():
        output = model(image[None], output_hidden_states=True, interpolate_pos_encoding=size != 24)
    expected = slow_tower(tensors, image, prefix, num_heads=num_heads)
    assert np.abs(output.hidden_states[-1][0].numpy() - expected[-1]).max() < 1e-9
    return model


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_a_converted_eva_clip_computes_what_the_original_does(self, suffix, tmp_path):
        tensors = eva_clip()
        source = tmp_path / f"eva.{suffix}"
        save_file(tensors, source) if suffix == "safetensors" else torch.save(tensors, source)
        conversion = convert_tiny(source, tmp_path / "out")
        model = computes_the_same(tmp_path / "out", tensors, "visual.")
        assert computes_the_same(tmp_path / "out", tensors, "visual.", size=40) is not model
        fields = {name: getattr(model.config, name) for name in TINY_FIELDS}
        assert fields == TINY_FIELDS and model.config.use_final_norm
        assert conversion.num_parameters == model.num_parameters()
        assert set(conversion.dropped_names().split(", ")) == {
            "visual.head.weight",
            "visual.head.bias",
            "visual.rope.freqs_cos",
            "visual.rope.freqs_sin",
            "visual.blocks.{0-1}.attn.rope.freqs_cos",
            "visual.blocks.{0-1}.attn.rope.freqs_sin",
            "text.positional_embedding",
            "logit_scale",
        }

    def test_the_tower_in_the_checkpoint_of_gvt_has_no_final_norm(self, tmp_path):
        tensors = random_checkpoint("gvt")
        conversion = convert_tiny(saved(tensors, tmp_path / "gvt.ckpt", "state_dict"), tmp_path / "out")
        model = computes_the_same(tmp_path / "out", tensors, "visual_encoder.")
        assert not model.config.use_final_norm
        assert {"visual_encoder.fc_norm.bias", "perceiver.latents", "input_ln.bias"} <= set(conversion.dropped)

    def test_the_image_processor_beside_it_has_the_statistics_of_clip(self, tmp_path):
        convert_tiny(saved(eva_clip(), tmp_path / "eva.pt"), tmp_path / "out")
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
        pixel_values = processor(tiny_image(size=(61, 40)), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 24, 24)
        black = processor(tiny_image(size=(30, 30)).point(lambda value: 0), return_tensors="pt")["pixel_values"]
        expected = [-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
        assert torch.allclose(black[0, :, 0, 0], torch.tensor(expected), atol=1e-4)

    def test_the_mim_weights_of_eva_02_keep_their_mask_token_and_have_no_norm_in_attention(self, tmp_path):
        tensors = {name.removeprefix("visual."): tensor for name, tensor in eva_clip().items() if "visual." in name}
        tensors = {
            name: tensor for name, tensor in tensors.items() if "inner_attn_ln" not in name and "head" not in name
        }
        tensors |= {"mask_token": torch.randn(1, 1, 32).double(), "lm_head.weight": torch.randn(9, 32).double()}
        conversion = convert_tiny(saved(tensors, tmp_path / "eva.pt", "module"), tmp_path / "out")
        model = computes_the_same(tmp_path / "out", tensors, "")
        assert torch.equal(model.embeddings.mask_token, tensors["mask_token"])
        assert not model.config.use_attention_norm and model.config.use_feed_forward_norm
        assert "lm_head.weight" in conversion.dropped

    def test_the_names_of_timm_are_understood(self, tmp_path):
        tensors = {name.removeprefix("visual."): tensor for name, tensor in eva_clip().items() if "visual." in name}
        renamed = {}
        for name, tensor in tensors.items():
            if "rope" in name:
                continue
            for old, new in {
                "q_bias": "q_proj.bias",
                "v_bias": "v_proj.bias",
                "inner_attn_ln": "norm",
                "mlp.w1": "mlp.fc1_g",
                "mlp.w2": "mlp.fc1_x",
                "mlp.w3": "mlp.fc2",
                "ffn_ln": "norm",
            }.items():
                name = name.replace(old, new)
            renamed[name] = tensor
        with pytest.raises(ValueError, match=r"gives 3 heads a width of 10\.6667"):
            convert_tiny(saved(renamed, tmp_path / "a.pt"), tmp_path / "out", num_attention_heads=3)
        convert_tiny(saved(renamed, tmp_path / "timm.pt"), tmp_path / "out", num_attention_heads=2)
        computes_the_same(tmp_path / "out", tensors, "")
        del renamed["blocks.1.mlp.fc1_g.bias"], renamed["blocks.1.attn.q_proj.bias"]
        with pytest.raises(
            CheckpointError, match=r"missing blocks.1.attn.q_proj.bias\n- missing blocks.1.mlp.fc1_g.bias"
        ):
            convert_tiny(saved(renamed, tmp_path / "b.pt"), tmp_path / "other", num_attention_heads=2)

    def test_weights_that_hold_several_are_taken_apart(self, tmp_path):
        tensors = {name.removeprefix("visual."): tensor for name, tensor in eva_clip().items() if "visual." in name}
        tensors = {name: tensor for name, tensor in tensors.items() if "_ln" not in name}
        packed = dict(tensors)
        for layer in ("blocks.0.", "blocks.1."):
            parts = [packed.pop(f"{layer}attn.{part}_proj.weight") for part in "qkv"]
            packed[f"{layer}attn.qkv.weight"] = torch.cat(parts)
            for kind in ("weight", "bias"):
                packed[f"{layer}mlp.w12.{kind}"] = torch.cat(
                    [packed.pop(f"{layer}mlp.{w}.{kind}") for w in ("w1", "w2")]
                )
        convert_tiny(saved(packed, tmp_path / "eva.pt"), tmp_path / "out")
        model = computes_the_same(tmp_path / "out", tensors, "")
        assert not model.config.use_attention_norm and not model.config.use_feed_forward_norm

    def test_rotary_positions_of_another_reach_are_read_from_the_table(self, tmp_path):
        tensors = eva_clip(grid=3)
        angles = torch.tensor(slow_angles((3, 3), 16, reach=9)).repeat_interleave(2, -1)
        tensors |= {name: angles.cos() for name in tensors if name.endswith("freqs_cos")}
        tensors |= {name: angles.sin() for name in tensors if name.endswith("freqs_sin")}
        convert_tiny(saved(tensors, tmp_path / "eva.pt"), tmp_path / "out")
        assert AutoModel.from_pretrained(tmp_path / "out").config.rope_grid_size == 9

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_kept_and_mixed_precision_widened(self, dtype, tmp_path):
        half = eva_clip(dtype=dtype)
        convert_tiny(saved(half, tmp_path / "half.pt"), tmp_path / "half")
        model = AutoModel.from_pretrained(tmp_path / "half")
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert torch.equal(model.layers[1].mlp.down_proj.weight, half["visual.blocks.1.mlp.w3.weight"])
        mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in half.items()}
        convert_tiny(saved(mixed, tmp_path / "mixed.pt"), tmp_path / "mixed")
        assert {value.dtype for value in AutoModel.from_pretrained(tmp_path / "mixed").parameters()} == {torch.float32}

    def test_wrappers_and_the_format_before_pytorch_1_6_are_read(self, tmp_path):
        tensors = {f"module.{name}": tensor for name, tensor in eva_clip().items()}
        torch.save({"model": tensors}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        convert_tiny(tmp_path / "old.pt", tmp_path / "out")
        computes_the_same(tmp_path / "out", eva_clip(), "visual.")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestRefusals:
    def refused(self, tmp_path, tensors, match, **kwargs):
        with pytest.raises(CheckpointError, match=match) as told:
            convert_tiny(saved(tensors, tmp_path / "eva.pt"), tmp_path / "out", **kwargs)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["eva.pt"]
        return str(told.value)

    def test_missing_weights_are_listed_layers_together(self, tmp_path):
        tensors = eva_clip(num_layers=4)
        for name in [*(f"visual.blocks.{layer}.attn.v_bias" for layer in (0, 2, 3)), "visual.norm.bias"]:
            del tensors[name]
        text = self.refused(tmp_path, tensors, "are not an EVA-02 vision transformer of 4 layers of 32", num_layers=4)
        assert text.splitlines()[1:] == [
            "- missing visual.blocks.{0,2-3}.attn.v_bias",
            "- missing visual.norm.bias",
        ]

    def test_norms_in_attention_are_never_taken_for_absent_in_eva_clip(self, tmp_path):
        tensors = {name: tensor for name, tensor in eva_clip().items() if "inner_attn_ln" not in name}
        text = self.refused(tmp_path, tensors, "missing")
        assert "- missing visual.blocks.{0-1}.attn.inner_attn_ln.weight" in text

    def test_a_checkpoint_of_another_kind_says_what_it_lacks(self, tmp_path):
        clip = {"visual.conv1.weight": torch.zeros(8, 3, 8, 8), "visual.class_embedding": torch.zeros(8)}
        self.refused(tmp_path, clip, "unknown visual.conv1.weight\n- unknown visual.class_embedding")
        self.refused(tmp_path, {"visual.norm.bias": torch.zeros(8)}, "missing visual.cls_token\n- missing visual.pos")

    def test_weights_that_would_change_what_is_computed_are_not_dropped(self, tmp_path):
        tensors = eva_clip() | {f"visual.blocks.{layer}.gamma_1": torch.ones(32) for layer in range(2)}
        self.refused(tmp_path, tensors, r"unknown visual.blocks.\{0-1\}.gamma_1")
        tensors = eva_clip() | {"visual.blocks.0.attn.k_proj.bias": torch.ones(32)}
        self.refused(tmp_path, tensors, r"unknown visual.blocks.0.attn.k_proj.bias")

    def test_wrong_shapes_and_numbers_are_named(self, tmp_path):
        tensors = eva_clip()
        tensors["visual.blocks.1.attn.proj.weight"] = torch.zeros(32, 31).double()
        tensors["visual.norm.weight"][3] = float("nan")
        tensors["visual.blocks.0.norm1.bias"] = torch.zeros(32, dtype=torch.int8)
        text = self.refused(tmp_path, tensors, "has shape")
        assert "visual.blocks.1.attn.proj.weight has shape (32, 31), expected (32, 32)" in text
        assert "visual.norm.weight holds numbers that are not finite" in text
        assert "visual.blocks.0.norm1.bias holds torch.int8" in text

    def test_sizes_that_cannot_be_read_are_named(self, tmp_path):
        tensors = eva_clip()
        tensors["visual.pos_embed"] = torch.zeros(1, 12, 32).double()
        self.refused(tmp_path, tensors, "pos_embed has 11 positions beside .CLS., which make no square")
        tensors["visual.pos_embed"] = torch.zeros(12, 32).double()
        self.refused(tmp_path, tensors, r"pos_embed has shape \(12, 32\), expected 3 dimensions")

    def test_another_rotary_table_is_refused(self, tmp_path):
        tensors = eva_clip()
        tensors["visual.rope.freqs_sin"] = tensors["visual.rope.freqs_sin"].flip(0)
        told = r"visual\.rope\.freqs_sin is not the table of 2 heads of 16, rope_grid_size=16"
        self.refused(tmp_path, tensors, told)

    @pytest.mark.parametrize("beside_the_layers", [True, False])
    def test_the_rotary_tables_in_the_layers_are_checked_too(self, beside_the_layers, tmp_path):
        tensors = {name: value for name, value in eva_clip().items() if beside_the_layers or ".attn.rope" in name}
        tensors |= {name: value for name, value in eva_clip().items() if "rope" not in name}
        convert_tiny(saved(tensors, tmp_path / "eva.pt"), tmp_path / "right")
        shutil.rmtree(tmp_path / "right")
        tensors |= {name: torch.zeros_like(value) for name, value in tensors.items() if ".attn.rope" in name}
        text = self.refused(tmp_path, tensors, "is not the table of 2 heads of 16")
        assert [line.split(" is not")[0] for line in text.splitlines()[1:]] == [
            "- visual.blocks.{0-1}.attn.rope.freqs_cos",
            "- visual.blocks.{0-1}.attn.rope.freqs_sin",
        ]

    def test_last_layers_that_are_missing_are_not_taken_for_a_shorter_model(self, tmp_path):
        tensors = eva_clip(num_layers=4)
        short = {name: value for name, value in tensors.items() if "blocks.3." not in name}
        text = self.refused(tmp_path, short, "vision transformer of 4 layers of 32", num_layers=4)
        assert text.splitlines()[1:] == ["- missing visual.blocks.3.*"]
        gap = {name: value for name, value in tensors.items() if "blocks.1." not in name}
        gap["visual.blocks.7.norm1.bias"] = torch.zeros(32)
        text = self.refused(tmp_path, gap, "4 layers of 32", num_layers=4)
        assert text.splitlines()[1:] == ["- missing visual.blocks.1.*", "- unknown visual.blocks.7.*"]

    def test_a_stray_layer_builds_no_model_of_thousands(self, tmp_path, monkeypatch):
        monkeypatch.setattr(convert_eva, "EvaVisionModel", lambda config: pytest.fail(f"{config.num_hidden_layers}"))
        tensors = eva_clip() | {"visual.blocks.3000.norm1.bias": torch.zeros(32)}
        text = self.refused(tmp_path, tensors, "2 layers of 32")
        assert text.splitlines()[1:] == ["- unknown visual.blocks.3000.*"]

    @pytest.mark.parametrize(("hidden_size", "num_layers"), [(192, 12), (384, 12), (768, 12), (1024, 24)])
    def test_a_published_width_has_its_published_depth(self, hidden_size, num_layers, tmp_path):
        tensors = {"visual.cls_token": torch.zeros(1, 1, hidden_size)}
        tensors["visual.pos_embed"] = torch.zeros(1, 5, hidden_size)
        tensors["visual.patch_embed.proj.weight"] = torch.zeros(hidden_size, 3, 2, 2)
        tensors["visual.blocks.0.mlp.w1.weight"] = torch.zeros(8, hidden_size)
        told = f"of {num_layers} layers of {hidden_size} as published"
        text = self.refused(tmp_path, tensors, told, num_layers=None)
        assert text.splitlines()[1:] == [f"- missing visual.blocks.{{1-{num_layers - 1}}}.*"]

    def test_a_width_that_is_not_published_needs_the_number_of_layers(self, tmp_path):
        source = saved(eva_clip(), tmp_path / "eva.pt")
        with pytest.raises(ValueError, match=r"holds 2 layers of width 32, which no published model .*--num-layers"):
            convert_eva_clip(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["num_layers", "num_attention_heads", "rope_grid_size"])
    @pytest.mark.parametrize("number", [0, -1])
    def test_a_number_that_is_none_of_a_model_is_not_taken_for_not_given(self, name, number, tmp_path):
        tensors = {key: value for key, value in eva_clip().items() if "rope" not in key}
        sizes = {"num_attention_heads": 2, name: number}
        with pytest.raises(ValueError, match=rf"{name} is {number}, an EVA"):
            convert_tiny(saved(tensors, tmp_path / "eva.pt"), tmp_path / "out", **sizes)
        assert not (tmp_path / "out").exists()

    def test_code_in_a_pickle_is_not_run(self, tmp_path):
        trap = tmp_path / "trap"
        self.refused(tmp_path, {**eva_clip(), "hyper_parameters": Trap(trap)}, "would run code when they are read")
        (tmp_path / "eva.pt").write_bytes(pickle.dumps({"state_dict": Trap(trap)}))
        with pytest.raises(CheckpointError, match="would run code"):
            convert_tiny(tmp_path / "eva.pt", tmp_path / "out")
        assert not trap.exists()

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_truncated_and_foreign_files_are_one_error(self, suffix, tmp_path):
        source = tmp_path / f"eva.{suffix}"
        save_file(eva_clip(), source) if suffix == "safetensors" else torch.save(eva_clip(), source)
        whole = source.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
            source.write_bytes(content)
            with pytest.raises(CheckpointError, match=r"truncated|damaged"):
                convert_tiny(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_file_without_weights_is_refused(self, tmp_path):
        for content in ([torch.zeros(2)], {"epoch": 3}, torch.zeros(2)):
            torch.save(content, tmp_path / "eva.pt")
            with pytest.raises(CheckpointError, match="holds no weights by name"):
                convert_tiny(tmp_path / "eva.pt", tmp_path / "out")

    def test_a_file_that_is_not_there_or_a_folder_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist: download the checkpoint first"):
            convert_tiny(tmp_path / "none.pt", tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="is a folder: name the file in it"):
            convert_tiny(tmp_path, tmp_path / "out")

    def test_nothing_is_overwritten(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="would be overwritten: choose another folder"):
            convert_tiny(saved(eva_clip(), tmp_path / "eva.pt"), tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_names_are_folded_by_their_first_number():
    names = ["b.0.x.1.w", "b.1.x.1.w", "norm", "b.4.x.1.w", "b.0.y"]
    assert folded(names) == ["b.{0-1,4}.x.1.w", "norm", "b.0.y"]
