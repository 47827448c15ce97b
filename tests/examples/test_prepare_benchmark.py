"""examples/prepare_benchmark.py as a user calls it: shards from a benchmark and from a folder, and wrong arguments."""

import importlib.util
import sys
from pathlib import Path

import pytest
from rendering import render_clip

from hf_avfusion.data.benchmarks.folders import load_folder
from hf_avfusion.data.benchmarks.loading import load_benchmark
from hf_avfusion.data.preparing import pushing

SCRIPT = Path(__file__).resolve().parents[2] / "examples/prepare_benchmark.py"


@pytest.fixture
def run(monkeypatch):
    """Calls the script's `main` with a command line and returns its exit code."""
    spec = importlib.util.spec_from_file_location("prepare_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "prepare_benchmark", script)  # dataclasses look up their module there
    spec.loader.exec_module(script)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        try:
            return script.main()
        except SystemExit as stop:
            return stop.code

    call.script = script
    return call


@pytest.fixture
def clips(tmp_path):
    film = render_clip(num_frames=50)
    for name in ("cat/a", "cat/b", "dog/a", "dog/b", "x"):
        path = tmp_path / f"clips/{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film if name != "dog/b" else b"junk")
    (tmp_path / "vggsound.csv").write_text("x,1,air horn,test\ngone,1,air horn,test\n")
    return tmp_path / "clips"


def test_a_benchmark(run, clips, tmp_path, capsys):
    command = ["vggsound", "--source", clips, "--annotations", tmp_path / "vggsound.csv", "--splits", "test"]
    command += ["--trimmed", "false", "--trim", "--output", tmp_path / "out", "--num_proc", "1"]
    assert run(*command, "--short_side", "32") == 0
    printed = capsys.readouterr()
    assert "test: 1 of 2 annotated clips are present (officially 15,446), 1 vanished, 0 do not decode" in printed.out
    assert "clip/s" in printed.err  # the progress bar shows rate and remaining time
    (row,) = load_benchmark("vggsound", "test", source=tmp_path / "out")
    assert (row["start"], row["end"]) == (0.0, 1.0)
    assert run(*command, "--short_side", "48") == 2
    assert "error: " in (printed := capsys.readouterr().err)
    assert "short_side was 32 and is 48" in printed
    assert run("vggsound", "--output", tmp_path / "out") == 2
    assert "pass --source, the folder of the clips of vggsound" in capsys.readouterr().err


def test_options_without_effect_fail(run, clips, tmp_path, capsys):
    output = ("--output", tmp_path / "out")
    for command, message in (
        ((clips, "--source", clips, "--variant", "x", *output), "--source, --variant would change nothing:"),
        (
            ("vggsound", "--source", clips, "--seed", "1", *output),
            "--seed would change nothing: vggsound is a benchmark",
        ),
        (("vggsound", "--push", "me/vgg", "--trim", *output), "--trim would change nothing: the shards in"),
        ((clips, "--output", clips), "choose another --output, or --push to push the existing shards in"),
        ((clips, "--push", "me", *output), "repo_id must be like org/name, got 'me' (prepare_benchmark.py: --push)"),
    ):
        assert run(*command) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_wrong_settings_print_a_one_line_error(run, clips, tmp_path, capsys):
    assert run(clips, "--output", tmp_path / "out", "--fps", "0") == 2
    printed = capsys.readouterr().err
    assert printed == "error: fps must lie in 0 (excluded) to 1000, got 0.0\n"
    assert not (tmp_path / "out").exists()


def test_own_folder_is_prepared_and_pushed(run, clips, tmp_path, capsys, monkeypatch):
    pushed = []
    monkeypatch.setattr(run.script, "push_shards", lambda *where, **how: pushed.append((where, how)) or "its address")
    options = ["--output", tmp_path / "out", "--holdout", "0.5", "--num_proc", "2", "--push", "me/pets"]
    assert run(clips, *options) == 0
    assert "pushed to its address" in capsys.readouterr().out
    assert pushed == [((str(tmp_path / "out"), "me/pets"), {"name": None, "variant": None, "private": True})]
    assert sum(len(load_folder(tmp_path / "out", split)) for split in ("train", "test")) == 3
    assert pushing.folder_shards(tmp_path / "out").keys() == {"train", "test"}
    assert run(tmp_path / "out", "--output", tmp_path / "out", "--push", "me/pets") == 0  # the existing shards
    assert pushed.pop() == pushed[0]
    assert run("vggsound", "--output", tmp_path / "out", "--push", "me/vgg", "--private", "false") == 0
    assert pushed[1][1] == {"name": "vggsound", "variant": None, "private": False}
