"""VGGish beside LAVISH's streams: 128 features of the sound of each segment, for its head (supplementary table 3)."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..shared.torch_files import read_tensors
from ..shared.vggish import EXAMPLE_SHAPE, VGGish
from .configuration_lavish import LavishTwoStreamConfig

PUBLISHED = "VGGish's published weights, such as vggish-10086976.pth"


class LavishVGGish(VGGish):
    """VGGish of the sizes of a config. The paper takes its features as they are extracted, so it is frozen by default."""

    def __init__(self, config: LavishTwoStreamConfig):
        super().__init__(
            config.vggish_channels,
            config.vggish_hidden_size,
            config.vggish_feature_size,
            postprocess=config.vggish_postprocess,
        )

    def forward(self, vggish_features: torch.Tensor) -> torch.Tensor:
        """Log-mel examples [B, S, 96, 64] of any float type -> features [B * S, vggish_feature_size]."""
        return super().forward(vggish_features.flatten(0, 1).to(self.features[0].weight.dtype))

    def load_published(self, file: str | os.PathLike, pca: str | os.PathLike | Mapping[str, Any] | None = None) -> None:
        """
        Copy published weights, by their names.

        Args:
            file: State dict of PyTorch. With `vggish_postprocess` it may also hold the PCA parameters, as `pproc.*`.
            pca: Their own file of PyTorch, or `pca_eigen_vectors` and `pca_means` as tensors or arrays.

        Raises:
            ValueError: Names or shapes are not those of this network, or PCA parameters are missing or not used; the message
                names the file.
        """
        state = read_tensors(file, PUBLISHED)
        if isinstance(pca, (str, os.PathLike)):
            pca = read_tensors(pca, "VGGish's published PCA parameters")
        try:
            published = VGGish.from_published(state, pca)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if (published.pproc is None) is not (self.pproc is None):
            raise ValueError(
                f"{file}: the model post-processes features (`vggish_postprocess=True`), but no PCA parameters were given. Give "
                "them as `pca`, or in the file as `pproc.*`, or set `vggish_postprocess=False`."
                if published.pproc is None
                else f"{file}: PCA parameters were given, but the model does not post-process features. Set "
                "`vggish_postprocess=True`, or leave them out."
            )
        given, own = published.state_dict(), self.state_dict()
        for name, values in given.items():
            if values.shape != own[name].shape:
                raise ValueError(
                    f"{file}: {name} has shape {tuple(values.shape)}, but the model has {tuple(own[name].shape)}. Set "
                    "`vggish_channels`, `vggish_hidden_size` and `vggish_feature_size` to the sizes of the file."
                )
        self.load_state_dict(given)


def check_vggish_features(
    config: LavishTwoStreamConfig, input_features: torch.Tensor | None, vggish_features: torch.Tensor | None
) -> None:
    """
    Check that examples are given where the model takes them and sound is given, and their shape.

    Raises:
        ValueError: If they are not; the message names the argument.
        TypeError: If they are no torch tensor.
    """
    if vggish_features is None and (input_features is None or not config.vggish):
        return
    remedy = "Prepare clips with the model's own processor."
    if not config.vggish:
        raise ValueError(
            "`vggish_features` was given, but this model has no VGGish (config.vggish = False). Omit it, or load a model that has."
        )
    if vggish_features is None or input_features is None:
        given, absent = ("input_features", "vggish_features")[:: 1 if vggish_features is None else -1]
        raise ValueError(
            f"`{given}` was given without `{absent}`; this model takes both of the sound of a clip. {remedy}"
        )
    if not isinstance(vggish_features, torch.Tensor):
        raise TypeError(
            f"`vggish_features` is a {type(vggish_features).__name__}, but the model takes torch tensors. {remedy}"
        )
    expected = (input_features.shape[0], config.num_segments, *EXAMPLE_SHAPE)
    if tuple(vggish_features.shape) != expected or not vggish_features.is_floating_point():
        raise ValueError(
            f"`vggish_features` must be float [batch, segments, 96, 64] = {list(expected)}, got {vggish_features.dtype} "
            f"{list(vggish_features.shape)}. {remedy}"
        )


__all__ = ["PUBLISHED", "LavishVGGish", "check_vggish_features"]
