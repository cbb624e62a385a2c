"""Clean latents on disk, and the notes that a later run needs to go on from them.

    save_latents(Path("dog.safetensors"), output.latents, {"prior": "kaykit-small"})
    latents, note = read_run(Path("dog.mp4"))          # from the film's record, its folder, or such a file

Legend: F frames, c h w latent channels and grid, A latents of sound, C their width.
"""

from __future__ import annotations

import glob
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, shorten
from longtake.timeline import MAX_PROMPT

if TYPE_CHECKING:
    import torch

LATENTS = "latents.safetensors"


def save_latents(path: Path, latents: torch.Tensor, note: dict[str, Any], sound: torch.Tensor | None = None) -> None:
    """Clean latents (F, c, h, w) with the facts that ``--extend`` needs, as safetensors, atomically.

    sound: those of the film's sound (A, C), where it has one.
    """
    from longtake.journal import write_tensors

    tensors = {"latents": latents} if sound is None else {"latents": latents, "sound": sound}
    write_tensors(path, tensors, {"longtake": json.dumps(note)})


def latents_file(path: Path | str) -> Path:
    """The file that holds the latents of a film, a run's folder, or latents. Raises UserError when there is none."""
    path = Path(path)
    if path.suffix == ".safetensors":
        places = [path]
    elif path.name in ("", "..") or path.suffix == ".run":
        places = [path / LATENTS]
    else:
        beside = path.with_name(path.name + ".run") / LATENTS
        places = [beside, path / LATENTS, path.with_suffix(".run") / LATENTS, path.with_suffix(".safetensors")]
    with suppress(OSError, ValueError):  # a name that no file can have
        for place in places:
            if place.is_file():
                return place
        if path.is_file() and path.suffix != ".safetensors":  # a second file of the run whose first one is a sibling
            siblings = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*.run/{LATENTS}"))
            if len(siblings) == 1:
                return siblings[0]
    raise UserError(f"there is no run at {shorten(str(path), 200)!r}: expected {shorten(str(places[0]), 200)}")


def read_take(path: Path | str) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """Latents (F, c, h, w) float32, those of the sound (A, C) float32 where there is one, and the note of an earlier
    run, from its film, its folder or a latents file.

    Raises UserError when there is no such run or its latents are missing, damaged, empty or not finite.
    """
    import torch
    from longtake.weights import load_state

    file = latents_file(path)
    state = load_state(file)
    latents, sound = state.get("latents"), state.get("sound")
    if latents is None or latents.ndim != 4 or not latents.is_floating_point() or not len(latents):
        raise UserError(f"{file} holds no latents of a run: a tensor 'latents' (F, c, h, w) of floating-point numbers")
    if not torch.isfinite(latents).all():
        raise UserError(f"{file} holds latents with NaN or infinity")
    if sound is not None:
        if sound.ndim != 2 or not sound.is_floating_point() or not len(sound) or not torch.isfinite(sound).all():
            raise UserError(
                f"{file} holds damaged latents of sound: finite floating-point numbers (A, C) were expected"
            )
        sound = sound.float()
    return latents.float(), sound, read_note(file)


def read_run(path: Path | str) -> tuple[torch.Tensor, dict[str, Any]]:
    """The latents of the picture and the note of ``read_take``."""
    latents, _, note = read_take(path)
    return latents, note


def read_sound(path: Path | str) -> torch.Tensor | None:
    """The latents of the sound of ``read_take``; None where there is none."""
    return read_take(path)[1]


def read_note(file: Path) -> dict[str, Any]:
    """What a latents file notes beside its tensors; nothing when that is missing. Raises UserError when it is
    damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            note = json.loads((opened.metadata() or {}).get("longtake", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"the notes of {file} cannot be read: {type(error).__name__}") from error
    if not isinstance(note, dict):
        raise UserError(f"the notes of {file} are no JSON object")
    return note


def last_prompt(note: dict[str, Any]) -> str | None:
    """The prompt that a run's last frame heard, from its note; None when the note does not say it."""
    last = note.get("last_prompt")
    return last if isinstance(last, str) and last.strip() and len(last) <= MAX_PROMPT else None


def latents_mark(path: Path) -> str:
    """Hash (64 hex digits) of what of a run decides the frames that join it: its latents, sound and last prompt."""
    latents, sound, note = read_take(path)
    digest = hashlib.sha256(latents.contiguous().numpy().tobytes())
    if sound is not None:
        digest.update(sound.contiguous().numpy().tobytes())
    digest.update((last_prompt(note) or "").encode())
    return digest.hexdigest()
