"""Errors of predicted numbers, against values worked by hand."""

import numpy as np
import pytest

from hf_avfusion.metrics.regression import regression_errors


def test_errors_by_hand():
    assert regression_errors([[1.0], [2.0], [4.0]], [1.0, 4.0, 3.0]) == {"mse": pytest.approx(5 / 3), "mae": 1.0}
    assert regression_errors([[1.0, 2.0], [4.0, 0.0]], [[1, 4], [3, -100]]) == {"mse": pytest.approx(5 / 3), "mae": 1.0}


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([[1.0, 2.0]], [1.0], r"targets \[1, 2\], got \[1\]"),
        ([[1.0]], [-100], "All 1 targets are -100"),
        ([[1.0]], [np.nan], "Targets: 1 of 1 are NaN"),
        ([[np.inf]], [1.0], "Predictions: 1 of 1 are NaN or infinite"),
        (np.zeros((0, 1)), [], "at least one of each"),
    ],
)
def test_wrong_values_are_refused(predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        regression_errors(predictions, targets)
