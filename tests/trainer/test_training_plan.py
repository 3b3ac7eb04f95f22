"""Plans of trainings, compared with what the same models, batches and optimizers take when they are there."""

import json

import pytest
import torch

from benchmarks._measure import peak_bytes
from tests.trainer.conftest import RESAMPLER
from tests.trainer.tiny_training import question
from vistok import VisualLanguageCollator
from vistok.cli import main
from vistok.configuration.shipped import here_or_shipped, shipped_path
from vistok.evaluation.compute_costs import count_flops
from vistok.modeling.base_weights import BASE_WEIGHTS
from vistok.modeling.token_bank import TokenBank
from vistok.trainer.freezing import set_trainable, upcast_trained
from vistok.trainer.model_recipe import ModelRecipe, build_model
from vistok.trainer.plan_memory import optimizer_bytes
from vistok.trainer.plan_model import planned_config, planned_model
from vistok.trainer.plan_report import plan_markdown
from vistok.trainer.recipe import load_recipe, recipe_from_dict
from vistok.trainer.training_plan import PlanOptions, plan_recipes

ROWS = 3
TRAINABLE = {
    "gvt": [{"vision": "frozen", "resampler": "full", "llm": "frozen"}, {"resampler": "full", "llm": "lora"}],
    "vtlmm": [{"adapter": "full", "llm": "full"}],
}
CASES = [(kind, trainable) for kind, several in TRAINABLE.items() for trainable in several]


def recipe_of(base_models, kind: str = "gvt", trainable=None, **training):
    vision, text = base_models
    tokenizer = {"resampler": RESAMPLER} if kind == "gvt" else {}
    model = {"kind": kind, "vision": vision, "text": text, "attn_implementation": "eager", **tokenizer}
    settings = {"per_device_train_batch_size": ROWS, "max_steps": 10, "output_dir": "runs/none", **training}
    trainer = {} if kind == "gvt" else {"trainer": "visual-modeling"}
    values = {**trainer, "model": model, "training": settings, "data": {"train": [{"format": "easy-vqa"}]}}
    return recipe_from_dict({**values, "trainable": trainable or TRAINABLE[kind][0]})


def plan_of(recipe, **options):
    (plan,) = plan_recipes({"it": recipe}, PlanOptions(**options))
    return plan


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(case[1].values())}")
def both(request, base_models):
    """A plan, and the training that it is of."""
    kind, trainable = request.param
    stage = {"stage": "instruction"} if kind == "vtlmm" else {}
    recipe = recipe_of(base_models, kind, trainable, **stage)
    model, processor = build_model(recipe.model)
    set_trainable(model, recipe.trainable, recipe.lora)
    upcast_trained(model.train())
    batch = VisualLanguageCollator(processor)([question(0, row) for row in range(ROWS)])
    image_tokens = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    tokens, answers = batch["input_ids"].shape[1], int((batch["labels"][0] != -100).sum())
    plan = plan_of(recipe, text_tokens=tokens - image_tokens, answer_tokens=answers)
    return plan, model, lambda: model(**batch, skip_logits=True).loss.backward()


def test_parameters_are_those_of_the_model(both):
    plan, model, _ = both
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    all_of_it = sum(parameter.numel() for parameter in model.parameters())
    assert plan.parameters["model"] == {"all": all_of_it, "trained": trained}
    for total in ("all", "trained"):
        parts = [found[total] for part, found in plan.parameters.items() if part != "model"]
        assert sum(parts) == plan.parameters["model"][total]


def test_operations_are_those_of_a_step(both):
    plan, _, step = both
    assert sum(plan.flops_per_step.values()) == pytest.approx(count_flops(step), rel=0.03)


def test_memory_is_what_a_step_holds(both):
    plan, model, step = both
    step()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    optimizer.step()
    held = [*model.parameters(), *model.buffers()]
    assert plan.memory.weights == sum(tensor.nbytes for tensor in held)
    assert plan.memory.gradients == sum(parameter.grad.nbytes for parameter in trained)
    state = [value for values in optimizer.state.values() for value in values.values()]
    assert plan.memory.optimizer == sum(tensor.nbytes for tensor in state)
    assert plan.memory.activations == pytest.approx(peak_bytes(step), rel=0.15)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop"])
def test_the_state_of_an_optimizer_is_known(name):
    parameter = torch.nn.Parameter(torch.zeros(7, 5))
    optimizer = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}[name]
    optimizer = optimizer([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if value is not None and value.ndim]
    assert optimizer_bytes([parameter], name) == sum(tensor.nbytes for tensor in state)


def test_a_bank_of_tokens_is_planned_for_and_left_to_later_recipes(base_models):
    parts = {"kind": "setokim", "vision": base_models[0], "text": base_models[1]}

    def recipe(stage, model, **training):
        settings = {"stage": stage, "max_steps": 3, "output_dir": f"runs/{stage}", **training}
        values = {"trainer": "setokim", "model": model, "training": settings}
        return recipe_from_dict({**values, "trainable": {"llm": "lora"}, "data": {"train": [{"format": "easy-vqa"}]}})

    def parameters(**training):
        first, later = recipe("pretraining", parts, **training), {"kind": "setokim", "checkpoint": "runs/pretraining"}
        plans = plan_recipes({"first": first, "second": recipe("instruction", later)}, PlanOptions(image_tokens=4))
        return [plan.parameters["model"] for plan in plans]

    model, _ = build_model(ModelRecipe(**parts))
    bank = TokenBank(100, model.output_projection.out_features, model.output_projection.in_features)
    numbers = [parameter.numel() for parameter in bank.parameters() if parameter.requires_grad]
    for without, having in zip(parameters(), parameters(token_bank_size=100)):
        assert having["all"] - without["all"] == sum(numbers) + bank.tokens.numel()
        assert having["trained"] - without["trained"] == sum(numbers)


def test_an_optimizer_of_unknown_size_is_an_error(base_models):
    with pytest.raises(ValueError, match="'galore_adamw' takes is not known; known: adafactor"):
        plan_of(recipe_of(base_models, optim="galore_adamw"))


def test_strategies_spread_what_they_say(base_models):
    recipe = recipe_of(base_models, trainable={"resampler": "full", "llm": "full"})
    alone, ddp, zero2, zero3, fsdp = (
        plan_of(recipe, num_gpus=gpus, strategy=strategy).memory
        for gpus, strategy in ((1, "ddp"), (4, "ddp"), (4, "zero2"), (4, "zero3"), (4, "fsdp"))
    )
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (alone.weights, alone.gradients, alone.optimizer)
    assert ddp.communication == ddp.gradients and alone.communication == 0
    assert zero2.gradients == -(-alone.gradients // 4) and zero2.weights == alone.weights
    assert fsdp.optimizer == zero3.optimizer == zero2.optimizer == -(-alone.optimizer // 4)
    assert zero3.weights < alone.weights / 3 and fsdp.total < ddp.total


def test_with_zero_the_optimizer_updates_copies_in_float32(base_models):
    trainable = {"resampler": "full", "llm": "full"}
    recipe = recipe_of(base_models, trainable=trainable)
    recipe.model.dtype = "bfloat16"
    plan = plan_of(recipe, num_gpus=4, strategy="zero2")
    trained = plan.parameters["model"]["trained"]
    assert plan.memory.gradients == pytest.approx(2 * trained / 4, abs=1)
    assert plan.memory.optimizer == pytest.approx((4 + 8) * trained / 4, rel=0.01), "a copy, and two moments"


def test_more_gpus_share_the_steps_and_not_the_time_of_one(base_models):
    recipe = recipe_of(base_models, gradient_accumulation_steps=2, max_steps=-1, num_train_epochs=3)
    one, four = (plan_of(recipe, num_gpus=gpus, samples=100) for gpus in (1, 4))
    assert (one.global_batch, four.global_batch) == (6, 24)
    assert (one.steps, four.steps) == (3 * 17, 3 * 5)
    assert four.seconds_per_step == pytest.approx(one.seconds_per_step)
    assert plan_of(recipe).hours is None and "--samples" in " ".join(plan_of(recipe).notes)


def test_checkpointed_layers_take_less_memory_and_more_operations(base_models):
    trainable = {"resampler": "full", "llm": "full"}
    plain, checkpointed = (
        plan_of(recipe_of(base_models, trainable=trainable, gradient_checkpointing=on), text_tokens=200)
        for on in (False, True)
    )
    assert checkpointed.memory.activations < plain.memory.activations
    assert sum(checkpointed.flops_per_step.values()) > sum(plain.flops_per_step.values())


def test_cached_features_cost_no_tower(base_models):
    cached, plain = (plan_of(recipe_of(base_models, cache_features=on)).flops_per_step for on in (True, False))
    assert cached == {name: flops for name, flops in plain.items() if name != "vision tower"}


def parameters_of(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_head_that_is_tied_to_the_embeddings_is_counted_once():
    recipe = load_recipe(here_or_shipped("recipes/gvt/demo.yaml"))
    config, image_size = planned_config(recipe.model, {})
    model = planned_model(recipe, config, uses_deepspeed=False)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (
        parameters_of(model.model.language_model) == BASE_WEIGHTS["smollm2-135m"].parameters + 8 * 576
    )  # with rows for its placeholder
    assert image_size == 112


def test_a_model_of_7b_is_planned_without_anything_at_hand(capsys):
    """Numbers of LLaVA-1.5-7B, whose vocabulary has 8 rows more here, and a VM head."""
    command = "plan recipes/vtlmm/alignment.yaml --num-gpus 8 --samples 558128 --format json"
    assert main(command.split()) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["llm"] == {"all": 6_738_415_616 + 2 * 8 * 4096, "trained": 0}
    assert plan["parameters"]["adapter"] == {"all": 20_979_712, "trained": 20_979_712}
    assert plan["parameters"]["vm_head"]["all"] == 32008 * 4096
    assert (plan["strategy"], plan["image_tokens"], plan["global_batch"], plan["steps"]) == ("zero2", 576, 256, 2181)
    assert plan["fits"]
    # Two operations for each weight and token forward, as many for the layers again, and for their inputs' gradients.
    per_weight = sum(plan["flops_per_step"].values()) / (plan["tokens_per_step"] * 6.738e9)
    assert 5.7 < per_weight < 6.6


def test_a_recipe_has_the_model_of_the_one_that_it_starts_from(base_models, tmp_path):
    first = recipe_of(base_models, "vtlmm", stage="alignment", output_dir=str(tmp_path / "first"))
    second = recipe_from_dict(
        {
            "trainer": "visual-modeling",
            "model": {"kind": "vtlmm", "checkpoint": str(tmp_path / "first")},
            "training": {"stage": "visual_modeling", "max_steps": 3, "output_dir": str(tmp_path / "second")},
        }
    )
    plans = plan_recipes({"first": first, "second": second}, PlanOptions())
    assert plans[0].parameters["model"]["all"] == plans[1].parameters["model"]["all"]
    assert plans[1].parameters["llm"]["trained"] == plans[1].parameters["llm"]["all"]
    assert "fits" in plan_markdown(plans) and "All 2 trainings" in plan_markdown(plans)


def test_all_stages_of_a_paper_are_planned_in_a_row_with_the_data_of_each(base_models, capsys):
    vision, text = base_models
    stages = [
        f"recipes/vtlmm/{name}.yaml" for name in ("alignment", "instruction", "visual_tokens", "visual_modeling")
    ]
    data = ["--samples", "558128", "665298", "558128", "665298", "--text-tokens", "32", "256", "32", "256"]
    command = ["plan", *stages, "--num-gpus", "8", *data, "--1.model.vision", vision, "--1.model.text", text]
    assert main([*command, "--format", "json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["steps"] for plan in plans] == [2181, 5198, 2181, 5198]
    assert [plan["strategy"] for plan in plans] == ["zero2", "zero3", "zero2", "zero3"]
    patches = plans[0]["image_tokens"]
    tokens = [plan["tokens_per_step"] for plan in plans]
    assert tokens == [256 * (patches + 32), 128 * (patches + 256), 256 * patches, 128 * (patches + 256)]
    assert len({plan["parameters"]["model"]["all"] for plan in plans}) == 1
    assert main(command) == 0
    flops = sum(plan["steps"] * sum(plan["flops_per_step"].values()) for plan in plans)
    assert f"All 4 trainings: {flops / 1e18:.3g} EFLOP" in capsys.readouterr().out
    assert main(["plan", *stages, "--samples", "1", "2"]) == 2
    assert "--samples has 2 numbers for 4 recipes" in capsys.readouterr().err


def test_what_ships_is_planned_by_its_name():
    name, folder = "vistok:vtlmm-demo", str(shipped_path("checkpoints/vtlmm-demo"))
    named, image_size = planned_config(ModelRecipe(kind="vtlmm", checkpoint=name), {})
    expected = planned_config(ModelRecipe(kind="vtlmm", checkpoint=folder), {})
    assert (named.to_dict(), image_size) == (expected[0].to_dict(), expected[1])


def test_what_nobody_knows_is_named(capsys):
    assert main(["plan", "recipes/vtlmm/instruction.yaml"]) == 2
    assert "give the recipe that leaves this folder before this one" in capsys.readouterr().err
    assert main(["plan", "recipes/gvt/instruct.yaml", "--model.text", "nobody/knows"]) == 2
    assert "nobody/knows" in capsys.readouterr().err
    assert main(["plan", "recipes/setok/1b-boundaries.yaml"]) == 2
    assert "model.checkpoint is runs/setok/1a-reconstruction, which is not here" in capsys.readouterr().err
    assert main(["plan", "recipes/setok/1a-reconstruction.yaml", "--model.diffusion", "nobody/draws"]) == 2
    assert "nobody/draws" in capsys.readouterr().err
    assert main(["plan", "recipes/gvt/instruct.yaml", "--gpu", "h1000"]) == 2
    assert "unknown kind of GPU 'h1000'" in capsys.readouterr().err


def test_distillation_is_planned(capsys, tmp_path):
    output = tmp_path / "plan.md"
    tower = {"--teacher.model": "facebook/dinov2-small", "--student.image_size": "28", "--output": str(output)}
    options = [word for option in tower.items() for word in option]
    assert main(["plan", "recipes/gvt/distill-wei.yaml", "--num-gpus", "16", "--samples", "1281167", *options]) == 0
    page = output.read_text()
    assert "16 × H100 SXM, ddp, bfloat16; 2048 rows in a step" in page
    assert "All 187,800 steps" in page and not capsys.readouterr().out
