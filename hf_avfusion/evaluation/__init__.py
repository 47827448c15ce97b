"""Metrics as plain functions and as `evaluate` modules, and evaluation over several views of a clip."""
