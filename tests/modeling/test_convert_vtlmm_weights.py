"""What conversion of LLaVA-1.5 and VW-LMM does with weights that are elsewhere, new, of no use, or wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel

from tests.modeling.published_llava import (
    TINY_TOWER,
    VOCAB_SIZE,
    random_checkpoint,
    save_checkpoint,
    save_clip,
    tiny_config,
)
from tests.tiny import save_base_models, tiny_dinov2_config
from vistok import VTLMMForCausalLM
from vistok.modeling import convert_vtlmm, published_llava
from vistok.modeling.convert_vtlmm import convert_llava
from vistok.modeling.trained_weights import CheckpointError

TOWER_NAME = "openai/clip-vit-large-patch14-336"
VM_HEAD = "model.vm_head.weight"


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    """The tower that published configs name is as small as that of the tiny checkpoints."""
    monkeypatch.setitem(published_llava.PUBLISHED_TOWERS, TOWER_NAME, TINY_TOWER)


@pytest.fixture
def clip(tmp_path):
    return save_clip(tmp_path / "clip")


def saved(folder, name="vw_lmm_vicuna_7b", tensors=None, dtype=torch.float32, config=None, **options):
    tensors = random_checkpoint(name, dtype=dtype) if tensors is None else tensors
    return save_checkpoint(folder, tensors, tiny_config(name, **(config or {})), **options)


class TestTowerElsewhere:
    def test_it_is_taken_from_the_folder_that_is_named_in_its_own_dtype(self, tmp_path, clip):
        saved(tmp_path / "llava", "llava_1_5_7b", dtype=torch.float16)
        conversion = convert_llava(tmp_path / "llava", tmp_path / "out", vision=clip)
        assert conversion.vision == clip
        written = load_file(tmp_path / "out" / "model.safetensors")
        tower = CLIPVisionModel.from_pretrained(clip).state_dict()
        own = {name.removeprefix("model.vision_tower."): value for name, value in written.items() if "tower" in name}
        assert own.keys() == tower.keys() and all(torch.equal(own[name], tower[name]) for name in tower)
        others = {value.dtype for name, value in written.items() if "tower" not in name}
        assert others == {torch.float16}

    def test_it_is_taken_from_what_the_config_names_if_that_can_be_loaded(self, tmp_path, clip):
        saved(tmp_path / "llava", "llava_1_5_7b", config={"mm_vision_tower": clip})
        assert convert_llava(tmp_path / "llava", tmp_path / "out").vision == clip
        assert (
            VTLMMForCausalLM.from_pretrained(tmp_path / "out").config.vision_config.model_type == "clip_vision_model"
        )

    def test_one_that_is_not_there_is_one_error(self, tmp_path):
        saved(tmp_path / "llava", "llava_1_5_7b")
        with pytest.raises(CheckpointError, match=f"lacks its vision tower.* names {TOWER_NAME}.*--vision FOLDER"):
            convert_llava(tmp_path / "llava", tmp_path / "out")
        with pytest.raises(CheckpointError, match="nowhere cannot be loaded"):
            convert_llava(tmp_path / "llava", tmp_path / "out", vision=str(tmp_path / "nowhere"))
        assert not (tmp_path / "out").exists()

    def test_one_that_no_config_names_is_asked_for(self, tmp_path):
        saved(tmp_path / "llava", "llava_1_5_7b", config={"mm_vision_tower": None})
        with pytest.raises(CheckpointError, match="its config names none: give the folder or Hub id"):
            convert_llava(tmp_path / "llava", tmp_path / "out")

    def test_one_of_another_width_is_named(self, tmp_path):
        saved(tmp_path / "llava", "llava_1_5_7b")
        wide = save_clip(tmp_path / "wide", hidden_size=40)
        with pytest.raises(CheckpointError, match=r"mm_projector.0.weight has shape \(48, 32\), expected \(48, 40\)"):
            convert_llava(tmp_path / "llava", tmp_path / "out", vision=wide)

    def test_one_of_another_kind_has_its_own_names(self, tmp_path):
        tower, _ = save_base_models(tmp_path / "base", vision_config=tiny_dinov2_config())
        saved(tmp_path / "llava", "llava_1_5_7b")
        convert_llava(tmp_path / "llava", tmp_path / "out", vision=tower)
        assert VTLMMForCausalLM.from_pretrained(tmp_path / "out").config.vision_config.model_type == "dinov2"

    def test_only_its_config_is_needed_where_its_weights_are_in_the_checkpoint(self, tmp_path, clip):
        tensors = random_checkpoint("vw_lmm_vicuna_7b")
        saved(tmp_path / "vw", tensors=tensors, config={"mm_vision_tower": "somebody/else"})
        with pytest.raises(CheckpointError, match="lacks the config of its vision tower"):
            convert_llava(tmp_path / "vw", tmp_path / "out")
        assert convert_llava(tmp_path / "vw", tmp_path / "out", vision=clip).vision is None
        written = load_file(tmp_path / "out" / "model.safetensors")
        name = "encoder.layers.0.mlp.fc1.weight"
        published = tensors[f"model.vision_tower.vision_tower.vision_model.{name}"]
        assert torch.equal(written[f"model.vision_tower.{name}"], published)

    def test_one_that_is_not_needed_is_refused(self, tmp_path, clip):
        saved(tmp_path / "vw")
        with pytest.raises(ValueError, match="has a vision tower of its own: leave out"):
            convert_llava(tmp_path / "vw", tmp_path / "out", vision=clip)


def test_a_language_model_whose_prompts_are_not_known_is_refused(tmp_path, monkeypatch, clip):
    saved(tmp_path / "llava", "llava_1_5_7b")
    monkeypatch.delitem(convert_vtlmm.CHAT_TEMPLATE_OF, "llama")
    with pytest.raises(CheckpointError, match=r"is a llama: how .* is known of mistral only"):
        convert_llava(tmp_path / "llava", tmp_path / "out", vision=clip)
    assert not (tmp_path / "out").exists()


class TestNewHead:
    def test_it_makes_no_pseudo_image_features_before_it_is_trained(self, tmp_path, clip):
        saved(tmp_path / "llava", "llava_1_5_7b")
        with pytest.raises(ValueError, match="has no VM head to make pseudo image features with"):
            convert_llava(tmp_path / "llava", tmp_path / "out", vision=clip, pseudo_image_features=True)
        assert not (tmp_path / "out").exists()

    def test_it_is_drawn_as_the_model_does_and_follows_the_seed_alone(self, tmp_path, clip, monkeypatch):
        saved(tmp_path / "llava", "llava_1_5_7b", dtype=torch.bfloat16)
        heads = []
        for number, (seed, rows) in enumerate([(0, 512), (0, 7), (1, 512)]):
            monkeypatch.setattr(convert_vtlmm, "_ROWS", rows)
            conversion = convert_llava(tmp_path / "llava", tmp_path / str(number), vision=clip, seed=seed)
            heads.append(load_file(tmp_path / str(number) / "model.safetensors")[VM_HEAD])
            torch.rand(3)
        assert conversion.new == [VM_HEAD] and conversion.kind == "llava"
        assert conversion.config.vm_head_trained is False
        assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
        assert heads[0].shape == (344, 48) and heads[0].dtype == torch.bfloat16
        model = VTLMMForCausalLM(conversion.config)
        drawn = dict(model.named_parameters())[VM_HEAD]
        assert abs(heads[0].float().std() / drawn.float().std() - 1) < 0.05
        assert abs(heads[0].float().mean()) < 0.001

    def test_the_folder_is_where_stage_three_starts(self, tmp_path, clip):
        saved(tmp_path / "llava", "llava_1_5_7b")
        convert_llava(tmp_path / "llava", tmp_path / "out", vision=clip)
        model = VTLMMForCausalLM.from_pretrained(tmp_path / "out")
        model.requires_grad_(False)
        model.get_parameter(VM_HEAD).requires_grad_(True)
        image = [0, *[VOCAB_SIZE] * 9]
        output = model(torch.tensor([image]), pixel_values=torch.randn(1, 3, 24, 24), visual_loss="visual_tokens")
        output.loss.backward()
        assert model.get_parameter(VM_HEAD).grad.abs().sum() > 0


class TestShards:
    @pytest.mark.parametrize("suffix, old_format", [(".bin", False), (".bin", True), (".safetensors", False)])
    @pytest.mark.parametrize("num_shards", [1, 4])
    def test_every_format_gives_the_same_folder(self, tmp_path, suffix, old_format, num_shards):
        tensors = random_checkpoint("vw_lmm_mistral_7b", dtype=torch.float16)
        options = {"suffix": suffix, "old_format": old_format, "num_shards": num_shards}
        saved(tmp_path / "vw", "vw_lmm_mistral_7b", tensors, **options)
        convert_llava(tmp_path / "vw", tmp_path / "out")
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert len(written) == len(tensors)
        for name in ("model.layers.1.mlp.up_proj.weight", "model.mm_projector.2.bias"):
            own = {"model.layers": "model.language_model.layers", "model.mm_projector.2": "model.adapter.linear_2"}
            new_name = next(name.replace(old, new) for old, new in own.items() if name.startswith(old))
            assert torch.equal(written[new_name], tensors[name])

    def test_a_large_result_is_several_files_which_the_model_loads(self, tmp_path):
        saved(tmp_path / "vw")
        convert_llava(tmp_path / "vw", tmp_path / "out", max_shard_size=100_000)
        convert_llava(tmp_path / "vw", tmp_path / "whole")
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
        assert len(files) > 3 and files == sorted(set(index["weight_map"].values()))
        several, whole = (VTLMMForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("out", "whole"))
        assert several.keys() == whole.keys() and all(torch.equal(several[name], whole[name]) for name in whole)
        assert index["metadata"]["total_size"] == sum(value.numel() * value.itemsize for value in whole.values())

    def test_buffers_of_old_versions_are_dropped_and_named(self, tmp_path, clip):
        tensors = random_checkpoint("llava_1_5_7b")
        position_ids = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
        tensors |= random_checkpoint("vw_lmm_vicuna_7b") | {position_ids: torch.arange(10).expand(1, -1)}
        saved(tmp_path / "vw", tensors=tensors)
        conversion = convert_llava(tmp_path / "vw", tmp_path / "out")
        assert set(conversion.dropped) == {
            position_ids,
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.1.self_attn.rotary_emb.inv_freq",
        }
        assert len(load_file(tmp_path / "out" / "model.safetensors")) + 3 == len(tensors)


class TestRefusals:
    def refused(self, tmp_path, error, match, source="vw", **options):
        with pytest.raises(error, match=match) as told:
            convert_llava(tmp_path / source, tmp_path / "out", **options)
        assert not list(tmp_path.glob("*out*"))
        return str(told.value)

    def test_missing_weights_are_a_folded_list(self, tmp_path):
        tensors = random_checkpoint("vw_lmm_vicuna_7b")
        for layer in (0, 1):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        del tensors["model.norm.weight"], tensors["model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"]
        saved(tmp_path / "vw", tensors=tensors)
        told = self.refused(tmp_path, CheckpointError, "not those of VW-LMM with a llama of 2 layers of 48")
        assert sorted(told.splitlines()[1:]) == [
            "- missing model.layers.{0-1}.mlp.up_proj.weight",
            "- missing model.norm.weight",
            "- missing model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
        ]

    def test_missing_weights_are_named_as_in_the_layout_of_transformers(self, tmp_path):
        tensors = random_checkpoint("llava_1_5_7b_hf")
        for name in ("language_model.lm_head.weight", "multi_modal_projector.linear_2.bias"):
            del tensors[name]
        saved(tmp_path / "vw", "llava_1_5_7b_hf", tensors)
        told = self.refused(tmp_path, CheckpointError, "not those of LLaVA-1.5")
        assert sorted(told.splitlines()[1:]) == [
            "- missing language_model.lm_head.weight",
            "- missing multi_modal_projector.linear_2.bias",
        ]

    def test_unknown_weights_and_layers_too_many_are_listed(self, tmp_path):
        tensors = random_checkpoint("vw_lmm_vicuna_7b")
        more = {"model.layers.2.input_layernorm.weight": torch.ones(48), "model.image_newline": torch.ones(48)}
        saved(tmp_path / "vw", tensors=tensors | more)
        told = self.refused(tmp_path, CheckpointError, "are not those of VW-LMM")
        assert sorted(told.splitlines()[1:]) == [
            "- unknown model.image_newline",
            "- unknown model.layers.2.input_layernorm.weight",
        ]

    def test_two_names_of_one_weight_are_refused(self, tmp_path):
        tensors = random_checkpoint("vw_lmm_vicuna_7b")
        twice = "model.vision_tower.vision_tower.pre_layrnorm.bias"
        saved(tmp_path / "vw", tensors=tensors | {twice: torch.ones(32)})
        assert f"- unknown {twice}" in self.refused(tmp_path, CheckpointError, "are not those of VW-LMM")

    def test_other_shapes_and_kinds_of_numbers_are_named(self, tmp_path):
        tensors = random_checkpoint("vw_lmm_vicuna_7b")
        tensors["vm_head.weight"] = torch.zeros(VOCAB_SIZE + 1, 48)
        tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(48, 64, dtype=torch.int8)
        saved(tmp_path / "vw", tensors=tensors)
        told = self.refused(tmp_path, CheckpointError, "are not those of VW-LMM")
        assert "- vm_head.weight has shape (341, 48), expected (340, 48)" in told
        assert "- model.layers.0.mlp.down_proj.weight holds torch.int8, expected floating-point numbers" in told

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
    def test_numbers_that_are_none_are_refused(self, tmp_path, bad, name):
        tensors = random_checkpoint("vw_lmm_vicuna_7b", dtype=torch.float16)
        tensors[name].view(-1)[-1] = bad
        saved(tmp_path / "vw", tensors=tensors)
        self.refused(tmp_path, CheckpointError, f"{name} holds numbers that are not finite")

    @pytest.mark.parametrize("suffix, old_format", [(".bin", False), (".bin", True), (".safetensors", False)])
    def test_a_truncated_shard_is_named(self, tmp_path, suffix, old_format):
        saved(tmp_path / "vw", suffix=suffix, old_format=old_format)
        shard = sorted((tmp_path / "vw").glob(f"*00002{suffix}"))[0]
        shard.write_bytes(shard.read_bytes()[:-1000])
        self.refused(tmp_path, CheckpointError, f"{shard.name}.* is truncated")

    def test_a_shard_that_breaks_off_while_weights_are_written_leaves_nothing(self, tmp_path, monkeypatch):
        saved(tmp_path / "vw")
        broken = iter([False] * 30)
        original = convert_vtlmm._refuse_numbers

        def failing(*arguments):
            if next(broken, True):
                raise OSError("the disk is full")
            original(*arguments)

        monkeypatch.setattr(convert_vtlmm, "_refuse_numbers", failing)
        self.refused(tmp_path, OSError, "the disk is full")

    def test_a_missing_shard_is_named(self, tmp_path):
        saved(tmp_path / "vw", num_shards=3)
        (tmp_path / "vw" / "pytorch_model-00002-of-00003.bin").unlink()
        match = "lacks 1 of the 3 files .* download pytorch_model-00002-of-00003.bin"
        self.refused(tmp_path, FileNotFoundError, match)

    def test_kinds_are_checked(self, tmp_path, clip):
        saved(tmp_path / "vw")
        self.refused(tmp_path, ValueError, "it is a VW-LMM, convert it with kind vw-lmm", kind="llava")
        self.refused(tmp_path, ValueError, "kind is 'blip': expected llava or vw-lmm", kind="blip")
        saved(tmp_path / "llava", "llava_1_5_7b")
        self.refused(tmp_path, CheckpointError, "has no VM head", source="llava", kind="vw-lmm", vision=clip)

    @pytest.mark.parametrize(
        "field, match",
        [
            ({"mm_projector_type": "linear"}, "mm_projector_type 'linear', which VT-LMM does not compute"),
            ({"image_aspect_ratio": "anyres"}, "those of LLaVA-1.6"),
            ({"mm_use_im_start_end": True}, "only the first LLaVA"),
            ({"model_type": "llava_mpt"}, "model_type 'llava_mpt' and is no config of LLaVA-1.5 or VW-LMM"),
        ],
    )
    def test_other_models_are_refused_by_their_config(self, tmp_path, field, match):
        saved(tmp_path / "vw", config=field)
        self.refused(tmp_path, CheckpointError, match)

    def test_folders_that_hold_something_else_are_told(self, tmp_path):
        self.refused(tmp_path, FileNotFoundError, "nothing does not exist: expected the folder", source="nothing")
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path, FileNotFoundError, "config.json does not exist", source="empty")
        (tmp_path / "file").write_text("")
        self.refused(tmp_path, FileNotFoundError, "is a file: expected the folder", source="file")
        saved(tmp_path / "vw")
        (tmp_path / "vw" / "config.json").write_text('{"model_type"')
        self.refused(tmp_path, CheckpointError, "truncated or no config")
        saved(tmp_path / "lora")
        for path in (tmp_path / "lora").glob("pytorch_model*"):
            path.unlink()
        self.refused(tmp_path, FileNotFoundError, "holds no weights: expected model.safetensors", source="lora")

    @pytest.mark.parametrize("content", ['{"eos_token_id": 1', "[1]", ""])
    def test_a_generation_config_that_cannot_be_read_is_told_and_not_made_up(self, tmp_path, content):
        saved(tmp_path / "vw")
        (tmp_path / "vw" / "generation_config.json").write_text(content)
        self.refused(tmp_path, CheckpointError, r"generation_config\.json is truncated or no config of generation")

    def test_a_generation_config_is_optional(self, tmp_path):
        saved(tmp_path / "vw")
        (tmp_path / "vw" / "generation_config.json").unlink()
        convert_llava(tmp_path / "vw", tmp_path / "made")
        assert VTLMMForCausalLM.from_pretrained(tmp_path / "made").generation_config.eos_token_id == 1

    def test_a_tokenizer_that_is_missing_or_of_another_model_is_told(self, tmp_path, clip):
        saved(tmp_path / "vw")
        for path in (tmp_path / "vw").glob("*token*"):
            path.unlink()
        self.refused(tmp_path, FileNotFoundError, "holds no tokenizer .* as text")
        text = save_base_models(tmp_path / "base")[1]
        assert convert_llava(tmp_path / "vw", tmp_path / "other", text=text).config.image_token_id == VOCAB_SIZE
        tensors = random_checkpoint("llava_1_5_7b_hf")
        saved(tmp_path / "hub", "llava_1_5_7b_hf", tensors, config={"image_token_index": 333})
        self.refused(tmp_path, CheckpointError, "has the id 340 for <image>, the config of .* has 333", source="hub")
