"""A film with its sound: what a pipeline that makes both returns.

    film = pipe("a dog barks", seconds=4)
    film.save("dog.mp4")                     # picture and sound
    film.sound.shape, film.rate              # (96000, 2), 24000

Legend: S samples, C channels; of latents: A of them, C channels times mel bins.
"""

from __future__ import annotations

import os
import wave
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.errors import UserError, explain_disk_errors
from longtake.journal import atomic_path
from longtake.media import check_output
from longtake.outputs import FILMS, VideoOutput

if TYPE_CHECKING:
    import torch

_BIT_RATE = 192_000


@dataclass
class SoundFilm(VideoOutput):
    """A film with sound. sound: float32 (S, C) in [-1, 1], as long as the film (empty where the frames are); rate:
    samples a second. sound_latents: (A, C) float32, what extend and redo start from."""

    sound: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32), kw_only=True)
    rate: int = field(default=24000, kw_only=True)
    sound_latents: torch.Tensor | None = field(default=None, kw_only=True)

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, preview: str | os.PathLike[str] | None = None
    ) -> Path:
        """As a film; .mp4 holds the sound (AAC), beside others it lies as .wav. Raises UserError."""
        path = Path(path)
        beside = wav_beside(path)
        if beside is not None:
            check_output(beside, (".wav",), overwrite)
        path = super().save(path, overwrite=overwrite, preview=preview)
        if beside is None:
            add_sound(path, self.sound, self.rate)
        else:
            write_wav(beside, self.sound, self.rate, overwrite=overwrite)
        return path


def wav_beside(path: Path) -> Path | None:
    """Where the sound of a film is written; None where the film itself holds it (.mp4)."""
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        return None
    return path.with_name((path.stem if suffix in FILMS else path.name) + ".wav")


def with_sound(film: VideoOutput, latents: torch.Tensor, waves: Any, rate: int, seconds: float) -> SoundFilm:
    """A film with sound. latents: (A, C). waves: tensor (1, channels, S) in [-1, 1], cut or filled with silence to so
    many seconds; None where the film's frames are elsewhere too."""
    made = SoundFilm(
        film.frames, film.fps, film.latents, film.total_frames, info=film.info, rate=rate, sound_latents=latents
    )
    if waves is None:
        return made
    sound = waves[0].detach().float().cpu().numpy().T
    if not np.isfinite(sound).all():
        raise UserError("the sound has NaN or infinity: the audio VAE or the vocoder does not fit these latents")
    length = round(seconds * rate)
    made.sound = np.pad(sound[:length], ((0, max(0, length - len(sound))), (0, 0)))
    told = {"rate": rate, "channels": sound.shape[1], "seconds": round(length / rate, 3)}
    made.info = {**film.info, "sound": told}
    return made


def write_wav(path: str | os.PathLike[str], sound: np.ndarray, rate: int, *, overwrite: bool = False) -> Path:
    """Write float (S, C) in [-1, 1] as 16 bit PCM. Raises UserError for a path that cannot be written."""
    path = check_output(path, (".wav",), overwrite)
    with explain_disk_errors(path), atomic_path(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(_int16(sound).tobytes())
    return path


def add_sound(path: Path, sound: np.ndarray, rate: int) -> None:
    """Add a stream of sound (S, C) to an .mp4 with pictures alone; the pictures are not encoded again."""
    import av

    with explain_disk_errors(path), atomic_path(path) as partial:
        with (
            av.open(str(path)) as pictures,
            av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as film,
        ):
            film.metadata.update(pictures.metadata)
            video = film.add_stream_from_template(pictures.streams.video[0])
            audio = film.add_stream("aac", rate=rate)
            audio.layout = "mono" if sound.shape[1] == 1 else "stereo"
            audio.bit_rate = _BIT_RATE
            for packet in pictures.demux(video=0):
                if packet.dts is not None:
                    packet.stream = video
                    film.mux(packet)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(_int16(sound).reshape(1, -1)), format="s16", layout=audio.layout.name
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for packet in [*audio.encode(frame), *audio.encode(None)]:
                film.mux(packet)


def _int16(sound: np.ndarray) -> np.ndarray:
    return (np.clip(sound, -1, 1) * 32767).round().astype("<i2")
