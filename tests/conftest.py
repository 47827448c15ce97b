"""What every test shares: one thread, no network, `from rendering import ...`, and the folder of extra material where
there is one.
"""

import os
import sys
from pathlib import Path

# Set before transformers, datasets or huggingface_hub are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))  # the test folders are no packages; this is what makes `from rendering import ...` work

import pytest  # noqa: E402
import torch  # noqa: E402
from local_hub import LocalHub  # noqa: E402

torch.set_num_threads(1)  # tiny tensors on shared cores: a second thread only costs


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` beside the repository (real clips, recorded cases); skips where it is absent."""
    folder = TESTS.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared beside the repository: this test needs the real clips or recorded cases in it")
    return folder


@pytest.fixture
def local_hub(tmp_path_factory) -> LocalHub:
    """A Hub on loopback that this process is connected to, empty, with fresh caches: `.url`, `.token`, see `local_hub.py`."""
    with LocalHub() as hub, hub.connected(tmp_path_factory.mktemp("hf_home")):
        yield hub
