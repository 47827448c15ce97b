"""Runs the example scripts for their tests: `process` as a user does, `call` in this process, whose imports are done already.

`call` runs a script as `__main__` too, its early checks and its exit status included, so a test takes `process` only where a new
process is part of what it proves.
"""

import contextlib
import io
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forked import run_forked

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COLUMNS = "160"  # wide enough for tables


def process(script: str, *arguments, check: bool = True) -> subprocess.CompletedProcess:
    """Runs a script with arguments in a new process, forked after its imports; if `check`, it has to end with status 0."""
    with tempfile.TemporaryDirectory() as folder:
        words = list(map(str, arguments))
        done = run_forked(Path(folder), EXAMPLES / script, *words, environment={"COLUMNS": COLUMNS})
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return subprocess.CompletedProcess([script, *words], done.returncode, done.stdout, done.stderr)


def call(script: str, *arguments, check: bool = True) -> subprocess.CompletedProcess:
    """`process` without a new process. Log lines of libraries are not part of its `stderr`."""
    command = [str(EXAMPLES / script), *map(str, arguments)]
    threads, out, err, status = torch.get_num_threads(), io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        patch.setenv("COLUMNS", COLUMNS)
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as exit:
            status = exit.code or 0
        finally:
            torch.set_num_threads(threads)
    if isinstance(status, str):  # the interpreter prints such a status
        err.write(f"{status}\n")
        status = 1
    assert not check or status == 0, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())
