"""Plans of SeTok and Setokim, compared with steps that their trainers take."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks._measure import peak_bytes
from tests.tiny import save_base_models, tiny_dinov2_config
from tests.tiny_setok import save_diffusion_checkpoint, tiny_mapper_config, tiny_unet_config
from tests.trainer.planted_boxes import save_boxes
from tests.trainer.tiny_setokim_training import ALL_FEATURES, save_setok_and_text, task_example, trainer_of
from vistok.configuration.shipped import shipped_path
from vistok.modeling.diffusion_parts import load_diffusion_parts
from vistok.trainer.known_architectures import diffusion_configs
from vistok.trainer.model_recipe import build_model
from vistok.trainer.plan_setokim import written_by
from vistok.trainer.recipe import load_recipe, recipe_from_dict
from vistok.trainer.recipe_chain import load_recipes
from vistok.trainer.training_plan import PlanOptions, plan_recipes

ROWS, TOKENS, OBJECTS = 6, 4, 3  # there are images of one to three boxes
FIXED = {"min_tokens": TOKENS, "max_tokens": TOKENS, "num_neighbors": 3, "output_size": 12}
MASKS = {"mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}}
GRID = {
    "mapper_config": tiny_mapper_config(num_queries=4, query_grid=True),
    "unet_config": tiny_unet_config(in_channels=6),
    "preview_channels": True,
    "trained_unet_parts": "all",
}
CASES = {
    "boundaries of hard clusters, one by one": (  # of about the same size, as plans have them
        {"method": "iterative", "cluster_projection_layers": 1, "object_contrast_weight": 1.0, "kernel_scale": 0.9},
        {"phase": "boundaries"},
    ),
    "boundaries of hard clusters": (
        {"method": "threshold", "cluster_projection_layers": 1, "object_contrast_weight": 1.0},
        {"phase": "boundaries"},
    ),
    "boundaries of soft clusters, and drawn": (
        {"method": "iterative", "assignment": "soft", "cluster_projection_size": 16, "detokenizer_config": GRID},
        {"phase": "boundaries", "reconstruct_boundaries": True, "cache_features": True},
    ),
    "reconstruction": ({"method": "threshold"}, {"phase": "reconstruction"}),
    "reconstruction of tokens that are kept": (
        {"method": "threshold", "detokenizer_config": GRID},
        {"phase": "reconstruction", "cache_features": True, "keep_tokens": True, "trainable": {"merger": "frozen"}},
    ),
}


def attention(query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(query, key, value)


def attention_backward(gradient, query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_backward_flop_count(gradient, query, key, value)


OF_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def flops_of(step) -> int:
    with FlopCounterMode(display=False, custom_mapping=OF_CPUS) as counter:
        step()
    return counter.get_total_flops()


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    """A plan of SeTok, and the trainer that it is of."""
    fields, training = CASES[request.param]
    folder = tmp_path_factory.mktemp("setok")
    vision, _ = save_base_models(folder, vision_config=tiny_dinov2_config(patch_size=4))
    save_boxes(folder / "boxes", count=ROWS)
    model = {"vision": vision, "config": {**FIXED, **MASKS, **fields}}
    if request.param == "reconstruction":
        model["diffusion"] = save_diffusion_checkpoint(folder / "diffusion")
        model["config"]["detokenizer_config"] = {"mapper_config": tiny_mapper_config()}
    training = {
        **{"output_dir": str(folder / "run"), "per_device_train_batch_size": ROWS, "max_steps": 10, "use_cpu": True},
        **{"max_objects": OBJECTS, "feature_cache_dir": str(folder / "cache"), "feature_cache_dtype": "float32"},
        **{"report_to": "none", "disable_tqdm": True, **training},
    }
    data = {"train": [{"format": "object-masks", "path": str(folder / "boxes")}]}
    recipe = recipe_from_dict({"trainer": "setok", "model": model, "training": training, "data": data})
    (plan,) = plan_recipes({"it": recipe}, PlanOptions())
    return plan, recipe.prepare(recipe.arguments()).trainer


@pytest.fixture(scope="module")
def step(both):
    """A step of the training, with gradients in place, from a batch that is prepared."""
    _, trainer = both
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()

    def step():
        trainer.compute_loss(trainer.model, batch).backward()

    step()
    return step


def test_parameters_are_those_of_the_model(both):
    plan, trainer = both
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    all_of_it = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert plan.parameters["model"] == {"all": all_of_it, "trained": trained}
    for total in ("all", "trained"):
        assert (
            sum(found[total] for part, found in plan.parameters.items() if part != "model")
            == (plan.parameters["model"][total])
        )


def test_operations_are_those_of_a_step(both, step):
    plan, _ = both
    assert plan.image_tokens == TOKENS
    assert sum(plan.flops_per_step.values()) == pytest.approx(flops_of(step), rel=0.02)


def test_memory_is_what_a_step_holds(both, step):
    plan, trainer = both
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    held = [*trainer.model.parameters(), *trainer.model.buffers()]
    assert plan.memory.weights == sum(tensor.nbytes for tensor in held)
    assert plan.memory.gradients == sum(parameter.numel() * 4 for parameter in trained)
    assert plan.memory.activations == pytest.approx(peak_bytes(step), rel=0.1)


@pytest.mark.parametrize("task", ["generate", "segment"])
def test_what_setokim_writes_is_counted(task, tmp_path):
    """A step of examples that all ask for the same, whose parts are as long."""
    vision, text = save_setok_and_text(tmp_path)
    parts = {"kind": "setokim", "vision": vision, "text": text, "attn_implementation": "eager"}
    parts["config"] = {"min_tokens": TOKENS, "max_tokens": TOKENS}
    settings = {"stage": "instruction", "per_device_train_batch_size": ROWS, "max_steps": 1, "output_dir": "runs/none"}
    training = {"llm": "lora", "mask_decoder": "full"}
    data = {"train": [{"format": {"generate": "generation-pairs", "segment": "refcoco"}[task], "path": "nowhere"}]}
    recipe = recipe_from_dict(
        {
            "trainer": "setokim",
            "model": parts,
            "training": settings,
            "trainable": training,
            "lora": {"r": 2},
            "data": data,
        }
    )
    model, processor = build_model(recipe.model)
    examples = [task_example(4 * row, task) for row in range(ROWS)]  # of the same text
    options = {"trainable": training, "per_device_train_batch_size": ROWS, "lora": {"r": 2}}
    trainer = trainer_of(
        model,
        processor,
        tmp_path / "run",
        "instruction",
        Dataset.from_list(examples, features=ALL_FEATURES),
        **options,
    )
    batch = next(iter(trainer.get_train_dataloader()))

    def step():
        batches, count = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
        trainer.training_step(trainer.model, batches[0], count)

    step()
    images = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    learned = batch["labels"][0]
    answers = int(((learned != -100) & (learned != model.config.image_token_id)).sum())
    shown = {"generate": TOKENS, "segment": TOKENS + 1}[task]  # a mask is one token
    assert images == TOKENS * len(examples[0]["images"])
    texts = batch["input_ids"].shape[1] - images + shown - TOKENS
    (plan,) = plan_recipes({"it": recipe}, PlanOptions(text_tokens=texts, answer_tokens=answers))
    assert ("mask decoder" in plan.flops_per_step) == (task == "segment")
    assert sum(plan.flops_per_step.values()) == pytest.approx(flops_of(step), rel=0.02)
    assert plan.memory.activations == pytest.approx(peak_bytes(step), rel=0.1)


def test_what_data_does_not_ask_for_is_not_counted():
    chain = [f"recipes/setokim/demo/{name}.yaml" for name in ("1-reading", "2-pretraining", "3-instruction")]
    assert [written_by(recipe) for recipe in load_recipes(chain)] == [(), ("images",), ("images", "mask")]


def shipped_recipes() -> dict[str, dict]:
    """All recipes of trainings that ship; the other files there are of studies, and of accelerate."""
    files = sorted(shipped_path("recipes").rglob("*.yaml"))
    values = {str(file): yaml.safe_load(file.read_text()) for file in files}
    return {file: recipe for file, recipe in values.items() if "training" in recipe}


RECIPES = shipped_recipes()


def chain_to(file: str) -> list[str]:
    """A recipe behind those that it starts from."""
    left = {recipe["training"]["output_dir"]: name for name, recipe in RECIPES.items()}
    model = RECIPES[file].get("model", {})
    before = [left[model[key]] for key in ("checkpoint", "vision") if model.get(key) in left]
    return [*chain_to(before[0]), file] if before else [file]


@functools.cache
def plans_of(*chain: str) -> dict:
    return dict(zip(chain, plan_recipes(dict(zip(chain, load_recipes(chain))), PlanOptions(samples=10_000))))


def plan_of_shipped(file: str):
    longest = max((chain for chain in map(chain_to, RECIPES) if file in chain), key=len)
    return plans_of(*longest)[file]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: "/".join(Path(file).parts[-3:]))
def test_every_recipe_that_ships_is_planned(file):
    plan = plan_of_shipped(file)
    assert 0 < plan.parameters["model"]["trained"] <= plan.parameters["model"]["all"]
    assert min(plan.memory.weights, plan.memory.optimizer, plan.memory.activations, plan.hours) > 0
    assert "backward" in plan.flops_per_step


def test_parameters_are_those_of_published_models():
    """SD v1.5, CLIP ViT-L/14 at 336 pixels and LLaVA-1.5-7B, of which nothing is at hand."""
    recipes = shipped_path("recipes/setok")
    drawn = plan_of_shipped(str(recipes / "1a-reconstruction.yaml")).parameters
    keys_and_values = 2 * 768 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert drawn["unet"] == {"all": 859_520_964, "trained": keys_and_values}
    assert drawn["vae"] == {"all": 83_653_863, "trained": 0}
    assert drawn["vision"] == {"all": 303_507_456, "trained": 0}
    read = plan_of_shipped(str(recipes / "plug-in.yaml")).parameters
    lora = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert read["model"]["all"] == 7_063_427_072 + lora
    assert read["model"]["trained"] == 20_979_712 + lora


def test_a_plan_leaves_the_init_functions_of_torch_to_others():
    """diffusers notes them when it is first imported."""
    code = (
        "import torch; from vistok.trainer.recipe import load_recipe;"
        "from vistok.trainer.training_plan import PlanOptions, plan_recipes;"
        "fields = ['--model.checkpoint', 'vistok:setok-demo'];"
        "recipe = load_recipe('recipes/setok/demo/1d-details.yaml', fields);"
        "plan_recipes({'it': recipe}, PlanOptions());"
        "from diffusers.models.modeling_utils import no_init_weights;"
        "context = no_init_weights(); context.__enter__(); context.__exit__(None, None, None);"
        "assert torch.nn.init.ones_(torch.zeros(1)) == 1, torch.nn.init.ones_;"
        "assert torch.nn.init.kaiming_uniform_.__name__ == 'kaiming_uniform_'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_a_diffusion_checkpoint_is_like_is_read_without_its_weights(tmp_path):
    folder = save_diffusion_checkpoint(tmp_path)
    expected = load_diffusion_parts(folder).configs
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert diffusion_configs(folder) == expected
    assert diffusion_configs("stable-diffusion-v1-5/stable-diffusion-v1-5") == {}
    with pytest.raises(FileNotFoundError, match="Nobody here knows what nobody/draws is like"):
        diffusion_configs("nobody/draws")


def test_all_stages_are_planned_in_a_row(base_models):
    """From the first boundaries to a Setokim, which has the SeTok of the recipe before it."""
    names = ("1a-boundaries", "1b-decoders", "1c-reconstruction", "1d-details")
    chain = [f"recipes/setok/demo/{name}.yaml" for name in names]
    chain += [f"recipes/setokim/demo/{name}.yaml" for name in ("1-reading", "2-pretraining", "3-instruction")]
    recipes = load_recipes(chain, ["--5.model.text", base_models[1]])
    plans = plan_recipes(dict(zip(chain, recipes)), PlanOptions(samples=100))
    of_setok, of_setokim = plans[3].parameters, [plan.parameters for plan in plans[4:]]
    for part in ("vision", "clustering", "merger", "mask_decoder", "mapper", "unet"):
        assert {found[part]["all"] for found in of_setokim} == {of_setok[part]["all"]}
    assert of_setok["unet"]["trained"] == of_setok["unet"]["all"] > 0
    assert "unet" in plans[0].parameters and plans[0].parameters["unet"]["all"] == 0
    assert [plan.parameters["mask_decoder"]["trained"] > 0 for plan in plans[4:]] == [False, False, True]


def test_what_images_show_is_said_or_the_most():
    recipe = load_recipe("recipes/setok/demo/1b-decoders.yaml", ["--model.checkpoint", "vistok:setok-demo"])
    most, fewer = (plan_recipes({"it": recipe}, PlanOptions(image_tokens=count))[0] for count in (None, 5))
    assert (most.image_tokens, fewer.image_tokens) == (16, 5)
    assert fewer.flops_per_step["mask decoder"] < most.flops_per_step["mask decoder"]
    assert fewer.flops_per_step["clustering"] == most.flops_per_step["clustering"]
    assert any("planned with 5" in note for note in fewer.notes) and any("64 objects" in note for note in fewer.notes)


def test_checkpointed_layers_take_less_memory_and_more_operations():
    recipe = ["recipes/setok/demo/1d-details.yaml", "--model.checkpoint", "vistok:setok-demo"]
    plain, checkpointed = (
        plan_recipes(
            {"it": load_recipe(recipe[0], [*recipe[1:], "--training.gradient_checkpointing", on])}, PlanOptions()
        )
        for on in ("false", "true")
    )
    assert checkpointed[0].memory.activations < plain[0].memory.activations
    assert sum(checkpointed[0].flops_per_step.values()) > sum(plain[0].flops_per_step.values())


def test_a_checkpoint_that_is_otherwise_is_an_error():
    fields = ["--model.checkpoint", "vistok:setok-demo", "--model.config.max_tokens", "9"]
    with pytest.raises(ValueError, match=r"model\.config\.max_tokens is 9, but vistok:setok-demo has 16"):
        plan_recipes({"it": load_recipe("recipes/setok/demo/1b-decoders.yaml", fields)}, PlanOptions())
