"""Drop path leaves out whole residual branches, image by image, with rates that grow from layer to layer."""

import copy

import pytest
import torch
from transformers import ViTConfig

from tests.tiny import livelier, pixels, same, tiny_clip_config, tiny_dinov2_config, tiny_eva_config
from vistok.modeling.distillation_students import wei_student_config
from vistok.modeling.final_features import tower_features
from vistok.modeling.stochastic_depth import DropPath, drop_path, set_drop_path, transformer_layers
from vistok.modeling.vision_features import build_vision_tower

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
TOWERS = {
    "its own": tiny_dinov2_config(num_hidden_layers=4),
    "its own of eva": tiny_eva_config(num_hidden_layers=4),
    "its own of beit": wei_student_config(tiny_dinov2_config(num_hidden_layers=4)),
    "by hooks": tiny_clip_config(num_hidden_layers=4),
    "by hooks of vit": ViTConfig(**VIT, image_size=24, patch_size=8),
}


@pytest.fixture(params=TOWERS)
def tower(request):
    return livelier(build_vision_tower(TOWERS[request.param]))


def test_rates_grow_linearly_and_evaluation_is_as_without(tower):
    expected = tower_features(tower, pixels(2))
    names = set(tower.state_dict())
    assert set_drop_path(tower, 0.3) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert same(tower_features(tower.eval(), pixels(2)), expected)
    assert set(tower.state_dict()) == names


def test_layers_that_are_always_dropped_are_identities_and_the_mean_is_kept(tower):
    set_drop_path(tower, 1 - 1e-9)  # the last one, then
    tower.train()
    last = transformer_layers(tower)[-1]
    seen = []
    last.register_forward_hook(lambda layer, args, output: seen.append((args[0], output)))
    tower_features(tower, pixels(2))
    before, after = seen[0][0], seen[0][1][0] if isinstance(seen[0][1], tuple) else seen[0][1]
    assert torch.equal(before, after)
    branch = torch.ones(20_000, 1)
    assert DropPath(0.3).train()(branch).mean().item() == pytest.approx(1.0, abs=0.02)
    assert sorted(DropPath(0.3).train()(branch).unique().tolist()) == pytest.approx([0.0, 1 / 0.7])


def test_images_of_a_batch_are_dropped_independently(tower):
    set_drop_path(tower, 0.5)
    features = tower_features(tower.train(), pixels(1).expand(16, -1, -1, -1))
    distinct = {tuple(row.flatten()[:8].tolist()) for row in features.detach()}
    assert len(distinct) > 2


def test_setting_other_rates_takes_the_former_away(tower):
    plain = copy.deepcopy(tower).train()
    set_drop_path(tower, 0.9)
    set_drop_path(tower, 0.0)
    assert same(tower_features(tower.train(), pixels(2)), tower_features(plain, pixels(2)))


def test_drop_path_for_a_while_leaves_the_tower_as_it_was(tower):
    set_drop_path(tower, 0.2)
    before = [[type(hook) for hook in layer._forward_hooks.values()] for layer in transformer_layers(tower)]
    modules = dict(tower.named_modules())
    with drop_path(tower, 0.9) as rates:
        assert rates == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert dict(tower.named_modules()) == modules
    assert [[type(hook) for hook in layer._forward_hooks.values()] for layer in transformer_layers(tower)] == before
    found = [
        path.rate
        for layer in transformer_layers(tower)
        for path in [
            *(module for name, module in layer.named_children() if name.startswith("drop_path")),
            *(hook.drop_path for hook in layer._forward_hooks.values() if hasattr(hook, "drop_path")),
        ]
    ]
    assert max(found) == pytest.approx(0.2)


def test_a_tower_without_a_list_of_layers_is_named():
    tower = build_vision_tower(tiny_clip_config())
    tower.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="CLIPVisionModel has no list of 7 layers"):
        set_drop_path(tower, 0.1)
