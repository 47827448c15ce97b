"""What every test shares: one thread, no network, `from rendering import ...`, and the folder of extra material where
there is one.
"""

import gc
import os
import sys
from collections import Counter
from pathlib import Path

# Set before transformers, datasets or huggingface_hub are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))  # the test folders are not packages; this is what makes `from rendering import ...` work

import pytest  # noqa: E402
import torch  # noqa: E402
from local_hub import LocalHub  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

from hf_avfusion.media import torchcodec_backend  # noqa: E402

# Tiny tensors on shared cores: a second thread only costs. OMP_NUM_THREADS, as in other_machines.sh, is set explicitly, as in
# the processes that tests start: without the call MKL uses no more threads than there are cores, and adds in another order.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))

if os.environ.get("HF_AVFUSION_TEST_MMAP") == "0":  # other_machines.sh: checkpoints are read into memory, not mapped
    mapping = PreTrainedModel.from_pretrained.__func__

    def reading(cls, *args, **options):
        return mapping(cls, *args, **{"disable_mmap": True, **options})

    PreTrainedModel.from_pretrained = classmethod(reading)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` beside the repository (real clips, recorded cases); skips where it is absent."""
    folder = TESTS.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared beside the repository; the suite proves the same on clips that it renders")
    return folder


@pytest.fixture
def torchcodec(monkeypatch) -> None:
    """torchcodec decodes short videos too, so that tests can be short. Skips where it cannot decode at all: it is optional, and
    needs the libraries of an FFmpeg of the system.
    """
    if not torchcodec_backend.torchcodec_works():
        pytest.skip(
            "torchcodec is not installed or finds no FFmpeg libraries (pip install torchcodec; apt-get install ffmpeg)"
        )
    monkeypatch.setattr(torchcodec_backend, "MIN_SECONDS", 0.0)


@pytest.fixture(scope="session")
def deepspeed() -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install deepspeed)")


@pytest.fixture(scope="session")
def torchao() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (pip install torchao)")


@pytest.fixture
def local_hub(tmp_path_factory) -> LocalHub:
    """A Hub on loopback that this process is connected to, empty, with fresh caches: `.url`, `.token`, see `local_hub.py`."""
    with LocalHub() as hub, hub.connected(tmp_path_factory.mktemp("hf_home")):
        yield hub


@pytest.hookimpl(tryfirst=True)  # before pytest reads -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the variants that do not run by default, and sorts the files by their slow tests, then by their tests. The processes
    take files in this order, and a long one at the end would leave all but one without work.
    """
    for item in items:
        chosen = item.get_closest_marker("by_default")
        if chosen and item.callspec.params[chosen.kwargs.get("of", "name")] not in chosen.args:
            item.add_marker("further")
        if item.get_closest_marker("further"):
            item.add_marker("slow")  # `-m "not slow"` leaves them out too
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    size = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -size[item.path]))


def pytest_collection_finish() -> None:
    """Keeps the objects of all imports out of garbage collection: accelerate collects after each training run, which took
    0.7 of the 1.3 s of a small run.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    """One line for each reason for which tests were skipped; pytest has one for each file and line."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"SKIPPED {count}: {reason}")
