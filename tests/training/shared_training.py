"""A training that several processes share: started from `test_distributed.py`, or called in one process."""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import torch
from cpu_sharding import shard_on_the_cpu
from datasets import Dataset
from peft import LoraConfig
from short_training import make_rows
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.models.parameter_names import parameters_by_name
from securetune.models.whole_weights import whole

UPPER = [f"model.layers.1.{path}" for path in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")]
ROWS_A_STEP = 4
ADAPTER = {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
ON_EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


class Watch(TrainerCallback):
    """Notes the weights when each phase begins, and kills the process where it is told to."""

    def __init__(self, stop: str | None) -> None:
        self.stop, self.starts, self.gradient_types = stop, {}, set[torch.dtype]()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.starts[_phase(args)] = weights_of(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradient_types |= {value.grad.dtype for value in model.parameters() if value.grad is not None}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if f"{_phase(args)}-{state.global_step}" == self.stop:
            os.kill(os.getpid(), signal.SIGKILL)


class NotedTrainer(SecureSFTTrainer):
    """Also notes as what the model was wrapped while the loss was computed."""

    wrappers: ClassVar[set[str]] = set()

    def compute_loss(self, model: Any, *arguments: Any, **named: Any) -> Any:
        NotedTrainer.wrappers.add(_wrapper(model))
        return super().compute_loss(model, *arguments, **named)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Copy all weights, whole also where each process has a shard."""
    return {name: whole(value).clone() for name, value in parameters_by_name(model)}


def _wrapper(model: Any) -> str:
    if isinstance(model, FSDPModule):
        kinds = [type(module).__name__ for module in model.modules()]
        layers = [kind for kind in kinds if kind.startswith("FSDP") and kind.endswith("DecoderLayer")]
        checkpointed = kinds.count("CheckpointWrapper") + kinds.count("FSDPCheckpointWrapper")
        return f"FSDP {len(layers)} layers, {checkpointed} checkpointed"
    if hasattr(model, "zero_optimization_stage"):
        return f"ZeRO-{model.zero_optimization_stage()}"
    return "DDP" if isinstance(model, DistributedDataParallel) else type(model).__name__


def _phase(args: Any) -> str:
    return "warmup" if str(args.output_dir).endswith("warmup") else "main"


def run(
    model: Path,
    out: Path,
    method: str,
    adapter: dict[str, Any] | None,
    processes: int,
    resume: bool = False,
    stop: str | None = None,
    bf16: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Train, and return losses, weights at the start of each phase and at the end, and how it was done."""
    config = SecureSFTConfig(
        str(out), **{"robust_modules": UPPER, "warmup_phase_steps": 4, **more}, method=method, max_steps=6,
        learning_rate=1e-2, seed=3,
        per_device_train_batch_size=ROWS_A_STEP // processes, logging_steps=1.0, save_strategy="steps", save_steps=2.0,
        report_to="none", use_cpu=True, bf16=bf16, activation_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    if config.deepspeed_plugin is not None:  # ZeRO-3 would leave such small weights whole in each process
        config.deepspeed_plugin.hf_ds_config.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    watch = Watch(stop)
    trainer = NotedTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if bf16 else torch.float32),
        config,
        train_dataset=Dataset.from_list(make_rows()),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=2, **adapter) if adapter else None,
        callbacks=[watch],
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(out / "saved"))
    return {
        "processes": trainer.args.world_size,
        "wrappers": NotedTrainer.wrappers,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "logs": trainer.state.log_history,
        "starts": watch.starts,
        "gradient_types": watch.gradient_types,
        "end": weights_of(trainer.network),
    }


def main() -> None:
    """Train as the arguments say; each process writes what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="swat")
    parser.add_argument("--lora", action="store_const", const=ADAPTER, dest="adapter")
    parser.add_argument("--on-experts", action="store_const", const=ON_EXPERTS, dest="adapter")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--more", type=json.loads, default={})
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shard_on_the_cpu()  # where FSDP is asked for
    found = run(
        arguments.model, arguments.out / "run", arguments.method, arguments.adapter, 2, arguments.resume,
        arguments.stop, arguments.bf16, **arguments.more,
    )  # fmt: skip
    torch.save(found, arguments.out / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.barrier()  # one that ends while the other still talks to it can be aborted
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
