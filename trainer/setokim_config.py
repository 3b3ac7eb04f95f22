"""Arguments of the trainer of Setokim, by its two stages."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..modeling.setokim_composition import SetokimPreTrainedModel
from .data_formats import known
from .visual_language_config import VisualLanguageConfig

STAGES = ("pretraining", "instruction")
PARTS = tuple(SetokimPreTrainedModel.trainable_parts)
SegmentationTarget = Literal["mask", "cluster"]

# Section 2.2 and Appendix D: stage II pre-trains the language model, stage III tunes it by LoRA; SeTok stays as stage
# I left it. New rows of a language model that is not trained as a whole are trained in full.
TRAINED = {
    "pretraining": {"projections": "full", "llm": "full"},
    "instruction": {"projections": "full", "llm": "lora"},
}
LORA = {"r": 128, "lora_alpha": 256}
"""Of the released code (ChocoWu/SeTok, scripts/finetune.sh); the paper's table is lost."""
LEAST = {"token_bank_size": 0, "sample_steps": 0, "num_samples": 1, "sample_inference_steps": 1}
MAY_BE_TRAINED = ("projections", "llm", "token_rows", "mask_decoder")


@dataclass
class SetokimTrainingConfig(VisualLanguageConfig):
    r"""
    Arguments of [`SetokimTrainer`]: those of [`VisualLanguageConfig`] and these. The paper says what each stage trains
    and on what (SeTok, Section 2.2); its tables of hyper-parameters are lost. Where they are not given, a cosine with
    a warm-up of 3 %, one epoch, and rates are those of the released code: 1e-3, and 2e-5 for projections beside LoRA;
    but a language model that is trained in full, as in the paper and not in that code, learns at 2e-5 and projections
    beside it at 1e-3.

    Args:
        stage (`str`, *optional*, defaults to `"pretraining"`):
            II `"pretraining"`: projections and the whole language model learn from captions, images to generate and
            edits. III `"instruction"`: projections, and the language model by LoRA (rank 128, alpha 256 where `lora`
            does not say otherwise), learn from conversations, referring expressions, images and edits.
        trainable (`dict[str, str]`, *optional*):
            Parts that are otherwise than in the stage: `projections`, `llm` (`"frozen"`, `"lora"` or `"full"`),
            `mask_decoder` (`"full"`: what it makes of tokens that the language model writes), or `token_rows`: the
            rows of `[Img]`, `[/Img]` and "one more visual token", which are trained wherever the language model is
            not trained in full.
        visual_loss_weight, length_loss_weight, choice_loss_weight (`float`, *optional*):
            Those of the model's config by default.
        token_bank_size (`int`, *optional*, defaults to 0):
            Gives the model a [`TokenBank`] of so many visual tokens, drawn by `seed` from images of the training data
            before the first step, and lets it learn to choose among them: what it writes then are tokens of real
            images, not their averages. 0 leaves the model as it is, which may have a bank; one that is empty is filled
            in any case. Not in the paper.
        mask_bce_weight, mask_dice_weight (`float`, *optional*, defaults to 1.0):
            Of the losses of the mask that the mask decoder makes of a token that is written for an expression. With
            both at 0 the token alone is learned, by its regression.
        segmentation_target (`str`, *optional*, defaults to `"mask"`):
            The token that is to be written for an expression: `"mask"`, what SeTok makes of the patches of the mask as
            one cluster ([`merged_mask_tokens`]), or `"cluster"`, the token of the cluster that overlaps most with it.
        sample_steps (`int`, *optional*, defaults to 500):
            Every so many steps a picture is written to `samples` in the output folder: what is asked, shown, wanted
            and written, of examples that ask for an image or a mask. 0 for none.
        num_samples (`int`, *optional*, defaults to 2): examples of each task in it.
        sample_inference_steps (`int`, *optional*, defaults to 20): steps of denoising of its images.
        sample_guidance_scale (`float`, *optional*, defaults to 1.0): classifier-free guidance of its images.
        learning_rate, learning_rates, lr_scheduler_type, warmup_steps, num_train_epochs: as above.

    Raises:
        ValueError: if a value is unknown or out of its range, options do not go together, or a part would be trained
            that SeTok's own training is for.
    """

    stage: str = field(default="pretraining", metadata={"help": "pretraining or instruction."})
    trainable: Any = field(default=None, metadata={"help": "Parts that are otherwise than in the stage."})
    visual_loss_weight: float | None = field(default=None, metadata={"help": "Of the regression of visual tokens."})
    length_loss_weight: float | None = field(default=None, metadata={"help": "Of the number of visual tokens."})
    choice_loss_weight: float | None = field(default=None, metadata={"help": "Of the choice among real tokens."})
    token_bank_size: int = field(default=0, metadata={"help": "Real visual tokens to choose among; 0 for no bank."})
    mask_bce_weight: float = field(default=1.0, metadata={"help": "Of masks for expressions: cross-entropy."})
    mask_dice_weight: float = field(default=1.0, metadata={"help": "Of masks for expressions: dice."})
    segmentation_target: str = field(default="mask", metadata={"help": "Token of a mask: mask or cluster."})
    sample_steps: int = field(default=500, metadata={"help": "Steps between pictures of samples; 0 for none."})
    num_samples: int = field(default=2, metadata={"help": "Examples of each task in each picture."})
    sample_inference_steps: int = field(default=20, metadata={"help": "Denoising steps of samples."})
    sample_guidance_scale: float = field(default=1.0, metadata={"help": "Classifier-free guidance of samples."})
    learning_rate: Any = field(default=None, metadata={"help": "By default that of the stage."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps, or if less than 1 their share of all."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})

    def __post_init__(self):
        known("stage", self.stage, STAGES)
        known("segmentation_target", self.segmentation_target, get_args(SegmentationTarget))
        of_terms = ("visual_loss", "length_loss", "choice_loss", "mask_bce", "mask_dice")
        for name in (f"{term}_weight" for term in of_terms):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}, expected a number from 0 on.")
        for name, least in LEAST.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a whole number of at least {least}.")
        self.trainable = trained_in(self.stage, self.trainable)
        if self.token_bank_size and self.trainable["projections"] != "full":
            raise ValueError(
                f"token_bank_size is {self.token_bank_size}, but projections are {self.trainable['projections']}, and "
                "choosing is learned with them: train them in full, or leave token_bank_size out."
            )
        whole = self.trainable["llm"] == "full"
        if self.learning_rate is None:
            self.learning_rate = 2e-5 if whole else 1e-3
            if self.learning_rates is None and self.trainable["projections"] == "full":
                beside = {"full": 1e-3, "lora": 2e-5}.get(self.trainable["llm"])
                self.learning_rates = None if beside is None else {"projections": beside}
        super().__post_init__()

    def _check_model_options(self):
        super()._check_model_options()
        if not self.average_tokens_across_devices:
            raise ValueError("average_tokens_across_devices must stay True: losses are means over all processes.")

    def _check_data_options(self):
        super()._check_data_options()
        if self.augment:
            raise ValueError("augment would move images away from their masks and edits: leave it out.")


def trained_in(stage: str, otherwise: Any = None) -> dict[str, str]:
    """
    Which parts of a model a stage trains.

    Args:
        stage (`str`): one of [`STAGES`].
        otherwise (`dict[str, str]`, *optional*): parts that are to be otherwise, by name.

    Returns:
        `dict[str, str]`: `"frozen"`, `"full"` or `"lora"` for each part.

    Raises:
        ValueError: if a part of SeTok would be trained whose targets would move with it, or rows twice.
    """
    if otherwise is not None and not isinstance(otherwise, dict):
        raise ValueError(f"trainable is {otherwise!r}, expected frozen, full or lora for parts by name.")
    trainable = {**dict.fromkeys(PARTS, "frozen"), **TRAINED[stage], **(otherwise or {})}
    if "token_rows" not in (otherwise or {}):
        trainable["token_rows"] = "frozen" if trainable["llm"] == "full" else "full"
    wrong = [part for part, mode in trainable.items() if mode != "frozen" and part not in MAY_BE_TRAINED]
    if wrong:
        raise ValueError(
            f"{wrong[0]} is to be trained ({trainable[wrong[0]]}), but SeTok is trained in stage I, with "
            f"SeTokTrainer: visual tokens stay as they are while a language model learns to write them. What may be "
            f"trained is {', '.join(MAY_BE_TRAINED)}."
        )
    if trainable["llm"] == "full" and trainable["token_rows"] != "frozen":
        raise ValueError("token_rows are a part of llm, which is trained in full already: leave token_rows out.")
    return trainable


__all__ = ["LORA", "STAGES", "SetokimTrainingConfig", "trained_in"]
