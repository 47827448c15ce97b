"""Benchmarks, streams of undecoded clips, augmentation, collating, and SoundingShapes."""

from importlib import import_module

_LAZY = {
    "BENCHMARKS": "records",
    "load_benchmark": "benchmarks",
    "coverage": "benchmarks",
    "load_folder": "folders",
    "load_unlabelled": "folders",
    "interleave": "interleaving",
    "LabelBalance": "balancing",
}

__all__ = [*_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
