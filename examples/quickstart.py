"""From nothing to a model that hears and sees: render a data set, train on it, see that fusion was needed, look at a
prediction.

    python examples/quickstart.py                  # no download; minutes on two CPU cores
    python examples/quickstart.py --clip FILE      # afterwards: what does the model make of any clip of yours?

SoundingShapes shows one of four shapes while one of four sounds is heard, independently. The label of interest is
`sum` = (shape + sound) mod 4. Someone who only sees, or only hears, can do no better than guess it, and neither can
the average of two such guesses (late fusion); it takes a model whose streams talk to each other, here through MBT's
bottleneck tokens.

Why three heads? The label has three parts, as Epic-Kitchens has verb and noun: `shape`, `sound` and `sum`. Trained
on `sum` alone a small model merely memorises the training clips: until both shape and sound are recognised, no
single feature of a clip tells anything about the sum, so there is nothing to start from. The two easy heads make the
streams recognise what there is to see and hear; combining the two is then a small step.

In training some clips lose one track (modality dropout), so that one model also serves where a track is missing.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich import print
from rich.table import Table
from transformers import HfArgumentParser, set_seed

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
COLUMNS = ("shape", "sound", "label")  # of the data set, in the order of the heads
SECONDS = 2.0  # length of a clip
LAYERS = 4


@dataclass
class Options:
    output: str = field(default="quickstart", metadata={"help": "Folder of the clips, the model and the picture."})
    clip: str | None = field(default=None, metadata={"help": "A media file to predict instead of a rendered clip."})
    train_clips: int = field(default=3000, metadata={"help": "Clips to render for training."})
    test_clips: int = field(default=480, metadata={"help": "Clips to render for the table."})
    steps: int = field(default=500, metadata={"help": "Training steps of each of the two models."})
    batch_size: int = field(default=32, metadata={"help": "Clips per step."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak learning rate of AdamW."})
    workers: int = field(default=1, metadata={"help": "Processes that decode beside the training one."})
    seed: int = 0


def make_processor() -> MBTProcessor:
    """Clips are small and short, so is the input: 4 frames of 32 x 32 pixels and 64 x 64 log-mels of 2 s."""
    side = {"height": 32, "width": 32}
    video_processor = AVFusionVideoProcessor(size=side, crop_size=side, antialias=True, truncate=False)
    feature_extractor = AVFusionFeatureExtractor.from_preset(
        "mbt", hop_length=500, win_length=1024, n_fft=1024, num_mel_bins=64, spectrogram_length=64,
        mean=-0.73, std=1.97,  # of the training clips' log-mels; saved with the model, like all of this
    )  # fmt: skip
    return MBTProcessor(video_processor, feature_extractor, num_frames=4, span=SECONDS, audio_seconds=SECONDS)


def make_model(label_names: list[str], fusion_layer: int) -> MBTForAudioVisualClassification:
    """A small MBT; with `fusion_layer` = number of layers its streams never meet before their logits: late fusion.

    Each video token is a patch of one frame (`tubelet_size=1`), because shapes move on between frames half a second
    apart; two frames in one token made the shapes much harder to learn.
    """
    config = MBTConfig(
        hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=256, fusion_layer=fusion_layer,
        image_size=32, patch_size=8, num_frames=4, tubelet_size=1, num_mel_bins=64, spectrogram_length=64,
        class_splits=HEADS, id2label=dict(enumerate(label_names)), label2id={n: i for i, n in enumerate(label_names)},
    )  # fmt: skip
    return MBTForAudioVisualClassification(config)


def stream(folder: Path, split: str, processor: MBTProcessor, modalities=("video", "audio"), **options) -> ClipStream:
    """The clips of a split as they are read from the shards; undecoded until a worker needs one."""
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
    """Test accuracy of every head when the model is given these modalities alone."""
    metrics = trainer.evaluate(stream(clips, "test", processor, modalities))
    return [metrics[f"eval_top1_{head}"] for head in HEADS]


def predict(clip: str | Path, output: Path) -> None:
    """In a new process, as a user would: Auto classes, a file, a table, a picture."""
    script = Path(__file__).with_name("predict.py")
    command = [sys.executable, str(script), str(clip), "--model", str(output / "model"), "--top_k", "2"]
    subprocess.run([*command, "--pictures", str(output)], check=True)
    print(f"the picture of what it looked at and listened to: {output / Path(clip).stem}.png")


def main() -> None:
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()
    output, clips = Path(options.output), Path(options.output) / "clips"
    if options.clip and (output / "model").is_dir():
        predict(options.clip, output)
        return
    started = time.perf_counter()
    # The model is small: a few threads compute while the workers decode; more would only get in each other's way.
    torch.set_num_threads(min(4, max(1, (os.cpu_count() or 1) - options.workers)))

    render(
        clips, rule="xor", num_classes=4, num_train=options.train_clips, num_validation=0, num_test=options.test_clips,
        duration=int(SECONDS), seed=options.seed,
    )  # fmt: skip
    features = load_benchmark("sounding_shapes", "test", source=clips).features
    label_names = [name for column in COLUMNS for name in features[column].names]
    processor = make_processor()
    rendered = time.perf_counter()

    table = Table("given", *HEADS, title="SoundingShapes: test accuracy", caption="chance is 25 %")
    for name, fusion_layer in (("bottleneck", LAYERS // 2), ("late", LAYERS)):
        set_seed(options.seed)
        model = make_model(label_names, fusion_layer)
        print(f"\n[bold]{name} fusion[/]: {model.num_parameters():,} parameters")
        trainer = train(model, processor, clips, options, name)
        rows = {f"{name} fusion, both tracks": ("video", "audio")}
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
        print(f"a test clip to predict, {clip}: {row['caption']}")
    predict(clip, output)
    print(f"{time.perf_counter() - started:.0f} s in all; everything is in {output}/")


if __name__ == "__main__":
    main()
