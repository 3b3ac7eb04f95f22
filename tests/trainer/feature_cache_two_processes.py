"""Run by test_shared_feature_cache.py in each of two processes: builds caches together, and writes what was run."""

import json
import sys
from pathlib import Path

import torch

from tests.processes import leave_process_group
from tests.tiny import image_bytes, tiny_gvt, tiny_processor
from vistok import VisualLanguageConfig
from vistok.processing.feature_cache import FeatureCache, FeatureCacheBuilder
from vistok.processing.images import BadSampleError
from vistok.trainer.shared_feature_cache import build_together


def builder(folder: str, sizes: list[int], broken: int | None = None) -> FeatureCacheBuilder:
    """Of eleven images in six batches; the sizes of those that the tower is run on are added to the list."""
    torch.manual_seed(0)
    model = tiny_gvt()
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    images = [image_bytes(seed) for seed in range(11)]
    if broken is not None:
        images[broken]["bytes"] = images[broken]["bytes"][:60]
    examples = [{"id": f"q{n}", "source": "planted", "row": n, "images": [one]} for n, one in enumerate(images)]
    return FeatureCacheBuilder.of_model(model, tiny_processor(), examples, folder, batch_size=2, progress_bar=False)


def main(folder: str) -> None:
    args = VisualLanguageConfig(output_dir=folder, use_cpu=True, report_to="none")
    rank, found = args.process_index, {}
    for name, place in {"common": "common", "again": "common", "own": f"own-{rank}"}.items():
        sizes: list[int] = []
        cache: FeatureCache = build_together(builder(f"{folder}/{place}", sizes), args)
        found[name] = {"folder": str(cache.folder), "sizes": sizes}
    try:
        build_together(builder(f"{folder}/broken", [], broken=3), args)  # an image of the second process
    except BadSampleError as error:
        found["error"] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
