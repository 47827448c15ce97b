"""Prints the largest absolute and relative errors over all recorded cases of the originals, per kind of tensor."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"
sys.path.insert(0, str(ROOT / "tests"))

from checkers import avmae, mbt  # noqa: E402


def kind_of(name: str) -> str:
    """The row of the table that a compared tensor belongs to."""
    if name.startswith("grad "):
        return "gradients"
    if "logits" in name:
        return "logits"
    if "loss" in name and "mask" not in name:
        return "losses"
    return "states" if "/" in name or name == "encoded" else "initialisation, front end"


class Errors:
    """Largest errors per kind of tensor; `record` is what a checker's `on_compare` calls."""

    def __init__(self) -> None:
        self.absolute: dict[str, float] = defaultdict(float)
        self.relative: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.worst: dict[str, str] = {}  # the tensor of the largest relative error

    def record(self, name: str, error: float, magnitude: float) -> None:
        kind = kind_of(name)
        self.counts[kind] += 1
        self.absolute[kind] = max(self.absolute[kind], error)
        relative = error / magnitude if magnitude else 0.0
        if kind not in self.worst or relative > self.relative[kind]:
            self.worst[kind], self.relative[kind] = name, relative


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", nargs="*", default=[str(GOLDENS)], help="folders holding <architecture>/*.json")
    options = parser.parse_args()
    errors, cases = Errors(), 0
    for checker in (mbt, avmae):
        checker.on_compare = errors.record
        for root in options.roots:
            for path in sorted((Path(root) / checker.__name__.rsplit(".", 1)[-1]).glob("*.json")):
                checker.check(path.parent, json.loads(path.read_text(encoding="utf-8")), path.stem)
                cases += 1
    print(f"{cases} cases, all within their tolerances")
    print("| tensors | compared | largest absolute error | largest error / largest reference |\n|---|---|---|---|")
    for kind in sorted(errors.counts):
        print(f"| {kind} | {errors.counts[kind]} | {errors.absolute[kind]:.1e} | {errors.relative[kind]:.1e} |")


if __name__ == "__main__":
    main()
