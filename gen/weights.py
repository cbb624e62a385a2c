"""Weights: find them, load them safely, and map the keys of public layouts.

`resolve` looks in this order: a local folder or file; a prior that ships with a domain; the Hub's cache; the Hub.
Nothing is ever unpickled: safetensors, or torch files read with `weights_only=True`.

    path = resolve("characters", kind="video prior", priors_package="longtake.video")
    state = load_state(path / "unet")
    match = match_keys(model.state_dict(), state, {"videocrafter2": rename_videocrafter2})
    model.load_state_dict(match.apply(state))
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.errors import UserError, one_line
from longtake.reading import local_path, read_json_object

if TYPE_CHECKING:
    import torch

# Key of a public layout -> key of our model; None: a key that the model rightly does without.
KeyMap = Callable[[str], str | None]

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SCALE = "_scale"  # after the key of weights with eight bits a number
WEIGHT_SUFFIXES = (".safetensors", ".json", *_TORCH_SUFFIXES)  # what decides a result: weights and configurations
MOST_ENTRIES = 20_000  # files and folders; a model of a trillion weights has some hundreds
_FOLDER_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)


# ------------------------------------------------------------------------------------------------------ finding


def shipped_priors(package: str) -> dict[str, Path]:
    """Name -> folder of the priors that ship with a domain, e.g. package "longtake.video"; the package is not run."""
    spec = find_spec(package)
    found: dict[str, Path] = {}
    for place in (spec.submodule_search_locations if spec else None) or []:
        folder = Path(place) / "priors"
        if folder.is_dir():
            found.update((path.name, path) for path in sorted(folder.iterdir()) if path.is_dir())
    return found


def is_repository(name: str) -> bool:
    """Whether a name can be a Hub id: owner/name."""
    return _REPOSITORY.fullmatch(name) is not None and not name.startswith((".", "~"))


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    kind: str,
    priors_package: str | None = None,
    offline: bool | None = None,
) -> Path:
    """The local path of some weights.

    name_or_path: a folder or file; the name of a shipped prior; or a Hub id "owner/name".
    kind: what is looked for, for messages: "video prior". priors_package: the domain whose priors are looked through.
    offline: never use the network; None: as HF_HUB_OFFLINE says.
    Raises UserError that lists what is known and says what to put where.
    """
    text = os.fspath(name_or_path)
    if not text.strip():
        raise UserError(f"no {kind} was named")
    local = local_path(text)
    if os.path.isfile(local) or (os.path.isdir(local) and _holds_a_model(local)):
        return local
    shipped = shipped_priors(priors_package) if priors_package else {}
    if text in shipped:
        return shipped[text]
    if os.path.isdir(local):
        raise UserError(
            f"the {kind} {text} is a folder without a model's files: it needs a model_index.json, a config.json or "
            "weights"
        )
    known = f"priors that ship: {', '.join(shipped)}" if shipped else "no priors ship with this installation"
    if text.startswith(("/", "./", "../", "~")) or local.suffix in (".safetensors", ".json", *_TORCH_SUFFIXES):
        raise UserError(f"the {kind} {text} does not exist; {known}")
    if not _REPOSITORY.fullmatch(text):
        raise UserError(f"unknown {kind} {text!r}; {known}; or give a local folder or a Hub id 'owner/name'")
    return _from_hub(text, kind, hub_is_offline() if offline is None else offline)


def _holds_a_model(folder: Path) -> bool:
    """Whether a folder has a configuration or weights in it, directly."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from None
    heads = ("model_index.json", "config.json")
    return any(name in heads or name.endswith((".safetensors", *_TORCH_SUFFIXES)) for name in names)


def _from_hub(repository: str, kind: str, offline: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    missing = f"there is no folder {repository} here, and no {kind} of that name in the Hub's cache"
    advice = (
        f"download it where there is a network (hf download {repository} --local-dir FOLDER) and give that FOLDER "
        f"instead of its name, or put the downloaded cache into {constants.HF_HUB_CACHE}"
    )
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except HFValidationError:
        raise UserError(f"unknown {kind} {repository!r}: no local path, and no name that the Hub allows") from None
    except LocalEntryNotFoundError:
        if offline:
            raise UserError(f"{missing}, and HF_HUB_OFFLINE forbids the network: {advice}") from None
    try:
        return Path(snapshot_download(repository))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{missing}, and the Hub gave no answer or refused ({type(error).__name__}): {advice}"
        ) from error


# ------------------------------------------------------------------------------------------------------ loading


def load_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, or of a folder in the diffusers or transformers layout, on the CPU.

    Raises UserError, naming the file, when it is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if os.path.isdir(path):
        for name in _FOLDER_NAMES:
            if (path / name).exists():
                return load_state(path / name)
        raise UserError(f"{path} holds no weights; expected one of {', '.join(_FOLDER_NAMES)}")
    if not os.path.lexists(path):
        raise UserError(f"the weights file {path} does not exist")
    if not os.path.isfile(path):
        raise UserError(f"the weights file {path} is a pipe, a device or a dangling link, not a file")
    if path.name.endswith(".index.json"):
        return _load_shards(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise UserError(f"the weights file {path} is damaged or unreadable: {one_line(error)}") from error
    if path.suffix in _TORCH_SUFFIXES:
        return _load_torch(path)
    raise UserError(f"{path}: unknown kind of weights file; allowed are .safetensors, {', '.join(_TORCH_SUFFIXES)}")


def eight_bits(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state whose weights of two dimensions or more have eight bits a number, and under KEY_scale what one step is in
    each of their first dimension; all others as they are. ``whole`` gives it back, rounded."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        value = value.detach().float().cpu()
        if not key.endswith("weight") or value.ndim < 2:
            found[key] = value.contiguous()
            continue
        scale = value.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
        found[key + SCALE] = scale
        found[key] = (value / scale.reshape(-1, *[1] * (value.ndim - 1))).round().to(torch.int8).contiguous()
    return found


def whole(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state in float32, with eight bits a number (``eight_bits``) or not."""
    found = {}
    for key, value in state.items():
        if key.endswith(SCALE) and key.removesuffix(SCALE) in state:
            continue
        scale = state.get(key + SCALE)
        found[key] = value.float()
        if scale is not None:
            found[key] = found[key] * scale.reshape(-1, *[1] * (value.ndim - 1))
    return found


def _load_shards(index: Path) -> dict[str, torch.Tensor]:
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{index} is damaged: it has no weight_map of names to files")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name or Path(name).suffix not in (".safetensors", *_TORCH_SUFFIXES):
            raise UserError(f"{index} is damaged: {name[:60]!r} is no weights file beside it")
    state: dict[str, torch.Tensor] = {}
    for name in names:
        state.update(load_state(index.parent / name))
    return state


def _load_torch(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds Python objects beside tensors, which are not loaded: convert it to safetensors"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader do, it is the file's fault
        raise UserError(f"the weights file {path} is damaged or unreadable: {one_line(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not tensors or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} holds no plain dictionary of tensors")
    return state


# ------------------------------------------------------------------------------------------------------ mapping


@dataclass(frozen=True)
class KeyMatch:
    """layout: the layout that fits; mapping: key in the file -> key in the model, for every key of the model."""

    layout: str
    mapping: Mapping[str, str]

    def apply(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The file's tensors under the model's names."""
        return {new: state[old] for old, new in self.mapping.items()}


def match_keys(
    model_keys: Iterable[str], state_keys: Iterable[str], layouts: Mapping[str, KeyMap] | None = None
) -> KeyMatch:
    """Find the layout under which a file has exactly the model's keys.

    layouts: name -> map from a key of the file to a key of the model, or to None for a key to leave out knowingly.
    The model's own layout ("native") is always tried first.
    Raises UserError that names the closest layout with examples of missing and unexpected keys.
    """
    wanted = set(model_keys)
    given = sorted(state_keys)
    best: tuple[int, str, list[str], list[str]] | None = None
    for name, rename in {"native": _same_key, **(layouts or {})}.items():
        mapping = {old: new for old in given if (new := rename(old)) is not None}
        missing = sorted(wanted - set(mapping.values()))
        unexpected = sorted(old for old, new in mapping.items() if new not in wanted)
        twice = len(mapping) - len(set(mapping.values()))
        if not missing and not unexpected and not twice:
            return KeyMatch(name, mapping)
        distance = len(missing) + len(unexpected) + twice
        if best is None or distance < best[0]:
            best = (distance, name, missing, unexpected)
    assert best is not None
    _, name, missing, unexpected = best
    raise UserError(
        f"the weights fit no known layout ({', '.join(['native', *(layouts or {})])}); closest is {name!r}: "
        f"{_examples('missing', missing)}, {_examples('unexpected', unexpected)}"
    )


def file_hash(path: str | os.PathLike[str], suffixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256 (64 hex digits) of a file, or of a folder's files with their relative names (hidden ones left out).

    suffixes: of a folder, only the files whose names end in one of these; ``WEIGHT_SUFFIXES`` leaves out model cards.
    Raises UserError when it is missing, or a folder of more than MOST_ENTRIES files and folders: none of a model.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    digest = hashlib.sha256()
    for file_path in _files_of(path):
        if file_path.name.endswith(suffixes):
            digest.update(f"{file_path.relative_to(path).as_posix()}\0{file_hash(file_path)}\n".encode())
    return digest.hexdigest()


def _files_of(folder: Path) -> list[Path]:
    """The files in a folder and below, sorted, hidden ones left out. Raises UserError past MOST_ENTRIES entries."""
    found: list[Path] = []
    seen = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen += len(folders) + len(names)
        if seen > MOST_ENTRIES:
            raise UserError(f"{folder} holds more than {MOST_ENTRIES} files: it is no folder of a model")
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _same_key(key: str) -> str:
    return key


def _examples(what: str, keys: list[str], limit: int = 3) -> str:
    if not keys:
        return f"nothing {what}"
    return f"{len(keys)} {what} ({', '.join(keys[:limit])}{', ...' if len(keys) > limit else ''})"
