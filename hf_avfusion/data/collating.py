"""Collates samples to a batch: stacks them, applies the batch augmentations of training, and masks missing modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..media.modalities import INPUT_MODALITIES, MODALITIES, MODEL_INPUTS
from ..models.shared.losses_classification import check_label_values, infer_problem_type
from .augmentation import SpecAugment, draw_mixup, mix, random_time_shift

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# (model input, flag of a sample) of each modality, in the order of modality_mask's columns
INPUT_FLAGS = tuple((name, f"has_{modality}") for modality, name in MODEL_INPUTS.items())


class AVCollator:
    """Makes the model's inputs from the samples of a `ClipTransform`. Without arguments it only stacks, as for evaluation.

    Augmentations are applied in this order, each only if its argument is set: time shift, SpecAugment, mixup, modality dropout.

    Args:
        spec_augment: augmentation of the spectrograms.
        time_shift: roll each spectrogram by a random number of rows (AV-MAE on AudioSet).
        mixup_alpha: lambda ~ Beta(alpha, alpha), one for the batch; the partner of sample i is sample B - 1 - i. Labels are mixed
            with the same lambda, so integer labels become class probabilities along a last axis, concatenated over heads. Pairs
            with different modalities are not mixed, so that filler cannot leak in.
        mixup_per_modality: draw a lambda for each modality (MBT's `mixmod`); `audio_labels` then holds the labels of the audio.
        num_labels: number of classes, required for mixup with integer labels. With it, wrong labels raise a ValueError here; a
            loss on a GPU cannot check them.
        problem_type: that of the model's configuration, which decides what labels are wrong.
        class_splits: head -> number of classes in the order of the label columns, required for mixup with several heads.
        modality_dropout: probability that a clip with both modalities loses one of them, never both. One number is divided
            equally; two numbers are (video, audio).
        mask_always: add `modality_mask` even if no modality is missing, so that all batches take the same path in the model.
        seed: seed of the collator's generator, used only if samples have no `seed`. With samples' seeds, which a `ClipStream`
            adds, a batch's randomness depends on its rows and epoch, not on workers.

    A batch holds `pixel_values` [B, T, C, H, W] and `input_features` [B, time, mel], each only if a sample has it, with zeros for
    samples without it. Further inputs of a modality (`INPUT_MODALITIES`) are stacked and mixed like these. It holds `labels` (long
    [B], [B, heads] or [B, segments], or float [B, C] or [B, segments, C]), and `modality_mask` bool [B, 2] (video, audio) only if a
    modality is missing. With several views per clip ([views, ...] tensors in a
    sample), an axis of views follows B.
    """

    # Arguments that a recipe may set in its section `collator`.
    RECIPE_FIELDS: tuple[str, ...] = ("time_shift", "mixup_alpha", "mixup_per_modality")

    def __init__(
        self,
        *,
        spec_augment: SpecAugment | None = None,
        time_shift: bool = False,
        mixup_alpha: float = 0.0,
        mixup_per_modality: bool = False,
        num_labels: int | None = None,
        problem_type: str | None = None,
        class_splits: Mapping[str, int] | None = None,
        modality_dropout: float | tuple[float, float] = 0.0,
        mask_always: bool = False,
        seed: int = 0,
    ):
        if mixup_alpha < 0:
            raise ValueError(f"mixup_alpha must not be negative, got {mixup_alpha}")
        drop = (modality_dropout / 2,) * 2 if isinstance(modality_dropout, (int, float)) else tuple(modality_dropout)
        if len(drop) != 2 or min(drop) < 0 or sum(drop) > 1:
            raise ValueError(
                "modality_dropout must be a probability, or two (video, audio) with a sum of at most 1, since a clip never"
                f" loses both; got {modality_dropout}"
            )
        self.spec_augment = spec_augment
        self.time_shift = time_shift
        self.mixup_alpha = mixup_alpha
        self.mixup_per_modality = mixup_per_modality
        self.num_labels = num_labels
        self.problem_type = problem_type
        self.class_splits = dict(class_splits) if class_splits else None
        self.modality_dropout = drop
        self.mask_always = mask_always
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def for_model(cls, config: PreTrainedConfig | None, **options: Any) -> AVCollator:
        """The collator for batches of a model with this configuration, if it has one; `options` are more arguments of the class."""
        names = ("num_labels", "problem_type", "class_splits")
        return cls(**{name: getattr(config, name, None) for name in names}, **options)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if not samples:
            raise ValueError("a batch needs at least one sample")
        generator = self._generator(samples)
        # Samples of a processor's call have no flags: a modality is there if its input is.
        present = torch.tensor(
            [[bool(sample.get(flag, name in sample)) for name, flag in INPUT_FLAGS] for sample in samples]
        )
        empty = [sample.get("clip_id", number) for number, sample in enumerate(samples) if not present[number].any()]
        if empty:
            keys = ", ".join(map(str, next(sample for sample, row in zip(samples, present) if not row.any())))
            raise ValueError(
                f"these samples have neither video nor audio: {', '.join(map(str, empty))} (keys of the first: {keys})"
            )
        batch = {}
        for name, modality in INPUT_MODALITIES.items():
            has = present[:, MODALITIES.index(modality)]
            if has.any() and (name in MODEL_INPUTS.values() or any(name in sample for sample in samples)):
                batch[name] = _stack(samples, name, has)
        if "labels" in samples[0]:
            batch["labels"] = self._labels(samples)

        if "input_features" in batch and (self.time_shift or self.spec_augment is not None):
            features = batch["input_features"]
            flat = features.reshape(-1, *features.shape[-2:])
            if self.time_shift:
                flat = random_time_shift(flat, generator)
            if self.spec_augment is not None:
                flat = self.spec_augment(flat, generator)
            batch["input_features"] = flat.reshape(features.shape)
        if self.mixup_alpha:
            self._mixup(batch, present, generator)
        if any(self.modality_dropout):
            present = self._drop_modalities(present, generator)
        if self.mask_always or not present[:, [name in batch for name, _ in INPUT_FLAGS]].all():
            batch["modality_mask"] = present
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # A pickled generator refers to a temporary tensor in shared memory, which a spawned worker would no longer find.
        return {**self.__dict__, "generator": self.generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, generator=torch.Generator())
        self.generator.set_state(torch.frombuffer(bytearray(state["generator"]), dtype=torch.uint8))

    def _labels(self, samples: Sequence[dict[str, Any]]) -> torch.Tensor:
        labels = torch.stack([torch.as_tensor(sample["labels"]) for sample in samples])
        if not labels.is_floating_point():
            labels = labels.long()
        self.check_labels(labels)
        return labels

    def check_labels(self, labels: torch.Tensor) -> None:
        """Checks labels [B, ...] against the number of classes, if it is known.

        Raises:
            ValueError: a label that is no class of the model, or a target outside of [0, 1].
        """
        if self.num_labels is not None:
            problem_type = infer_problem_type(self.problem_type, self.num_labels, labels)
            check_label_values(labels, problem_type, self.num_labels, self.class_splits)

    def _generator(self, samples: Sequence[dict[str, Any]]) -> torch.Generator:
        if not all("seed" in sample for sample in samples):
            return self.generator
        mixed = 0
        for sample in samples:  # the seed depends on the order of the samples
            mixed = (mixed * 6364136223846793005 + int(sample["seed"])) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _mixup(self, batch: dict[str, torch.Tensor], present: torch.Tensor, generator: torch.Generator) -> None:
        if "labels" not in batch:
            raise ValueError("mixup needs labels, but the samples have none; use a collator without mixup_alpha")
        labels = self._to_probabilities(batch["labels"])
        same_modalities = (present == present.flip(0)).all(dim=1)
        weights = {}
        for modality, name in MODEL_INPUTS.items():
            if name in batch:
                if not weights or self.mixup_per_modality:
                    weight = draw_mixup(self.mixup_alpha, generator)
                weights[modality] = torch.where(same_modalities, weight, 1.0)
        for name, modality in INPUT_MODALITIES.items():
            if name in batch:
                batch[name] = mix(batch[name], weights[modality])
        mixed = [mix(labels, weight) for weight in weights.values()]
        batch["labels"] = mixed[0]
        if self.mixup_per_modality and len(mixed) == 2:
            batch["audio_labels"] = mixed[1]

    def _to_probabilities(self, labels: torch.Tensor) -> torch.Tensor:
        """Class numbers [B], [B, heads] with `class_splits`, or [B, segments] -> float [B, (segments,) C]; floats as they are."""
        if labels.is_floating_point():
            return labels
        if (labels < 0).any():
            raise ValueError(
                f"mixup needs a class for every label, but the batch has {labels.min().item()} (-100: no label); leave such clips "
                "out, or use a collator without mixup_alpha"
            )
        one_hot = torch.nn.functional.one_hot
        if self.class_splits:
            heads = list(self.class_splits.values())
            if labels.shape[1:][-1:] != (len(heads),):
                raise ValueError(
                    f"mixup with class_splits={self.class_splits} needs a class number for each of these heads, got labels of "
                    f"shape {tuple(labels.shape[1:])} per clip"
                )
            return torch.cat([one_hot(labels[..., head], size) for head, size in enumerate(heads)], dim=-1).float()
        if self.num_labels is None:
            raise ValueError(
                "mixup with integer labels needs AVCollator(num_labels=...), the number of classes, or class_splits=... for "
                "labels of several heads"
            )
        return one_hot(labels, self.num_labels).float()

    def _drop_modalities(self, present: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        video, audio = self.modality_dropout
        draws = torch.rand(len(present), generator=generator)
        both = present.all(dim=1)
        drop = torch.stack([draws < video, (draws >= video) & (draws < video + audio)], dim=1)
        return present & ~(drop & both.unsqueeze(1))


class LabelChecks:
    """Checks the labels of the batches of a user's own collator, since a loss on a GPU cannot check them.

    Args:
        collator: makes the batches.
        task_collator: that of the model's task (`AVCollator.for_model`), which knows the classes.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Any], task_collator: AVCollator):
        self.collator = collator
        self.task_collator = task_collator

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collator(samples)
        for name in ("labels", "audio_labels"):
            labels = batch.get(name) if isinstance(batch, Mapping) else None
            if isinstance(labels, torch.Tensor) and labels.device.type == "cpu":
                self.task_collator.check_labels(labels)
        return batch


def _stack(samples: Sequence[dict[str, Any]], name: str, present: torch.Tensor) -> torch.Tensor:
    absent = [str(sample.get("clip_id", n)) for n, sample in enumerate(samples) if present[n] and name not in sample]
    if absent:
        raise ValueError(
            f"{name} of one batch must be in all samples with that modality, but is not in clips {', '.join(absent)}: use one "
            "processor for all samples"
        )
    tensors = [sample[name] for sample, has in zip(samples, present) if has]
    shapes = {tuple(values.shape) for values in tensors}
    if len(shapes) > 1:
        ids = [str(sample.get("clip_id", number)) for number, sample in enumerate(samples)]
        raise ValueError(
            f"{name} of one batch must have one shape, got {sorted(shapes)} (clips {', '.join(ids)}): use a processor with fixed"
            " sizes"
        )
    if len(tensors) == len(samples):
        return torch.stack(tensors)
    # The model ignores the zeros, by `modality_mask`.
    return torch.stack([sample[name] if has else torch.zeros_like(tensors[0]) for sample, has in zip(samples, present)])
