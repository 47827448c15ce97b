"""Compares the import time of hf_avfusion with that of transformers' AutoModel, in fresh, alternating processes."""

import argparse
import statistics
import subprocess
import sys

CASES = {
    "transformers AutoModel": "from transformers import AutoModel; AutoModel.from_config",
    "import hf_avfusion": "import hf_avfusion",
}
TIMER = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(options.repeats + 1):
        for name, code in CASES.items():
            done = subprocess.run(
                [sys.executable, "-c", TIMER.format(code)], capture_output=True, text=True, check=True
            )
            if turn:  # the first turn only warms up the file cache
                seconds[name].append(float(done.stdout.split()[-1]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:24s} median {medians[name]:.2f} s  min {min(values):.2f}  max {max(values):.2f}")
    base, ours = medians.values()
    print(f"difference {ours - base:+.2f} s, ratio {ours / base:.2f}")


if __name__ == "__main__":
    main()
