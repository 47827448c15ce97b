"""AVCollator: masks of missing modalities, mixup of inputs and labels, and randomness that depends on the rows."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_avmae import inputs, tiny

from hf_avfusion import AVMAEForAudioVisualClassification
from hf_avfusion.data.augmentation import SpecAugment
from hf_avfusion.data.collating import AVCollator


def samples(modalities, labels=None, seeds=True):
    """One sample per entry of `modalities` ("av", "a" or "v"), with values of its number plus 1."""
    made = []
    for number, has in enumerate(modalities):
        sample = {"clip_id": f"clip-{number}", "has_video": "v" in has, "has_audio": "a" in has}
        if "v" in has:
            sample["pixel_values"] = torch.full((2, 3, 4, 4), number + 1.0)
        if "a" in has:
            sample["input_features"] = torch.full((10, 8), number + 1.0)
        sample["labels"] = torch.tensor(number % 3) if labels is None else labels[number]
        if seeds:
            sample["seed"] = 1000 + number
        made.append(sample)
    return made


def test_plain_batch_has_no_mask():
    batch = AVCollator()(samples(["av"] * 3))
    assert set(batch) == {"pixel_values", "input_features", "labels"}
    assert batch["pixel_values"].shape == (3, 2, 3, 4, 4)
    assert batch["input_features"].shape == (3, 10, 8)
    assert batch["labels"].tolist() == [0, 1, 2]
    assert AVCollator(mask_always=True)(samples(["av"]))["modality_mask"].tolist() == [[True, True]]


def test_pickled_copy_draws_the_same_random_numbers():
    collator = AVCollator(modality_dropout=0.5, seed=3)
    collator(samples(["av"] * 8, seeds=False))  # advances the generator
    copy = pickle.loads(pickle.dumps(collator))
    masks = [each(samples(["av"] * 8, seeds=False))["modality_mask"] for each in (collator, copy)]
    assert torch.equal(*masks)


def test_missing_modalities():
    batch = AVCollator()(samples(["av", "a", "v"]))
    assert batch["modality_mask"].tolist() == [[True, True], [False, True], [True, False]]
    assert batch["modality_mask"].dtype == torch.bool
    assert batch["pixel_values"][1].abs().sum() == 0
    assert batch["pixel_values"][2].mean() == 3
    alone = AVCollator()(samples(["a", "a"]))
    assert set(alone) == {"input_features", "labels"}
    with pytest.raises(ValueError, match=r"neither video nor audio: clip-1"):
        AVCollator()(samples(["av", ""]))


def test_views_and_heads_keep_their_axes():
    given = samples(["av", "av"], labels=[torch.tensor([0, 2]), torch.tensor([1, 1])])
    for sample in given:
        sample["input_features"] = sample["input_features"].expand(4, 10, 8)
    batch = AVCollator(spec_augment=SpecAugment(freq_mask_max_bins=4))(given)
    assert batch["input_features"].shape == (2, 4, 10, 8)
    assert batch["labels"].tolist() == [[0, 2], [1, 1]]


def test_unequal_shapes_raise_with_the_names_of_the_clips():
    given = samples(["av", "av"])
    given[1]["input_features"] = torch.zeros(9, 8)
    with pytest.raises(ValueError, match=r"input_features of one batch.*clip-0, clip-1"):
        AVCollator()(given)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["av", "a", "v"]), min_size=1, max_size=6), st.booleans())
def test_mixup_mixes_labels_as_it_mixes_inputs(modalities, per_modality):
    batch = AVCollator(mixup_alpha=0.5, mixup_per_modality=per_modality, num_labels=7)(
        samples(modalities, labels=[torch.tensor(number) for number in range(len(modalities))])
    )
    count = len(modalities)
    audio_labels = batch.get("audio_labels", batch["labels"])
    for number, has in enumerate(modalities):
        partner = count - 1 - number
        values = {"v": ("pixel_values", batch["labels"]), "a": ("input_features", audio_labels)}
        for letter, (name, labels) in values.items():
            if letter not in has or name not in batch:
                continue
            weight = labels[number, number].item() if number != partner else 1.0
            expected = weight * (number + 1) + (1 - weight) * (partner + 1)
            assert batch[name][number].mean().item() == pytest.approx(expected, abs=1e-4)
            if has != modalities[partner]:
                assert weight == 1.0  # filler must not leak into a clip
        assert batch["labels"][number].sum().item() == pytest.approx(1.0)
    assert ("audio_labels" in batch) == (per_modality and {"pixel_values", "input_features"} <= set(batch))


def test_mixup_of_multi_hot_and_multi_head_labels_and_errors():
    multi = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])]
    batch = AVCollator(mixup_alpha=0.3)(samples(["av", "av"], labels=multi))
    weight = batch["labels"][0, 0].item()
    assert batch["labels"][0].tolist() == pytest.approx([weight, weight, 1 - weight])
    heads = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    mixed = AVCollator(mixup_alpha=5, class_splits={"verb": 2, "noun": 3})(samples(["av", "av"], labels=heads))[
        "labels"
    ]
    weight = mixed[0, 0].item()
    assert 0 < weight < 1
    assert mixed[0].tolist() == pytest.approx([weight, 1 - weight, 1 - weight, weight, 0])
    assert mixed[1].tolist() == pytest.approx([1 - weight, weight, weight, 1 - weight, 0])
    three, ignored = [torch.tensor([0, 1, 1])] * 2, [torch.tensor([0, -100]), torch.tensor([1, 0])]
    with pytest.raises(ValueError, match=r"'noun': 3.*each of these heads.*shape \(3,\)"):
        AVCollator(mixup_alpha=0.3, class_splits={"verb": 2, "noun": 3})(samples(["av", "av"], labels=three))
    for labels in (None, heads):
        with pytest.raises(ValueError, match=r"num_labels=.*class_splits="):
            AVCollator(mixup_alpha=0.3)(samples(["av", "av"], labels=labels))
    with pytest.raises(ValueError, match=r"-100.*without mixup_alpha"):
        AVCollator(mixup_alpha=0.3, num_labels=4)(samples(["av", "av"], labels=ignored))
    with pytest.raises(ValueError, match="needs labels"):
        AVCollator(mixup_alpha=0.3)([{k: v for k, v in samples(["av"])[0].items() if k != "labels"}])


def test_mixup_of_segments():
    """Event localisation has a class for each segment of a clip, and its model takes their probabilities."""
    segments = [torch.tensor([0, 1, 2]), torch.tensor([2, 2, 2])]
    given = samples(["av", "av"], labels=segments)
    mixed = AVCollator(mixup_alpha=5, num_labels=4)(given)["labels"]
    assert mixed.shape == (2, 3, 4)
    weight = mixed[0, 0, 0].item()
    assert 0 < weight < 1
    torch.testing.assert_close(mixed[0, 1], torch.tensor([0, weight, 1 - weight, 0]))
    torch.testing.assert_close(mixed[1, 2], torch.tensor([0.0, 0, 1, 0]))
    model = tiny(
        AVMAEForAudioVisualClassification, num_segments=3, num_labels=4, problem_type="single_label_classification"
    )
    assert torch.isfinite(model.train()(**inputs(), labels=mixed).loss)


def test_modality_dropout_never_drops_both_or_the_only_one():
    counts = torch.zeros(2)
    for start in range(40):
        given = samples(["av"] * 20 + ["a", "v"])
        for number, sample in enumerate(given):
            sample["seed"] = 100 * start + number
        mask = AVCollator(modality_dropout=(0.2, 0.3))(given)["modality_mask"]
        assert mask.any(dim=1).all()
        assert mask[20:].tolist() == [[False, True], [True, False]]
        counts += (~mask[:20]).sum(dim=0)
    assert counts.div(800).tolist() == pytest.approx([0.2, 0.3], abs=0.05)
    all_gone = AVCollator(modality_dropout=1.0)(samples(["av"] * 50))["modality_mask"]
    assert (all_gone.sum(dim=1) == 1).all()
    assert 10 < all_gone[:, 0].sum() < 40
    for wrong in (1.5, (0.7, 0.7), (-0.1, 0.0)):
        with pytest.raises(ValueError, match="modality_dropout"):
            AVCollator(modality_dropout=wrong)


def test_randomness_depends_on_the_rows_not_the_collator():
    def batch(collator, rows):
        return collator(rows)["input_features"]

    def make():
        return AVCollator(spec_augment=SpecAugment(freq_mask_max_bins=8), mixup_alpha=0.5, num_labels=3)

    first, second = make(), make()
    rows = samples(["av"] * 4)
    batch(first, samples(["av"] * 3))  # earlier batches have no effect
    assert torch.equal(batch(first, rows), batch(second, rows))
    assert not torch.equal(batch(first, rows), batch(first, list(reversed(rows))).flip(0))
    # Without seeds, the collator uses its own generator.
    bare = samples(["av"] * 4, seeds=False)
    drawn = [batch(first, bare) for _ in range(4)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    assert torch.equal(drawn[0], batch(make(), bare))


def test_samples_of_a_processor_s_call_need_no_flags():
    clips = [
        {"pixel_values": torch.rand(2, 3, 4, 4), "input_features": torch.rand(6, 4)},
        {"input_features": torch.rand(6, 4)},
    ]
    batch = AVCollator()(clips)
    assert batch["modality_mask"].tolist() == [[True, True], [False, True]]
    assert torch.equal(batch["input_features"][1], clips[1]["input_features"])
    with pytest.raises(ValueError, match=r"neither video nor audio: 0 \(keys of the first: pixels\)"):
        AVCollator()([{"pixels": torch.rand(2, 3, 4, 4)}])
