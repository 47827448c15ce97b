"""The preparing example as a user runs it: a folder and a benchmark to shards, again, and with what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rendering import render_clip

from hf_avfusion.data.benchmarks import load_benchmark
from hf_avfusion.data.folders import load_folder

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, str(ROOT / "examples/prepare_benchmark.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_benchmark_and_a_folder_of_your_own(tmp_path):
    film = render_clip(num_frames=50)
    for name in ("cat/a", "cat/b", "dog/a", "dog/b", "x"):
        (tmp_path / f"clips/{name}.mp4").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"clips/{name}.mp4").write_bytes(film if name != "dog/b" else b"junk")
    (tmp_path / "vggsound.csv").write_text("x,1,air horn,test\ngone,1,air horn,test\n")
    options = [
        "--source",
        tmp_path / "clips",
        "--annotations",
        tmp_path / "vggsound.csv",
        "--splits",
        "test",
        "--trimmed",
        "false",
    ]
    done = run("vggsound", *options, "--output", tmp_path / "vgg", "--trim", "--short_side", "32", "--num_proc", "1")
    assert done.returncode == 0, done.stderr
    assert "test: 1 of 2 annotated clips are there (officially 15,446), 1 vanished, 0 do not decode" in done.stdout
    assert "clip/s" in done.stderr  # its rate, and the time left
    (row,) = load_benchmark("vggsound", "test", source=tmp_path / "vgg")
    assert (row["start"], row["end"]) == (0.0, 1.0)
    refused = run("vggsound", *options, "--output", tmp_path / "vgg", "--trim", "--short_side", "48")
    assert refused.returncode == 2
    assert "short_side was 32 and is 48" in refused.stderr

    done = run(tmp_path / "clips", "--output", tmp_path / "mine", "--holdout", "0.5", "--num_proc", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/coverage.md").exists()
    assert sum(len(load_folder(tmp_path / "mine", split)) for split in ("train", "test")) == 3
    nowhere = run("vggsound", "--output", tmp_path / "vgg")
    assert nowhere.returncode == 2
    assert "pass --source, the folder of the clips of vggsound" in nowhere.stderr
