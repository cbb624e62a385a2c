"""The voice of a prior's folder, of the kind that the folder says."""

from __future__ import annotations

from pathlib import Path

from longtake.errors import UserError, shorten
from longtake.speech.backends.own import OwnVoice, kind_of
from longtake.speech.backends.prosody import ProsodyVoice
from longtake.speech.backends.valle import ValleVoice

KINDS: dict[str, type[OwnVoice]] = {kind.kind: kind for kind in (ProsodyVoice, ValleVoice)}


def load_voice(folder: Path, vocoder: Path | None = None) -> OwnVoice:
    """The voice in a folder. vocoder: another generator. Raises UserError for a folder of another kind."""
    kind = kind_of(folder)
    if kind not in KINDS:
        shown = "no config.json" if kind is None else shorten(repr(kind))
        raise UserError(f"{folder} is no speech prior: its kind must be {' or '.join(KINDS)}; it has {shown}")
    return KINDS[kind].of_folder(folder).with_vocoder(vocoder)
