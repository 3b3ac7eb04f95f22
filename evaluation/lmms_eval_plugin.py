"""
Plug-in for lmms-eval: vistok's models, and any image-text-to-text model of transformers, in its tasks.

lmms-eval finds the model `vistok` by the entry point group `lmms_eval.models`, and GVTBench's tasks in the folder that
`python -m vistok.evaluation.lmms_eval_plugin` prints:

    python -m lmms_eval --model vistok --model_args pretrained=FOLDER --batch_size 32 --tasks gvtbench_coco_oc \\
        --include_path "$(python -m vistok.evaluation.lmms_eval_plugin)"
"""

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from .image_text_models import ImageTextModel
from .lmms_eval_requests import ImageTextRequest, batches, cut_at, read_requests

# lmms-eval requires torchvision, timm and more that images and text need nothing of. What it imports for these:
INSTALL = 'pip install --no-deps "lmms-eval>=0.7" && pip install evaluate loguru pytablewriter pytz sacrebleu tenacity'
LIKELIHOODS = ("mean", "sum")


def require_lmms_eval(module: str) -> ModuleType:
    """
    Imports a module of lmms-eval.

    Args:
        module (`str`): its name.

    Returns:
        `ModuleType`: the module.

    Raises:
        ImportError: if it, or something that it imports, is missing; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed here and cannot be imported ({error}). lmms-eval 0.7 or newer has it. All that it "
            "requires brings torchvision, which may not fit the installed torch: install it and what it imports, "
            f"{INSTALL}"
        ) from error


def model_manifest() -> Any:
    """
    The entry point: says where lmms-eval finds the class of `--model vistok`.

    Returns:
        `ModelManifest` of lmms-eval.

    Raises:
        ImportError: if there is no lmms-eval, or one that knows no such entry points.
    """
    registry = require_lmms_eval("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id="vistok", simple_class_path=f"{__name__}.Vistok")


def tasks_path() -> Path:
    """The folder with GVTBench's tasks for lmms-eval, its `--include_path`."""
    return Path(__file__).absolute().parent / "lmms_eval_tasks"


class LmmsEvalAdapter:
    """
    Answers lmms-eval's requests with an [`ImageTextModel`]: everything of the class `Vistok` but its base class.

    Args:
        pretrained (`str`): folder or Hub id of a model with its processor: one of vistok's, or any that
            `AutoModelForImageTextToText` loads (LLaVA, BLIP-2, SmolVLM …).
        batch_size (`int`, *optional*, defaults to 1): requests per batch.
        device (`str`, *optional*): by default that of this process: a GPU of its own, or the CPU.
        dtype (`str`, *optional*, defaults to `"auto"`): `"bfloat16"`, `"float16"`, `"float32"`, or as saved.
        attn_implementation (`str`, *optional*): attention backend of transformers.
        likelihood (`str`, *optional*, defaults to `"mean"`):
            What `loglikelihood` returns: nats per token, as lmms-eval's own models do, or `"sum"`, nats of the whole
            continuation.
        max_batch_size (*optional*): given by lmms-eval for batch sizes that it finds itself; not used.

    Raises:
        ValueError: if an argument is out of range.
    """

    task_dict: dict[str, Any]
    cache_hook: Any
    _rank: int
    _world_size: int

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        likelihood: str = "mean",
        max_batch_size: int | str | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected a number of requests, such as --batch_size 32.")
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood is {likelihood!r}, expected {' or '.join(LIKELIHOODS)}.")
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        # Of several processes, each has its own device.
        given = device if self._world_size == 1 else None
        self._device = self.accelerator.device if given is None else torch.device(given)
        self.batch_size = int(batch_size)
        self.likelihood = likelihood
        self._loading: dict[str, Any] = {
            "path": pretrained,
            "dtype": dtype,
            "device": str(self._device),
            "attn_implementation": attn_implementation,
            "batch_size": self.batch_size,
        }
        self._model: ImageTextModel | None = None
        self.model  # noqa: B018  # what cannot be loaded fails here

    @property
    def model(self) -> ImageTextModel:
        """The model that answers. Loaded again if lmms-eval has had it removed (`clean`)."""
        if self._model is None:
            self._model = ImageTextModel.from_pretrained(**self._loading)
        return self._model

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._device

    def clean(self) -> None:
        """Gives the memory of the model back, as lmms-eval asks before it starts a judge."""
        self._model = None
        super().clean()  # type: ignore[misc]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """
        Answers questions, greedily or with beams, as their tasks say.

        Args:
            requests (`list[Instance]`): of lmms-eval.

        Returns:
            `list[str]`: an answer for each request, in their order.

        Raises:
            ValueError: if a task samples, or its settings are of the wrong kind.
            TypeError: if a task shows something else than images.
        """
        read = read_requests(requests, self.task_dict)
        answers: dict[int, str] = {}

        def answer(places: list[int], batch: list[ImageTextRequest]) -> None:
            texts = self.model.generate(
                [request.prompt for request in batch], [request.images() for request in batch], **batch[0].decoding()
            )
            for place, request, text in zip(places, batch, texts):
                answers[place] = cut_at(text, request.stop_texts())
                context, settings, *_ = requests[place].args
                self.cache_hook.add_partial("generate_until", (context, settings), answers[place])

        self._run(read, answer, ImageTextRequest.decoding)
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """
        How probable continuations are. lmms-eval means losses by "log-likelihoods": its tasks choose the answer of the
        lowest number, and its own models return the mean loss of a token.

        Args:
            requests (`list[Instance]`): of lmms-eval.

        Returns:
            `list`: for each request, in their order, the negative log-likelihood in nats, per token or in total
            (`likelihood`), and whether greedy decoding would give the continuation: [`likelihood_result`].

        Raises:
            TypeError: if a task shows something else than images.
        """
        read = read_requests(requests, self.task_dict)
        results: dict[int, Any] = {}

        def score(places: list[int], batch: list[ImageTextRequest]) -> None:
            likelihoods = self.model.log_likelihoods(
                [request.prompt for request in batch],
                [request.images() for request in batch],
                [request.continuation or "" for request in batch],
            )
            for place, likelihood in zip(places, likelihoods):
                divisor = likelihood.num_tokens if self.likelihood == "mean" else 1
                loss = -likelihood.total / divisor
                results[place] = likelihood_result(loss, likelihood.is_greedy)
                self.cache_hook.add_partial("loglikelihood", requests[place].args[:2], (loss, likelihood.is_greedy))

        self._run(read, score, lambda request: None)
        return [results[place] for place in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """
        Raises:
            NotImplementedError: always: vistok evaluates single questions.
        """
        tasks = sorted({str(getattr(request, "task_name", None)) for request in requests})
        raise NotImplementedError(f"{', '.join(tasks)} asks in several rounds, vistok's model answers one question.")

    def _run(self, read: list[ImageTextRequest], handle, group) -> None:
        with logging.tqdm(total=len(read), unit=" requests", disable=self._rank != 0) as progress:
            for places in batches(read, self.batch_size, group):
                handle(places, [read[place] for place in places])
                progress.update(len(places))


class LossAndGreedy(tuple):
    """
    A loss and whether greedy decoding would give the text. lmms-eval's cache of answers keeps what is left of a text
    when it is stripped: nothing is left of this, because a pair that comes out of the cache would be made a text.
    """

    def strip(self) -> tuple:
        return ()


def likelihood_result(loss: float, is_greedy: bool) -> Any:
    """
    A likelihood in a form that lmms-eval hands to its tasks as it is. From 0.7 on its evaluator makes a text of every
    answer that is none (`unwrap_generation_output` in EvolvingLMMs-Lab/lmms-eval, lmms_eval/api/instance.py), and its
    tasks cannot read pairs of that. It leaves alone what a `GenerationResult` holds.

    Args:
        loss (`float`): negative log-likelihood, in nats.
        is_greedy (`bool`): whether greedy decoding would give the text.

    Returns:
        `GenerationResult` of lmms-eval that holds the pair; the pair, for a lmms-eval that has no such class.
    """
    result_class = getattr(require_lmms_eval("lmms_eval.api.instance"), "GenerationResult", None)
    pair = LossAndGreedy((float(loss), bool(is_greedy)))
    return pair if result_class is None else result_class(text=pair)


@functools.cache
def _model_class() -> type:
    base = require_lmms_eval("lmms_eval.api.model").lmms
    return type("Vistok", (LmmsEvalAdapter, base), {"__doc__": LmmsEvalAdapter.__doc__, "__module__": __name__})


if TYPE_CHECKING:
    Vistok: type


def __getattr__(name: str) -> Any:
    # A class cannot be declared before its base class is there, and without lmms-eval there is none.
    if name == "Vistok":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Prints the folder with the tasks, for `--include_path`."""
    sys.stdout.write(f"{tasks_path()}\n")


__all__ = ["LmmsEvalAdapter", "likelihood_result", "model_manifest", "require_lmms_eval", "tasks_path"]

if __name__ == "__main__":
    main()
