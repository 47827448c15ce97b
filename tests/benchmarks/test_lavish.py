"""The scripts that measure LAVISH, in miniature."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their own module up
        spec.loader.exec_module(module)
        return module

    return load


def test_flops_of_adapters_are_linear_in_the_latent_tokens(load, tmp_path):
    script = load("lavish_counts")
    script.TOKENS, script.REDUCTIONS, script.VIT_BASE = (2, 5, 8), (4, 8), script.vit(32, 1, 2)
    script.write_figure(script.flops_rows(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "lavish_flops.csv").open()))
    for reduction in ("4", "8"):
        first, second, third = (float(row["adapters_gflops"]) for row in rows if row["reduction"] == reduction)
        assert 0 < first < second
        assert third - second == pytest.approx(second - first, rel=1e-6)
    assert (tmp_path / "lavish_flops.png").stat().st_size > 0


@pytest.mark.parametrize("part", ["original", "grouped", "one_call", "tpavi"])  # the others start processes
def test_every_part_of_the_speed_script_runs(load, part):
    script = load("lavish")
    console = Console(record=True, width=130)
    options = script.argparse.Namespace(batches=[1], rounds=1)
    script.PARTS[part](script.SIZES["tiny"], options, console)
    assert console.export_text().count("│") > 3  # a table with a row
