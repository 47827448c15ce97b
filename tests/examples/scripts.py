"""Runs the example scripts for their tests: `process` as a user does, `call` in this process, whose imports are done already.

A process needs 12 s of processor time before its first line. `call` runs a script as `__main__` too, its early checks and its exit
status included, so a test takes `process` only where a fresh process is part of what it proves.
"""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COLUMNS = "160"  # wide enough for tables


def process(script: str, *arguments, check: bool = True) -> subprocess.CompletedProcess:
    """Runs a script with arguments in a process of its own; if `check`, it has to end with status 0."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "COLUMNS": COLUMNS}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


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
