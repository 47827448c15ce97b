"""Errors of predicted numbers, for heads with `problem_type="regression"`."""

import numpy as np
from numpy.typing import ArrayLike

from .checks import IGNORED_LABEL, check_scores


def regression_errors(predictions: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Computes scikit-learn's mean squared error (`mse`) and mean absolute error (`mae`) over all clips and outputs.

    Args:
        predictions: float `[clips, outputs]`.
        targets: numbers `[clips, outputs]`, or `[clips]` for one output. An entry of -100 does not count, as in the loss.

    Raises:
        ValueError: wrong shapes, no clips, values that are NaN or infinite, or all targets are -100.
    """
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    predictions, targets = check_scores(predictions), np.asarray(targets, dtype=np.float64)
    if targets.reshape(len(targets), -1).shape != predictions.shape:
        raise ValueError(f"Expected targets {list(predictions.shape)}, got {list(targets.shape)}.")
    targets = targets.reshape(predictions.shape)
    counted = targets != IGNORED_LABEL
    if not counted.any():
        raise ValueError(
            f"All {targets.size} targets are {IGNORED_LABEL} (no label); evaluate clips that have targets."
        )
    for name, values in (("Predictions", predictions), ("Targets", targets)):
        if wrong := int((~np.isfinite(values[counted])).sum()):
            raise ValueError(f"{name}: {wrong} of {int(counted.sum())} are NaN or infinite.")
    return {
        "mse": float(mean_squared_error(targets[counted], predictions[counted])),
        "mae": float(mean_absolute_error(targets[counted], predictions[counted])),
    }
