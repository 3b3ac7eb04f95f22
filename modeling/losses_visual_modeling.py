"""
The losses of VT-LMM: language modelling (Eq. 4) and visual modelling in both directions (Eq. 6 and 9), in nats.

Each has two implementations that agree. "plain" is the formula on the logits of all positions; "fused" computes loss
and gradients together with the heads, chunk by chunk, and holds no such matrix.
"""

import math

import torch
from torch import nn

from .fused_head_losses import fused_divergence
from .vocabulary_chunks import LogitTransform, OutputHead

IMPLEMENTATIONS = ("fused", "plain")
IGNORED_LABEL = -100


def visual_modeling_loss(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    image_features: torch.Tensor,
    vm_head_weight: torch.Tensor,
    *,
    num_items: int | float | torch.Tensor | None = None,
    implementation: str = "fused",
    lm_head_bias: torch.Tensor | None = None,
    transform_logits: LogitTransform | None = None,
    accumulate_in_fp32: bool = False,
) -> torch.Tensor:
    """
    How far the language model's prediction Q of an image position is from its visual-token distribution P': the mean
    of KL(P' ‖ Q) over positions (VT-LMM, Eq. 6), which stage IV trains the language model with. Q is the softmax of
    the language-modelling head on the hidden state that predicts the position (Eq. 4), P' that of the visual-modelling
    head on its image features (Eq. 5), a constant: no gradient reaches `image_features` and `vm_head_weight`.

    Probabilities and the loss are computed in float32 (float64 if the inputs are), matrix products in the type of the
    inputs, or autocast's.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_positions, hidden_size)`):
            Row t is the decoder's output that predicts position t, one token before it.
        lm_head_weight (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`): weight of the head of Q.
        image_features (`torch.FloatTensor` of shape `(num_positions, width)`):
            Row t is the adapter's output at position t; a low-rank visual-modelling head's inner features.
        vm_head_weight (`torch.FloatTensor` of shape `(vocab_size, width)`): weight of the head of P'.
        num_items (`int` or `torch.Tensor`, *optional*):
            Divides the sum over positions instead of their number here: the number over all micro-batches and ranks.
            0 says that nothing anywhere is supervised: the loss is 0 and so are its gradients, whatever positions are
            here.
        implementation (`str`, *optional*, defaults to `"fused"`):
            `"fused"`, or `"plain"`, which holds several matrices of `(num_positions, vocab_size)`.
        lm_head_bias (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): bias of the head of Q.
        transform_logits (`Callable`, *optional*):
            What the language model does to its logits behind the head, row by row, such as a soft cap. Gets and
            returns logits in float32 of shape `(rows, vocab_size)`, and may hold no parameters that are trained.
        accumulate_in_fp32 (`bool`, *optional*, defaults to `False`):
            Of "fused": computes the head's gradient in float32, also where the type of products is narrower, in which
            it is rounded once for each chunk of positions otherwise. Slower, and four bytes more per weight while it
            is computed. "plain" knows no chunks.

    Returns:
        `torch.Tensor`: a scalar in nats per position; without positions 0, with a graph.

    Raises:
        ValueError: if shapes, vocabularies or devices do not fit together, an argument is out of its range, or the
            implementation is unknown.
        TypeError: if features or weights are not of a floating-point type.
    """
    _check_head("hidden_states", hidden_states, "lm_head_weight", lm_head_weight, lm_head_bias)
    _check_head("image_features", image_features, "vm_head_weight", vm_head_weight)
    _check_both(hidden_states, lm_head_weight, image_features, vm_head_weight)
    prediction = OutputHead.of(hidden_states, lm_head_weight, lm_head_bias, transform_logits)
    target = OutputHead.of(image_features, vm_head_weight)
    return _divergence(prediction, target, num_items, implementation, accumulate_in_fp32)


def visual_token_loss(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    image_features: torch.Tensor,
    vm_head_weight: torch.Tensor,
    *,
    num_items: int | float | torch.Tensor | None = None,
    implementation: str = "fused",
    lm_head_bias: torch.Tensor | None = None,
    transform_logits: LogitTransform | None = None,
    accumulate_in_fp32: bool = False,
) -> torch.Tensor:
    """
    How far the visual-token distribution P' of an image position is from the language model's prediction Q: the mean
    of KL(Q ‖ P') over positions (VT-LMM, Eq. 9), which stage III trains the visual-modelling head with. Here Q is the
    constant: no gradient reaches `hidden_states` and `lm_head_weight`.

    Args:
        hidden_states, lm_head_weight, image_features, vm_head_weight, num_items, implementation, lm_head_bias,
            transform_logits: as in `visual_modeling_loss`.
        accumulate_in_fp32 (`bool`, *optional*, defaults to `False`): as there, for `vm_head_weight`.

    Returns:
        `torch.Tensor`: a scalar in nats per position; without positions 0, with a graph.

    Raises:
        ValueError: if shapes, vocabularies or devices do not fit together, an argument is out of its range, or the
            implementation is unknown.
        TypeError: if features or weights are not of a floating-point type.
    """
    _check_head("hidden_states", hidden_states, "lm_head_weight", lm_head_weight, lm_head_bias)
    _check_head("image_features", image_features, "vm_head_weight", vm_head_weight)
    _check_both(hidden_states, lm_head_weight, image_features, vm_head_weight)
    prediction = OutputHead.of(image_features, vm_head_weight)
    target = OutputHead.of(hidden_states, lm_head_weight, lm_head_bias, transform_logits)
    return _divergence(prediction, target, num_items, implementation, accumulate_in_fp32)


def language_modeling_loss(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_items: int | float | torch.Tensor | None = None,
    implementation: str = "fused",
    lm_head_bias: torch.Tensor | None = None,
    transform_logits: LogitTransform | None = None,
    accumulate_in_fp32: bool = False,
) -> torch.Tensor:
    """
    Cross-entropy of the next tokens of the text: the mean of −log Q(label) over the positions that have a label
    (VT-LMM, Eq. 4). Rows are aligned, nothing is shifted here.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_positions, hidden_size)`):
            Row t is the decoder's output that predicts the token `labels[t]`.
        lm_head_weight (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`): weight of the head of Q.
        labels (`torch.LongTensor` of shape `(num_positions,)`): ids of tokens; rows of −100 count nowhere.
        num_items, implementation, lm_head_bias, transform_logits, accumulate_in_fp32:
            As in `visual_modeling_loss`; without `num_items` the mean is over rows with a label.

    Returns:
        `torch.Tensor`: a scalar in nats per token; without labels 0, with a graph.

    Raises:
        ValueError: if shapes or devices do not fit together, a label is outside of the vocabulary, an argument is out
            of its range, or the implementation is unknown.
        TypeError: if features or weights are not of a floating-point type, or labels not of an integer type.
    """
    _check_head("hidden_states", hidden_states, "lm_head_weight", lm_head_weight, lm_head_bias)
    labelled = labels != IGNORED_LABEL
    _check_labels(labels, labels[labelled], hidden_states, lm_head_weight)
    prediction = OutputHead.of(hidden_states[labelled], lm_head_weight, lm_head_bias, transform_logits)
    return _divergence(prediction, labels[labelled].long(), num_items, implementation, accumulate_in_fp32)


def _divergence(
    prediction: OutputHead,
    target: OutputHead | torch.Tensor,
    num_items: int | float | torch.Tensor | None,
    implementation: str,
    accumulate_in_fp32: bool,
) -> torch.Tensor:
    """Sum of KL(target ‖ prediction) over positions, divided by how many there are."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation is {implementation!r}, expected one of {', '.join(map(repr, IMPLEMENTATIONS))}."
        )
    factor = _factor(num_items, prediction)
    if implementation == "fused":
        return fused_divergence(prediction, target, factor, accumulate_in_fp32)
    log_prediction = nn.functional.log_softmax(prediction.logits(), dim=-1)
    if isinstance(target, torch.Tensor):
        return nn.functional.nll_loss(log_prediction, target, reduction="sum") * factor
    with torch.no_grad():
        log_target = nn.functional.log_softmax(target.logits(), dim=-1)
    return nn.functional.kl_div(log_prediction, log_target, reduction="sum", log_target=True) * factor


def _factor(num_items: int | float | torch.Tensor | None, prediction: OutputHead) -> float | torch.Tensor:
    """What the sum over positions is multiplied by: one over the number of items, and 0 where that is 0."""
    num_positions = len(prediction.features)
    if num_positions == 0:  # nothing is divided, maybe by nothing: no rank has an image
        return 1.0
    if num_items is None:
        return 1 / num_positions
    if isinstance(num_items, torch.Tensor):
        if num_items.numel() != 1:
            raise ValueError(f"num_items has the shape {tuple(num_items.shape)}, expected a single number.")
        number = num_items.detach().reshape(()).to(prediction.loss_dtype)
        return torch.where(number == 0, number, 1 / number)
    if not (math.isfinite(num_items) and num_items >= 0):
        raise ValueError(f"num_items is {num_items}, expected the number of positions over all batches.")
    return 1 / num_items if num_items else 0.0


def _check_head(
    features_name: str,
    features: torch.Tensor,
    weight_name: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:
    for name, tensor in ((features_name, features), (weight_name, weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is of type {tensor.dtype}, expected a floating-point type.")
    if weight.numel() == 0:
        raise ValueError(
            f"{weight_name} has the shape {tuple(weight.shape)}, expected (vocab_size, width). DeepSpeed ZeRO 3 and "
            "FSDP leave an empty weight behind where they partition it: gather it before the loss."
        )
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{features_name} has the shape {tuple(features.shape)} and {weight_name} {tuple(weight.shape)}: expected "
            "(num_positions, width) and (vocab_size, width) with the same width."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"The bias of {weight_name} has the shape {tuple(bias.shape)}, expected ({weight.shape[0]},), a number "
            "for each token of the vocabulary."
        )
    if features.device != weight.device:
        raise ValueError(
            f"{features_name} is on {features.device} and {weight_name} on {weight.device}: move the features to the "
            "head's device."
        )


def _check_both(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    image_features: torch.Tensor,
    vm_head_weight: torch.Tensor,
) -> None:
    if len(hidden_states) != len(image_features):
        raise ValueError(
            f"hidden_states has {len(hidden_states)} rows and image_features {len(image_features)}: row t of one has "
            "to predict the position of row t of the other."
        )
    if len(lm_head_weight) != len(vm_head_weight):
        raise ValueError(
            f"lm_head_weight has {len(lm_head_weight)} tokens and vm_head_weight {len(vm_head_weight)}: both heads "
            "need the same vocabulary. If tokens were added to one, resize the other too."
        )
    if hidden_states.device != image_features.device:
        raise ValueError(
            f"hidden_states is on {hidden_states.device} and image_features on {image_features.device}: move the "
            "features and their head to the device of the language model's head."
        )


def _check_labels(
    labels: torch.Tensor, given: torch.Tensor, hidden_states: torch.Tensor, lm_head_weight: torch.Tensor
) -> None:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels is of type {labels.dtype}, expected ids of tokens, such as torch.long.")
    if labels.shape != hidden_states.shape[:1]:
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} and hidden_states {tuple(hidden_states.shape)}: expected a "
            "label for each row."
        )
    vocab_size = len(lm_head_weight)
    if len(given) and not 0 <= int(given.min()) <= int(given.max()) < vocab_size:
        raise ValueError(
            f"labels lie between {int(given.min())} and {int(given.max())}, expected ids below the vocabulary's "
            f"{vocab_size}, or {IGNORED_LABEL} where there is none."
        )


__all__ = ["IGNORED_LABEL", "IMPLEMENTATIONS", "language_modeling_loss", "visual_modeling_loss", "visual_token_loss"]
