"""
Registers classes with transformers without importing them, so that `import hf_avfusion` takes no time, and the first use of an Auto
class little more than without this package.

Median of 5 fresh, alternating processes on one machine of two cores, with transformers 5.23, torch 2.14 and Python 3.11, printed by
`python benchmarks/import_time.py`:

- `from transformers import AutoModel` alone: 4.8 s; after `import hf_avfusion`: 5.2 s; `import hf_avfusion` alone: 0.03 s.
- With the model classes imported too, as without `ModelOnDemand`: 9.5 s.
- With the processors and pipelines imported too, as without `when_imported`: 10.4 s.

The first use of a model or a processor takes the rest of that time.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Callback = Callable[[], object]


def load_reference(reference: str) -> type:
    """The class of a reference inside this package, such as "models.mbt.modeling_mbt:MBTModel"."""
    module, name = reference.split(":")
    return getattr(import_module(f".{module}", __package__), name)


class ModelOnDemand:
    """Stand-in for a model class. The first access to an attribute imports the class and registers it instead."""

    def __init__(self, auto_class: type, config_class: type, reference: str):
        self.auto_class, self.config_class, self.reference = auto_class, config_class, reference

    def __getattr__(self, name: str) -> Any:
        real = load_reference(self.reference)
        self.auto_class.register(self.config_class, real, exist_ok=True)
        return getattr(real, name)


def when_imported(module: str, callback: Callback) -> None:
    """Calls a function once, as soon as a module is imported: now if it already is, else at the end of its first import.

    Args:
        module: full name of the module. It need not be installed; without an import the function is never called.
        callback: takes no arguments. If it raises an exception, the import of the module fails with that exception, and the next
            import calls the function again.
    """
    _HOOK.callbacks.setdefault(module, deque()).append(callback)
    if module in sys.modules:
        import_module(module)  # waits for another thread that is importing it
        if module not in _HOOK.executing:  # this thread is importing it, and calls the function at the end
            _HOOK.call(module)


def is_importing(module: str) -> bool:
    """Whether a module for which a function waited (`when_imported`) is being imported."""
    return module in _HOOK.executing


class _ImportHook(MetaPathFinder):
    """Finds modules as the finders after it do, and calls the functions that wait for a module once it is executed."""

    def __init__(self):
        self.callbacks: dict[str, deque[Callback]] = {}
        self.executing: set[str] = set()  # modules that are being imported and whose end this hook will see

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.callbacks.get(fullname):
            return None
        # Only the finders after this one are asked: two hooks, such as after a reload of this file, would ask each other forever.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader.exec_module = partial(self._execute, spec.loader.exec_module)
                return spec
        return None

    def _execute(self, exec_module: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.executing.add(module.__name__)
        try:
            exec_module(module)
        finally:
            self.executing.discard(module.__name__)
        self.call(module.__name__)

    def call(self, module: str) -> None:
        waiting = self.callbacks[module]
        while True:
            try:
                callback = waiting.popleft()
            except IndexError:
                return
            try:
                callback()
            except BaseException:
                waiting.appendleft(callback)
                raise


_HOOK = _ImportHook()
sys.meta_path.insert(0, _HOOK)

PIPELINES = (
    "pipelines",
    "event_pipeline",
    "question_pipeline",
    "segmentation_pipeline",
)  # files of pipelines in `processing/`
_MODELING = "transformers.models.auto.modeling_auto"


def register_when_used() -> None:
    """Registers the architectures as soon as an Auto class or `pipeline` of transformers is imported, or now if one is."""
    auto = "transformers.models.auto"
    parts = (
        "configuration_auto",
        "modeling_auto",
        "processing_auto",
        "video_processing_auto",
        "feature_extraction_auto",
    )
    for module in (
        *(f"{auto}.{part}" for part in parts),
        "transformers.pipelines",
        *(f"{__package__}.processing.{pipelines}" for pipelines in PIPELINES),
    ):
        when_imported(module, _register)
    when_imported("peft", _register_adapters)


def _register() -> None:
    # `auto` needs the Auto classes of models. While they are being imported, the call at the end of their import follows.
    if _MODELING not in _HOOK.executing:
        import_module(".auto", __package__)


def _register_adapters() -> None:
    import_module(".adapters", __package__)
