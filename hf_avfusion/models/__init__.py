"""Architectures, one folder each, and what they share. This code, processing/ and media/ travel with a checkpoint."""
