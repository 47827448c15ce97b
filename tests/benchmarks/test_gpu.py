"""The GPU benchmark in miniature: every part, its time limit, and what it leaves when it is cut off."""

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
NOTES = ("skipped", "cut_off", "error")


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("gpu")


@pytest.fixture
def call(gpu, monkeypatch):
    """Runs the script in this process without a GPU; returns its exit status."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as exit:
                gpu.main()
        finally:
            gc.unfreeze()
        return exit.value.code

    return run


def records_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """All parts, from the source tree, where no library for media or datasets is installed and no GPU is seen."""
    folder = tmp_path_factory.mktemp("gpu") / "results"
    hidden = "av,datasets,evaluate,torchcodec"
    command = [sys.executable, ROOT / "tests" / "without.py", hidden, SCRIPT, "--output", folder, "--tiny"]
    environment = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder.parent, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_every_piece_has_a_result(whole_run):
    records = records_of(whole_run)
    assert not [record for record in records if any(note in record for note in NOTES)]
    assert {record["part"] for record in records} == {"parity", "kernels", "speed"}
    for record in records:
        assert record["torch"] == torch.__version__
        assert record["device"]
        assert record["tiny"] is True
    tables = (whole_run / "results.md").read_text(encoding="utf-8")
    assert {"## parity", "## kernels", "## speed"} <= set(tables.splitlines())
    assert "## Without a result" not in tables
    widths = [line.count(" | ") for line in tables.splitlines() if line.startswith("| piece")]
    assert min(widths) > 2


@pytest.mark.slow
def test_parity_covers_all_goldens(whole_run):
    goldens = [record for record in records_of(whole_run) if "beyond_bars" in record]
    assert {(record["architecture"], record["precision"]) for record in goldens} == {
        (path.stem, precision)
        for path in (ROOT / "tests" / "checkers").glob("*.py")
        for precision in ("float32", "bf16 autocast")
    }
    for record in goldens:
        assert record["cases"] == len(list((ROOT / "tests" / "goldens" / record["architecture"]).glob("*.json")))
        assert not record["failed"]
        assert (record["beyond_bars"] == 0) == (record["precision"] == "float32")
    precisions = {r["precision"]: r["error_to_float64"] for r in records_of(whole_run) if "error_to_float64" in r}
    assert precisions["float32"] < 1e-5 < precisions["bf16 weights"] < 0.1


@pytest.mark.slow
def test_kernels_are_named_and_compared(whole_run):
    calls = [record for record in records_of(whole_run) if record["part"] == "kernels"]
    assert len({record["path"] for record in calls}) == 7 * 3
    for record in calls:
        assert record["default"] == "flash"  # what torch has on the CPU
        assert {"flash", "math"} <= set(record["ms"])
        assert {"cudnn", "efficient"} <= set(record["refused"])
        assert record["mask"] is False
    assert {record["dtype"] for record in calls} == {"bfloat16", "float32"}


@pytest.mark.slow
def test_speed_runs_until_memory_ends(whole_run):
    records = [record for record in records_of(whole_run) if record["part"] == "speed"]
    timed = [record for record in records if "clips_per_s" in record]
    assert {(record["call"], record["mode"]) for record in timed} == {
        (call, mode) for call in ("forward", "training step") for mode in ("eager", "compiled")
    }
    assert {record["batch"] for record in timed if record["mode"] == "eager"} == {2, 4}
    assert [record["batch"] for record in records if "memory_ended" in record] == [8, 8]
    for record in timed:
        assert record["tflops"] > 0
        assert record["share_of_matmul"] > 0
        assert record["frames"] == 4
        if record["mode"] == "compiled":
            assert record["compile_s"] > 0
            assert sum(record["attention"].values()) > 0
    assert [record["piece"] for record in records if "size" in record] == ["bf16 matmul", "bf16 matmul again"]


def test_without_time_every_piece_says_that_it_was_left_out(call, tmp_path):
    assert call("--tiny", "--minutes", "0", "--output", tmp_path) == 0
    records = records_of(tmp_path)
    assert {record["part"] for record in records} == {"parity", "kernels", "speed"}
    assert all("0 s are left" in record["skipped"] for record in records)
    assert (tmp_path / "results.md").read_text(encoding="utf-8").count("skipped: needs about") == len(records)


def test_parts_can_be_chosen(call, tmp_path):
    assert call("--tiny", "--minutes", "0", "--parts", "speed", "--output", tmp_path) == 0
    assert {record["part"] for record in records_of(tmp_path)} == {"speed"}


def test_refuses_what_would_fail_later(call, tmp_path, capsys):
    assert call("--output", tmp_path) == 2
    assert "give --tiny" in capsys.readouterr().err
    (tmp_path / "results.jsonl").touch()
    assert call("--tiny", "--output", tmp_path) == 2
    assert "give a new folder to --output" in capsys.readouterr().err


def test_the_time_limit_ends_a_piece_and_keeps_its_records(gpu, tmp_path):
    journal = gpu.Journal(tmp_path, minutes=0.5 / 60, facts={"device": "none"})

    def endless(record) -> None:
        for number in range(10**6):
            record(number=number)
            time.sleep(0.01)

    assert not journal.attempt("part", "endless", 0.1, endless)
    assert not journal.attempt("part", "next", 0.1, endless)
    *kept, cut, skipped = records_of(tmp_path)
    assert [record["number"] for record in kept] == list(range(len(kept)))
    assert kept
    assert "time limit" in cut["cut_off"]
    assert "0 s are left" in skipped["skipped"]
    assert journal.errors == 0


def test_a_piece_that_fails_leaves_the_others_running(gpu, tmp_path):
    journal = gpu.Journal(tmp_path, minutes=1, facts={"device": "none"})

    def broken(record) -> None:
        record(value=1.0)
        raise RuntimeError("no kernel | for this")

    assert not journal.attempt("part", "broken", 1, broken)
    assert journal.attempt("part", "whole", 1, lambda record: record(value=2.0))
    assert journal.errors == 1
    assert [record.get("value", record.get("error")) for record in records_of(tmp_path)] == [
        1.0,
        "RuntimeError: no kernel | for this",
        2.0,
    ]
    tables = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| broken | 1 |\n| whole | 2 |" in tables
    assert "- part, broken: error: RuntimeError: no kernel | for this" in tables


@pytest.mark.parametrize("architecture", sorted(path.stem for path in (ROOT / "tests" / "checkers").glob("*.py")))
def test_checkers_place_models_and_inputs(architecture, monkeypatch):
    """`device` reaches everything: a dtype in its place fails where a float32 tensor meets a float64 weight."""
    checker = importlib.import_module(f"checkers.{architecture}")
    monkeypatch.setattr(checker, "device", torch.float64)
    for path in sorted((ROOT / "tests" / "goldens" / architecture).glob("*.json")):
        checker.check(path.parent, json.loads(path.read_text(encoding="utf-8")), path.stem)
