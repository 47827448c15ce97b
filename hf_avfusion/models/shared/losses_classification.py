"""Classification losses of all heads: single-label, multi-label and multi-head, with label smoothing as published."""

import torch
from torch import nn

IGNORED_LABEL = -100  # as in PyTorch's cross-entropy
ROUNDING = 1e-3  # by which mixed targets in low precision may leave [0, 1]


def infer_problem_type(problem_type: str | None, num_labels: int, labels: torch.Tensor) -> str:
    """
    The configured problem type, or else the result of transformers' rule.

    One output means regression, integer labels mean a single label per clip, float labels are multi-hot.
    """
    if problem_type is not None:
        return problem_type
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def check_label_values(
    labels: torch.Tensor, problem_type: str, num_labels: int, class_splits: dict[str, int] | None = None
) -> None:
    """
    Check that class numbers exist and that targets lie in [0, 1]; -100 passes. Targets of a regression are not checked.

    It reads values, which waits for a GPU and breaks a graph. So losses check labels on the CPU only, and not while they are
    compiled; `AVCollator.for_model` checks the labels of a batch before it goes to a GPU.

    Raises:
        ValueError: If they do not; the message names the value.
    """
    if problem_type == "regression":
        return
    counted = labels != IGNORED_LABEL
    if labels.is_floating_point() or problem_type == "multi_label_classification":
        wrong = counted & ~((labels >= -ROUNDING) & (labels <= 1 + ROUNDING))
        if wrong.any():
            raise ValueError(
                f"`labels` hold {labels[wrong][0].item():g}, but targets of {problem_type} lie in [0, 1] (-100: no label). Give"
                " multi-hot labels or probabilities, or set `config.problem_type` for labels of another kind."
            )
        return
    heads = class_splits or {None: num_labels}
    if class_splits and labels.shape[-1:] != (len(class_splits),):
        return  # `classification_loss` names the shape
    for (head, size), numbers in zip(heads.items(), labels.unbind(-1) if class_splits else [labels]):
        wrong = (numbers != IGNORED_LABEL) & ((numbers < 0) | (numbers >= size))
        if wrong.any():
            where, field = (f" of the head {head}", "class_splits") if class_splits else ("", "num_labels")
            raise ValueError(
                f"`labels`{where} hold {numbers[wrong][0].item()}, but its class numbers are 0..{size - 1} (-100: no label)."
                f" Number the classes from 0, or load a model with a matching `config.{field}`."
            )


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str,
    label_smoothing: float = 0.0,
    class_splits: dict[str, int] | None = None,
) -> torch.Tensor:
    """
    Loss of each sample, float32 [B]. Its mean over the batch is the loss of the originals.

    Labels of -100 do not count. A sample without other labels has loss 0, and the losses of the others are scaled so that the
    mean over the batch is the mean over the samples that count. Of several heads, each has its own such mean. A row of
    probabilities that holds -100 does not count.

    Args:
        logits: [B, C], any float dtype; computed in float32.
        labels: by `problem_type`; integers of any type:
            `"single_label_classification"`: class indices [B], or class probabilities, float [B, C] (mixup);
            `"multi_label_classification"`: multi-hot (or mixed) targets, float [B, C]; the loss is **summed over
            classes** as in scenic (transformers averages);
            `"multi_head_classification"`: one index per head, integer [B, heads], in the order of `class_splits`, or the
            concatenated class probabilities of the heads, float [B, C] (mixup); the loss is the mean over heads;
            `"regression"`: targets, float [B] or [B, C]; squared error averaged over outputs.
        label_smoothing: s in `y <- y (1 - s) + s / C`, applied to soft and multi-hot targets alike (not to regression).
        class_splits: head name -> number of classes; logits are the concatenated logits of the heads.

    Raises:
        ValueError: If the shape of `labels` does not fit; on the CPU also if their values do not (`check_label_values`).
    """
    logits = logits.float()
    batch, classes = logits.shape
    if not labels.is_floating_point():
        labels = labels.long()
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_values(labels, problem_type, classes, class_splits)
    if problem_type == "regression":
        targets = labels.float().reshape(batch, -1)
        _check(targets.shape == logits.shape, problem_type, f"[{batch}, {classes}]", labels)
        counted = targets != IGNORED_LABEL
        errors = torch.where(counted, logits - targets, 0.0).square().sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return _rescale(errors, counted.any(dim=1))
    if problem_type == "multi_label_classification":
        _check(labels.shape == logits.shape, problem_type, f"multi-hot floats [{batch}, {classes}]", labels)
        counted = labels != IGNORED_LABEL
        targets = labels.float() * (1.0 - label_smoothing) + label_smoothing / classes
        losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return _rescale(torch.where(counted, losses, 0.0).sum(dim=1), counted.any(dim=1))
    if problem_type == "single_label_classification":
        fits = labels.shape == ((batch, classes) if labels.is_floating_point() else (batch,))
        _check(fits, problem_type, f"indices [{batch}] or probabilities [{batch}, {classes}]", labels)
        return _cross_entropy(logits, labels, label_smoothing)
    if problem_type == "multi_head_classification":
        sizes = list(class_splits.values())
        fits = labels.shape == ((batch, classes) if labels.is_floating_point() else (batch, len(sizes)))
        wanted = f"one index per head of {list(class_splits)}, integers [{batch}, {len(sizes)}], or probabilities"
        _check(fits, problem_type, f"{wanted} [{batch}, {classes}]", labels)
        targets = labels.split(sizes, dim=1) if labels.is_floating_point() else labels.unbind(dim=1)
        losses = [
            _cross_entropy(part, target, label_smoothing) for part, target in zip(logits.split(sizes, dim=1), targets)
        ]
        return torch.stack(losses).mean(dim=0)
    raise ValueError(
        f"`problem_type` must be one of single_label_classification, multi_label_classification, multi_head_classification and "
        f"regression, got {problem_type!r}."
    )


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    if not targets.is_floating_point():
        options = {"label_smoothing": label_smoothing, "ignore_index": IGNORED_LABEL}
        losses = nn.functional.cross_entropy(logits, targets, reduction="none", **options)
        return _rescale(losses, targets != IGNORED_LABEL)
    counted = (targets != IGNORED_LABEL).all(dim=1)
    targets = torch.where(counted[:, None], targets, 0.0)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return _rescale(torch.where(counted, losses, 0.0), counted)


def _rescale(losses: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """losses [B], 0 where not `counted` bool [B]. Their mean becomes the mean over those that count. Exact if all do."""
    return losses * (counted.numel() / counted.sum().clamp(min=1))


def _check(fits: bool, problem_type: str, wanted: str, labels: torch.Tensor) -> None:
    if not fits:
        raise ValueError(
            f"`labels` for {problem_type} must be {wanted}, got {labels.dtype} of shape {tuple(labels.shape)}. "
            "Set `config.problem_type` for labels of another kind."
        )
