"""What is known of a visual modelling head that nobody has trained, and who is warned of it."""

import contextlib
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.modeling.test_modeling_vtlmm import ROWS
from tests.tiny import batch, pixels
from tests.tiny_kinds import tiny_vtlmm
from vistok import VTLMMForCausalLM
from vistok.modeling import vm_head


@pytest.mark.parametrize("rank", [None, 6])
def test_a_head_that_zero_divides_keeps_its_rows_when_it_is_resized(rank, monkeypatch):
    """DeepSpeed leaves an empty weight behind, which is whole while it is gathered."""
    model = tiny_vtlmm(vm_head_rank=rank)
    head = model.model.vm_head if rank is None else model.model.vm_head.up
    whole, divided = head.weight.data.clone(), head.weight

    @contextlib.contextmanager
    def gathered(parameters):
        for parameter in parameters:
            parameter.data = whole.clone()
        yield

    divided.ds_id, divided.data = 0, torch.empty(0)
    fake = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gathered))
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    vm_head.resize_vm_head(model.model.vm_head, len(whole) + 9, std=0.02)
    assert head.weight.shape == (len(whole) + 9, whole.shape[1]) and head.out_features == len(whole) + 9
    assert torch.equal(head.weight[: len(whole)], whole) and head.weight[len(whole) :].std() < 0.1
    vm_head.resize_vm_head(model.model.vm_head, len(whole) - 4, std=0.02)
    assert torch.equal(head.weight, whole[:-4])


class TestUntrainedVMHead:
    @pytest.fixture
    def warnings(self, monkeypatch):
        told = []
        monkeypatch.setattr(vm_head.logger, "warning_once", told.append)
        return told

    @pytest.mark.parametrize("trained", [False, None, True])
    def test_reading_words_with_it_is_warned_of(self, trained, warnings):
        tiny_vtlmm(vm_head_trained=trained).get_visual_tokens(pixels(1))
        assert [("vm_head_trained is False" in text) for text in warnings] == [True] * (trained is False)

    @pytest.mark.parametrize("pseudo", [False, True])
    def test_so_is_learning_from_it_and_feeding_it_to_the_language_model(self, pseudo, warnings):
        model = tiny_vtlmm(vm_head_trained=False, pseudo_image_features=pseudo)
        inputs = batch(*ROWS) | {"pixel_values": pixels(5)}
        model(**inputs, labels=inputs["input_ids"])
        assert len(warnings) == pseudo
        model(**inputs, visual_loss="visual_modeling")
        assert len(warnings) == 1 + 2 * pseudo

    @pytest.mark.parametrize("rank", [None, 6])
    @pytest.mark.parametrize("skip_logits", [False, True])
    def test_the_first_step_that_trains_it_is_noted_in_the_config(self, rank, skip_logits, tmp_path):
        model = tiny_vtlmm(vm_head_trained=False, vm_head_rank=rank)
        inputs = batch(*ROWS) | {"pixel_values": pixels(5), "skip_logits": skip_logits}
        with torch.no_grad():
            model(**inputs, visual_loss="visual_tokens")
        model(**inputs, visual_loss="visual_modeling")
        model.model.vm_head.requires_grad_(False)
        model(**inputs, visual_loss="visual_tokens")
        assert model.config.vm_head_trained is False
        model.model.vm_head.requires_grad_(True)
        model(**inputs, visual_loss="visual_tokens")
        assert model.config.vm_head_trained is True
        model.save_pretrained(tmp_path)
        assert VTLMMForCausalLM.from_pretrained(tmp_path).config.vm_head_trained is True
