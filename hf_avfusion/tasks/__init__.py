"""The tasks, one file each: `TASKS` by name, and which of them a model is for."""

from collections.abc import Mapping
from typing import Any

from .classification import CLASSIFICATION
from .event_localization import EVENT_LOCALIZATION
from .pretraining import PRETRAINING
from .question_answering import QUESTION_ANSWERING
from .segmentation import SEGMENTATION
from .task import Task

# Of tasks with the same heads the first that selects a configuration counts, so the special ones come first.
TASKS: dict[str, Task] = {
    task.name: task for task in (EVENT_LOCALIZATION, CLASSIFICATION, QUESTION_ANSWERING, SEGMENTATION, PRETRAINING)
}

DEFAULT_TASK = CLASSIFICATION  # of models whose class names none


def without_adapter(model: Any) -> Any:
    """The model inside a PeftModel; any other model as it is."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def task_of(model: Any) -> Task | None:
    """The task of a model, by its class and configuration; None for a base model and for classes of others."""
    model = without_adapter(model)
    return task_of_class(type(model).__name__, getattr(model, "config", None))


def task_of_class(class_name: str, config: Any) -> Task | None:
    """The task of models of this class with this configuration, such as `config.architectures[0]` of a checkpoint."""
    return next((task for task in TASKS.values() if task.solves(class_name, config)), None)


def task_of_benchmark(benchmark_task: str) -> Task | None:
    """The task that a benchmark is made for, by its `Benchmark.task`; None for a task that is not in `TASKS`."""
    return next((task for task in TASKS.values() if benchmark_task in task.benchmark_tasks), None)


def task_of_config(config: Any) -> Task:
    """The task for which a checkpoint with this configuration is scored: that of its class, else the default."""
    names = [*(getattr(config, "architectures", None) or ()), DEFAULT_TASK.heads[0]]
    found = (task_of_class(name, config) for name in names)
    return next(task for task in found if task is not None and task.metrics is not None)


def needs_of_benchmark(benchmark_task: str) -> str:
    """What a model has to give for a benchmark of this task, for messages."""
    return task_of_benchmark(benchmark_task).needs


def task_of_results(benchmark: Mapping[str, Any]) -> Task:
    """The task of a results.json, by its entry "benchmark".

    Earlier files do not name their task. They are of event localisation if they state a number of segments, otherwise of
    classification.

    Raises:
        ValueError: a task that is not in `TASKS`.
    """
    segments = benchmark.get("num_segments") is not None
    name = benchmark.get("task", (EVENT_LOCALIZATION if segments else CLASSIFICATION).name)
    if name not in TASKS:
        raise ValueError(f"the results are of the task {name!r}, which is not known: the tasks are {', '.join(TASKS)}")
    return TASKS[name]
