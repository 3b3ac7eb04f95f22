"""What lmms-eval asks of a model: its requests, and how they are answered in batches and given back in their order."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Where a task sets none, the limit of an answer that lmms-eval's own models have.
MAX_NEW_TOKENS = 1024
# What `ImageTextModel.generate` takes.
DECODING = ("max_new_tokens", "num_beams", "repetition_penalty", "length_penalty")
# What tasks say beside it. It means nothing without sampling, or is told to LLaVA's code only.
WITHOUT_EFFECT = ("until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "image_aspect_ratio")
_PLACEHOLDER = "<image>"


@dataclass
class ImageTextRequest:
    """
    One request of lmms-eval: a text about the images of a record, to be answered or continued.

    Args:
        task (`str`): name of the task that asks.
        prompt (`str`): the user's text. Placeholders of images are left out: the images come first.
        doc_id (`int`, *optional*): number of the record in its split.
        document (`Callable[[], dict]`, *optional*): gets the record.
        doc_to_visual (`Callable`, *optional*): the task's function from a record to its images.
        continuation (`str`, *optional*): the text whose likelihood is asked for, without white space before it.
        generation (`dict`, *optional*): the task's generation settings.
    """

    task: str
    prompt: str
    doc_id: int | None = None
    document: Callable[[], Mapping[str, Any]] | None = None
    doc_to_visual: Callable[[Mapping[str, Any]], Any] | None = None
    continuation: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)

    def images(self) -> list[Image.Image]:
        """
        The images of the record, in the task's order.

        Raises:
            TypeError: if the task gives something else than images, such as a video.
        """
        if self.doc_to_visual is None or self.document is None:
            return []
        visuals = [visual for visual in self.doc_to_visual(self.document()) or [] if visual is not None]
        for visual in visuals:
            if not isinstance(visual, Image.Image):
                raise TypeError(
                    f"Task {self.task!r} shows a {type(visual).__name__} in record {self.doc_id}, expected images "
                    "(PIL.Image.Image): vistok evaluates models of images and text. Choose another task."
                )
        return [visual.convert("RGB") for visual in visuals]

    def decoding(self) -> dict[str, Any]:
        """
        The task's settings as arguments of [`ImageTextModel.generate`]: greedy, or with beams.

        Raises:
            ValueError: if the task samples.
        """
        settings = {name: value for name, value in self.generation.items() if value is not None}
        # transformers samples only where it is told to; many of lmms-eval's models do so at any temperature above 0.
        temperature = settings.get("temperature", 0)
        if settings.get("do_sample", float(temperature) > 0) and float(settings.get("temperature", 1)) > 0:
            raise ValueError(
                f"Task {self.task!r} samples its answers (do_sample={settings.get('do_sample')}, "
                f"temperature={settings.get('temperature')}), but vistok evaluates by greedy decoding or beams: add "
                "--gen_kwargs do_sample=False,temperature=0"
            )
        unknown = sorted(set(settings) - {*DECODING, *WITHOUT_EFFECT})
        if unknown:
            logger.warning_once(f"Task {self.task!r} sets {', '.join(unknown)}, which has no effect here.")
        arguments = {name: settings[name] for name in DECODING if name in settings}
        arguments.setdefault("max_new_tokens", settings.get("max_gen_toks", MAX_NEW_TOKENS))
        return arguments

    def stop_texts(self) -> tuple[str, ...]:
        """
        The texts at which an answer ends.

        Raises:
            ValueError: if the task's `until` is neither text nor a list of texts.
        """
        until = self.generation.get("until") or []
        until = [until] if isinstance(until, str) else until
        if not isinstance(until, (list, tuple)) or not all(isinstance(text, str) for text in until):
            raise ValueError(f"Task {self.task!r} has until={until!r}, expected a text or a list of texts.")
        return tuple(text for text in until if text)


def read_requests(requests: Sequence[Any], documents: Mapping[str, Any]) -> list[ImageTextRequest]:
    """
    Reads what lmms-eval hands to `generate_until` and `loglikelihood` of a model that is no chat model.

    Args:
        requests (`list[Instance]`): of lmms-eval. `request_type` names the method, and `args` are
            `(context, generation settings or continuation, doc_to_visual, doc_id, task, split)`; the last four are
            missing where only text is asked about.
        documents (`dict`): records by task, split and number: the model's `task_dict`.

    Returns:
        `list[ImageTextRequest]`: in the same order.

    Raises:
        TypeError: if a context is no text, as in a task that is made for chat models.
    """
    return [_read_request(request, documents) for request in requests]


def _read_request(request: Any, documents: Mapping[str, Any]) -> ImageTextRequest:
    context, asked, *origin = request.args
    doc_to_visual, doc_id, task, split = origin or (None, None, getattr(request, "task_name", None), None)
    if not isinstance(context, str):
        raise TypeError(
            f"Task {task!r} asks with a {type(context).__name__}, expected a text: vistok's model for lmms-eval takes "
            "tasks with doc_to_text and doc_to_visual."
        )

    def document() -> Any:
        return documents[str(task)][split][doc_id]

    read = ImageTextRequest(
        task=str(task),
        prompt=_without_placeholders(context),
        doc_id=doc_id,
        document=document if origin else None,
        doc_to_visual=doc_to_visual,
    )
    if request.request_type == "loglikelihood":
        continuation = asked if isinstance(asked, str) else str(asked(document()))
        # The task puts its delimiter first, the chat template of the model has its own.
        read.continuation = continuation.lstrip()
    else:
        read.generation = dict(asked or {})
    return read


def _without_placeholders(context: str) -> str:
    if _PLACEHOLDER not in context:
        return context
    logger.warning_once(f"A task writes {_PLACEHOLDER} into its texts: all images are put before the text instead.")
    return context.replace(_PLACEHOLDER, "").strip()


def batches(
    requests: Sequence[ImageTextRequest], batch_size: int, group: Callable[[ImageTextRequest], Any]
) -> Iterator[list[int]]:
    """
    Puts requests that can be answered together into batches, the longest first: what does not fit into memory shows
    at once, and texts of one length need little padding. Requests about one record stay neighbours.

    Args:
        requests (`list[ImageTextRequest]`): in any order.
        batch_size (`int`): requests per batch.
        group (`Callable`): what the requests of a batch have to have in common.

    Yields:
        `list[int]`: the places of a batch's requests.
    """
    longest: dict[tuple, int] = {}
    for request in requests:
        record = (request.task, request.doc_id)
        longest[record] = max(longest.get(record, 0), _length(request))
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(json.dumps(group(request), sort_keys=True, default=str), []).append(place)
    for places in groups.values():
        places.sort(key=lambda place: _order(requests[place], longest))
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


def _order(request: ImageTextRequest, longest: Mapping[tuple, int]) -> tuple:
    record = (request.task, request.doc_id)
    return -longest[record], record[0], str(record[1]), -_length(request)


def _length(request: ImageTextRequest) -> int:
    return len(request.prompt) + len(request.continuation or "")


def cut_at(answer: str, stop_texts: Sequence[str]) -> str:
    """
    An answer up to the first of several texts.

    Args:
        answer (`str`): as generated.
        stop_texts (`list[str]`): texts that end it.
    """
    ends = [answer.find(text) for text in stop_texts]
    return answer[: min((end for end in ends if end >= 0), default=len(answer))]


__all__ = ["ImageTextRequest", "batches", "cut_at", "read_requests"]
