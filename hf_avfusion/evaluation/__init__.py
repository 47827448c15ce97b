"""Evaluation over several views of a clip, reports on checkpoints, costs of models, and comparisons of variants over seeds."""
