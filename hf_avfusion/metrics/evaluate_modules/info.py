"""Shared parts of the `evaluate` modules: their description, and the check of whole numbers."""

from typing import Any

import datasets
import evaluate
import numpy as np

# Type of columns of class numbers. An integer column would silently truncate 0.9 to 0, so they are float and checked by
# `whole_numbers`.
WHOLE = datasets.Value("float64")


def module_info(description: str, inputs_description: str, features: dict) -> evaluate.MetricInfo:
    """Returns the `MetricInfo` of a module whose `_compute` gets numpy arrays.

    By default, evaluate passes nested lists: reading 20,000 x 309 scores and labels takes 5.4 s, and 0.13 s as arrays (one
    core). The constructor refuses the format "numpy" for columns of lists, but they work if it is set afterwards
    (evaluate 0.4.6).
    """
    info = evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=inputs_description,
        features=datasets.Features(features),
    )
    info.format = "numpy"
    return info


def whole_numbers(values: Any, what: str) -> np.ndarray:
    """Converts a column of type `WHOLE` to int64.

    Raises:
        ValueError: a number is not whole, or not below 2**24. Evaluate passes float32, which is exact only below that.
    """
    values = np.asarray(values)
    if values.dtype == object:  # rows of different lengths; the plain function raises for them
        return values
    if wrong := values[(values != np.floor(values)) | (np.abs(values) >= 2**24)].tolist():
        raise ValueError(f"{what} must be whole numbers below 2**24, got {wrong[0]:g}.")
    return values.astype(np.int64)
