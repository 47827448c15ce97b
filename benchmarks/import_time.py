"""Compares the import time of hf_avfusion with that of transformers' AutoModel, in fresh, alternating processes.

Two further cases import what lazy_registration.py postpones. CPU time depends less than wall time on what else the machine does.
"""

import argparse
import statistics
import subprocess
import sys

CASES = {
    "transformers AutoModel": "from transformers import AutoModel; AutoModel.from_config",
    "hf_avfusion, AutoModel": "import hf_avfusion; from transformers import AutoModel; AutoModel.from_config",
    "import hf_avfusion alone": "import hf_avfusion",
    "with the models": "import hf_avfusion; hf_avfusion.MBTModel; hf_avfusion.AVMAEModel",
    "with the processors": "import hf_avfusion, transformers.pipelines",
}
TIMER = (
    "import time; start, cpu = time.perf_counter(), time.process_time(); {};"
    "print(time.perf_counter() - start, time.process_time() - cpu)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    cpu: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(options.repeats + 1):
        for name, code in CASES.items():
            done = subprocess.run(
                [sys.executable, "-c", TIMER.format(code)], capture_output=True, text=True, check=True
            )
            if turn:  # the first turn only warms up the file cache
                wall, used = map(float, done.stdout.split()[-2:])
                seconds[name].append(wall)
                cpu[name].append(used)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:24s} median {medians[name]:.2f} s  min {min(values):.2f}  max {max(values):.2f}"
            f"  CPU {statistics.median(cpu[name]):.2f} s"
        )
    base, ours, *_ = medians.values()
    print(f"difference {ours - base:+.2f} s, ratio {ours / base:.2f}")


if __name__ == "__main__":
    main()
