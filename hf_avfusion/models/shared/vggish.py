"""VGGish: 128 features of 0.96 s of sound (Hershey et al., ICASSP 2017; harritaylor/torchvggish f3f9096).

The network and its post-processing, with the parameter names of the published PyTorch files. Its input comes from
`processing.vggish_examples`. What differs from the port: input [N, 96, 64] without an axis of channels, an output that keeps
its batch axis when N is 1, and PCA parameters that are buffers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

EXAMPLE_SHAPE = (96, 64)  # log-mel rows of 10 ms, mel bins
CHANNELS = (64, 128, 256, 256, 512, 512)
POOLED_AFTER = (0, 1, 3, 5)  # convolutions before a pooling of 2 x 2: 96 x 64 becomes 6 x 4
CONVOLUTIONS = (0, 3, 6, 8, 11, 13)  # their places in `features`
DENSE = (0, 2, 4)  # their places in `embeddings`
LOWEST, HIGHEST = -2.0, 2.0  # of whitened features, before quantisation to 8 bit


class VGGishPostprocessing(nn.Module):
    """PCA whitening, clipping to [-2, 2] and quantisation to 8 bit, as YouTube-8M and AudioSet released their features.

    Fresh buffers hold the identity. Load the published ones with [`from_published`] or by their names, `pca_eigen_vectors`
    [E, E] and `pca_means` [E, 1].
    """

    def __init__(self, embedding_size: int = 128):
        super().__init__()
        self.register_buffer("pca_eigen_vectors", torch.eye(embedding_size))
        self.register_buffer("pca_means", torch.zeros(embedding_size, 1))

    @classmethod
    def from_published(cls, state: Mapping[str, Any]) -> "VGGishPostprocessing":
        """
        From `pca_eigen_vectors` [E, E] and `pca_means` [E, 1] or [E], tensors or arrays of any float dtype.

        Raises:
            ValueError: A name is missing or unknown, or the shapes do not fit each other.
        """
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        _check_names("VGGish's post-processing", shapes, ["pca_eigen_vectors", "pca_means"])
        size = (*shapes["pca_eigen_vectors"], 0)[0]
        if shapes["pca_eigen_vectors"] != (size, size) or shapes["pca_means"] not in ((size,), (size, 1)):
            raise ValueError(
                f"pca_eigen_vectors has shape {shapes['pca_eigen_vectors']} and pca_means {shapes['pca_means']}: give [E, E], "
                "and [E] or [E, 1]"
            )
        module = cls(size)
        values = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in state.items()}
        module.load_state_dict({**values, "pca_means": values["pca_means"].reshape(-1, 1)})
        return module

    def whiten(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Float [N, E] -> float32 [N, E]: `pca_eigen_vectors (e - pca_means)`, clipped to [-2, 2]."""
        with maybe_autocast(embeddings.device.type, enabled=False):  # rounding to 8 bit would magnify bfloat16's errors
            centred = embeddings.float() - self.pca_means.float().T
            return (centred @ self.pca_eigen_vectors.float().T).clamp(LOWEST, HIGHEST)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Float [N, E] -> float32 [N, E], whole numbers from 0 to 255. Rounding has no gradient."""
        return ((self.whiten(embeddings) - LOWEST) * (255.0 / (HIGHEST - LOWEST))).round()


class VGGish(nn.Module):
    """Six convolutions and three dense layers, each with a ReLU, also the last. The defaults are the published sizes.

    Args:
        channels: widths of the six convolutions.
        hidden_size: width of the first two dense layers.
        embedding_size: number of features.
        postprocess: also apply [`VGGishPostprocessing`], the module `pproc` as in the port.

    Raises:
        ValueError: `channels` does not have six entries, or a size is below 1.
    """

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        hidden_size: int = 4096,
        embedding_size: int = 128,
        postprocess: bool = False,
    ):
        super().__init__()
        if len(channels) != len(CONVOLUTIONS):
            raise ValueError(f"channels={tuple(channels)} must be the widths of six convolutions, such as {CHANNELS}")
        if min(*channels, hidden_size, embedding_size) < 1:
            raise ValueError(
                f"channels={tuple(channels)}, hidden_size={hidden_size} and embedding_size={embedding_size} must be at least 1"
            )
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            layers += [nn.Conv2d(width_in, width_out, kernel_size=3, padding=1), nn.ReLU()]
            if index in POOLED_AFTER:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        shrunk = 2 ** len(POOLED_AFTER)
        positions = (EXAMPLE_SHAPE[0] // shrunk) * (EXAMPLE_SHAPE[1] // shrunk)
        self.embeddings = nn.Sequential(
            nn.Linear(positions * channels[-1], hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, embedding_size),
            nn.ReLU(),
        )
        self.pproc = VGGishPostprocessing(embedding_size) if postprocess else None

    @classmethod
    def from_published(cls, state: Mapping[str, Any], pca: Mapping[str, Any] | None = None) -> "VGGish":
        """
        A network from a published state dict, whose sizes are read from its shapes. The weights are copied as float32.

        Args:
            state: `features.{0,3,6,8,11,13}` and `embeddings.{0,2,4}`, weight and bias each (`vggish-10086976.pth`).
            pca: `pca_eigen_vectors` and `pca_means` (`vggish_pca_params-970ea276.pth`) for a network that post-processes.
                They may also be in `state` with the prefix `pproc.`, as the port saves a whole model.

        Raises:
            ValueError: A name is missing or unknown, or a tensor does not have the shape that the others require.
        """
        inside = {name.removeprefix("pproc."): value for name, value in state.items() if name.startswith("pproc.")}
        if inside and pca is not None:
            raise ValueError("`state` holds pproc.* and `pca` is given too: give the PCA parameters once")
        state = {name: value for name, value in state.items() if not name.startswith("pproc.")}
        layers = [f"features.{place}" for place in CONVOLUTIONS] + [f"embeddings.{place}" for place in DENSE]
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        _check_names("VGGish", shapes, [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")])
        widths = [(*shapes[f"{layer}.bias"], 1)[0] for layer in layers]
        *channels, hidden_size, _, embedding_size = widths
        with torch.device("meta"):  # no memory is taken before the shapes are checked
            model = cls(channels, hidden_size, embedding_size).float()
        wrong = {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if shapes[name] != tuple(parameter.shape)
        }
        if wrong:
            name, expected = next(iter(wrong.items()))
            raise ValueError(
                f"{name} has shape {shapes[name]}, but beside the other tensors it must have {expected}"
                + (f"; so for {len(wrong) - 1} more tensors" if len(wrong) > 1 else "")
                + ": give the state dict of one whole VGGish"
            )
        model.to_empty(device="cpu")
        model.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        if inside or pca is not None:
            model.pproc = VGGishPostprocessing.from_published(inside or pca)
            size = model.pproc.pca_means.shape[0]
            if size != embedding_size:
                raise ValueError(
                    f"the PCA parameters are for {size} features, but this VGGish has {embedding_size}: give those of its release"
                )
        return model

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        """
        Log-mel examples, float [N, 96, 64] (time, mel) in the dtype of the weights -> features [N, embedding_size].

        The features are not negative. With `postprocess` they are whole numbers from 0 to 255, float32.

        Raises:
            ValueError: The examples have another shape.
        """
        if examples.ndim != 3 or tuple(examples.shape[1:]) != EXAMPLE_SHAPE:
            raise ValueError(
                f"examples have shape {tuple(examples.shape)}, but VGGish takes [N, 96, 64] (time, mel): cut a waveform with "
                "`vggish_examples`, and join further axes with the first (examples.flatten(0, 1))"
            )
        maps = self.features(examples[:, None])  # [N, C, 6, 4]
        features = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order: time, mel, channel
        return features if self.pproc is None else self.pproc(features)


def _check_names(what: str, given: Mapping[str, Any], needed: Sequence[str]) -> None:
    missing, unknown = sorted(set(needed) - set(given)), sorted(set(given) - set(needed))
    if missing or unknown:
        problems = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"holds {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(
            f"the state dict {' and '.join(problems)}: {what} takes {', '.join(needed)}, and no other names. Remove prefixes such "
            "as `module.`, and give the published files as they are."
        )


__all__ = ["VGGish", "VGGishPostprocessing"]
