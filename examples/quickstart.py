"""Renders a dataset, trains an audio-visual model on it, compares it with late fusion and shows a prediction.

    python examples/quickstart.py                  # no download; minutes on two CPU cores
    python examples/quickstart.py --clip FILE      # afterwards: predict a clip of your own

Each clip of SoundingShapes shows one of four shapes and plays one of four sounds, independently. The label of interest is
`sum` = (shape + sound) mod 4. A model that only sees or only hears can do no better than chance, and neither can the average
of two such models (late fusion). The streams must exchange information, here through MBT's bottleneck tokens.

The model has three heads, `shape`, `sound` and `sum`, as a model for Epic-Kitchens has verb and noun. Trained on `sum` alone,
a small model overfits: no single feature of a clip is informative about the sum until both shape and sound are recognised. The
two easier labels make the streams recognise shape and sound; combining them is then a small step.

In training some clips lose one modality (modality dropout), so that the model also works with a missing modality.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from hf_avfusion.arguments import argument_parser, check_at_least


@dataclass
class Options:
    output: str = field(default="quickstart", metadata={"help": "Folder for the clips, the model and the picture."})
    clip: str | None = field(default=None, metadata={"help": "A media file to predict instead of a rendered clip."})
    train_clips: int = field(default=3000, metadata={"help": "Clips to render for training."})
    test_clips: int = field(default=480, metadata={"help": "Clips to render for the table."})
    steps: int = field(default=500, metadata={"help": "Training steps per model; there are two models."})
    batch_size: int = field(default=32, metadata={"help": "Clips per step."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak learning rate of AdamW."})
    workers: int = field(default=1, metadata={"help": "Decoding processes."})
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(
            1, train_clips=self.train_clips, test_clips=self.test_clips, steps=self.steps, batch_size=self.batch_size
        )
        check_at_least(0, workers=self.workers)
        if self.clip is not None and not Path(self.clip).is_file():
            raise FileNotFoundError(f"--clip {self.clip}: no such file")


def parse() -> Options:
    (options,) = argument_parser(Options, description=__doc__.split("\n")[0]).parse_args_into_dataclasses()
    return options


if __name__ == "__main__":
    parse()  # wrong arguments are answered before the imports below, which take seconds

import torch
from rich import print
from rich.table import Table
from transformers import set_seed

from hf_avfusion import (
    AVFusionFeatureExtractor,
    AVFusionVideoProcessor,
    AVTrainer,
    AVTrainingArguments,
    MBTConfig,
    MBTForAudioVisualClassification,
    MBTProcessor,
    load_benchmark,
)
from hf_avfusion.data.benchmarks.shards import count_rows
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.data.transforms import ClipTransform

HEADS = {"shape": 4, "sound": 4, "sum": 4}
COLUMNS = ("shape", "sound", "label")  # the dataset's label columns, in the order of the heads
SECONDS = 2.0  # clip length
LAYERS = 4


def make_processor() -> MBTProcessor:
    """A processor for small, short clips: 4 frames of 32 x 32 pixels and a 64 x 64 log-mel spectrogram of 2 s."""
    side = {"height": 32, "width": 32}
    video_processor = AVFusionVideoProcessor(size=side, crop_size=side, antialias=True, truncate=False)
    feature_extractor = AVFusionFeatureExtractor.from_preset(
        "mbt", hop_length=500, win_length=1024, n_fft=1024, num_mel_bins=64, spectrogram_length=64,
        mean=-0.73, std=1.97,  # of the training clips' spectrograms; all of these settings are saved with the model
    )  # fmt: skip
    return MBTProcessor(video_processor, feature_extractor, num_frames=4, span=SECONDS, audio_seconds=SECONDS)


def make_model(label_names: list[str], fusion_layer: int) -> MBTForAudioVisualClassification:
    """A small MBT. With `fusion_layer` = number of layers, only the logits of its streams are combined (late fusion).

    Each video token is a patch of one frame (`tubelet_size=1`): frames are half a second apart and shapes move between
    them, so two frames per token made the shapes much harder to learn.
    """
    config = MBTConfig(
        hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=256, fusion_layer=fusion_layer,
        image_size=32, patch_size=8, num_frames=4, tubelet_size=1, num_mel_bins=64, spectrogram_length=64,
        class_splits=HEADS, id2label=dict(enumerate(label_names)), label2id={n: i for i, n in enumerate(label_names)},
    )  # fmt: skip
    return MBTForAudioVisualClassification(config)


def stream(folder: Path, split: str, processor: MBTProcessor, modalities=("video", "audio"), **options) -> ClipStream:
    """The clips of a split, read from the shards; a worker decodes each clip when it needs it."""
    transform = ClipTransform(processor, COLUMNS, mode="train" if split == "train" else "eval", modalities=modalities)
    rows = load_benchmark("sounding_shapes", split, streaming=True, source=folder)
    return ClipStream(rows, transform, num_rows=count_rows(folder, split), **options)


def train(model, processor: MBTProcessor, clips: Path, options: Options, name: str) -> AVTrainer:
    args = AVTrainingArguments(
        output_dir=str(Path(options.output) / name), max_steps=options.steps, learning_rate=options.learning_rate,
        lr_scheduler_type="cosine", warmup_steps=0.1, per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=80, dataloader_num_workers=options.workers,
        dataloader_persistent_workers=options.workers > 0, logging_steps=50, save_strategy="no", report_to="none",
        seed=options.seed,
    )  # fmt: skip
    trainer = AVTrainer(
        model,
        args,
        AVCollator(modality_dropout=0.2, seed=options.seed),
        train_dataset=stream(clips, "train", processor, seed=options.seed, shuffle_buffer=1000),
        processing_class=processor,
    )
    trainer.train()
    return trainer


def accuracies(trainer: AVTrainer, clips: Path, processor: MBTProcessor, *modalities: str) -> list[float]:
    """Test accuracy of every head when the model gets only these modalities."""
    metrics = trainer.evaluate(stream(clips, "test", processor, modalities))
    return [metrics[f"eval_top1_{head}"] for head in HEADS]


def predict(clip: str | Path, output: Path) -> None:
    """Runs predict.py on a clip in a new process, as a user would."""
    script = Path(__file__).with_name("predict.py")
    command = [sys.executable, str(script), str(clip), "--model", str(output / "model"), "--top_k", "2"]
    subprocess.run([*command, "--pictures", str(output)], check=True)
    print(f"the picture shows where the model attends: {output / Path(clip).stem}.png")


def main() -> None:
    options = parse()
    output, clips = Path(options.output), Path(options.output) / "clips"
    if options.clip and (output / "model").is_dir():
        predict(options.clip, output)
        return
    started = time.perf_counter()
    # The model is small, so more than a few threads would slow each other and the decoding workers down.
    torch.set_num_threads(min(4, max(1, (os.cpu_count() or 1) - options.workers)))

    render(
        clips, rule="xor", num_classes=4, num_train=options.train_clips, num_validation=0, num_test=options.test_clips,
        duration=int(SECONDS), seed=options.seed,
    )  # fmt: skip
    features = load_benchmark("sounding_shapes", "test", source=clips).features
    label_names = [name for column in COLUMNS for name in features[column].names]
    processor = make_processor()
    rendered = time.perf_counter()

    table = Table("model", *HEADS, title="SoundingShapes: test accuracy", caption="chance is 25 %")
    for name, fusion_layer in (("bottleneck", LAYERS // 2), ("late", LAYERS)):
        set_seed(options.seed)
        model = make_model(label_names, fusion_layer)
        print(f"\n[bold]{name} fusion[/]: {model.num_parameters():,} parameters")
        trainer = train(model, processor, clips, options, name)
        rows = {f"{name} fusion, both modalities": ("video", "audio")}
        if name == "bottleneck":
            trainer.save_model(str(output / "model"))
            rows |= {"the same model, audio only": ("audio",), "the same model, video only": ("video",)}
        for row, modalities in rows.items():
            values = accuracies(trainer, clips, processor, *modalities)
            table.add_row(row, *(f"{value:.1%}" for value in values))
    print(table)
    finished = time.perf_counter()
    print(f"rendering {rendered - started:.0f} s, training and testing {finished - rendered:.0f} s")

    clip = options.clip
    if clip is None:
        row = next(iter(load_benchmark("sounding_shapes", "test", source=clips)))
        clip = output / "clip.mp4"
        clip.write_bytes(row["video"]["bytes"])
        print(f"predicting the test clip {clip}: {row['caption']}")
    predict(clip, output)
    print(f"{time.perf_counter() - started:.0f} s in total; all files are in {output}/")


if __name__ == "__main__":
    main()
