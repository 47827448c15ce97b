"""Processes that start with their imports done, for tests that kill a process or let several train together.

A new process takes 12 s of processor time to import transformers, datasets and peft. These are forked from one process per test
process, which has imported them and nothing of this repository. Tests of imports, and of commands as a user types them, start
real ones.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300  # s
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OUTPUTS = ("stdout.log", "stderr.log")  # the names that torchrun gives
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "transformers.trainer", "transformers.pipelines", "accelerate", "datasets", "evaluate", "peft", "av"]
)


class Finished(NamedTuple):
    """`failures`: exit codes of the processes that failed, -9 after SIGKILL. `stdout`, `stderr`: what all processes wrote."""

    failures: list[int]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        return self.failures[0] if self.failures else 0


def run_forked(
    folder: Path, script: str | Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs a script in a new process, with these variables in its environment. Its output goes to files in `folder`."""
    folder.mkdir(exist_ok=True)
    variables = {**os.environ, **(environment or {})}
    process = CONTEXT.Process(target=_run, args=(str(script), arguments, variables, os.getcwd(), str(folder)))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{script} took more than {TIMEOUT} s")
    return Finished([process.exitcode] * bool(process.exitcode), *_written(folder))


def torchrun(folder: Path, script: str | Path, *arguments: str, processes: int = 2) -> Finished:
    """As `torchrun --standalone --nproc_per_node`, with torchrun's agent in this process."""
    folder.mkdir(exist_ok=True)
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, start_method="forkserver", monitor_interval=0.1,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test", logs_specs=logs,
    )  # fmt: skip
    codes, handlers = [], {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(config, _run)(str(script), arguments, dict(os.environ), os.getcwd())
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Finished(codes, *_written(folder))


def _written(folder: Path) -> list[str]:
    return ["\n".join(path.read_text() for path in sorted(folder.rglob(name))) for name in OUTPUTS]


def _run(script: str, arguments: tuple[str, ...], environment: dict[str, str], cwd: str, output: str | None = None):
    for number, name in enumerate(OUTPUTS, start=1) if output else ():
        os.dup2(os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    given = {name: os.environ[name] for name in OF_TORCHRUN if name in os.environ}
    os.environ |= {**environment, **given}
    os.chdir(cwd)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    sys.path[:0] = [str(Path(script).parent), str(ROOT)]
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:
        traceback.print_exc()  # torchrun's agent would keep it
        sys.exit(1)
