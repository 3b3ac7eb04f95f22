"""Trainings that do nothing but say which examples they met, in processes of their own that may be killed."""

import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import torch
from transformers import TrainerCallback

from tests.processes import leave_process_group
from tests.tiny import image_bytes
from vistok import VisualLanguageConfig
from vistok.trainer.data_sources import mix_data_sources
from vistok.trainer.endless_stream import EndlessStream
from vistok.trainer.reproducible_trainer import ReproducibleTrainer

CAPTION = "What a thing."
NUM_EXAMPLES = 48
"""Of a pass over the three sources."""


def write_sources(folder: Path) -> list[dict]:
    """Four shards of 4 samples, Parquet of four row groups of 4, and 16 lines, some about the same image."""
    import datasets

    image = image_bytes(0)
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(4):
                for name, content in ((f"{number}.png", image["bytes"]), (f"{number}.txt", CAPTION.encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    rows = [{"id": f"p{i}", "image": image, "caption": CAPTION} for i in range(16)]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "rows.parquet", batch_size=4)
    lines = [json.dumps({"id": f"j{i // 2}", "question": CAPTION, "answer": "Yes."}) + "\n" for i in range(16)]
    (folder / "lines.jsonl").write_text("".join(lines))
    paths = {"webdataset": folder / "*.tar", "parquet": folder / "*.parquet", "json": folder / "lines.jsonl"}
    return [{"format": kind, "path": str(path), "streaming": True, "name": kind} for kind, path in paths.items()]


class Listener(torch.nn.Module):
    """A model that any batch trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, lengths, **_):
        return {"loss": (self.weight * lengths.float()).mean() / 100}


class ListeningTrainer(ReproducibleTrainer):
    """Writes down the examples of each step that it trains."""

    met: list[list[str]]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.met.append(inputs.pop("ids"))
        with open(self.args.output_dir + f"/met_{self.args.process_index}.jsonl", "a") as stream:
            stream.write(json.dumps(self.met[-1]) + "\n")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def collate(examples) -> dict:
    ids = [f"{example['source']}:{example['id']}" for example in examples]
    return {"lengths": torch.tensor([[len(name)] for name in ids]), "ids": ids}


class Kill(TrainerCallback):
    """Ends the process behind a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def listen(
    sources: list[dict], output_dir: str, workers: int, kill_at: int | None = None, **options
) -> ListeningTrainer:
    """A trainer of 26 steps of two batches of two examples, with a checkpoint every 7 steps."""
    weighted = [{**source, "weight": 1.0} for source in sources]
    stream = mix_data_sources(weighted, 3, "all_exhausted_without_replacement", shuffle_buffer=5)
    os.makedirs(output_dir, exist_ok=True)
    args = VisualLanguageConfig(
        output_dir=output_dir,
        **{
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_steps": 7,
            "max_steps": 26,
            "logging_steps": 100,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "dataloader_num_workers": workers,
            **options,
        },
    )
    trainer = ListeningTrainer(
        model=Listener(),
        args=args,
        data_collator=collate,
        train_dataset=EndlessStream(stream),
        callbacks=[Kill(kill_at)] if kill_at else None,
    )
    trainer.met = []
    return trainer


def main(task: str, sources: str, folder: str) -> None:
    described = json.loads(sources)
    if task == "killed":
        listen(described, folder, workers=2, kill_at=9).train()
    for workers in (0, 2):
        output_dir = f"{folder}/{workers}"
        for part, checkpoint in (("whole", None), ("resumed", f"{output_dir}/checkpoint-7")):
            trainer = listen(described, output_dir, workers, max_steps=9)
            trainer.train(checkpoint)
            found = {"met": trainer.met, "weight": trainer.model.weight.item()}
            Path(folder, f"{part}-{workers}-{trainer.args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
