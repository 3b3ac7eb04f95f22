"""How the questions of a task are asked and what is measured of the answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .generation_settings import GenerationSettings
from .measures import EXACT_MATCH, Metric
from .vqa import is_unanswered, majority_answers

Examples = Sequence[Mapping[str, Any]]

PROMPT_STYLES = ("paper", "reference")
MODES = ("reference", "strict")
REFERENCE_IMAGE_SIZE = (224, 224)


@dataclass(frozen=True)
class Protocol:
    """
    How questions are asked and answers are measured.

    Args:
        settings ([`GenerationSettings`], *optional*): of the decoding.
        metrics (`tuple[Metric, ...]`, *optional*): the primary one first; by default the accuracy of exact matches.
        unanswered (`Callable`, *optional*): whether a prediction says nothing that counts as an answer.
        constant (`Callable`, *optional*): takes examples, returns the best constant guess for each: the floor that is
            called majority.
        constant_label (`str`, *optional*): what reports call it; by default the majority answer.
        prior (`str`, *optional*, defaults to `"train"`): what the question-only prior learns from: `"train"`, the
            training data, or `"two_fold"`, the questions about the other half of the images; `"none"`: there is none.
        no_prior (`str`, *optional*): why there is none, a sentence for reports.
        own_prompt (`bool`, *optional*, defaults to `False`): see [`render_prompts`].
        image_size (`tuple[int, int]`, *optional*): see [`resized`].
        by_likelihood (`bool`, *optional*, defaults to `False`): the answer is the most probable of an example's
            `choices`, by its letter, and nothing is generated.
        type_column (`str`, *optional*, defaults to `"answer_type"`): column with the type of a question.
        types_by_answer (`bool`, *optional*, defaults to `False`): the type follows from the right answer, so that
            guessing one answer for each type would be no guessing.
        recorded (`dict`, *optional*): what reports and predictions say of the protocol: prompt style, mode.
    """

    settings: GenerationSettings = field(default_factory=GenerationSettings)
    metrics: tuple[Metric, ...] = (EXACT_MATCH,)
    unanswered: Callable[[str], bool] = is_unanswered
    constant: Callable[[Examples], list[str]] = majority_answers
    constant_label: str | None = None
    prior: str = "train"
    no_prior: str | None = None
    own_prompt: bool = False
    image_size: tuple[int, int] | None = None
    by_likelihood: bool = False
    type_column: str = "answer_type"
    types_by_answer: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> Metric:
        """The metric that gains and charts are about."""
        return self.metrics[0]

    def is_right(self, prediction: str, example: Mapping[str, Any]) -> bool | None:
        """Whether an answer is right by the primary metric (at least half right, where it has degrees); `None` where
        that is no accuracy."""
        if self.primary.name != "accuracy":
            return None
        return bool(self.primary.columns([prediction], [example])[0, 0] >= 0.5)

    def describe_metrics(self) -> list[dict[str, Any]]:
        """What reports say of the metrics, the primary one first."""
        return [
            {"name": m.name, "label": m.label, "scale": m.scale, "higher_is_better": m.higher_is_better}
            for m in self.metrics
        ]


__all__ = ["MODES", "PROMPT_STYLES", "REFERENCE_IMAGE_SIZE", "Protocol"]
