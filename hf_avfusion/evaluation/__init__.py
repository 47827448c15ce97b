"""Metrics as plain functions and as `evaluate` modules, evaluation over several views of a clip, reports of checkpoints,
costs of a model, and comparisons of variants over seeds.
"""
