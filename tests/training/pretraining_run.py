"""A pretraining run on a stream for `test_pretraining.py`, also as a program: torchrun pretraining_run.py '[{...}, ...]'."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from stream_run import make_stream

from hf_avfusion.data.masking import MaskingCollator
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.avmae.modeling_avmae import AVMAEForPreTraining
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.pretraining import AVPreTrainer


class Reading:
    """Replaces decoding: draws tensors from the clip's generator. Every third clip has no video."""

    def __call__(self, row, generator):
        has_video = row["label"] != 2
        sample = {"input_features": torch.randn(16, 16, generator=generator), "has_audio": True, "has_video": has_video}
        if has_video:
            sample["pixel_values"] = torch.randn(2, 3, 16, 16, generator=generator)
        return {**sample, "clip_id": row["clip_id"]}


def make_trainer(folder, name, *, rows=20, eval_rows=0, drop_path=0.2, callbacks=(), **options):
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.01,
        "optimizer": "adam_decoupled", "weight_decay": 0.05, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = AVTrainingArguments(output_dir=str(Path(folder) / name), **{**defaults, **options})
    torch.manual_seed(0)
    config = AVMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, decoder_hidden_size=16,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16, image_size=16, patch_size=4,
        num_frames=2, num_mel_bins=16, spectrogram_length=16, encoder_strategy="mid_fusion", num_fusion_layers=1,
        drop_path_rate=drop_path, video_mask_ratio=0.75,
    )  # fmt: skip
    return AVPreTrainer(
        AVMAEForPreTraining(config),
        args,
        MaskingCollator(config),
        train_dataset=make_stream(rows, (), Reading(), True, seed=1, shuffle_buffer=6),
        eval_dataset=make_stream(eval_rows, (), Reading(), False) if eval_rows else None,
        callbacks=list(callbacks),
    )


def run(folder, name, *, resume=None, **options) -> dict:
    trainer = make_trainer(folder, name, **options)
    trainer.train(resume_from_checkpoint=resume)
    result = {"history": trainer.state.log_history, "steps": trainer.state.global_step}
    if trainer.eval_dataset is not None:
        result["eval"] = trainer.evaluate()
    if trainer.args.process_index == 0:
        save_file(trainer.model.state_dict(), Path(folder) / f"{name}.safetensors")
        (Path(folder) / f"{name}.json").write_text(json.dumps(result))
    return result


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    for job in json.loads(sys.argv[1]):
        run(**job)
