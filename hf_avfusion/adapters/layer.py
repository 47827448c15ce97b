"""The layer of peft's method LAVISH: a slot with named adapters."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..models.lavish.layers_lavish import CrossModalSlot, make_adapters, residuals
from ..models.lavish.options_lavish import AdapterOptions

NO_MERGE = (
    "LAVISH adapters read the other stream, so they cannot be merged into weights. hf_avfusion.adapters.build_in(model) makes a "
    "plain model with the adapters built in, which saves and loads without peft."
)
Residuals = tuple[torch.Tensor | None, torch.Tensor | None]


class LavishLayer(nn.Module, BaseTunerLayer):
    """Wraps a [`~hf_avfusion.models.lavish.layers_lavish.CrossModalSlot`]. Active adapters' residuals are added up."""

    adapter_layer_names = ("lavish_audio", "lavish_video")
    other_param_names = ()

    def __init__(
        self,
        base_layer: CrossModalSlot,
        adapter_name: str,
        options: AdapterOptions,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.base_layer = base_layer
        self.lavish_audio, self.lavish_video = nn.ModuleDict(), nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.update_layer(adapter_name, options, device)

    def update_layer(self, adapter_name: str, options: AdapterOptions, device: torch.device | None = None) -> None:
        """Adds an adapter with fresh weights, on `device` unless it is on the meta device, and in the mode of the slot."""
        slot = self.get_base_layer()
        pair = make_adapters(slot.width, slot.modalities, options)
        for adapters, adapter in zip((self.lavish_audio, self.lavish_video), pair):
            if adapter is None:
                continue
            adapter.train(slot.training)  # else BatchNorm would train in a model that evaluates
            is_meta = any(parameter.is_meta for parameter in adapter.parameters())
            adapters[adapter_name] = adapter if device is None or is_meta else adapter.to(device)
        self.set_adapter(self.active_adapters)

    def forward(
        self,
        audio: torch.Tensor | None,
        video: torch.Tensor | None,
        presence: torch.Tensor | None = None,
        *,
        adapter_names: list[str] | None = None,
    ) -> Residuals:
        """As the slot's. `adapter_names` names an adapter for each sample of the batch; `"__base__"` means none."""
        total = self.base_layer(audio, video, presence)
        if self.disable_adapters:
            return total
        if adapter_names is not None:
            return _sum(total, self._per_sample(audio, video, presence, adapter_names))
        for name in self.active_adapters:
            if name in self.lavish_audio or name in self.lavish_video:
                total = _sum(total, residuals(self.pair(name), audio, video, presence))
        return total

    def pair(self, name: str) -> tuple[nn.Module | None, nn.Module | None]:
        """The adapters (audio, video) of a name; None where there is none."""
        audio = self.lavish_audio[name] if name in self.lavish_audio else None  # noqa: SIM401 (a ModuleDict has no `get`)
        video = self.lavish_video[name] if name in self.lavish_video else None  # noqa: SIM401
        return audio, video

    def _per_sample(
        self,
        audio: torch.Tensor | None,
        video: torch.Tensor | None,
        presence: torch.Tensor | None,
        adapter_names: list[str],
    ) -> Residuals:
        # Segments lie in the batch axis: each sample has several rows.
        some = video if audio is None else audio
        names = [name for name in adapter_names for _ in range(some.shape[0] // len(adapter_names))]
        results = tuple(None if tokens is None else torch.zeros_like(tokens) for tokens in (audio, video))
        for name in dict.fromkeys(names):
            if name not in self.lavish_audio and name not in self.lavish_video:
                continue
            rows = torch.tensor([row for row, each in enumerate(names) if each == name], device=some.device)
            parts = (None if values is None else values[rows] for values in (audio, video, presence))
            for result, part in zip(results, residuals(self.pair(name), *parts)):
                if result is not None:
                    result[rows] = part
        return results

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(NO_MERGE)

    def unmerge(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def __repr__(self) -> str:
        return "lavish." + super().__repr__()


def _sum(one: Residuals, other: Residuals) -> Residuals:
    return tuple(b if a is None else a if b is None else a + b for a, b in zip(one, other))


__all__ = ["NO_MERGE", "LavishLayer"]
