"""Base class of the models: bounds the number of parameters before memory is taken, and knows weights that no checkpoint gave."""

import warnings
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers import initialization as init

from ...media.limits import check_num_parameters
from .loaded_weights import check_whole, fresh_names

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
        """As in transformers, but remembers which weights the checkpoint lacks, for `check_weights`."""
        with_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        tensors = model.state_dict(keep_vars=True)
        names = fresh_names(report)
        model._fresh_weights = {name: tensors[name]._version for name in names if name in tensors}
        return (model, report) if with_report else model

    def check_weights(self) -> None:
        """Raises ValueError if weights that the checkpoint lacked are as they were drawn: nobody has trained or set them."""
        tensors = self.state_dict(keep_vars=True)
        fresh = getattr(self, "_fresh_weights", {}).items()
        drawn = [name for name, version in fresh if name in tensors and tensors[name]._version == version]
        check_whole(self, self.config.name_or_path, {"missing_keys": drawn, "mismatched_keys": ()})

    def post_init(self) -> None:
        """As in transformers, then the check. Raises ValueError for a model with too many parameters."""
        super().post_init()
        count = sum(tensor.numel() for tensor in chain(self.parameters(), self.buffers()))
        check_num_parameters(count, type(self.config).__name__)


__all__ = ["BoundedPreTrainedModel"]
