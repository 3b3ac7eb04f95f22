"""
A step of visual modelling's stage IV beside one of stage II, on the same rows: what the loss on images costs.

    vistok fetch
    python -m benchmarks.visual_modeling_step

The model is that of recipes/vtlmm/demo, features of its frozen tower come from the cache, and a row has six questions
about an image of 64 visual tokens, as there. A step is that of VisualModelingTrainer: counts, and forward and backward
pass of the stage's losses. The optimizer's update and the statistics of each log are not in it, nor is making the
batch.

- II: Loss_LM; adapter and language model are trained.
- IV: Loss_LM + Loss_VM; the language model is trained.
- IV, Loss_LM alone: the same with a weight of 0, the control of the comparison.
- III: Loss'_VM of the same images without text; the VM head is trained.

"lora" is the demo: adapters of the language model, a VM head of rank 64. "full" is the paper's: the whole language
model is trained, and the VM head has full rank. float32 is without, bfloat16 with autocast, whose frozen weights are
bfloat16. CPU time on one thread, the median over rounds that take turns; memory is the peak of a step above the
weights, so gradients are in it. Ratios are to stage II.
"""

import copy
import dataclasses
import itertools
import statistics
import tempfile
from pathlib import Path

from datasets import Dataset

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from benchmarks.training import make_rows
from vistok import VisualModelingConfig, VisualModelingTrainer
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.model_recipe import build_model
from vistok.trainer.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "vtlmm" / "demo"
QUESTIONS_PER_ROW = 6
STEPS = {
    "II": {"stage": "instruction"},
    "IV": {"stage": "visual_modeling"},
    "IV, Loss_LM alone": {"stage": "visual_modeling", "visual_loss_weight": 0.0},
    "III": {"stage": "visual_tokens"},
}
TUNINGS, DTYPES = ("lora", "full"), ("float32", "bfloat16")


def make_trainer(model, processor, data: Dataset, folder: Path, tuning: str, dtype: str, step: dict):
    options = {}
    if step["stage"] != "visual_tokens":
        options["conversations_per_row"] = QUESTIONS_PER_ROW
        if tuning == "lora":
            options |= {"trainable": {"llm": "lora"}, "lora": load_recipe(RECIPES / "2-instruction.yaml").lora}
    args = VisualModelingConfig(
        output_dir=str(folder / "run"),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        bf16=dtype == "bfloat16",
        max_steps=1,
        cache_features=True,
        feature_cache_dir=str(folder / "features"),
        **step,
        **options,
    )
    return VisualModelingTrainer(model, args, data, processing_class=processor)


class Step:
    """What a trainer does between two updates of its optimizer, always with the same batch."""

    def __init__(self, trainer: VisualModelingTrainer):
        trainer.current_gradient_accumulation_steps = 1  # which train() sets
        self.trainer = trainer
        self.model = trainer.accelerator.prepare_model(trainer.model)  # which puts it under autocast
        self.batch = trainer.data_collator(list(trainer.train_dataset))

    def __call__(self) -> None:
        count = self.trainer._get_num_items_in_batch([self.batch], self.trainer.args.device)
        self.trainer.training_step(self.model, dict(self.batch), count)
        self.model.zero_grad(set_to_none=True)


def measure(model_recipe, num_images: int, tuning: str, dtype: str, rounds: int) -> list[dict]:
    model, processor = build_model(model_recipe)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single, _ = make_rows(folder, num_images)
        data = Dataset.from_list([{**row, "id": str(row["row"])} for row in single], features=FEATURES)
        steps = {
            label: Step(make_trainer(copy.deepcopy(model), processor, data, folder, tuning, dtype, step))
            for label, step in STEPS.items()
        }
        seconds = interleaved_seconds(steps, rounds)
        peaks = {label: peak_bytes(step) for label, step in steps.items()}
    base = next(iter(STEPS))
    return [
        {
            "trained": tuning,
            "dtype": dtype,
            "stage": label,
            "ms per row": 1e3 * statistics.median(seconds[label]) / num_images,
            "time ratio": f"{median_ratio(seconds[label], seconds[base]):.3f}",
            "MiB": peaks[label] / 2**20,
            "memory ratio": f"{peaks[label] / peaks[base]:.3f}",
        }
        for label in STEPS
    ]


def main() -> None:
    model_options = {"default": None, "help": "in place of the recipe's: name, folder or Hub id"}
    options = parse_arguments(
        __doc__,
        rounds=5,
        vision=model_options,
        text=model_options,
        images={"type": int, "default": 10, "help": "rows of a step (default 10, as in the demo)"},
        trained={"nargs": "+", "choices": TUNINGS, "default": TUNINGS, "help": "of the language model"},
        dtypes={"nargs": "+", "choices": DTYPES, "default": DTYPES, "help": "what to compute in"},
    )
    given = {"--model.vision": options.vision, "--model.text": options.text}
    changes = [part for name, value in given.items() if value for part in (name, value)]
    recipe = load_recipe(RECIPES / "1-alignment.yaml", changes).model
    rounds, num_images = (1, 2) if options.quick else (options.rounds, options.images)
    rows = []
    for tuning, dtype in itertools.product(options.trained, options.dtypes):
        config = {**recipe.config, **({"vm_head_rank": None} if tuning == "full" else {})}
        rows += measure(dataclasses.replace(recipe, dtype=dtype, config=config), num_images, tuning, dtype, rounds)
    report(rows, options.csv)


if __name__ == "__main__":
    main()
