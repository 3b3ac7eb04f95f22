"""What a recipe's training would take on GPUs that nobody has yet: parameters, memory, operations, hours."""

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.initialization import no_init_weights

from ..configuration.shipped import here_or_shipped
from ..modeling.distillation_students import wei_student_config
from ..modeling.distilled_student import DistilledStudent
from ..modeling.trainable_parts import part_prefixes
from ..modeling.vision_features import build_vision_tower
from .data_formats import known
from .feature_distillation_recipe import FeatureDistillationRecipe, changed_config
from .gpu_kinds import GPUKind, gpu_kind
from .known_architectures import architecture
from .plan_memory import STRATEGIES, MemoryPlan, planned_memory
from .plan_model import make_fake, planned_config, planned_model
from .plan_setok import SeTokStep, planned_setok, planned_setok_config, setok_step
from .plan_setokim import WRITTEN, written_by
from .plan_step import StepCosts, StepShape, composed_step, distillation_step, fake_tensors
from .recipe_sections import Recipe
from .setok_recipe import SeTokRecipe
from .visual_language_recipe import VisualLanguageRecipe
from .visual_modeling_config import VISUAL_LOSSES
from .visual_modeling_recipe import VisualModelingRecipe


@dataclass(frozen=True)
class PlanOptions:
    """
    For what a training is planned.

    Args:
        num_gpus (`int`): processes, each with a GPU.
        gpu (`str`): a key of `GPUS`.
        strategy (`str`, *optional*): one of [`STRATEGIES`]; by default what the recipe says.
        utilisation (`float`): share of the peak rate that a training reaches, from 0 to 1.
        text_tokens (`int`): of a conversation, without images.
        answer_tokens (`int`, *optional*): those of them that are learned; by default half.
        images (`int`): of a row.
        image_tokens (`int`, *optional*): of an image, where what it shows decides; by default the most.
        samples (`int`, *optional*): examples of the training data, for recipes that count epochs.
    """

    num_gpus: int = 1
    gpu: str = "h100"
    strategy: str | None = None
    utilisation: float = 0.4
    text_tokens: int = 128
    answer_tokens: int | None = None
    images: int = 1
    image_tokens: int | None = None
    samples: int | None = None

    def __post_init__(self):
        if self.strategy is not None:
            known("strategy", self.strategy, STRATEGIES)
        gpu_kind(self.gpu)
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}, expected a share of the peak, above 0 and up to 1.")
        for name, least in (("num_gpus", 1), ("text_tokens", 1), ("images", 0), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}.")


@dataclass(frozen=True)
class TrainingPlan:
    """
    What a training would take.

    Args:
        name (`str`): of the recipe.
        gpu ([`GPUKind`]), num_gpus (`int`), strategy (`str`), utilisation (`float`): on what.
        parameters (`dict[str, dict[str, int]]`): `"all"` and `"trained"` ones of each part and of the `"model"`.
        precision (`str`): in which products are computed.
        memory ([`MemoryPlan`]): of each GPU, in bytes.
        flops_per_step (`dict[str, int]`): of each part of a step, over all GPUs.
        global_batch (`int`): rows of a step.
        steps (`int`, *optional*): of the training; `None` if it is not known how much data there is.
        tokens_per_step (`int`): that the language model reads, over all GPUs.
        image_tokens (`int`): of an image.
        notes (`list[str]`): what was assumed or left out.
    """

    name: str
    gpu: GPUKind
    num_gpus: int
    strategy: str
    utilisation: float
    parameters: dict[str, dict[str, int]]
    precision: str
    memory: MemoryPlan
    flops_per_step: dict[str, int]
    global_batch: int
    steps: int | None
    tokens_per_step: int
    image_tokens: int
    notes: list[str] = field(default_factory=list)

    @property
    def seconds_per_step(self) -> float:
        """Of computation alone, at the assumed share of the peak rate."""
        peak = self.gpu.tflops_32bit if self.precision == "float32" else self.gpu.tflops_16bit
        return sum(self.flops_per_step.values()) / (self.num_gpus * peak * 1e12 * self.utilisation)

    @property
    def hours(self) -> float | None:
        """Of the whole training; `None` if its length is not known."""
        return None if self.steps is None else self.steps * self.seconds_per_step / 3600

    @property
    def fits(self) -> bool:
        """Whether a GPU has the memory, with a tenth left for what is not counted."""
        return self.memory.total <= 0.9e9 * self.gpu.memory_gb


def plan_recipes(recipes: Mapping[str, Recipe], options: PlanOptions | Sequence[PlanOptions]) -> list[TrainingPlan]:
    """
    Plans recipes that run one after another; no weights are read, and none are made.

    Args:
        recipes (`dict[str, Recipe]`): by name, as from [`load_recipes`]. One that starts from the folder that an
            earlier one leaves is planned with that one's model.
        options ([`PlanOptions`]): on what; of all recipes, or a list of those of each.

    Raises:
        FileNotFoundError: if a model starts from what is not here and nobody knows.
        ValueError: if the trainer of a recipe cannot be planned.
    """
    earlier: dict[str, Any] = {}
    of_each = [options] * len(recipes) if isinstance(options, PlanOptions) else options
    return [_plan(*recipe, options, earlier) for recipe, options in zip(recipes.items(), of_each, strict=True)]


def _plan(name: str, recipe: Recipe, options: PlanOptions, earlier: dict[str, Any]) -> TrainingPlan:
    strategy = options.strategy or _strategy(recipe)
    notes: list[str] = []
    if isinstance(recipe, VisualLanguageRecipe):
        model, costs = _composed(recipe, options, strategy, earlier)
        parts = {part: part_prefixes(model, part) for part in type(model).trainable_parts}
    elif isinstance(recipe, FeatureDistillationRecipe):
        model, costs, teacher = _distilled(recipe, options)
        parts = {}
        notes.append(f"The teacher's weights are counted with the model: {teacher / 1e6:,.1f} M parameters.")
    elif isinstance(recipe, SeTokRecipe):
        model, costs = _setok(recipe, options, strategy, earlier)
        parts = {part: part_prefixes(model, part) for part in type(model).trainable_parts}
    else:
        raise ValueError(f"{name}: nobody knows how trainings of {recipe.trainer!r} are planned.")
    rows = _setting(recipe, "per_device_train_batch_size") * _setting(recipe, "gradient_accumulation_steps")
    times = _setting(recipe, "gradient_accumulation_steps") * options.num_gpus
    steps = _steps(recipe, rows * options.num_gpus, options, notes)
    memory = planned_memory(model, strategy, options.num_gpus, _setting(recipe, "optim"), costs.activation_bytes)
    return TrainingPlan(
        name=name,
        gpu=gpu_kind(options.gpu),
        num_gpus=options.num_gpus,
        strategy=strategy,
        utilisation=options.utilisation,
        parameters=_count(model, parts),
        precision=_precision(recipe, model),
        memory=memory,
        flops_per_step={part: flops * times for part, flops in costs.flops.items()},
        global_batch=rows * options.num_gpus,
        steps=steps,
        tokens_per_step=costs.tokens * times,
        image_tokens=costs.image_tokens,
        notes=[*notes, *costs.notes],
    )


def _composed(recipe: VisualLanguageRecipe, options: PlanOptions, strategy: str, earlier) -> tuple[Any, StepCosts]:
    config, side = planned_config(recipe.model, earlier)
    text_tokens = options.text_tokens
    writes = written_by(recipe) if recipe.trainer == "setokim" and options.images else ()
    shape = StepShape(
        rows=_setting(recipe, "per_device_train_batch_size"),
        conversations=_setting(recipe, "conversations_per_row"),
        text_tokens=text_tokens,
        answer_tokens=max(1, text_tokens // 2) if options.answer_tokens is None else options.answer_tokens,
        images=options.images,
        image_size=side,
        image_tokens=options.image_tokens,
        max_length=_setting(recipe, "max_length"),
        writes=writes,
    )
    stage = _setting(recipe, "stage") if isinstance(recipe, VisualModelingRecipe) else None
    if stage == "visual_tokens" and not shape.images:
        raise ValueError("The stage visual_tokens shows images alone: leave images at 1.")
    visual_loss = VISUAL_LOSSES.get(stage) if stage else None
    if stage == "visual_modeling" and not _setting(recipe, "visual_loss_weight"):
        visual_loss = None
    model = planned_model(recipe, config, strategy.startswith("zero"))
    with fake_tensors():
        make_fake(model)
        costs = composed_step(
            model,
            recipe.trainable,
            shape,
            _autocast(recipe),
            bool(_setting(recipe, "cache_features")),
            bool(_setting(recipe, "gradient_checkpointing")),
            visual_loss,
        )
    left: Any = copy.deepcopy(config)
    left.planned_image_size = side
    left.lora_config = model.config.lora_config if _setting(recipe, "save_trained_only") else None
    earlier[_output_dir(recipe)] = left
    if recipe.trainer == "setokim":
        left.token_bank_size = model.config.token_bank_size
        costs.notes.extend(WRITTEN[name] for name in writes)
    return model, costs


def _setok(recipe: SeTokRecipe, options: PlanOptions, strategy: str, earlier) -> tuple[Any, StepCosts]:
    config, side = planned_setok_config(recipe.model, earlier)
    phase = _setting(recipe, "phase")
    model, trainable = planned_setok(recipe, config, phase, strategy.startswith("zero"))
    shape = SeTokStep(
        phase=phase,
        rows=_setting(recipe, "per_device_train_batch_size"),
        image_size=side,
        image_tokens=options.image_tokens,
        num_objects=_setting(recipe, "max_objects"),
        mask_scale=_setting(recipe, "mask_scale"),
        draws=phase == "reconstruction" or bool(_setting(recipe, "reconstruct_boundaries")),
        cached_features=bool(_setting(recipe, "cache_features")),
        kept_tokens=bool(_setting(recipe, "keep_tokens")),
    )
    with fake_tensors():
        make_fake(model)
        costs = setok_step(
            model, trainable, shape, _autocast(recipe), bool(_setting(recipe, "gradient_checkpointing"))
        )
    left: Any = copy.deepcopy(model.config)
    left.planned_image_size = side
    earlier[_output_dir(recipe)] = left
    return model, costs


def _output_dir(recipe: Recipe) -> str:
    return os.path.normpath(str(recipe.training.get("output_dir")))


def _distilled(recipe: FeatureDistillationRecipe, options: PlanOptions) -> tuple[Any, StepCosts, int]:
    found = architecture(recipe.teacher.model)
    side = recipe.student.image_size or found.image_size
    if side is None:
        raise ValueError(f"The images of {recipe.teacher.model} have no one size: set student.image_size.")
    config: Any = found.vision_config
    with fake_tensors(), no_init_weights():
        teacher = _tower(config, getattr(torch, recipe.teacher.dtype)).requires_grad_(False).eval()
        if recipe.student.model == "same":
            student = _tower(changed_config(config, recipe.student.config), torch.float32, side)
        elif recipe.student.model == "wei":
            student = _tower(wei_student_config(config, side), torch.float32)
        else:
            student = _tower(architecture(recipe.student.model).vision_config, torch.float32)
        for tower, attention in ((teacher, recipe.teacher), (student, recipe.student)):
            if attention.attn_implementation is not None:
                tower.set_attn_implementation(attention.attn_implementation)
        distilled = DistilledStudent(
            student,
            config.hidden_size,
            feature_layer=recipe.student.feature_layer,
            feature_tokens=_setting(recipe, "feature_tokens"),
        )
        shape = StepShape(_setting(recipe, "per_device_train_batch_size"), 1, 0, 0, 1, side)
        costs = distillation_step(
            distilled,
            teacher,
            shape,
            recipe.teacher.image_size or side,
            recipe.teacher.feature_layer,
            _autocast(recipe),
            bool(_setting(recipe, "cache_teacher_features")),
            bool(_setting(recipe, "gradient_checkpointing")),
        )
    both = torch.nn.ModuleDict({"student": distilled, "teacher": teacher})
    return both, costs, sum(parameter.numel() for parameter in teacher.parameters())


def _tower(config: Any, dtype: torch.dtype, image_size: int | None = None) -> Any:
    config = copy.deepcopy(config)
    config.dtype = dtype
    if image_size is not None:
        config.image_size = image_size
    return build_vision_tower(config)


def _count(model: Any, parts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    def numbers(prefixes: tuple[str, ...]) -> dict[str, int]:
        found = [parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)]
        trained = [parameter for parameter in found if parameter.requires_grad]
        return {"all": sum(p.numel() for p in found), "trained": sum(p.numel() for p in trained)}

    if not parts:
        parts = {name: (f"{name}.",) for name, _ in model.named_children()}
    return {**{part: numbers(tuple(prefixes)) for part, prefixes in parts.items()}, "model": numbers(("",))}


def _steps(recipe: Recipe, global_batch: int, options: PlanOptions, notes: list[str]) -> int | None:
    steps = int(_setting(recipe, "max_steps") or -1)
    if steps > 0:
        return steps
    if options.samples is None:
        notes.append("How long it takes follows from the number of examples, which --samples gives.")
        return None
    rows = -(-options.samples // (_setting(recipe, "conversations_per_row") or 1))
    return math.ceil(float(_setting(recipe, "num_train_epochs")) * math.ceil(rows / global_batch))


def _setting(recipe: Recipe, name: str) -> Any:
    """What a recipe says of its training, or what holds otherwise."""
    if name in recipe.training:
        return recipe.training[name]
    fields = recipe.arguments_class.__dataclass_fields__  # type: ignore[attr-defined]
    return fields[name].default if name in fields else None


def _autocast(recipe: Recipe) -> torch.dtype | None:
    return torch.bfloat16 if _setting(recipe, "bf16") else torch.float16 if _setting(recipe, "fp16") else None


def _precision(recipe: Recipe, model: Any) -> str:
    """Of most products: autocast's, or else that of the weights."""
    autocast = _autocast(recipe)
    if autocast is None:
        sizes: dict[torch.dtype, int] = {}
        for parameter in model.parameters():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
        autocast = max(sizes, key=lambda dtype: sizes[dtype])
    return str(autocast).removeprefix("torch.")


def _strategy(recipe: Recipe) -> str:
    deepspeed = _setting(recipe, "deepspeed")
    if deepspeed:
        if isinstance(deepspeed, str):
            deepspeed = json.loads(here_or_shipped(deepspeed).read_text())
        stage = int(deepspeed.get("zero_optimization", {}).get("stage", 0))
        return {2: "zero2", 3: "zero3"}.get(stage, "ddp")
    return "fsdp" if _setting(recipe, "fsdp") else "ddp"


__all__ = ["PlanOptions", "TrainingPlan", "plan_recipes"]
