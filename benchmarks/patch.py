"""Time and peak memory of `securetune patch`, against loading all models and doing the same arithmetic.

A random Llama in bfloat16 (1.1 billion parameters, 2.1 GiB, in shards of 500 MB) is written to a temporary folder in
three versions: start, tuned, and a third one that plays `base` or `unaligned`. The other way, which one would write by
hand, is `load_file` on every file of every model, the same function for each tensor, `save_file` for each shard; its
weights have to be the same bit for bit, or the program fails.

Each run is a process of its own. Time is that of the work, without imports. Memory is VmHWM of /proc/self/status at
the end: the most that was resident at once, private memory and mapped pages of files alike, libraries included (some
0.5 GiB before any weight is read; the column `libraries_mib`). Mapped pages can be taken back by the system when memory
is short, so that what is counted is more than what is strictly needed, for both ways. The files are in the page cache,
as they were written just before; on a cold disk both ways would wait for it alike.

`largest_shard_set_mib` is the size of one shard of the tuned model and of those shards of the other models that have
its tensors, whichever is largest. `memory_ratio` is the peak divided by it; `time_ratio` is the time divided by that of
loading everything (medians). Linux only.

    python benchmarks/patch.py --json
    python benchmarks/patch.py --layers 4 --repeats 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "safe-lora": ("safe-lora", {"threshold": 1.0}, "base"),
    "resta": ("resta", {}, "unaligned"),
    "resta + dare": ("resta", {"drop": 0.3}, "unaligned"),
    "wise-ft": ("wise-ft", {}, ""),
}
"""Row → method, its settings (with a threshold of 1 Safe LoRA projects every update), the role of the third model."""

HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 2048, 5632, 16, 32000
SHARD_BYTES = 500_000_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=19, help="layers; 19 make 2.1 GiB")
    parser.add_argument("--repeats", type=int, default=2, help="rounds, in each of which every way runs once")
    parser.add_argument("--method", action="append", choices=list(METHODS), help="rows to measure (repeatable)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_work(**json.loads(arguments.child))))
        return
    with tempfile.TemporaryDirectory(prefix="patch_benchmark_") as folder:
        result = measure(arguments, Path(folder))
    print(json.dumps(result, indent=2) if arguments.json else _table(result["rows"]))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the models, run both ways in turns, and compare what they wrote."""
    from securetune.artifacts import environment

    needed = 5 * arguments.layers * 110_000_000 + 2_000_000_000
    if shutil.disk_usage(folder).free < needed:
        raise SystemExit(f"{folder}: {needed / 2**30:.0f} GiB must be free there")
    _write_models(folder, arguments.layers)
    rows = [_row(name, folder, arguments) for name in arguments.method or METHODS]
    return {"rows": rows, "layers": arguments.layers, "repeats": arguments.repeats, "environment": environment()}


def _row(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"streaming": [], "loading": []}
    for _ in range(arguments.repeats):
        for way, found in runs.items():
            shutil.rmtree(folder / way, ignore_errors=True)
            os.sync()  # or a run would share the disk with what was written before it
            found.append(_child(name, way, folder, arguments.threads))
        if _digest(folder / "streaming") != _digest(folder / "loading"):
            raise SystemExit(f"{name}: the weights of the two ways differ")
    seconds = {way: statistics.median(run["seconds"] for run in found) for way, found in runs.items()}
    peaks = {way: max(run["peak_mib"] for run in found) for way, found in runs.items()}
    shard_set = _largest_shard_set_mib(folder, ["start", "third"] if METHODS[name][2] else ["start"])
    return {
        "method": name,
        "time_ratio": seconds["streaming"] / seconds["loading"],
        "memory_ratio": peaks["streaming"] / shard_set,
        "peak_mib": peaks["streaming"],
        "largest_shard_set_mib": shard_set,
        "libraries_mib": runs["streaming"][0]["libraries_mib"],
        "seconds": seconds["streaming"],
        "loading_seconds": seconds["loading"],
        "loading_peak_mib": peaks["loading"],
    }


def _child(name: str, way: str, folder: Path, threads: int) -> dict[str, Any]:
    work = json.dumps({"name": name, "way": way, "folder": str(folder), "threads": threads})
    command = [sys.executable, __file__, "--child", work]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return found


def _work(name: str, way: str, folder: str, threads: int) -> dict[str, Any]:
    """Do one patch in one way, in this process."""
    import torch

    import securetune.defenses
    import securetune.pipeline.patching

    torch.set_num_threads(threads)
    before = _memory_mib("VmRSS")
    began = time.perf_counter()
    method, options, third = METHODS[name]
    here = Path(folder)
    if way == "streaming":
        sources = {"start": str(here / "start"), **({third: str(here / "third")} if third else {})}
        securetune.pipeline.patching.patch_weights(here / "tuned", method, here / way, sources, options)
    else:
        _load_everything(method, options, third, here)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_mib": _memory_mib("VmHWM"), "libraries_mib": before}


def _load_everything(method: str, options: Mapping[str, Any], third: str, folder: Path) -> None:
    """Load all models, patch each tensor, save the shards: what one would write without streaming."""
    from safetensors.torch import load_file, save_file

    from securetune.config import ModelSettings
    from securetune.defenses import find_weight_defense
    from securetune.models import load_skeleton, map_modules

    def loaded(role: str) -> dict[str, Any]:
        return {name: value for path in _files(folder / role) for name, value in load_file(path).items()}

    tuned, start = loaded("tuned"), loaded("start")
    models = {"tuned": tuned, "start": start, "aligned": start, **({third: loaded("third")} if third else {})}
    defense = find_weight_defense(method).from_options(options)
    defense.prepare(map_modules(load_skeleton(ModelSettings(name=str(folder / "tuned")))))
    patched = {}
    for name, values in tuned.items():
        own = {role: model[name] for role, model in models.items()}
        patched[name] = defense.patch_tensor(name, values, own.__getitem__).values if defense.touches(name) else values
    (folder / "loading").mkdir()
    index = json.loads((folder / "tuned" / "model.safetensors.index.json").read_text())["weight_map"]
    for path in _files(folder / "tuned"):
        part = {name: value for name, value in patched.items() if index[name] == path.name}
        save_file(part, folder / "loading" / path.name, {"format": "pt"})


def _write_models(folder: Path, layers: int) -> None:
    """Write three versions of a random model, a shard at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    shards = list(_shards(layers))
    names = {
        name: f"model-{place:05}-of-{len(shards):05}.safetensors" for place, s in enumerate(shards, 1) for name in s
    }
    for role in ("start", "tuned", "third"):
        config.save_pretrained(folder / role)
        index = {"metadata": {}, "weight_map": names}
        (folder / role / "model.safetensors.index.json").write_text(json.dumps(index))
    draws = torch.Generator().manual_seed(0)
    for shard in shards:
        file = names[next(iter(shard))]
        start = {name: 0.02 * torch.randn(shape, generator=draws) for name, shape in shard.items()}
        for role, size in (("start", 0.0), ("tuned", 0.002), ("third", 0.005)):
            tensors = {
                name: (value + size * torch.randn(value.shape, generator=draws)).bfloat16()
                for name, value in start.items()
            }
            save_file(tensors, folder / role / file, {"format": "pt"})


def _shards(layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the tensors of each shard with their shapes."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in _shapes(layers):
        count = 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        if shard and size + count > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name], size = shape, size + count
    yield shard


def _shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        for kind in "qkvo":
            yield f"{place}.self_attn.{kind}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{place}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{place}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{place}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
        yield f"{place}.input_layernorm.weight", (HIDDEN,)
        yield f"{place}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def _largest_shard_set_mib(folder: Path, others: list[str]) -> float:
    """All versions have the same shards, so the set of one is the files of the same name."""
    sizes = (
        sum((folder / role / path.name).stat().st_size for role in ["tuned", *others])
        for path in _files(folder / "tuned")
    )
    return max(sizes) / 2**20


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _digest(folder: Path) -> dict[str, str]:
    """Return a hash of each tensor, wherever in its file it lies."""
    from safetensors import safe_open

    found = {}
    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                values = file.get_tensor(name).flatten().view(dtype=_bits())
                found[name] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return found


def _bits() -> Any:
    import torch

    return torch.int16


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _table(rows: list[dict[str, Any]]) -> str:
    columns = ("method", "time_ratio", "memory_ratio", "peak_mib", "largest_shard_set_mib", "loading_peak_mib")
    lines = ["  ".join(columns)]
    for row in rows:
        cells = [f"{row[c]:.2f}" if "ratio" in c else f"{row[c]:.0f}" if c != "method" else row[c] for c in columns]
        lines.append("  ".join(f"{cell:>{len(column)}}" for cell, column in zip(cells, columns, strict=True)))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
