"""AVTrainer on a deterministic stream in memory and on rendered clips."""

import numpy as np
import pytest
import torch
from equality import assert_same_bits
from torch.utils.data import IterableDataset
from transformers import AutoProcessor

from hf_avfusion import AutoModelForAudioVisualClassification
from hf_avfusion.data.benchmarks.loading import load_benchmark
from hf_avfusion.data.benchmarks.shards import count_rows
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.tasks import task_of
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.optimization import warmup_cosine_factor
from hf_avfusion.training.trainer import AVTrainer

HEADS = {"shape": 3, "sound": 2}


def tiny_model(seed=0, **overrides):
    torch.manual_seed(seed)
    options = {"class_splits": HEADS, **overrides}
    config = MBTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, fusion_layer=1, image_size=16,
        patch_size=8, num_frames=2, num_mel_bins=16, spectrogram_length=16, **options,
    )  # fmt: skip
    return MBTForAudioVisualClassification(config)


class MemoryStream(IterableDataset):
    """Fixed samples in a new order each epoch; the last batch of an epoch is smaller than the others."""

    def __init__(self, clips=14, labels=None):
        generator = torch.Generator().manual_seed(7)
        self.epoch = 0
        self.samples = [
            {
                "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
                "input_features": torch.randn(16, 16, generator=generator),
                "has_video": True,
                "has_audio": True,
                "labels": torch.tensor([index % 3, index % 2]) if labels is None else labels[index],
                "clip_id": f"clip-{index}",
            }
            for index in range(clips)
        ]

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.samples)

    def __iter__(self):
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.epoch))
        return iter([self.samples[index] for index in order])


def arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_train_epochs": 3, "learning_rate": 1e-2,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        **({} if "schedule" in options else {"lr_scheduler_type": "constant"}),
    }  # fmt: skip
    return AVTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def test_resuming_equals_not_stopping(tmp_path):
    """Four steps per epoch; the checkpoint is from the middle of the second epoch, so order and position must be restored."""
    uninterrupted = AVTrainer(
        tiny_model(),
        arguments(tmp_path / "uninterrupted", save_strategy="steps", save_steps=6, gradient_accumulation_steps=1),
        train_dataset=MemoryStream(),
    )
    uninterrupted.train()
    assert uninterrupted.state.global_step == 12

    resumed = AVTrainer(tiny_model(seed=99), arguments(tmp_path / "resumed"), train_dataset=MemoryStream())
    resumed.train(resume_from_checkpoint=str(tmp_path / "uninterrupted" / "checkpoint-6"))
    assert resumed.state.global_step == 12
    assert_same_bits(resumed.model.state_dict(), uninterrupted.model.state_dict())


class EndlessStream(MemoryStream):
    __len__ = None  # unknown length


def test_resuming_a_stream_of_unknown_length_raises(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 5}
    trainer = AVTrainer(tiny_model(), arguments(tmp_path, **options), train_dataset=EndlessStream())
    trainer.train()  # continues into the second epoch
    assert trainer.state.global_step == 6
    trainer = AVTrainer(tiny_model(), arguments(tmp_path, **options), train_dataset=EndlessStream())
    with pytest.raises(ValueError, match="unknown length"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_warmup_in_epochs_needs_a_length(tmp_path):
    options = {"max_steps": 6, "schedule": "warmup_cosine", "warmup_epochs": 1.0}
    trainer = AVTrainer(tiny_model(), arguments(tmp_path, **options), train_dataset=EndlessStream())
    with pytest.raises(ValueError, match="give warmup_steps"):
        trainer.train()


def test_checkpoint_of_another_model_raises(tmp_path):
    AVTrainer(
        tiny_model(share_encoder=True), arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1),
        train_dataset=MemoryStream(),
    ).train()  # fmt: skip
    trainer = AVTrainer(tiny_model(), arguments(tmp_path / "other"), train_dataset=MemoryStream())
    with pytest.raises(ValueError, match=r"holds another model's weights: .* \(checkpoint: missing, model: "):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.fixture(scope="module")
def adamw_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adamw")
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    AVTrainer(tiny_model(), arguments(folder, **options), train_dataset=MemoryStream()).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "momentum_sgd"}, "another optimiser: amsgrad, betas, .* unknown to this run's SGD, .* momentum"),
        ({"optim": "adafactor"}, "another optimiser: amsgrad, betas, .* unknown to this run's Adafactor"),
        ({"optimizer": "adam_decoupled"}, "with other parameter groups: .* and the optimiser of the earlier run"),
        ({"layer_decay": 0.5}, r"other parameter groups: \[\d+, \d+\] tensors in each, but this run has \[\d+, \d+, "),
        ({"learning_rate": 0.5}, r"asks for others: learning_rate was 0\.01 and is 0\.5\. Resume with the values"),
        ({"weight_decay": 0.1, "adam_beta2": 0.9}, r"betas was \(0.9, 0.999\) and is \(0.9, 0.9\), weight_decay was 0.0 and"),
    ],
)  # fmt: skip
def test_resuming_with_another_optimiser_raises_before_the_first_step(tmp_path, adamw_checkpoint, options, message):
    trainer = AVTrainer(tiny_model(), arguments(tmp_path, max_steps=2, **options), train_dataset=MemoryStream())
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(adamw_checkpoint))
    assert trainer.state.global_step == 0


def test_resuming_without_the_state_of_the_optimiser_raises(tmp_path):
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    trainer = AVTrainer(tiny_model(), arguments(tmp_path, **options), train_dataset=MemoryStream())
    trainer.train()
    with pytest.raises(ValueError, match=r"has no optimizer\.pt, since --save_only_model leaves it out"):
        trainer.train(resume_from_checkpoint=True)


def test_best_model_is_loaded_at_the_end(tmp_path):
    trainer = AVTrainer(
        tiny_model(),
        arguments(
            tmp_path, num_train_epochs=2, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=0.3,
        ),
        train_dataset=MemoryStream(),
        eval_dataset=MemoryStream(),
    )  # fmt: skip
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_published_optimizer_and_schedule(tmp_path):
    trainer = AVTrainer(
        tiny_model(),
        arguments(
            tmp_path, optimizer="momentum_sgd", schedule="warmup_cosine", warmup_epochs=0.6, learning_rate=0.5,
            dataloader_drop_last=True,
        ),
        train_dataset=MemoryStream(),
    )  # fmt: skip
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    # 14 clips in batches of 4 without the incomplete one: 3 steps per epoch, W = 1.8, N = 9.
    assert rates == pytest.approx([0.5 * warmup_cosine_factor(step, 1.8, 9) for step in range(9)])
    assert rates[0] == 0.0
    group = trainer.optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["dampening"], group["weight_decay"]) == (0.9, False, 0.0, 0.0)


def test_momentum_sgd_step_with_clipping(tmp_path):
    """One update computed by hand: p - lr * g * min(1, max_grad_norm / norm of g)."""
    model, stream = tiny_model(), MemoryStream()
    reference = tiny_model()
    trainer = AVTrainer(
        model,
        arguments(tmp_path, optimizer="momentum_sgd", learning_rate=0.5, max_grad_norm=0.25, max_steps=1),
        train_dataset=stream,
    )
    trainer.train()

    batch = trainer.data_collator(list(stream)[:4])
    reference.train()
    reference(**batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.grad is not None}
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
    assert norm > 0.25  # otherwise clipping is not tested
    after = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        expected = parameter.detach() - 0.5 * gradients.get(name, torch.zeros(())) * 0.25 / norm
        torch.testing.assert_close(after[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    weights = []
    for batch, accumulation in ((8, 1), (4, 2)):
        trainer = AVTrainer(
            tiny_model(),
            arguments(
                tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, optimizer="momentum_sgd",
                num_train_epochs=1, learning_rate=0.1,
            ),
            train_dataset=MemoryStream(clips=16),
        )  # fmt: skip
        trainer.train()
        assert trainer.state.global_step == 2
        weights.append(trainer.model.state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)


def test_evaluation_with_several_heads(tmp_path):
    model, stream = tiny_model(), MemoryStream(clips=14)
    trainer = AVTrainer(model, arguments(tmp_path), eval_dataset=stream)
    metrics = trainer.evaluate()

    model.eval()
    batch = trainer.eval_data_collator(list(stream))
    with torch.no_grad():
        output = model(**batch)
    # 14 clips in batches of 4, 4, 4, 2: the mean over clips, not over batches.
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-5)
    hits = torch.stack([output.logits[:, :3].argmax(1), output.logits[:, 3:].argmax(1)], dim=1) == batch["labels"]
    assert metrics["eval_top1_shape"] == pytest.approx(hits[:, 0].float().mean().item())
    assert metrics["eval_top1_sound"] == pytest.approx(hits[:, 1].float().mean().item())
    assert metrics["eval_top1_joint"] == pytest.approx(hits.all(1).float().mean().item())
    predictions = trainer.predict(stream)
    np.testing.assert_allclose(predictions.predictions, output.logits.numpy(), atol=1e-5)
    assert predictions.label_ids.tolist() == batch["labels"].tolist()


def test_evaluation_with_several_labels(tmp_path):
    targets = (torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    model = tiny_model(class_splits=None, num_labels=4, problem_type="multi_label_classification")
    metrics = AVTrainer(model, arguments(tmp_path), eval_dataset=MemoryStream(12, targets)).evaluate()
    assert {"eval_loss", "eval_map", "eval_auc", "eval_d_prime", "eval_classes_without_positives"} <= set(metrics)


def with_views(clips, views, labels=None, inputs=("pixel_values", "input_features")):
    """Samples with several different views."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"pixel_values": (views, 2, 3, 16, 16), "input_features": (views, 16, 16)}
    return [
        {
            **{name: torch.randn(shapes[name], generator=generator) for name in inputs},
            "has_video": "pixel_values" in inputs,
            "has_audio": "input_features" in inputs,
            "labels": torch.tensor([index % 3, index % 2]) if labels is None else labels[index],
            "clip_id": f"clip-{index}",
        }
        for index in range(clips)
    ]


MULTI_HOT = (torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
MULTI_LABEL = {"class_splits": None, "num_labels": 4, "problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("aggregation", "config", "labels"),
    [("mean_logits", {}, None), ("mean_probabilities", {}, None), ("max_logits", MULTI_LABEL, MULTI_HOT)],
)
def test_views_are_joined_and_every_clip_counts_once(tmp_path, aggregation, config, labels):
    """Nine clips in batches of 4, 4, 1; the views of a clip are split over several forward passes."""
    model, samples, seen = tiny_model(**config), with_views(9, 3, labels), []
    options = {"eval_num_views": 3, "eval_aggregation": aggregation, "eval_views_per_step": 5}
    trainer = AVTrainer(model, arguments(tmp_path, **options), eval_dataset=samples)
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(output.logits)))
    metrics = trainer.evaluate()
    assert seen == [5, 5, 2, 5, 5, 2, 3]
    handle.remove()
    assert metrics["eval_views"] == 3

    # Each view is a single clip here.
    with torch.no_grad():
        single = torch.stack(
            [model(pixel_values=each["pixel_values"], input_features=each["input_features"]).logits for each in samples]
        )
    targets = torch.stack([each["labels"] for each in samples])
    if aggregation == "max_logits":
        expected = single.amax(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(expected, targets, reduction="none").sum(1).mean()
    else:
        joined = single.mean(1)
        if aggregation == "mean_probabilities":
            joined = torch.cat([part.softmax(-1).mean(1).log() for part in single.split([3, 2], dim=-1)], dim=1)
        expected = joined
        heads = zip(expected.split([3, 2], dim=1), targets.T)
        loss = sum(torch.nn.functional.cross_entropy(scores, target) for scores, target in heads) / 2
    predicted = trainer.predict(samples)
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), expected, atol=1e-5, rtol=1e-5)
    assert predicted.label_ids.tolist() == targets.tolist()
    assert metrics["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, value in task_of(model).metrics(expected, targets, model.config).items():
        assert metrics[f"eval_{name}"] == pytest.approx(value), name


def test_views_of_audio_only(tmp_path):
    model, samples = tiny_model(), with_views(5, 2, inputs=("input_features",))
    predicted = AVTrainer(model, arguments(tmp_path, eval_num_views=2), eval_dataset=samples).predict(samples)
    with torch.no_grad():
        expected = torch.stack([model(input_features=each["input_features"]).logits.mean(0) for each in samples])
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), expected, atol=1e-5, rtol=1e-5)


def test_wrong_number_of_views_raises(tmp_path):
    trainer, wrong = AVTrainer(tiny_model(), arguments(tmp_path, eval_num_views=4)), with_views(5, 2)
    for evaluated in (wrong, MemoryStream().samples):
        for give in (trainer.evaluate, trainer.predict):
            with pytest.raises(
                ValueError, match=r"ask for 4 views per clip.* first sample.* pixel_values \(2,.*view_transform"
            ):
                give(evaluated)
    with pytest.raises(ValueError, match=r"ask for 4 views per clip.* first sample .*view_transform"):
        AVTrainer(tiny_model(), arguments(tmp_path, eval_num_views=4), eval_dataset=wrong)

    def undeclared(row, generator):
        raise AssertionError("the check must fail before anything is decoded")

    with pytest.raises(
        ValueError, match=r"ask for 4 views per clip.* does not state how many .* set num_views=4 on your own"
    ):
        AVTrainer(
            tiny_model(),
            arguments(tmp_path, eval_num_views=4),
            validation_dataset=ClipStream([{"clip_id": "clip", "video": None}], undeclared),
        )

    def transform(row, generator):
        raise AssertionError("the check must fail before anything is decoded")

    transform.num_views = 2
    stream = ClipStream([{"clip_id": "clip", "video": None}], transform)
    message = r"ask for 4 views per clip.*transform makes 2.*view_transform"
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(stream)
    with pytest.raises(ValueError, match=message):
        AVTrainer(tiny_model(), arguments(tmp_path, eval_num_views=4), eval_dataset={"mine": stream})


class Views(IterableDataset):
    """A user's own stream of clips with views."""

    def __init__(self, samples):
        self.samples, self.read = samples, 0

    def __iter__(self):
        for sample in self.samples:
            self.read += 1
            yield sample


def test_a_users_own_stream_is_checked_for_views_before_training(tmp_path):
    samples, options = with_views(5, 2), {"train_dataset": MemoryStream()}
    messages = {
        4: r"ask for 4 views per clip.* first sample.* pixel_values \(2,.*view_transform",
        None: r"first sample.* pixel_values \(2, 2, 3.*an axis more.*\[frames, channels.*eval_num_views",
    }
    for views, message in messages.items():
        for evaluated in (Views(samples), samples, {"mine": Views(samples)}):
            with pytest.raises(ValueError, match=message):
                AVTrainer(tiny_model(), arguments(tmp_path, eval_num_views=views), eval_dataset=evaluated, **options)
        with pytest.raises(ValueError, match=message):
            AVTrainer(tiny_model(), arguments(tmp_path, eval_num_views=views), validation_dataset=Views(samples))
    model, stream = tiny_model(), Views(samples)
    trainer = AVTrainer(model, arguments(tmp_path, eval_num_views=2), eval_dataset=stream, **options)
    assert stream.read == 1
    expected = AVTrainer(model, arguments(tmp_path, eval_num_views=2), eval_dataset=samples).evaluate()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"])
    stream.num_views = 2  # stated by the stream, as a ClipStream's transform does
    stated = AVTrainer(model, arguments(tmp_path), eval_dataset=stream).evaluate()
    assert (stated["eval_views"], stated["eval_loss"]) == (2, pytest.approx(expected["eval_loss"]))
    with pytest.raises(ValueError, match=r"ask for 4 views per clip.*makes 2"):
        AVTrainer(model, arguments(tmp_path, eval_num_views=4), eval_dataset=stream)


@pytest.mark.parametrize("stream", [True, False])
def test_labels_of_a_users_own_collator_are_checked_on_the_cpu(tmp_path, stream):
    """A loss on a GPU cannot check them: it would end in a device assert. So the loader checks them, before the model sees them."""

    def collate(samples):
        return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "labels")}

    labels = [torch.tensor([3 if index == 5 else 0, 0]) for index in range(14)]
    right, wrong = MemoryStream(), MemoryStream(labels=labels)
    if not stream:
        right, wrong = right.samples, wrong.samples
    for own in (collate, AVCollator()):  # without the number of classes, ours does not check either
        model, seen = tiny_model(), []
        model.register_forward_pre_hook(lambda module, inputs, kwargs: seen.append(kwargs["labels"]), with_kwargs=True)  # noqa: B023
        options = {"data_collator": own, "eval_data_collator": own}
        with pytest.raises(ValueError, match=r"head shape hold 3, but its class numbers are 0\.\.2"):
            AVTrainer(model, arguments(tmp_path), train_dataset=wrong, **options).train()
        with pytest.raises(ValueError, match=r"head shape hold 3, but its class numbers are 0\.\.2"):
            AVTrainer(model, arguments(tmp_path), eval_dataset=wrong, **options).evaluate()
        assert all((batch[:, 0] < 3).all() for batch in seen)  # the batch with the wrong label never reached the model
        trainer = AVTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=right, eval_dataset=right, **options)
        trainer.train()
        trainer.evaluate()


def test_a_stream_that_can_be_read_once_loses_no_sample(tmp_path):
    class Once(IterableDataset):
        def __init__(self):
            self.samples = iter(MemoryStream().samples)

        def __iter__(self):
            return self.samples

    metrics = AVTrainer(tiny_model(), arguments(tmp_path), eval_dataset=Once())
    assert len(metrics.predict(metrics.eval_dataset).predictions) == 14


@pytest.mark.parametrize(
    ("made", "views", "message"),
    [
        (
            {},
            {"eval_aggregation": "max_logits"},
            "max_logits is for models of several labels per clip.* multi_head_classification",
        ),
        (
            {"class_splits": None, "num_labels": 4, "problem_type": "single_label_classification"},
            {"eval_protocol": "avbert/charades"},
            "max_logits is for models of several labels per clip.* single_label_classification",
        ),
        (
            {"num_segments": 10},
            {"eval_protocol": "avmae"},
            r"4 views \(--eval_num_views\) .* for audio-visual event localisation",
        ),
    ],
)
def test_views_that_do_not_fit_the_model_raise_before_training(tmp_path, made, views, message):
    model = tiny_model()
    for name, value in {"problem_type": "multi_head_classification", **made}.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        AVTrainer(model, arguments(tmp_path, **views), eval_dataset=MemoryStream())


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("top1_shap", {}, "='top1_shap': .* no such metric; did you mean top1_shape.* are clips, loss, .*top1_joint"),
        ("eval_los", {}, "did you mean loss"),
        ("mpa", MULTI_LABEL, "did you mean map"),
        ("top1", {"class_splits": None, "num_segments": 2, "num_labels": 4}, "no such metric.* are accuracy, "),
    ],
)  # fmt: skip
def test_misspelt_best_metric_raises_before_the_first_step(tmp_path, name, model, message):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = AVTrainer(
        tiny_model(**model), arguments(tmp_path, metric_for_best_model=name, **options),
        train_dataset=MemoryStream(), eval_dataset=MemoryStream(),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("name", ["top1_shape", "eval_loss", "mine_top1_joint", "own"])
def test_best_metrics_that_exist(tmp_path, name):
    evaluated = {"mine": MemoryStream()} if name.startswith("mine") else MemoryStream()
    own = (lambda prediction: {"own": 1.0}) if name == "own" else None
    trainer = AVTrainer(
        tiny_model(), arguments(tmp_path, metric_for_best_model=name), train_dataset=MemoryStream(), eval_dataset=evaluated,
        compute_metrics=own,
    )  # fmt: skip
    trainer.check_start()


@pytest.mark.parametrize("views", [1, 2])
def test_clips_without_labels_count_neither_in_loss_nor_in_metrics(tmp_path, views):
    """Six clips in batches of 4 and 2, of which the first has one label and the second two."""
    model, numbers = tiny_model(class_splits=None, num_labels=4), [3, -100, -100, -100, 1, 0]
    samples = with_views(6, views, torch.tensor(numbers))
    if views == 1:
        for sample in samples:
            sample |= {name: sample[name][0] for name in ("pixel_values", "input_features")}
    args = arguments(tmp_path, eval_num_views=views)
    found = AVTrainer(model, args, eval_dataset=samples).evaluate()
    labelled = [sample for sample, number in zip(samples, numbers) if number >= 0]
    expected = AVTrainer(model, args, eval_dataset=labelled).evaluate()
    for name in ("eval_loss", "eval_top1"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_training_and_evaluation_use_their_own_collators(tmp_path):
    seen = {"train": 0, "eval": 0}
    trainer = AVTrainer(
        tiny_model(), arguments(tmp_path, max_steps=2), train_dataset=MemoryStream(), eval_dataset=MemoryStream()
    )
    plain = trainer.eval_data_collator

    def counting(key):
        def collate(samples):
            seen[key] += len(samples)
            return plain(samples)

        return collate

    trainer.data_collator, trainer.eval_data_collator = counting("train"), counting("eval")
    trainer.train()
    assert seen == {"train": 8, "eval": 0}
    trainer.evaluate()
    assert seen == {"train": 8, "eval": 14}
    # For a map-style dataset the Trainer's own code uses the same collators.
    trainer.evaluate(eval_dataset=MemoryStream().samples)
    assert seen == {"train": 8, "eval": 28}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adagrad"}, "optimizer must be one of"),
        ({"schedule": "cosine"}, "schedule must be one of"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"optimizer": "momentum_sgd", "weight_decay": 0.1}, "published without"),
        ({"warmup_epochs": 2.5}, "is allowed only with schedule='warmup_cosine'"),
        ({"schedule": "warmup_cosine", "warmup_epochs": -1.0}, "must not be negative"),
        ({"remove_unused_columns": True}, "would remove columns that the collator needs"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing"),
        ({"eval_protocol": "mtb"}, "there is no protocol 'mtb'"),
        ({"eval_num_crops": 2}, "1 or 3 crops"),
        ({"eval_aggregation": "median"}, "aggregation must be one of"),
        ({"eval_views_per_step": 0}, "eval_views_per_step must be at least 1"),
    ],
)
def test_contradicting_arguments_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_training_on_rendered_clips(tmp_path):
    """Trains from encoded files with a worker: the loss falls, and checkpoints load with model and processor."""
    shards = tmp_path / "shards"
    render(shards, num_train=64, num_validation=0, num_test=16, num_proc=1, progress=False)
    side = {"height": 16, "width": 16}
    processor = MBTProcessor(
        AVFusionVideoProcessor(size=side, crop_size=side),
        AVFusionFeatureExtractor.from_preset(
            "mbt", hop_length=1000, win_length=1024, n_fft=1024, num_mel_bins=32, spectrogram_length=32, mean=-0.7, std=2.0
        ),
        num_frames=2, span=2.0, audio_seconds=2.0,
    )  # fmt: skip

    def clips(split, **options):
        rows = load_benchmark("sounding_shapes", split, source=shards)
        transform = ClipTransform(processor, ("shape", "sound"), mode="train" if split == "train" else "eval")
        return ClipStream(rows, transform, num_rows=count_rows(shards, split), **options)

    torch.manual_seed(0)
    config = MBTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, fusion_layer=1, image_size=16,
        patch_size=8, tubelet_size=1, num_frames=2, num_mel_bins=32, spectrogram_length=32,
        class_splits={"shape": 4, "sound": 4},
    )  # fmt: skip
    trainer = AVTrainer(
        MBTForAudioVisualClassification(config),
        arguments(
            tmp_path / "run", per_device_train_batch_size=16, max_steps=24, learning_rate=3e-3, save_strategy="steps",
            save_steps=12, dataloader_num_workers=1, dataloader_persistent_workers=True,
        ),
        AVCollator(modality_dropout=0.2),
        train_dataset=clips("train", shuffle_buffer=64),
        eval_dataset=clips("test"),
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.2
    assert trainer.evaluate()["eval_top1_sound"] > 0.5  # chance is 0.25

    for checkpoint in (tmp_path / "run" / "checkpoint-12", tmp_path / "run" / "checkpoint-24"):
        assert AutoProcessor.from_pretrained(checkpoint).to_dict() == processor.to_dict()
    loaded = AutoModelForAudioVisualClassification.from_pretrained(tmp_path / "run" / "checkpoint-24")
    assert_same_bits(loaded.state_dict(), trainer.model.state_dict())


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("views", [1, 2])
def test_a_regression_is_evaluated_by_its_errors(tmp_path, outputs, views):
    targets = list(torch.randn(14, outputs, generator=torch.Generator().manual_seed(1)).squeeze(-1))
    targets[3] = torch.full_like(targets[3], -100.0)  # no target
    fields = {"class_splits": None, "num_labels": outputs, "problem_type": None if outputs == 1 else "regression"}
    model = tiny_model(**fields)
    samples = with_views(14, views, targets) if views > 1 else MemoryStream(labels=targets).samples
    options = {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "mae"}
    options |= {"eval_num_views": views, "num_train_epochs": 1, "train_dataset": MemoryStream(labels=targets)}
    train = options.pop("train_dataset")
    trainer = AVTrainer(
        model, arguments(tmp_path, greater_is_better=False, **options), train_dataset=train, eval_dataset=samples
    )
    trainer.train()
    metrics, predicted = trainer.evaluate(), trainer.predict(samples)
    difference = torch.from_numpy(predicted.predictions) - torch.stack(targets).reshape(14, outputs)
    difference = difference[[number for number in range(14) if number != 3]]
    assert metrics["eval_mse"] == pytest.approx(difference.square().mean().item(), rel=1e-5)
    assert metrics["eval_mse"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    assert metrics["eval_mae"] == pytest.approx(difference.abs().mean().item(), rel=1e-5)
    assert not {"eval_top1", "eval_map"} & set(metrics)
    with pytest.raises(ValueError, match=r"'mae' with greater_is_better=True .* largest error"):
        AVTrainer(model, arguments(tmp_path, **options), train_dataset=train, eval_dataset=samples).train()
    with pytest.raises(ValueError, match=r"--eval_aggregation: mean_probabilities .* predicts numbers"):
        AVTrainer(model, arguments(tmp_path, eval_aggregation="mean_probabilities"), eval_dataset=samples)


def test_a_regression_is_not_evaluated_on_classes():
    config = tiny_model(class_splits=None, num_labels=3, problem_type="regression").config
    fields = {"problem_type": "single_label_classification"}
    with pytest.raises(
        ValueError, match=r"predicts numbers \(problem_type=regression, .*the column label holds classes"
    ):
        task_of(tiny_model()).check_fields(config, fields, "the column label")
