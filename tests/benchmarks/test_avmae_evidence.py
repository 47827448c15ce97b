"""The evidence script in miniature: its arms, its resuming, its equal compute."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "avmae_evidence.py"

pytestmark = pytest.mark.slow  # a run per arm, label count and seed


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("avmae_evidence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def call(script, folder, *more):
    arguments = [
        "--output", str(folder), "--train_clips", "32", "--test_clips", "16", "--labelled_clips", "16", "8", "--seeds", "0", "1",
        "--strategies", "early", "mid_fusion", "--pretrain_steps", "2", "--pretrain_batch_size", "8", "--finetune_steps", "2",
        "--finetune_batch_size", "8", "--longer_scratch", "False", *more,
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        script.main()


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    call(script, folder)
    return folder


def test_tables_hold_every_arm_and_agree_with_the_runs(folder):
    runs = {path.stem: json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")}
    starts = ("mbt-scratch", "mbt-mid_fusion", "own-scratch-mid_fusion", "own-mid_fusion")
    expected = {f"{start}-{n}labels-seed{seed}" for start in starts for n in (16, 8) for seed in (0, 1)}
    assert set(runs) == expected | {f"mbt-early-8labels-seed{seed}" for seed in (0, 1)}
    text = (folder / "tables.md").read_text()
    early, late = (runs[f"mbt-{start}-16labels-seed0"] for start in ("scratch", "mid_fusion"))
    assert (
        f"; {' / '.join(f'{late[h] - early[h]:.1f}' for h in ('shape', 'sound', 'sum'))}" not in text
    )  # seed 0 comes first
    assert f"| {' / '.join(f'{late[h] - early[h]:.1f}' for h in ('shape', 'sound', 'sum'))}; " in text
    assert "n = 2" in text


def test_finished_runs_are_kept_and_a_missing_one_is_made_again_alike(script, folder):
    lost = folder / "runs" / "mbt-mid_fusion-16labels-seed1.json"
    before = {path: path.read_bytes() for path in (folder / "runs").glob("*.json")}
    lost.unlink()
    call(script, folder)
    again = json.loads(lost.read_text())
    assert {**again, "seconds": 0} == {**json.loads(before[lost]), "seconds": 0}
    assert all(path.read_bytes() == text for path, text in before.items() if path != lost)
    assert not list((folder / "runs").glob("*.partial"))


def test_other_settings_do_not_mix_with_finished_runs(script, folder):
    with pytest.raises(ValueError, match="finetune_steps"):
        call(script, folder, "--finetune_steps", "3")


def test_strategies_get_equal_flops(script, folder):
    options = script.Options(
        output=str(folder),
        train_clips=32,
        test_clips=16,
        labelled_clips=[16],
        pretrain_steps=200,
        pretrain_batch_size=8,
    )
    (folder / "settings.json").unlink()  # other settings, but nothing is trained
    evidence = script.Evidence(options, script.Console(quiet=True))
    budget = evidence.flops["mid_fusion"] * 200
    assert evidence.steps["mid_fusion"] == 200
    for strategy, steps in evidence.steps.items():
        assert abs(evidence.flops[strategy] * steps - budget) <= evidence.flops[strategy] / 2
    # Joint attention over both modalities costs more than over each alone.
    assert evidence.flops["early"] > evidence.flops["mid_fusion"] > evidence.flops["separate"]
    assert evidence.flops["separate"] == evidence.flops["shared"]
    assert evidence.longer > options.finetune_steps
