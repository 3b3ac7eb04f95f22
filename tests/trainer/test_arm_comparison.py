"""Comparisons of visual tokenizers: arms without stages before them, and what reading an image costs each."""

import csv
import json

import pytest
import torch
from PIL import Image
from transformers import AutoModel, Dinov2Config

from tests.tiny import NUM_PATCHES, tiny_gvt, tiny_image, tiny_llama_config, tiny_processor
from tests.trainer.conftest import RESAMPLER
from vistok import GVTConfig
from vistok.configuration.shipped import shipped_path
from vistok.evaluation.compute_costs import count_flops, measure_costs
from vistok.trainer.stage_comparison_jobs import KINDS, plan_comparison
from vistok.trainer.stage_comparison_recipe import StageComparison, load_comparison
from vistok.trainer.stage_comparison_report import collect_comparison, write_comparison
from vistok.trainer.study_jobs import run_jobs
from vistok.trainer.study_process import do_job

SETOK = {"model_type": "setok_tokenizer", "method": "threshold", "score_threshold": 0.3, "num_neighbors": 2}
TOKENIZERS = {
    "all": {"model_type": "mlp_adapter_vistok", "output_size": 16},
    "resampler": RESAMPLER,
    "dynamic": {**SETOK, "max_tokens": 5, "merger_num_layers": 1},
}


@pytest.fixture
def comparison(base_models, tmp_path, monkeypatch):
    """Makes a comparison of visual tokenizers on eight questions about four images."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    lines = []
    for index in range(8):
        tiny_image(index // 2).save(tmp_path / f"{index // 2}.png")
        turns = [{"from": "human", "value": "<image>\na dog?"}, {"from": "gpt", "value": ("no", "yes")[index % 2]}]
        lines.append(json.dumps({"id": str(index), "image": f"{index // 2}.png", "conversations": turns}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    source = {"format": "llava", "path": str(tmp_path / "data.jsonl"), "images": str(tmp_path)}
    model = {"vision": base_models[0], "text": base_models[1], "image_size": 24}
    training = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
    recipe = {
        "model": {**model, "config": {"vision_feature_select_strategy": "default"}},
        "data": {"train": [source]},
        "training": {**training, "cache_features": True, "conversations_per_row": 2, "logging_steps": 1},
    }
    (tmp_path / "gvt.yaml").write_text(json.dumps(recipe))

    def make(**changes) -> StageComparison:
        arms = {
            name: {"recipe": str(tmp_path / "gvt.yaml"), "changes": {"model": {"resampler": tokenizer}}}
            for name, tokenizer in TOKENIZERS.items()
        }
        values = {
            "study": "arms",
            "arms": arms,
            "compare": [["dynamic", "all"]],
            "seeds": [0],
            "evaluation": {
                "tasks": {"mine": {"test": source, "train": source}},
                "floors": ["majority", "question_only_prior", "blank_images", "shuffled_images"],
                "max_new_tokens": 2,
            },
            "costs": {"images": source, "num_images": 3, "num_text_tokens": 4, "rounds": 1},
            "output_dir": str(tmp_path / "out"),
        }
        return StageComparison(**{**values, **changes})

    return make


def test_a_whole_comparison_trains_asks_measures_and_reports(comparison, tmp_path):
    recipe, output = comparison(), tmp_path / "out"
    plan = plan_comparison(recipe)
    names = [job.name for job in plan.jobs]
    assert names[:2] == ["arms/all-seed0/training", "arms/all-seed0/answers"] and names[-1] == "costs"
    assert plan.jobs[-1].needs == tuple(f"arms/{arm}-seed0/training" for arm in TOKENIZERS)

    outcome = run_jobs(output, plan, plan.jobs, lambda config: do_job(output, config["job"], KINDS))
    assert outcome.finished == names and not outcome.failed

    found = collect_comparison(recipe)
    costs = found["costs"]
    assert costs["all"]["tokens"] == NUM_PATCHES and costs["resampler"]["tokens"] == RESAMPLER["num_latents"]
    assert 1 <= costs["dynamic"]["tokens_min"] <= costs["dynamic"]["tokens_max"] <= 5
    assert costs["all"]["prefill_gflop"] > costs["dynamic"]["prefill_gflop"] > 0
    assert costs["all"]["kv_kib"] > costs["dynamic"]["kv_kib"]
    assert {"blank_images", "majority", "question_only_prior"} == found["arms"]["all"]["floors"]["mine"].keys()
    files = write_comparison(recipe, "vistok study mine.yaml")
    text = files["comparison.md"].read_text()
    assert "## Costs" in text and "all, blank images" in text and "There is one seed" in text
    assert str(tmp_path) not in text
    assert all(Image.open(files[name]).size[0] > 700 for name in ("comparison.png", "comparison-costs.png"))
    rows = list(csv.DictReader(files["comparison.csv"].open()))
    assert [row["arm"] for row in rows] == list(TOKENIZERS)
    assert float(rows[0]["tokens"]) == NUM_PATCHES and float(rows[0]["training CPU seconds"]) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": "stages"}, "or, of `study: arms`, arms alone"),
        ({"arms": {"one": {"label": "no recipe"}}}, "unknown stage that arms.one comes after None"),
        ({"costs": {"num_images": 3}}, "costs has no images"),
        ({"costs": {"pictures": 3}}, "unknown field of costs 'pictures'"),
    ],
)
def test_what_does_not_fit_is_refused(comparison, changes, message):
    with pytest.raises(ValueError, match=message):
        comparison(**changes)


def test_the_shipped_comparison_is_that_of_table_5():
    recipe = load_comparison(shipped_path("recipes/setok/demo/comparison.yaml"))
    plan = plan_comparison(recipe)
    tokenizers = {arm: recipe.recipe_of(f"arms.{arm}")["model"]["resampler"] for arm in recipe.arms}
    assert list(tokenizers) == ["all-patches", "resampler", "fixed-hard", "dynamic-soft", "dynamic-hard"]
    soft, hard = tokenizers["dynamic-soft"], tokenizers["dynamic-hard"]
    assert {name for name in hard if soft[name] != hard[name]} == {
        "assignment",
        "kernel_scale",
    }  # the latter for as many soft clusters
    assert tokenizers["fixed-hard"]["max_tokens"] == tokenizers["resampler"]["num_latents"]
    assert len(plan.jobs) == 2 * 5 + 1
    tower = Dinov2Config(hidden_size=384, num_attention_heads=6)
    for tokenizer in tokenizers.values():  # each can be built for that tower, as wide as it is
        config = GVTConfig(vision_config=tower, text_config=tiny_llama_config(), resampler_config=tokenizer)
        with torch.device("meta"):
            assert AutoModel.from_config(config.resampler_config).config.patch_hidden_size == 384


def test_flops_and_costs_are_counted_as_they_are():
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    model, processor = tiny_gvt(), tiny_processor()
    found = measure_costs({"gvt": (model, processor)}, [tiny_image(0), tiny_image(1)], num_text_tokens=5, rounds=2)
    assert found["gvt"]["tokens"] == processor.num_image_tokens and found["gvt"]["tokens_sd"] == 0
    more = measure_costs({"gvt": (model, processor)}, [tiny_image(0)], num_text_tokens=25, rounds=1)
    assert more["gvt"]["prefill_gflop"] > found["gvt"]["prefill_gflop"]
    assert more["gvt"]["tokenizer_gflop"] == found["gvt"]["tokenizer_gflop"] > 0
    with pytest.raises(ValueError, match="images: 0 given"):
        measure_costs({"gvt": (model, processor)}, [])
    with pytest.raises(ValueError, match="no composed model"):
        measure_costs({"llama": (model.model.language_model, processor)}, [tiny_image(0)])
