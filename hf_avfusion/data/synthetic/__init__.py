"""Benchmarks that are rendered here: SoundingShapes and AVDigits."""
