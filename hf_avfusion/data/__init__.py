"""Benchmarks, streams of undecoded clips, augmentation, collating, and SoundingShapes."""

from importlib import import_module

_LAZY = {
    "BENCHMARKS": "benchmarks.records",
    "load_benchmark": "benchmarks.loading",
    "coverage": "benchmarks.loading",
    "load_folder": "benchmarks.folders",
    "load_unlabelled": "benchmarks.folders",
    "interleave": "streaming.interleaving",
    "LabelBalance": "streaming.balancing",
}

__all__ = [*_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
