"""Compares AV-MAE pretraining with training from scratch when few clips have labels, on SoundingShapes.

    python benchmarks/avmae_evidence.py --output runs/avmae_evidence        # no download; repeat the command to resume

The question: of 3,000 rendered clips, only 300, or 100, have labels. Does it help to pretrain on all clips without labels
before fine-tuning on those few? The labels are the quickstart's three heads: `shape` (visible), `sound` (audible) and
`sum` = (shape + sound) mod 4, which needs both modalities.

The comparison: for every seed, all arms have the same labelled clips, batches, steps, learning rate, head and evaluation. They
differ in the initial weights. "scratch_longer" trains on the labels for the additional FLOPs of pretraining. Two networks are
fine-tuned: MBT initialised by `MBTForAudioVisualClassification.from_avmae` (as in the paper; the same network for every encoder
strategy), and the pretrained encoder itself in `AVMAEForAudioVisualClassification` (supplementary A.5). The sweep pretrains all
four encoder strategies with equal compute: the FLOPs of a training step (forward and backward, every matrix product, counted by
`torch.utils.flop_counter`) times the steps are the same for all, up to half a step. Choose settings with `--split validation`,
other `--seeds` and another `--output`.

The method: the package's processor decodes the clips once, and a plain loop trains from the stored tensors, since decoding them
in each epoch would take most of the time. Models, losses, masks, layer-wise decay, optimiser and schedule are the package's.
Every finished run is written immediately. A repeated command makes only the missing runs, also with more `--seeds` or
`--strategies`.
"""

import json
import math
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser, PreTrainedModel, set_seed

from hf_avfusion import (
    AVFusionFeatureExtractor,
    AVFusionVideoProcessor,
    AVMAEConfig,
    AVMAEForAudioVisualClassification,
    AVMAEForPreTraining,
    AVMAEProcessor,
    MBTConfig,
    MBTForAudioVisualClassification,
    load_benchmark,
)
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.models.avmae.configuration_avmae import ENCODER_STRATEGIES
from hf_avfusion.models.mbt.initialization_mbt import mbt_config_fields_from_avmae
from hf_avfusion.training.layerwise_decay import kernel_names, layer_ids, layerwise_groups
from hf_avfusion.training.optimization import AdamDecoupled, warmup_cosine_schedule

HEADS = {"shape": 4, "sound": 4, "sum": 4}
COLUMNS = ("shape", "sound", "label")  # columns of the dataset, in the order of the heads
SECONDS = 2  # length of a clip
LAYERS, FUSION_LAYERS = 4, 2  # of both networks; the last two layers are joint in mid-fusion and use bottlenecks in MBT
# Options that may change without invalidating the finished runs.
NOT_SETTINGS = (
    "output", "clips", "strategy", "seeds", "strategies", "own_encoder", "longer_scratch", "labelled_clips"
)  # fmt: skip
STARTS = ("scratch", "scratch_longer", "pretrained")  # scratch_longer trains for the FLOPs of both stages
Clips = dict[str, Tensor]
Rows = list[list[str]]  # the first row has the column names


@dataclass
class Options:
    output: str = field(default="runs/avmae_evidence", metadata={"help": "Folder of clips, finished runs and tables."})
    clips: str | None = field(default=None, metadata={"help": "Folder of rendered clips; by default, in --output."})
    strategy: str = field(
        default="mid_fusion", metadata={"help": "Encoder strategy of the main table.", "choices": ENCODER_STRATEGIES}
    )
    strategies: list[str] = field(
        default_factory=lambda: [*ENCODER_STRATEGIES],
        metadata={"help": "Encoder strategies of the sweep.", "choices": ENCODER_STRATEGIES},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run of every arm per seed."})
    own_encoder: bool = field(default=True, metadata={"help": "Also fine-tune the pretrained encoder itself."})
    longer_scratch: bool = field(
        default=True, metadata={"help": "Also train from scratch for the FLOPs of both stages."}
    )
    split: str = field(default="test", metadata={"help": "Split to evaluate.", "choices": ["test", "validation"]})
    train_clips: int = field(default=3000, metadata={"help": "Clips to pretrain on."})
    labelled_clips: list[int] = field(
        default_factory=lambda: [300, 100],
        metadata={
            "help": "Numbers of --train_clips to fine-tune on, drawn by the seed; the sweep uses the last number."
        },
    )
    test_clips: int = field(default=480, metadata={"help": "Clips of the validation split and of the test split."})
    video_mask_ratio: float = 0.75
    audio_mask_ratio: float = 0.75
    pretrain_steps: int = field(
        default=700, metadata={"help": "Steps of mid-fusion; sets the FLOPs of all strategies."}
    )
    pretrain_batch_size: int = 64
    pretrain_learning_rate: float = 2e-3
    finetune_steps: int = 250
    finetune_batch_size: int = 32
    learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of fine-tuning, all arms."})
    layer_decay: float = field(default=1.0, metadata={"help": "Layer-wise decay of fine-tuning after pretraining."})

    def __post_init__(self):
        for count in self.labelled_clips:
            if not 0 < count <= self.train_clips:
                raise ValueError(f"--labelled_clips must lie in 1..{self.train_clips} (--train_clips), got {count}.")

    def settings(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}


def write(path: Path, text: str) -> None:
    """Writes a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".partial").write_text(text)
    os.replace(path.with_suffix(".partial"), path)


def make_processor() -> AVMAEProcessor:
    """Returns a processor for 4 frames of 32 x 32 pixels and 64 x 32 log-mels of 2 s."""
    side = {"height": 32, "width": 32}
    feature_extractor = AVFusionFeatureExtractor.from_preset(
        "avmae", hop_length=500, win_length=1024, n_fft=1024, num_mel_bins=32, spectrogram_length=64,
        mean=-0.73, std=1.97,  # like the quickstart; these log-mels get a mean of 0.4 and a standard deviation of 1.0
    )  # fmt: skip
    video_processor = AVFusionVideoProcessor(size=side, crop_size=side, antialias=True, truncate=False)
    return AVMAEProcessor(
        video_processor, feature_extractor, num_frames=4, span=float(SECONDS), audio_seconds=float(SECONDS)
    )


def load_clips(options: Options, split: str, console: Console) -> Clips:
    """Loads `pixel_values` [n, 4, 3, 32, 32], `input_features` [n, 64, 32], `labels` [n, 3]; renders and decodes once."""
    folder = Path(options.clips or Path(options.output) / "clips")
    path = folder / f"{split}.safetensors"
    if not path.exists():
        render(
            folder, rule="xor", num_classes=4, duration=SECONDS, num_train=options.train_clips,
            num_validation=options.test_clips, num_test=options.test_clips,
        )  # fmt: skip
        transform = ClipTransform(make_processor(), COLUMNS)
        rows = load_benchmark("sounding_shapes", split, streaming=True, source=folder)
        with console.status(f"decoding {split}"):
            samples = [transform(row) for row in rows]
        names = ("pixel_values", "input_features", "labels")
        tensors = {name: torch.stack([sample[name] for sample in samples]) for name in names}
        save_file(tensors, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
    clips, expected = load_file(path), options.train_clips if split == "train" else options.test_clips
    if len(clips["labels"]) != expected:
        raise ValueError(f"{path} has {len(clips['labels'])} clips, not {expected}; choose another --clips folder.")
    return clips


def avmae_config(options: Options, strategy: str, **more) -> AVMAEConfig:
    """Returns a config of the quickstart's size (64 wide, 4 layers), with a decoder of one layer that is half as wide.

    The targets are raw values, as in the released code.
    """
    return AVMAEConfig(
        hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=256,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=4, decoder_intermediate_size=128,
        image_size=32, patch_size=8, num_frames=4, tubelet_size=1, num_mel_bins=32, spectrogram_length=64,
        encoder_strategy=strategy, num_fusion_layers=FUSION_LAYERS if strategy == "mid_fusion" else None,
        video_mask_ratio=options.video_mask_ratio, audio_mask_ratio=options.audio_mask_ratio,
        **more,
    )  # fmt: skip


def mbt_config(options: Options) -> MBTConfig:
    """Returns the config that `from_avmae` makes by default, with two layers of bottleneck fusion, for every strategy."""
    fields = mbt_config_fields_from_avmae(avmae_config(options, options.strategy))
    return MBTConfig(**fields, fusion_layer=LAYERS - FUSION_LAYERS, class_splits=HEADS)


def clip_flops(model: PreTrainedModel, **labels: Tensor) -> int:
    """Counts the FLOPs of a forward and backward pass per clip; `labels` are those of two clips, if the model needs any."""
    model.set_attn_implementation("eager")  # the counter sees its matrix products on any device
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 4, 3, 32, 32), torch.zeros(2, 64, 32), **labels).loss.backward()
    return counter.get_total_flops() // 2


def batches(count: int, size: int, steps: int, seed: int):
    """Yields index tensors [size] from consecutive shuffled epochs; a batch may contain clips of two epochs."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(steps * size / count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    yield from order[: steps * size].split(size)


def train(
    model: PreTrainedModel, clips: Clips, steps: int, size: int, rate: float, decay: float, seed: int
) -> tuple[float, float]:
    """Trains with the published optimiser and schedule; returns the mean loss of the last 20 steps, and the seconds."""
    parameters = dict(model.named_parameters())
    groups = layerwise_groups(
        parameters, layer_ids(parameters), rate, decay, decaying=kernel_names(model), weight_decay=0.05
    )
    optimizer = AdamDecoupled(groups, lr=rate)
    schedule = warmup_cosine_schedule(optimizer, 0.1 * steps, steps)
    model.train()
    losses, started = [], time.perf_counter()
    for chosen in batches(len(clips["pixel_values"]), size, steps, seed):
        loss = model(**{name: values[chosen] for name, values in clips.items()}).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return statistics.fmean(losses[-20:]), time.perf_counter() - started


@torch.no_grad()
def accuracies(model: PreTrainedModel, clips: Clips) -> dict[str, float]:
    """Computes the accuracy of every head in percent."""
    model.eval()
    inputs = [clips[name].split(96) for name in ("pixel_values", "input_features")]
    logits = torch.cat([model(frames, spectrograms).logits for frames, spectrograms in zip(*inputs)])
    heads = logits.split(list(HEADS.values()), dim=-1)
    return {
        name: 100.0 * (head.argmax(-1) == clips["labels"][:, index]).float().mean().item()
        for index, (name, head) in enumerate(zip(HEADS, heads))
    }


class Evidence:
    """The runs of one output folder; each is made once and later read from its file."""

    def __init__(self, options: Options, console: Console):
        self.options, self.console, self.runs = options, console, Path(options.output) / "runs"
        note, settings = Path(options.output) / "settings.json", options.settings()
        if note.exists() and (found := json.loads(note.read_text())) != settings:
            changed = {name: found.get(name) for name in settings if found.get(name) != settings[name]}
            raise ValueError(f"{options.output} has runs with other settings ({changed}); choose another --output.")
        write(note, json.dumps(settings, indent=2) + "\n")
        self.clips, self.tested = load_clips(options, "train", console), load_clips(options, options.split, console)
        self.unlabelled = {name: self.clips[name] for name in ("pixel_values", "input_features")}
        models = {name: AVMAEForPreTraining(avmae_config(options, name)) for name in ENCODER_STRATEGIES}
        self.sizes = {name: model.avmae.num_parameters() for name, model in models.items()}
        self.flops = {name: clip_flops(model) * options.pretrain_batch_size for name, model in models.items()}
        budget = self.flops["mid_fusion"] * options.pretrain_steps
        self.steps = {name: round(budget / flops) for name, flops in self.flops.items()}
        step = clip_flops(MBTForAudioVisualClassification(mbt_config(options)), labels=torch.zeros(2, 3).long())
        self.longer = options.finetune_steps + round(budget / (step * options.finetune_batch_size))

    def pretrain(self, strategy: str, seed: int) -> Path:
        """Returns the folder of a pretrained model; pretrains it if it does not exist."""
        folder, options = self.runs / f"pretrained-{strategy}-seed{seed}", self.options
        if not folder.exists():
            set_seed(seed)
            model = AVMAEForPreTraining(avmae_config(options, strategy))
            steps, size, rate = self.steps[strategy], options.pretrain_batch_size, options.pretrain_learning_rate
            loss, seconds = train(model, self.unlabelled, steps, size, rate, 1.0, seed)
            self.console.print(f"{folder.name}: loss {loss:.4f} after {steps} steps, {seconds:.0f} s")
            model.save_pretrained(folder.with_suffix(".partial"))
            os.replace(folder.with_suffix(".partial"), folder)
        return folder

    def finetune(self, network: str, strategy: str, start: str, count: int, seed: int) -> dict[str, float]:
        """Returns the accuracies of `network` ("mbt" or "own" encoder) trained on `count` labels from one of STARTS."""
        options, pretrained = self.options, start == "pretrained"
        # Without pretraining, MBT is the same for every strategy.
        name = strategy if pretrained else start if network == "mbt" else f"{start}-{strategy}"
        path = self.runs / f"{network}-{name}-{count}labels-seed{seed}.json"
        if path.exists():
            return json.loads(path.read_text())
        folder = self.pretrain(strategy, seed) if pretrained else None
        config = mbt_config(options) if network == "mbt" else avmae_config(options, strategy, class_splits=HEADS)
        set_seed(seed)
        if not pretrained:
            model = (MBTForAudioVisualClassification if network == "mbt" else AVMAEForAudioVisualClassification)(config)
        elif network == "mbt":
            model = MBTForAudioVisualClassification.from_avmae(AVMAEForPreTraining.from_pretrained(folder), config)
        else:
            model = AVMAEForAudioVisualClassification.from_pretrained(folder, config=config)
        labelled = torch.randperm(options.train_clips, generator=torch.Generator().manual_seed(seed))
        clips = {name: values[labelled[:count]] for name, values in self.clips.items()}
        steps = self.longer if start == "scratch_longer" else options.finetune_steps
        decay = options.layer_decay if pretrained else 1.0
        loss, seconds = train(model, clips, steps, options.finetune_batch_size, options.learning_rate, decay, seed)
        result = accuracies(model, self.tested) | {"train_loss": loss, "seconds": seconds}
        write(path, json.dumps(result, indent=2) + "\n")
        shown = ", ".join(f"{head} {result[head]:.1f}" for head in HEADS)
        self.console.print(f"{path.stem}: {shown} (training loss {loss:.3f}, {seconds:.0f} s)")
        return result


def mean_std(runs: list[dict[str, float]]) -> list[str]:
    """Formats the mean and sample standard deviation over the seeds, for every head."""
    values = [[run[head] for run in runs] for head in HEADS]
    return [f"{statistics.fmean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "") for v in values]


def main_table(evidence: Evidence, network: str, starts: list[str]) -> Rows:
    """Makes the table that compares pretraining with training from scratch, seed by seed."""
    options = evidence.options
    rows = [["labels", "start", *HEADS, f"{' / '.join(HEADS)} of each seed"]]
    for count in options.labelled_clips:
        arms = {start: [] for start in starts}
        for seed in options.seeds:
            for start, runs in arms.items():
                runs.append(evidence.finetune(network, options.strategy, start, count, seed))
        pairs = zip(arms["scratch"], arms["pretrained"])
        arms["pretrained - scratch, paired"] = [{head: new[head] - old[head] for head in HEADS} for old, new in pairs]
        for arm, runs in arms.items():
            each = "; ".join(" / ".join(f"{run[head]:.1f}" for head in HEADS) for run in runs)
            rows.append([str(count), arm, *mean_std(runs), each])
    return rows


def sweep_table(evidence: Evidence) -> Rows:
    """Makes the table of encoder strategies with equal compute."""
    rows = [["encoder", "parameters", "GFLOP per step", "steps", "TFLOP in all", *HEADS]]
    runs: dict[str, list] = {strategy: [] for strategy in evidence.options.strategies}
    count = evidence.options.labelled_clips[-1]
    for seed in evidence.options.seeds:
        for strategy in runs:
            runs[strategy].append(evidence.finetune("mbt", strategy, "pretrained", count, seed))
    for name, results in runs.items():
        flops, steps = evidence.flops[name], evidence.steps[name]
        cost = [f"{evidence.sizes[name]:,}", f"{flops / 1e9:.2f}", str(steps), f"{flops * steps / 1e12:.2f}"]
        rows.append([name, *cost, *mean_std(results)])
    return rows


def main() -> None:
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()
    # Wide enough that a table row is one line in a log file, too.
    console, started = Console(width=None if sys.stdout.isatty() else 180), time.perf_counter()
    evidence = Evidence(options, console)
    model = AVMAEForPreTraining(avmae_config(options, options.strategy))
    sizes = (
        f"{model.num_parameters():,} parameters in pretraining, {model.avmae.num_parameters():,} of them in the encoder"
    )
    console.print(f"{options.strategy}: {sizes}; seeds {options.seeds}; {options.settings()}")
    unit = f"{options.split} accuracy, %, mean ± standard deviation (n = {len(options.seeds)}); chance is 25 %"
    starts = list(STARTS) if options.longer_scratch else ["scratch", "pretrained"]
    sweep = f"Encoder strategies pretrained with equal FLOPs, fine-tuned as MBT on {options.labelled_clips[-1]} labels"
    plans = [(f"{options.strategy}, fine-tuned as MBT", partial(main_table, evidence, "mbt", starts))]
    plans.append((sweep, partial(sweep_table, evidence)))
    if options.own_encoder:
        own = partial(main_table, evidence, "own", ["scratch", "pretrained"])
        plans.append((f"{options.strategy}, fine-tuned with its own encoder", own))
    text = ""
    for title, make in plans:
        columns, *rows = make()
        table = Table(*columns, title=f"{title}: {unit}")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines = [columns, ["---"] * len(columns), *rows]
        text += "\n".join([f"{title}: {unit}\n", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n\n"
        write(Path(options.output) / "tables.md", text)
    console.print(f"this call took {time.perf_counter() - started:.0f} s; all runs are in {evidence.runs}")


if __name__ == "__main__":
    main()
