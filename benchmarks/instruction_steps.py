"""
A step of VT-LMM's instruction tuning: rows of like length, checkpointed layers, compiled layers.

    vistok fetch --data
    python -m benchmarks.instruction_steps

Data, model and batches are those of recipes/vtlmm/demo/2-instruction.yaml, from the base models, with cached features.
Its rows are conversations about an image, or about none, of different length. A step makes the batch, runs forward and
backward, and lets AdamW update what is trained: adapter and LoRA.

- random order: as the recipe has it
- rows by length: `training.train_sampling_strategy: group_by_length`
- checkpointed: `training.gradient_checkpointing: true`, rows by length
- compiled: layers of the language model by `torch.compile(dynamic=True)`, rows by length; with --compile

Padding is counted over a whole epoch. Time and memory are of the same number of batches from all over the epoch: CPU
time on one thread, medians over rounds that take turns, per 1,000 tokens that are no padding, since the batches are
others; the ratio is to the random order. Memory is the peak of a step above weights, gradients and the optimizer's
state, the most of these batches.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from benchmarks.training import make_rows
from vistok import VisualLanguageCollator
from vistok.processing.feature_cache import FeatureCache
from vistok.trainer.conversation_groups import group_by_images
from vistok.trainer.data_sources import mix_data_sources
from vistok.trainer.freezing import rest_frozen_parts, set_trainable, upcast_trained
from vistok.trainer.length_groups import LengthGroups, padding_share
from vistok.trainer.model_recipe import build_model
from vistok.trainer.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "vtlmm" / "demo" / "2-instruction.yaml"
FROM_BASE_MODELS = ["--model.checkpoint", "null", "--model.attn_implementation", "eager"]


class Trainee:
    """The model of the recipe, and a step of its training on a batch of rows."""

    def __init__(self, recipe: Any, model: Any, collator: VisualLanguageCollator):
        set_trainable(model, recipe.trainable, recipe.lora)
        upcast_trained(model.train())
        rest_frozen_parts(model, recipe.trainable)
        self.model, self.collator, self.trainable = model, collator, recipe.trainable
        self.optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)

    def accumulate(self, rows: list[dict]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(**self.collator(rows), skip_logits=True).loss
        loss.backward()

    def step(self, batches: list[list[dict]]) -> None:
        for rows in batches:
            self.optimizer.zero_grad()
            self.accumulate(rows)
            self.optimizer.step()

    def checkpoint(self, on: bool) -> None:
        names = [f"{kind}_checkpointing_{'enable' if on else 'disable'}" for kind in ("activation", "gradient")]
        next(getattr(self.model, name) for name in names if hasattr(self.model, name))()  # by version of transformers
        self.model.train()
        rest_frozen_parts(self.model, self.trainable)


def spread(order: list[int], batch_size: int, count: int) -> list[list[int]]:
    """Batches from all over an epoch."""
    batches = [order[start : start + batch_size] for start in range(0, len(order) - batch_size + 1, batch_size)]
    return [batches[number * len(batches) // count] for number in range(min(count, len(batches)))]


def main() -> None:
    options = parse_arguments(
        __doc__,
        rounds=3,
        batches={"type": int, "default": 8, "help": "of each variant (default 8)"},
        compile={"action": "store_true", "help": "also with compiled layers, which takes minutes to compile"},
        vision={"default": "vistok:dinov2-small", "help": "name, folder or Hub id"},
        text={"default": "vistok:smollm2-135m", "help": "name, folder or Hub id"},
    )
    given = ["--model.vision", options.vision, "--model.text", options.text]
    given += [] if options.quick else ["--model.image_size", "112"]
    recipe: Any = load_recipe(RECIPE, [*FROM_BASE_MODELS, *given])
    batch_size, per_row = (recipe.training[n] for n in ("per_device_train_batch_size", "conversations_per_row"))
    torch.manual_seed(0)
    model, processor = build_model(recipe.model)
    collator = VisualLanguageCollator(processor)
    count = 2 if options.quick else options.batches
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            batch_size, (_, of_images) = 3, make_rows(Path(folder), num_images=8)
            several = [{**row, "conversations": row["conversations"][:n]} for row in of_images for n in (1, 3, 6)]
            data = Dataset.from_list(several)
        else:
            data = group_by_images(mix_data_sources(recipe.data.train, recipe.data.seed), per_row)
        texts = [name for name in ("images", "conversations", "rows", "sources") if name in data.column_names]
        lengths = [collator.length(row) for row in data.select_columns(texts)]
        shuffled = random.Random(0).sample(range(len(lengths)), len(lengths))
        grouped = list(LengthGroups(lengths, batch_size, seed=0))
        chosen = {name: spread(order, batch_size, count) for name, order in (("random", shuffled), ("like", grouped))}
        rows = {name: [[data[row] for row in batch] for batch in batches] for name, batches in chosen.items()}
        everything = [row for batches in rows.values() for batch in batches for row in batch]
        features = FeatureCache.build(model, processor, everything, folder, progress_bar=False)
        trainee = Trainee(recipe, model, VisualLanguageCollator(processor, features=features))
        padding = {
            "random": padding_share(lengths, shuffled, batch_size),
            "like": padding_share(lengths, grouped, batch_size),
        }
        tokens = {name: sum(lengths[row] for batch in chosen[name] for row in batch) for name in chosen}
        found = measure(trainee, rows, padding, tokens, 1 if options.quick else options.rounds, options.compile)
    report(found, options.csv)


def measure(trainee: Trainee, rows: dict, padding: dict, tokens: dict, rounds: int, compiled: bool) -> list[dict]:
    """A row of the table for each variant."""

    def checkpointed() -> None:
        trainee.checkpoint(True)
        trainee.step(rows["like"])
        trainee.checkpoint(False)

    steps = {
        "random order": lambda: trainee.step(rows["random"]),
        "rows by length": lambda: trainee.step(rows["like"]),
        "checkpointed": checkpointed,
    }
    seconds = interleaved_seconds(steps, rounds)
    memory = {}
    for name in steps:
        trainee.checkpoint(name == "checkpointed")
        batches = rows["random" if name == "random order" else "like"]
        memory[name] = max(peak_bytes(lambda batch=batch: trainee.accumulate(batch)) for batch in batches)
        trainee.checkpoint(False)
    if compiled:
        start = time.process_time()
        for layer in trainee.model.model.language_model.layers:
            layer.compile(dynamic=True)
        trainee.step(rows["like"])
        print(f"compiling and the first steps: {time.process_time() - start:.0f} s of CPU time")
        more = interleaved_seconds({"compiled": lambda: trainee.step(rows["like"])}, rounds)
        seconds["compiled"] = more["compiled"]
        memory["compiled"] = max(peak_bytes(lambda batch=batch: trainee.accumulate(batch)) for batch in rows["like"])
    orders = {name: "random" if name == "random order" else "like" for name in seconds}
    per_token = {name: [taken / tokens[orders[name]] for taken in times] for name, times in seconds.items()}
    return [
        {
            "step": name,
            "padding %": 100 * padding[orders[name]],
            "ms per 1000 tokens": 1e6 * statistics.median(times),
            "time ratio": median_ratio(per_token["random order"], times),
            "MiB": memory[name] / 2**20,
        }
        for name, times in per_token.items()
    ]


if __name__ == "__main__":
    main()
