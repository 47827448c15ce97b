"""Prints the largest absolute and relative errors over all recorded cases of the originals, per kind of tensor."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from checkers import avmae, mbt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "roots", nargs="*", default=[str(ROOT / "tests" / "goldens")], help="folders with <architecture>/*.json"
    )
    options = parser.parse_args()
    absolute: dict[str, float] = defaultdict(float)
    relative: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)

    def record(name: str, error: float, magnitude: float) -> None:
        kind = (
            "gradients"
            if name.startswith("grad ")
            else "logits"
            if "logits" in name
            else "losses"
            if "loss" in name and "mask" not in name
            else ""
        )
        kind = kind or ("states" if "/" in name or name == "encoded" else "initialisation, front end")
        counts[kind] += 1
        absolute[kind] = max(absolute[kind], error)
        relative[kind] = max(relative[kind], error / magnitude if magnitude else 0.0)

    cases = 0
    for checker in (mbt, avmae):
        checker.on_compare = record
        for root in options.roots:
            for path in sorted((Path(root) / checker.__name__.rsplit(".", 1)[-1]).glob("*.json")):
                checker.check(path.parent, json.loads(path.read_text(encoding="utf-8")), path.stem)
                cases += 1
    print(f"{cases} cases, all within their tolerances")
    print("| tensors | compared | largest absolute error | largest error / largest reference |\n|---|---|---|---|")
    for kind in sorted(counts):
        print(f"| {kind} | {counts[kind]} | {absolute[kind]:.1e} | {relative[kind]:.1e} |")


if __name__ == "__main__":
    main()
