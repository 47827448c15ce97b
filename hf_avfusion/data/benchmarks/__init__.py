"""Benchmarks: records of facts, label names, annotations, and loading from folders and shards."""
