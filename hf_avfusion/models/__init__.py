"""Architectures, one folder each, and shared parts. This code, processing/ and media/ are exported with a checkpoint."""
