"""Metrics as plain functions and as `evaluate` modules, evaluation over several views of a clip, and reports of checkpoints."""
