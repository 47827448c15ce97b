"""Metrics as plain functions; evaluate_modules/ wraps them for the `evaluate` library."""
