"""A distillation leaves its student as it was but for the weights, and a folder that loads, also when it is pushed."""

import pytest
import torch
from transformers import AutoModel

from tests.hub_client import turned_to
from tests.hub_server import running_hub
from tests.tiny import IMAGE_SIZE, pixels, same, tiny_clip_config
from tests.trainer.tiny_distillation import distillation_trainer, image_rows, tiny_student
from vistok.modeling.vision_features import build_vision_tower


def described(student):
    """All that training may have left behind in a model."""
    return {
        "trainable": [p.requires_grad for p in student.parameters()],
        "modules": [(name, type(module)) for name, module in student.named_modules()],
        # transformers keeps some of its own, which collect hidden states
        "hooks": [
            [
                hook
                for hook in module._forward_hooks.values()
                if not getattr(hook, "__module__", "").startswith("transf")
            ]
            for module in student.modules()
        ],
    }


@pytest.mark.parametrize("name", ["drop path of its own", "drop path by hooks"])
def test_the_student_is_as_it_was_but_for_its_weights(tmp_path, name):
    student = tiny_student() if name.endswith("own") else build_vision_tower(tiny_clip_config())
    before, weights = described(student), [p.detach().clone() for p in student.parameters()]
    options = {"student": student, "mask_ratio": 0.4, "drop_path_rate": 0.5, "student_feature_layer": 1}
    trainer = distillation_trainer(tmp_path, image_rows(4), image_rows(3), max_steps=2, **options)
    assert sum(before["trainable"]) > sum(p.requires_grad for p in student.parameters())  # the layer above
    trainer.train()
    assert described(student) == before
    assert any(not torch.equal(p, w) for p, w in zip(student.parameters(), weights, strict=True))
    # In training mode, too, nothing is left out any more.
    student.train()
    assert same(student(pixels(2)).last_hidden_state, student.eval()(pixels(2)).last_hidden_state)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.train()
    assert described(student) == before


def test_a_training_that_fails_leaves_the_student_as_it_was_too(tmp_path):
    student = tiny_student()
    before = described(student)
    trainer = distillation_trainer(tmp_path, image_rows(4), student=student, drop_path_rate=0.5)
    with torch.no_grad():
        student.layernorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="loss is nan"):
        trainer.train()
    assert described(student) == before


def test_what_is_pushed_is_the_student(tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 2, "hub_model_id": "org/tower", "push_to_hub": True}
    uploads = []
    with running_hub() as server, turned_to(server, tmp_path / "cache", monkeypatch):
        trainer = distillation_trainer(tmp_path, image_rows(4), max_steps=2, **options)
        trainer.train()
        uploads.append(AutoModel.from_pretrained("org/tower", output_loading_info=True))
        trainer.push_to_hub()
        uploads.append(AutoModel.from_pretrained("org/tower", output_loading_info=True))
    for pushed, found in [*uploads, AutoModel.from_pretrained(tmp_path, output_loading_info=True)]:
        assert not found["missing_keys"] and not found["unexpected_keys"]
        assert same(pushed(pixels(1)).last_hidden_state, trainer.student.eval()(pixels(1)).last_hidden_state)
    assert pushed.config.image_size == IMAGE_SIZE
    again = distillation_trainer(tmp_path, image_rows(4), max_steps=3)
    again.train(resume_from_checkpoint="auto")  # the checkpoint holds the projection still
    assert again.state.global_step == 3
