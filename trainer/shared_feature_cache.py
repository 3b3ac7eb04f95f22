"""Features of a frozen tower, computed by all processes of a training together."""

import os
from collections.abc import Callable

from transformers import TrainingArguments

from ..processing.feature_cache import FeatureCache, FeatureCacheBuilder


def build_together(builder: FeatureCacheBuilder, args: TrainingArguments) -> FeatureCache:
    """
    Makes a cache with the other processes of a training: each computes a part of it, and all wait until it is whole.

    Where machines have no folder in common, the parts that one lacks are computed once more by its own processes, so
    that each has a cache of its own in the end. A process that fails lets the others go on before it says so.

    Args:
        builder ([`FeatureCacheBuilder`]): of the same cache in all processes.
        args (`TrainingArguments`): know the processes.

    Returns:
        [`FeatureCache`]: on this machine, of the features of all processes.
    """
    num_parts = args.world_size
    if num_parts == 1:
        return builder.build()
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", num_parts))
    steps: list[Callable[[], object]] = [
        lambda: builder.build_parts([args.process_index], num_parts),
        lambda: builder.build_parts(range(args.local_process_index, num_parts, num_here), num_parts),
        lambda: builder.build(num_parts) if args.process_index == 0 else None,
    ]
    failure: Exception | None = None
    for step in steps:
        try:
            if failure is None:
                step()
        except Exception as error:
            failure = error
        args.distributed_state.wait_for_everyone()
    with args.main_process_first(desc="building the cache of features"):
        if failure is not None:
            raise failure
        return builder.build(num_parts)


__all__ = ["build_together"]
