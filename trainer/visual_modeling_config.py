"""Arguments of the trainer of visual modelling, by its four stages."""

import math
from dataclasses import dataclass, field
from typing import Any

from .data_formats import known
from .length_groups import STRATEGIES as OF_LENGTHS
from .visual_language_config import VisualLanguageConfig

STAGES = ("alignment", "instruction", "visual_tokens", "visual_modeling")
IMPLEMENTATIONS = ("fused", "plain")

# Section 3.1 and Table 2. The tower is frozen throughout; an input embedding belongs to the language model.
TRAINED = {
    "alignment": {"adapter": "full"},
    "instruction": {"adapter": "full", "llm": "full"},
    "visual_tokens": {"vm_head": "full"},
    "visual_modeling": {"llm": "full"},
}
PARTS = ("vision", "adapter", "llm", "vm_head")
LEARNING_RATES = {"alignment": 1e-3, "instruction": 2e-5, "visual_tokens": 1e-3, "visual_modeling": 2e-5}
VISUAL_LOSSES = {"visual_tokens": "visual_tokens", "visual_modeling": "visual_modeling"}
"""The loss on image positions that a stage has, as the model calls it: Eq. 9 and Eq. 6."""


@dataclass
class VisualModelingConfig(VisualLanguageConfig):
    r"""
    Arguments of [`VisualModelingTrainer`]: those of [`VisualLanguageConfig`] and these. What is not given has the
    values of the paper for the stage (VT-LMM, Section 3.1 and Table 2).

    Args:
        stage (`str`, *optional*, defaults to `"alignment"`):
            I `"alignment"`: the adapter learns from captions, with Loss_LM. II `"instruction"`: adapter and language
            model learn from conversations, with Loss_LM. III `"visual_tokens"`: the VM head learns from images without
            text, with Loss'_VM (Eq. 9). IV `"visual_modeling"`: the language model learns from conversations, with
            Loss_LM + `visual_loss_weight` · Loss_VM (Eq. 6 and 7).
        trainable (`dict[str, str]`, *optional*):
            For parts of the model (`vision`, `adapter`, `llm`, `vm_head`) `"frozen"`, `"full"` or `"lora"`, such as
            `{"llm": "lora"}`; parts that are not named are as the stage has them.
        visual_loss_weight (`float`, *optional*, defaults to 1.0):
            Of Loss_VM in stage IV. With 0 it is not computed: what the same steps with Loss_LM alone give.
        conversations_per_row (`int`, *optional*, defaults to 1):
            As in [`VisualLanguageConfig`]; but in Loss_VM an image that conversations share counts once, not for each.
        loss_implementation (`str`, *optional*, defaults to `"fused"`):
            `"fused"` keeps no matrix of logits. `"plain"` does, and gives the same numbers.
        learning_rate (`float`, *optional*): by default 1e-3 in stages I and III, 2e-5 in II and IV.
        lr_scheduler_type (`str`, *optional*, defaults to `"cosine"`): schedule of the learning rate.
        warmup_steps (`float`, *optional*, defaults to 0.03): steps, or if less than 1 their share of all.
        num_train_epochs (`float`, *optional*, defaults to 1): passes over the data.

    Raises:
        ValueError: if a value is unknown or out of its range, options do not go together, no loss of the stage would
            reach a part that is to be trained.
    """

    stage: str = field(default="alignment", metadata={"help": "alignment, instruction, visual_tokens …"})
    trainable: Any = field(default=None, metadata={"help": "Parts that are otherwise than in the stage."})
    visual_loss_weight: float = field(default=1.0, metadata={"help": "Weight of Loss_VM in stage IV."})
    loss_implementation: str = field(default="fused", metadata={"help": "fused or plain."})
    learning_rate: Any = field(default=None, metadata={"help": "By default that of the stage."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps, or if less than 1 their share of all."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})

    def __post_init__(self):
        known("stage", self.stage, STAGES)
        known("loss_implementation", self.loss_implementation, IMPLEMENTATIONS)
        if not 0 <= self.visual_loss_weight < math.inf:
            raise ValueError(f"visual_loss_weight is {self.visual_loss_weight!r}, expected a number from 0 on.")
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES[self.stage]
        super().__post_init__()

    @property
    def visual_loss(self) -> str | None:
        """The loss on image positions that is trained with, as the model calls it; `None` where there is none."""
        if self.stage == "visual_modeling" and not self.visual_loss_weight:
            return None
        return VISUAL_LOSSES.get(self.stage)

    def _check_model_options(self):
        self.trainable = trained_in(self.stage, self.trainable)
        super()._check_model_options()
        if self.stage != "visual_modeling" and self.visual_loss_weight != 1.0:
            raise ValueError(
                f"visual_loss_weight is {self.visual_loss_weight}, but the stage {self.stage} has no sum of losses to "
                "weigh: leave it out, or set stage to visual_modeling."
            )
        if not self.average_tokens_across_devices:
            raise ValueError("average_tokens_across_devices must stay True: losses are means over all processes.")

    def _check_data_options(self):
        super()._check_data_options()
        if self.stage != "visual_tokens":
            return
        of_conversations = {
            "conversations_per_row": self.conversations_per_row != 1,
            "max_length": self.max_length is not None,
            "train_sampling_strategy": self.train_sampling_strategy in OF_LENGTHS,
        }
        for name, is_set in of_conversations.items():
            if is_set:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but the stage visual_tokens shows images alone, without "
                    "conversations: leave it out."
                )


def trained_in(stage: str, otherwise: Any = None) -> dict[str, str]:
    """
    Which parts of a model a stage trains.

    Args:
        stage (`str`): one of [`STAGES`].
        otherwise (`dict[str, str]`, *optional*): parts that are to be otherwise, by name.

    Returns:
        `dict[str, str]`: `"frozen"`, `"full"` or `"lora"` for each part.

    Raises:
        ValueError: if no loss of this stage would reach a part that is to be trained.
    """
    if otherwise is not None and not isinstance(otherwise, dict):
        raise ValueError(f"trainable is {otherwise!r}, expected frozen, full or lora for parts by name.")
    trainable = {**dict.fromkeys(PARTS, "frozen"), **TRAINED[stage], **(otherwise or {})}
    trained = {part for part, mode in trainable.items() if mode != "frozen"}
    out_of_reach = trained - {"vm_head"} if stage == "visual_tokens" else trained & {"vm_head"}
    if out_of_reach:
        part = sorted(out_of_reach)[0]
        reached = "only the VM head" if stage == "visual_tokens" else "all but the VM head"
        raise ValueError(
            f"{part} is to be trained ({trainable[part]}), but the loss of the stage {stage} reaches {reached}: leave "
            f"{part} frozen here."
        )
    return trainable


__all__ = ["STAGES", "VisualModelingConfig", "trained_in"]
