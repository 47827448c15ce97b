"""Base class of the models: checks the config and the size of the parameters, and knows weights that no checkpoint gave."""

import copy
import warnings
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from ...media.limits import check_bytes
from ...media.modalities import MODALITIES
from .loaded_weights import check_whole, fresh_names

logger = logging.get_logger(__name__)

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
            # A copy, since building a model can change its config: `gradient_checkpointing` is used once and deleted.
            super().__call__(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})
        token = _COUNTED.set(True)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _COUNTED.reset(token)


def _copy(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, PreTrainedConfig) else value


def require_grads(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    """A forward hook by which the output requires gradients, although nothing before it does."""
    output.requires_grad_(True)


class BoundedPreTrainedModel(PreTrainedModel, metaclass=_CountFirst):
    """
    Refuses a config that contradicts itself, or whose parameters take more than `media.limits.max_bytes`. Config files of
    downloaded checkpoints are untrusted.

    The checks of the config bound the number of layers before, and with it the time of counting.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        config.validate()  # again, since fields can be set after the config was built
        super().__init__(config, *args, **kwargs)

    def input_embeddings(self) -> list[nn.Module]:
        """The modules that make the first tokens of each stream: its patch projection, video first."""
        streams = [getattr(self.base_model, f"{modality}_embeddings", None) for modality in MODALITIES]
        return [stream.patch_embeddings for stream in streams if stream is not None]

    def get_input_embeddings(self) -> nn.Module:
        """The video patch projection, or the spectrogram's in an audio-only model."""
        return self.input_embeddings()[0]

    def enable_input_require_grads(self) -> None:
        """As in transformers, but for both streams. A batch without video would otherwise have no gradient to pass on."""
        super().enable_input_require_grads()
        for embeddings in self.input_embeddings()[1:]:
            self._require_grads_hooks.append(embeddings.register_forward_hook(require_grads))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but remembers which weights the checkpoint lacks, for `check_weights`."""
        with_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        tensors = model.state_dict(keep_vars=True)
        names = fresh_names(report)
        model._fresh_weights = {name: tensors[name]._version for name in names if name in tensors}
        return (model, report) if with_report else model

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """
        As in transformers, but reports only weights of the adapter as missing. transformers takes names that contain the name of
        the adapter or of its method for the adapter's, and so all of a model whose prefix is that of the method, `lavish`.
        """
        own, verbosity = set(self.state_dict()), logging.get_verbosity()
        logging.set_verbosity_error()  # its table of missing weights would list all of the model
        try:
            report = super().load_adapter(*args, **kwargs)
        finally:
            logging.set_verbosity(verbosity)
        wrapped = (".base_layer", ".original_module")
        for name in set(report.missing_keys):
            plain = name
            for part in wrapped:
                plain = plain.replace(part, "")
            if plain in own:
                report.missing_keys.discard(name)
        if report.missing_keys:
            logger.warning(
                f"The adapter lacks weights, which are random now: {', '.join(sorted(report.missing_keys)[:5])}"
            )
        return report

    def check_weights(self) -> None:
        """Raises ValueError if weights that the checkpoint lacked still have their random initial values."""
        tensors = self.state_dict(keep_vars=True)
        fresh = getattr(self, "_fresh_weights", {}).items()
        drawn = [name for name, version in fresh if name in tensors and tensors[name]._version == version]
        check_whole(self, self.config.name_or_path, {"missing_keys": drawn, "mismatched_keys": ()})

    def post_init(self) -> None:
        """As in transformers, then the check. Raises ValueError for a model with too large parameters."""
        super().post_init()
        count = sum(tensor.numel() * tensor.element_size() for tensor in chain(self.parameters(), self.buffers()))
        check_bytes(count, f"The parameters by the sizes in {type(self.config).__name__}")


__all__ = ["BoundedPreTrainedModel", "require_grads"]
