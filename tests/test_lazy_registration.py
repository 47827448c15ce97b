"""Registration that waits for an import: of optional packages in either order, and of model classes."""

import importlib
import importlib.util
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest

from hf_avfusion import lazy_registration
from hf_avfusion.lazy_registration import when_imported

ROOT = Path(__file__).parent.parent


@pytest.fixture
def optional(tmp_path, monkeypatch):
    """Name of a package that is installed but not imported, and that registers tuners as peft does."""
    name = "optional_tuners"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("TUNERS = {}\n")
    (tmp_path / name / "late.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]
    lazy_registration._HOOK.callbacks.pop(name, None)


def register_in(name, calls):
    def register():
        calls.append(name)
        importlib.import_module(name).TUNERS["lavish"] = object

    return register


@pytest.mark.parametrize("imported_before", [True, False])
def test_package_registers_in_either_import_order(optional, imported_before):
    calls = []
    if imported_before:
        importlib.import_module(optional)
    when_imported(optional, register_in(optional, calls))
    assert calls == [optional] * imported_before
    loaded = importlib.import_module(optional)
    assert loaded.TUNERS["lavish"] is object
    importlib.reload(loaded)
    importlib.import_module(f"{optional}.late")
    assert calls == [optional], "it was called again"


def test_looking_for_a_package_does_not_use_up_the_call(optional):
    """transformers and peft look with `find_spec` whether a package is installed, long before they import it."""
    calls = []
    when_imported(optional, register_in(optional, calls))
    assert importlib.util.find_spec(optional).origin.endswith("__init__.py")
    assert not calls
    importlib.import_module(optional)
    assert calls == [optional]


def test_package_that_is_not_installed_stays_missing():
    when_imported("not_installed_anywhere", lambda: pytest.fail("called without the package"))
    assert importlib.util.find_spec("not_installed_anywhere") is None
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        importlib.import_module("not_installed_anywhere")


def test_error_of_a_callback_appears_at_every_import_until_it_succeeds(optional):
    outcomes = [ValueError("cannot register"), ValueError("still cannot register"), None]
    calls = []

    def register():
        calls.append(len(calls))
        if error := outcomes[calls[-1]]:
            raise error

    when_imported(optional, register)
    for message in ("cannot register", "still cannot register"):
        with pytest.raises(ValueError, match=message):
            importlib.import_module(optional)
        assert optional not in sys.modules
    assert not importlib.import_module(optional).TUNERS
    assert calls == [0, 1, 2]


def test_several_calls_and_hooks_wait_for_one_package(optional, monkeypatch):
    """A second hook, as after a reload of the file, and the first one don't ask each other forever."""
    calls = []
    when_imported(optional, lambda: calls.append(1))
    when_imported(optional, lambda: calls.append(2))
    second = lazy_registration._ImportHook()
    second.callbacks[optional] = deque([lambda: calls.append(3)])
    monkeypatch.setattr(sys, "meta_path", [second, *sys.meta_path])
    importlib.import_module(optional)
    assert calls == [1, 2, 3]


def test_threads_that_import_at_once_call_it_once(optional):
    calls, start = [], threading.Barrier(8)
    when_imported(optional, register_in(optional, calls))

    def load():
        start.wait()
        importlib.import_module(optional)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert calls == [optional]


@pytest.mark.slow
def test_lavish_config_can_be_the_first_import():
    """Its config needs the Auto classes, whose import registers that config."""
    code = (
        "from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig\n"
        "from transformers import AutoConfig\n"
        "print(type(AutoConfig.for_model('lavish')) is LavishTwoStreamConfig)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1:] == ["True"]


@pytest.mark.slow
def test_audio_head_is_registered_by_a_row_of_the_table(tmp_path):
    """A toy architecture with an audio-only head, registered and loaded in a process of its own."""
    (tmp_path / "toy.py").write_text(
        "import torch\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "class ToyConfig(PreTrainedConfig):\n"
        "    model_type = 'toy_audio'\n"
        "class ToyForAudioClassification(PreTrainedModel):\n"
        "    config_class = ToyConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.classifier = torch.nn.Linear(2, config.num_labels)\n"
        "        self.post_init()\n"
    )
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from transformers import AutoModelForAudioClassification\n"
        "from hf_avfusion import auto\n"
        "import toy\n"
        "sys.modules['hf_avfusion.models.toy'] = toy\n"
        "heads = {AutoModelForAudioClassification: 'models.toy:ToyForAudioClassification'}\n"
        "auto.ARCHITECTURES += ((toy.ToyConfig, 'models.mbt.processing_mbt:MBTProcessor', heads),)\n"
        "auto.register()\n"
        "model = AutoModelForAudioClassification.from_config(toy.ToyConfig(num_labels=3))\n"
        f"model.save_pretrained({str(tmp_path / 'saved')!r})\n"
        f"loaded = AutoModelForAudioClassification.from_pretrained({str(tmp_path / 'saved')!r})\n"
        "print(type(model) is type(loaded) is toy.ToyForAudioClassification, loaded.classifier.out_features)\n"
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING\n"
        "print(PROCESSOR_MAPPING[toy.ToyConfig].__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "3", "MBTProcessor"]
