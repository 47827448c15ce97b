"""Refuses a checkpoint that lacks weights of the model that is loaded from it: transformers would only warn, and draw them."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging


def load_whole(model_class: Any, source: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """`model_class.from_pretrained(source, **kwargs)` for use, not for training: every weight comes from the checkpoint.

    Args:
        model_class: a model class or an Auto class.

    Raises:
        ValueError: the checkpoint lacks weights, such as those of the head if it was saved by a pretraining.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers' table of missing weights would stand before the error that says it in a sentence
    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    check_whole(model, source, report)
    return model


def fresh_names(report: Mapping[str, Iterable[Any]]) -> list[str]:
    """Names of the weights that the checkpoint lacks or has in another shape, by the report of `from_pretrained`."""
    entries = (*report["missing_keys"], *report["mismatched_keys"])
    return sorted({entry if isinstance(entry, str) else entry[0] for entry in entries})


def check_whole(model: PreTrainedModel, source: str | os.PathLike, report: Mapping[str, Iterable[Any]]) -> None:
    """Raises ValueError if the report of `from_pretrained` names weights that the checkpoint lacks or has in another shape."""
    fresh = fresh_names(report)
    if not fresh:
        return
    kind = type(model).__name__
    saved = [name for name in getattr(model.config, "architectures", None) or () if name != kind]
    script = "pretrain_avmae.py" if kind.endswith("ForPreTraining") else "finetune_classification.py"
    raise ValueError(
        f"{source} does not hold the weights of a {kind}: {', '.join(fresh[:3])}{', ...' if len(fresh) > 3 else ''} would be "
        "random. "
        + (f"It was saved from a {' and a '.join(saved)}. " if saved else "")
        + f"Pass a checkpoint of a {kind}, or train one first: python examples/{script} --model {source} ..."
    )


__all__ = ["check_whole", "fresh_names", "load_whole"]
