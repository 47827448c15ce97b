"""Streams of undecoded clips: order, balancing, workers, resuming."""
