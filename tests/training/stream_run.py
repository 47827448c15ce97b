"""A training run on a stream for `test_streams.py`, also as a script for one or several processes:

    python stream_run.py '[{...}, ...]'         torchrun --nproc_per_node 2 stream_run.py '[{...}, ...]'

Each job trains, and evaluates afterwards if it has `eval_rows`. `kill_at` ends the process with SIGKILL at that step.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.balancing import LabelBalance
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.streaming.interleaving import interleave
from hf_avfusion.data.streaming.ranks import Ranks
from hf_avfusion.evaluation.views import predict_views
from hf_avfusion.media.reader import MediaError
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.trainer import AVTrainer


class Reading:
    """Replaces decoding: draws a clip's tensors from its generator and logs the clip's id."""

    def __init__(self, folder: Path, name: str, rank: int, num_views: int = 1):
        self.folder, self.name, self.rank = folder, name, rank
        self.num_views = num_views

    def __call__(self, row, generator):
        with open(self.folder / f"{self.name}-{self.rank}.log", "a") as log:
            log.write(row["clip_id"] + "\n")
        if row["video"]["bytes"] == b"broken":
            raise MediaError(row["clip_id"], "broken on purpose")
        views = () if self.num_views == 1 else (self.num_views,)
        return {
            "pixel_values": torch.randn(*views, 2, 3, 16, 16, generator=generator),
            "input_features": torch.randn(*views, 16, 16, generator=generator),
            "has_video": True,
            "has_audio": True,
            "labels": torch.tensor(row["label"]),
            "clip_id": row["clip_id"],
        }


class Foreign(IterableDataset):
    """A stream that is not a ClipStream and is not split between processes."""

    def __init__(self, stream: ClipStream):
        self.stream = stream

    def __len__(self):
        return len(self.stream)

    def __iter__(self):
        return iter(self.stream)


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_stream(number: int, broken, transform, streamed: bool, mix=None, balanced=False, **options) -> ClipStream:
    if mix is not None:  # a second benchmark with the same number of rows
        sources = [make_stream(number, broken, None, streamed).rows for _ in range(2)]
        for row in sources[1] if not streamed else ():
            row["clip_id"] = "other-" + row["clip_id"]
        return ClipStream(interleave(sources, num_rows=[number, number], **mix), transform, **options)
    rows = [
        {
            "clip_id": f"clip-{n}",
            "video": {"bytes": b"broken" if n in broken else b"good", "path": None},
            "start": None,
            "end": None,
            "label": n % 3,
        }
        for n in range(number)
    ]
    if balanced:
        for row in rows:  # two rare classes
            row["label"] = 0 if row["label"] else 1 + row["label"] % 2
        options["balance"] = LabelBalance.of(rows, "label")
    if streamed:
        import datasets

        rows = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4)
        options["num_rows"] = number
    return ClipStream(rows, transform, **options)


def run(folder, name, *, rows=37, broken=(), streamed=True, workers=0, drop_path=0.0, kill_at=None, resume=None,
        mixup=0.0, mix=None, balanced=False, pretend=True, eval_rows=0, eval_broken=(), eval_views=1,
        foreign=False, **options) -> dict:  # fmt: skip
    folder = Path(folder)
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.05,
        "optimizer": "momentum_sgd", "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "dataloader_num_workers": workers,
        **({} if "schedule" in options else {"lr_scheduler_type": "constant"}),
    }  # fmt: skip
    if "deepspeed" in options:  # accelerate does this only on GPUs
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    args = AVTrainingArguments(output_dir=str(folder / name), **{**defaults, **options})
    torch.manual_seed(0)
    if args.fsdp and pretend:
        # accelerate shards only on accelerators; this setting makes it shard on the CPU with gloo
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    config = MBTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, fusion_layer=1, image_size=16,
        patch_size=8, num_frames=2, num_mel_bins=16, spectrogram_length=16, num_labels=3, drop_path_rate=drop_path,
    )  # fmt: skip
    rank = args.process_index

    def reading(what, num_views=1):
        return Reading(folder, f"{name}-{what}", rank, num_views)

    trainer = AVTrainer(
        MBTForAudioVisualClassification(config),
        args,
        AVCollator(mixup_alpha=mixup, num_labels=3),
        train_dataset=make_stream(rows, broken, reading("train"), streamed, mix, balanced, seed=1, shuffle_buffer=12),
        eval_dataset=make_stream(eval_rows, eval_broken, reading("eval", eval_views), streamed) if eval_rows else None,
        callbacks=[Kill(kill_at)] if kill_at is not None and rank == args.world_size - 1 else None,
    )
    if foreign:
        trainer.train_dataset, trainer.eval_dataset = Foreign(trainer.train_dataset), Foreign(trainer.eval_dataset)
    result = {"world_size": args.world_size}
    result["train"] = trainer.train(resume_from_checkpoint=resume).metrics
    result["steps"] = trainer.state.global_step
    result["history"] = trainer.state.log_history
    if eval_rows:
        result["eval"] = trainer.evaluate()
        predicted = trainer.predict(trainer.eval_dataset)
        result["labels"] = predicted.label_ids.tolist()
        result["predictions"] = predicted.predictions.tolist()
    if eval_views > 1:
        views = predict_views(
            trainer.model, trainer.eval_dataset, batch_size=3, num_workers=workers, ranks=Ranks(rank, args.world_size)
        )
        result["views"] = {"logits": views.logits.tolist(), "clips": views.clip_ids, "skipped": views.skipped}
    tensors = trainer.model.state_dict()
    if trainer.is_fsdp_enabled:
        result["sharded"] = [name for name, tensor in tensors.items() if isinstance(tensor, DTensor)]
        tensors = trainer.accelerator.get_state_dict(trainer.model)
        trainer.save_model(str(folder / f"{name}-model"))
    if trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder / f"{name}-model"))
    if rank == 0:
        if trainer.is_deepspeed_enabled:
            tensors = load_file(folder / f"{name}-model" / "model.safetensors")
        save_file(tensors, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(result))
    return result


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    for job in json.loads(sys.argv[1]):
        run(**job)
