"""Converts original checkpoints to our state dicts: one module per source, without JAX or TensorFlow."""
