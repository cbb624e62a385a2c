"""A recording as a reference voice: any rate, channels and format that soundfile reads, judged before it is used.

wave = read_reference(Path("me.wav"))          # (N,) float32 at 22.05 kHz, its silence at the ends cut off
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError, shorten
from longtake.speech.backends.voice import sounding
from longtake.speech.mel import RATE, resample

LEAST_S, MOST_S = 1.0, 30.0
QUIET = 1e-3  # peak of what counts as silence
LEVEL = 0.07  # root mean square that the speech is brought to


def read_reference(path: Path) -> torch.Tensor:
    """The speech in a file. Raises UserError for a file that is none, is cut off, silent, too short or too long."""
    import soundfile

    if not path.is_file():
        raise UserError(f"the reference {path} does not exist or is no file")
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            if frames > 10 * 60 * rate:
                raise UserError(f"the reference {path} is longer than 10 minutes: cut out {LEAST_S:g} to {MOST_S:g} s")
            sound = file.read(dtype="float32", always_2d=True).mean(1)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(f"the reference {path} is no sound that can be read: {shorten(str(error))}") from None
    if len(sound) < frames:
        raise UserError(f"the reference {path} is cut off: {len(sound)} of {frames} samples")
    if not np.isfinite(sound).all():
        raise UserError(f"the reference {path} holds values that are no numbers")
    sound = sound - sound.mean() if len(sound) else sound
    if not len(sound) or float(np.abs(sound).max()) < QUIET:
        raise UserError(f"the reference {path} is silent: record {LEAST_S:g} to {MOST_S:g} s of speech")
    start, end = sounding(sound, rate)
    sound = sound[max(0, start - rate // 20) : end + rate // 20]
    seconds = len(sound) / rate
    if not LEAST_S <= seconds <= MOST_S:
        raise UserError(f"the reference {path} has {seconds:.1f} s of sound; {LEAST_S:g} to {MOST_S:g} s are needed")
    wave = resample(torch.from_numpy(np.ascontiguousarray(sound)), rate, RATE)
    return wave * (LEVEL / float(wave.square().mean().sqrt()))
