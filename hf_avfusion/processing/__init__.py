"""Frames and waveforms -> the tensors that models take, and pipelines from files to answers."""
