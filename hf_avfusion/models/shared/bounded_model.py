"""Base class of the models: bounds the number of parameters before memory is taken, and refuses a pipeline without its weights."""

import warnings
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers import initialization as init

from ...media.limits import check_num_parameters
from .loaded_weights import check_whole

Model = TypeVar("Model")
_COUNTED = ContextVar("counted", default=False)  # whether the model that is being built has been counted


class _CountFirst(type(PreTrainedModel)):
    """
    Builds a model on the meta device first, as `from_pretrained` does. It takes no memory there and draws no random numbers.
    """

    def __call__(cls: type[Model], *args: Any, **kwargs: Any) -> Model:
        # `from_pretrained` builds on the meta device itself. The parts of a model are counted with it.
        if _COUNTED.get() or torch.empty(0).is_meta:
            return super().__call__(*args, **kwargs)
        with torch.device("meta"), init.meta_device_safe_creation_ops(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real model gives the same warnings
            super().__call__(*args, **kwargs)
        token = _COUNTED.set(True)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _COUNTED.reset(token)


class BoundedPreTrainedModel(PreTrainedModel, metaclass=_CountFirst):
    """
    Refuses a config that needs more parameters than any real model. Config files of downloaded checkpoints are untrusted.

    The checks of the config bound the number of layers before, and with it the time of counting.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but raises ValueError if a pipeline loads a checkpoint without the weights of its head."""
        if kwargs.get("_from_pipeline") is None:
            return super().from_pretrained(*args, **kwargs)
        with_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_whole(model, model.config.name_or_path, report)
        return (model, report) if with_report else model

    def post_init(self) -> None:
        """As in transformers, then the check. Raises ValueError for a model with too many parameters."""
        super().post_init()
        count = sum(tensor.numel() for tensor in chain(self.parameters(), self.buffers()))
        check_num_parameters(count, type(self.config).__name__)


__all__ = ["BoundedPreTrainedModel"]
