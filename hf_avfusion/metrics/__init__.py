"""Scores of predictions, as plain functions; evaluate_modules/ wraps them for the `evaluate` library."""
