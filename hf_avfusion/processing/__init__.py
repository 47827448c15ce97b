"""Processors from frames and waveforms to model inputs, and pipelines from files to answers."""
