"""Directions in a folder: gathered once, used by any number of trainings of the same start model.

`subspaces.safetensors` holds the directions, `prompts.jsonl` what they were gathered from (no suite may share a prompt
with it), and `subspaces.json`, which is written last, says what they are. Before they are used, the model, the prompts'
hash, the file's hash, all names, shapes and values are checked: a file from elsewhere is data, and may hold anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from securetune.artifacts import (
    ModelIdentity,
    ProtectedInput,
    SavedSubspaces,
    environment,
    json_line,
    parameter_path,
    read_artifact,
    write_json,
    write_text,
)
from securetune.data.prompts import Prompt, read_prompts
from securetune.defenses.protected_subspace.gathering import Subspaces, prompts_hash
from securetune.defenses.protected_subspace.options import ProtectedSubspaceOptions
from securetune.defenses.protected_subspace.spectrum import InputSpectrum
from securetune.errors import ArtifactError, ConfigError, InputError

FOLDER = "subspaces"
"""Where a training keeps its own, in its output folder."""

MANIFEST = "subspaces.json"
"""Written last; without it a folder holds no directions."""

_TENSORS = "subspaces.safetensors"
_PROMPTS = "prompts.jsonl"
_ORTHONORMAL_TO = 1e-3
"""Largest entry of UᵀU − 1: float32 leaves some 1e-6, and what is further from it is no set of directions."""


class Gathered(NamedTuple):
    """What directions were gathered from.

    Attributes:
        key: Hash of all that they depend on.
        model: The start model.
        prompts: What it was asked.
        options: How.
    """

    key: str
    model: ModelIdentity
    prompts: Sequence[Prompt]
    options: ProtectedSubspaceOptions


def save_subspaces(folder: Path, subspaces: Subspaces, gathered: Gathered) -> SavedSubspaces:
    """Write directions into a folder; until `subspaces.json` is there, it counts as holding none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    inputs = _inputs(subspaces)
    tensors = {}
    for each in inputs:
        spectrum = subspaces.spectra[each.paths[0]]
        tensors[f"{each.paths[0]}.directions"] = spectrum.vectors.cpu().contiguous()
        tensors[f"{each.paths[0]}.values"] = spectrum.values.cpu().contiguous()
    beside = folder / f".{_TENSORS}.part"
    save_file(tensors, beside)
    os.replace(beside, folder / _TENSORS)
    rows = [{"id": prompt.id, "messages": [dict(each) for each in prompt.messages]} for prompt in gathered.prompts]
    write_text(folder / _PROMPTS, "".join(map(json_line, rows)))
    saved = SavedSubspaces(
        key=gathered.key,
        model=gathered.model,
        prompts_hash=prompts_hash(gathered.prompts),
        prompts=len(gathered.prompts),
        tokens=subspaces.tokens,
        settings=gathered.options.model_dump(mode="json"),
        modules=dict(subspaces.energies),
        inputs=inputs,
        weights_hash=_file_hash(folder / _TENSORS),
        environment=environment(),
    )
    write_json(folder / MANIFEST, saved)
    return saved


def _inputs(subspaces: Subspaces) -> list[ProtectedInput]:
    paths: dict[int, list[str]] = {}
    for path, spectrum in subspaces.spectra.items():
        paths.setdefault(id(spectrum), []).append(path)
    highest: dict[str, float] = {}
    for name, energy in subspaces.energies.items():
        path = parameter_path(name)
        highest[path] = max(highest.get(path, 0.0), energy)
    found = []
    for shared in paths.values():
        spectrum = subspaces.spectra[shared[0]]
        width, rank = spectrum.vectors.shape
        found.append(
            ProtectedInput(
                paths=shared,
                width=width,
                rank=rank,
                trace=spectrum.trace,
                energy=max(highest[path] for path in shared),
                energy_held=spectrum.held(rank),
                range_finder=spectrum.finder,
            )
        )
    return found


def kept_subspaces(folder: Path | None, wanted: Gathered) -> Subspaces | None:
    """Return what a training kept in its own folder before it was stopped; None if that is incomplete, or other.

    Raises:
        ConfigError: If the same options gave other directions then: to go on with these would mix the two.
    """
    if folder is None or not (folder / MANIFEST).exists():
        return None
    try:
        saved = read_artifact(folder / MANIFEST, SavedSubspaces)
        found = _loaded(folder, saved)
    except InputError:
        return None  # they are gathered again
    same_model = saved.model.weights_fingerprint == wanted.model.weights_fingerprint
    if saved.key != wanted.key and same_model and saved.settings == wanted.options.model_dump(mode="json"):
        raise ConfigError(
            f"{folder}: was gathered from other prompts, directions or sensitivities than the same options name now. "
            "Delete the output folder and start again."
        )
    return found if saved.key == wanted.key else None


def read_saved(folder: Path) -> SavedSubspaces:
    """Read what a folder says it holds, and check it against the header of its file; no direction is loaded.

    Raises:
        ArtifactError: If it holds none, or the file does not hold what it says.
    """
    saved = _manifest(folder)
    with _opened(folder) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    expected: dict[str, tuple[int, ...]] = {}
    for each in saved.inputs:
        expected |= {f"{each.paths[0]}.directions": (each.width, each.rank), f"{each.paths[0]}.values": (each.rank,)}
    if wrong := [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]:
        raise ArtifactError(
            f"{folder / _TENSORS}: must hold what {MANIFEST} names; {len(wrong)} tensors differ, such as {wrong[0]}: "
            f"named as {_shown(expected.get(wrong[0]))}, found as {_shown(found.get(wrong[0]))}"
        )
    return saved


def _manifest(folder: Path) -> SavedSubspaces:
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: must be a folder that `securetune protect` or a training wrote; got none")
    return read_artifact(folder / MANIFEST, SavedSubspaces)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "×".join(map(str, shape))


def _opened(folder: Path) -> safe_open:
    try:
        return safe_open(folder / _TENSORS, framework="pt")
    except FileNotFoundError:
        raise ArtifactError(f"{folder / _TENSORS}: no such file") from None
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(f"{folder / _TENSORS}: cannot be read as safetensors ({reason})") from None


def read_saved_prompts(folder: Path) -> list[Prompt]:
    """Return the prompts that a folder's directions were gathered from.

    Raises:
        InputError: If they cannot be read, or are others than the directions'.
    """
    saved = _manifest(folder)
    prompts = read_prompts(folder / _PROMPTS)
    if prompts_hash(prompts) != saved.prompts_hash:
        raise ArtifactError(f"{folder / _PROMPTS}: holds other prompts than the directions were gathered from")
    return prompts


def use_saved(folder: Path, widths: Mapping[str, int], energies: Mapping[str, float], tail_pull: float) -> Subspaces:
    """Load a folder's directions for a training.

    Args:
        folder: The folder.
        widths: Path of each weight to protect → values of its input.
        energies: Name of each projection to protect → the share of the energy to hold.
        tail_pull: Of the training.

    Raises:
        ArtifactError: If a weight is not among them, has another width, or was gathered for less energy or a weaker
            pull; or if a file is broken.
    """
    saved = read_saved(folder)
    by_path = {path: each for each in saved.inputs for path in each.paths}
    if lacking := [path for path in widths if path not in by_path]:
        raise ArtifactError(
            f"{folder}: has no directions for {len(lacking)} of {len(widths)} weights, such as {lacking[0]}. Gather "
            "them with protect: all."
        )
    if other := [path for path, width in widths.items() if by_path[path].width != width]:
        raise ArtifactError(
            f"{folder}: {other[0]} must have an input of {widths[other[0]]} values; got {by_path[other[0]].width}"
        )
    require_enough(folder, saved, energies, tail_pull)
    loaded = _loaded(folder, saved)
    return Subspaces({path: loaded.spectra[path] for path in widths}, dict(energies), saved.tokens)


def require_enough(folder: Path, saved: SavedSubspaces, energies: Mapping[str, float], tail_pull: float) -> None:
    """Refuse directions that were gathered for less than a training asks for.

    Args:
        folder: Where they lie.
        saved: What is said of them there.
        energies: Name of each projection to protect → the share of the energy to hold; without directions there, it is
            passed over.
        tail_pull: Of the training.

    Raises:
        ArtifactError: If they were gathered for less energy, or for a weaker pull; both are told.
    """
    problems = []
    by_path = {path: each for each in saved.inputs for path in each.paths}
    known = {name: by_path[path].energy for name in energies if (path := parameter_path(name)) in by_path}
    lacking = next((name for name in known if energies[name] > known[name] + 1e-9), None)
    if lacking is not None:
        problems.append(
            f"{folder}: was gathered for an energy of {known[lacking]:.6g} at {lacking}; got energy "
            f"{energies[lacking]:.6g}. Gather again with more, or protect less."
        )
    known_pull = saved.settings.get("tail_pull", 0.0)
    if not isinstance(known_pull, (int, float)) or tail_pull > known_pull:
        problems.append(
            f"{folder}: was gathered for a tail_pull of {known_pull}, and holds no direction beyond it; got tail_pull "
            f"{tail_pull:g}. Gather again with more, or pull less."
        )
    if problems:
        raise ArtifactError(problems)


def _loaded(folder: Path, saved: SavedSubspaces) -> Subspaces:
    if _file_hash(folder / _TENSORS) != saved.weights_hash:
        raise ArtifactError(f"{folder / _TENSORS}: is not the file that {MANIFEST} speaks of (its hash differs)")
    spectra: dict[str, InputSpectrum] = {}
    with _opened(folder) as file:
        for each in saved.inputs:
            values, vectors = (file.get_tensor(f"{each.paths[0]}.{part}") for part in ("values", "directions"))
            if problem := _value_problem(values, vectors):
                raise ArtifactError(f"{folder / _TENSORS}: {each.paths[0]}: {problem}")
            # Copies: they do not depend on the file any more, and lie where a product's bits are the usual ones.
            spectrum = InputSpectrum(values.clone(), vectors.clone(), each.trace, each.range_finder)
            spectra |= dict.fromkeys(each.paths, spectrum)
    return Subspaces(spectra, saved.modules, saved.tokens)


def _value_problem(values: Tensor, vectors: Tensor) -> str | None:
    if values.dtype != torch.float64 or vectors.dtype != torch.float32:
        return f"values must be float64 and directions float32; got {values.dtype} and {vectors.dtype}"
    if not (bool(values.isfinite().all()) and bool((values >= 0).all()) and bool((values.diff() <= 0).all())):
        return "its values must be finite, at least 0, and in descending order"
    gram = vectors.T @ vectors
    if not bool(((gram - torch.eye(len(gram))).abs() <= _ORTHONORMAL_TO).all()):  # not a number is no less either
        return "its directions must be orthonormal"
    return None


def _file_hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
