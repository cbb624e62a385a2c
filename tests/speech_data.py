"""A tiny speech corpus in the real layout: voices that hum, one tone a phone, silence where pauses are."""

import io
import json
import zipfile

import numpy as np

UNIT, RATE = 600, 24_000
TEXTS = ("wˈʌn, tˈuː.", "ə kwˈaɪət fˈɑːɹmɚ?", "nˈəʊ, ænd jˈɛs, ænd nˈəʊ.", "hˈoʊm!")


def sound_of(phones, frames, late, pitch, rng):
    """A hum of ``pitch`` Hz with a second tone a phone; punctuation and spaces are silent. late: samples that the
    labels run behind the sound."""
    parts = []
    for phone, count in zip(phones, frames, strict=True):
        time = np.arange(count * UNIT) / RATE
        tone = 300 + 40 * (ord(phone) % 60)
        loud = 0.0 if phone in " ,.?!" else 0.2
        wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6)) + np.sin(2 * np.pi * tone * time)
        parts.append(loud * wave + 1e-4 * rng.standard_normal(len(time)) * (loud > 0))
    wave = np.concatenate(parts)
    return np.concatenate([wave[late:], np.zeros(late)])


def write_zip(path, voices=("ann", "bob"), copies=1, late=1320, seed=0):
    """``copies`` times all texts by all voices."""
    import soundfile

    rng = np.random.default_rng(seed)
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(copies * len(TEXTS) * len(voices)):
            text, voice = TEXTS[number % len(TEXTS)], number // len(TEXTS) % len(voices)
            phones = list(f" {text} ")
            frames = [{" ": 2}.get(phone) or (8 if phone in ",.?!" else int(rng.integers(2, 6))) for phone in phones]
            frames[0] = 6
            file = io.BytesIO()
            wave = sound_of(phones, frames, late, 120 + 60 * voice, rng)
            soundfile.write(file, wave.astype("float32"), RATE, format="OGG", subtype="OPUS")
            name = f"{number:05d}.opus"
            archive.writestr(name, file.getvalue())
            rows.append(
                {
                    "file": name,
                    "voice": voices[voice],
                    "text": text,
                    "phones": phones,
                    "frames": frames,
                    "seconds": len(wave) / RATE,
                }
            )
        archive.writestr("index.jsonl", "\n".join(json.dumps(row) for row in rows))
    return path


def write_corpus(folder):
    """aligned_train.zip and aligned_val.zip, and human_train.zip whose labels are right."""
    write_zip(folder / "aligned_train.zip", copies=2)
    write_zip(folder / "aligned_val.zip", seed=1)
    write_zip(folder / "human_train.zip", voices=("cleo",), late=0, seed=2)
    return folder
