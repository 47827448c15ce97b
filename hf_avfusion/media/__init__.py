"""Reads a file, bytes or a URL into frames and waveform of a time window."""
