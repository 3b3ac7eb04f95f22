"""How answers are generated: greedily or with beams, never sampled, and the same in a batch as alone."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList


@dataclass(frozen=True)
class GenerationSettings:
    """
    What an answer is generated with.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 16): limit of an answer, in tokens.
        num_beams (`int`, *optional*, defaults to 1): 1 is greedy.
        repetition_penalty (`float`, *optional*, defaults to 1.0): of tokens that the answer already holds, see
            [`RepeatedAnswerPenalty`].
        length_penalty (`float`, *optional*, defaults to 1.0): exponent of the length by which a beam's score is
            divided.

    Raises:
        ValueError: if a value is out of range.
    """

    max_new_tokens: int = 16
    num_beams: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0

    def __post_init__(self):
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}, expected a positive number.")

    def to_dict(self) -> dict[str, Any]:
        """The settings by name; those of beams only where there are beams."""
        settings = asdict(self)
        if self.num_beams == 1:
            del settings["length_penalty"]
        return settings

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`, which override whatever a checkpoint would sample with."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "repetition_penalty": 1.0,  # transformers' own would count the prompt and its padding, too
            "use_cache": True,
        }
        if self.num_beams > 1:
            arguments["length_penalty"] = self.length_penalty
        if self.repetition_penalty != 1:
            arguments["logits_processor"] = LogitsProcessorList([RepeatedAnswerPenalty(self.repetition_penalty)])
        return arguments


class RepeatedAnswerPenalty(LogitsProcessor):
    """
    Makes tokens less probable that the answer already holds. Neither the prompt nor padding counts, so that an answer
    is the same in a batch as alone; a model that generates from embeddings sees no prompt either.

    Args:
        penalty (`float`): positive logits are divided by it, negative ones are multiplied.
    """

    def __init__(self, penalty: float):
        self.penalty = penalty
        self.prompt_length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Scores of the next token, `(batch, vocab_size)`, after the tokens `(batch, positions)`."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        said = input_ids[:, self.prompt_length :]
        before = scores.gather(1, said)
        return scores.scatter(1, said, torch.where(before < 0, before * self.penalty, before / self.penalty))


__all__ = ["GenerationSettings", "RepeatedAnswerPenalty"]
