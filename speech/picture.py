"""A take as a picture: waveform, mel, pitch, with its words, pauses and chapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.journal import atomic_path
from longtake.speech.longform.pieces import joined
from longtake.speech.mel import FRAMES_A_SECOND, PAD, RATE, log_mel, resample
from longtake.speech.pitch import track

if TYPE_CHECKING:
    from longtake.speech.outputs import SpeechOutput

SHOWN_S = 20.0
COLUMNS = 1600  # of the waveform
LEAST_PAUSE_S = 0.12


def draw(output: SpeechOutput, path: Path) -> None:
    """Write the png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    highs, lows, head = _outline(output)
    shown = min(output.seconds, SHOWN_S)
    wave = resample(torch.from_numpy(head), output.rate, RATE)
    wave = torch.nn.functional.pad(wave, (0, max(0, 4 * PAD - len(wave))))
    mel, pitch = log_mel(wave).numpy(), track(wave)
    figure: Any = Figure(figsize=(12, 7), dpi=110, layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=(1, 2, 1.3))
    times = np.linspace(0, output.seconds, len(highs))
    top.fill_between(times, lows, highs, color="#3a6ea5", linewidth=0)
    most = max(0.1, float(np.abs([highs, lows]).max()))
    top.set(xlim=(0, output.seconds), ylim=(-most, most), ylabel="level", title=f"{output.seconds:.1f} s")
    for title, sample in output.chapters:
        top.axvline(sample / output.rate, color="#a33", linewidth=0.8)
        top.text(sample / output.rate, 0.98 * most, title[:30], fontsize=7, color="#a33", va="top")
    last = mel.shape[1] / FRAMES_A_SECOND
    middle.imshow(
        mel,
        origin="lower",
        aspect="auto",
        extent=(0.0, float(last), 0.0, float(len(mel))),
        cmap="magma",
        vmin=-10,
        vmax=1,
    )
    middle.set(xlim=(0, shown), ylabel="mel band")
    heard = np.where(pitch > 0, pitch, np.nan)
    bottom.plot(np.arange(len(heard)) / FRAMES_A_SECOND, heard, color="#222", linewidth=1.4)
    bottom.set(xlim=(0, shown), ylim=(60, 420), ylabel="pitch, Hz", xlabel="s")
    words = [word for word in output.words if not word.mark and word.start / output.rate < shown]
    for at, word in enumerate(words):
        start, stop = word.start / output.rate, word.end / output.rate
        middle.axvline(start, color="white", linewidth=0.4, alpha=0.6)
        bottom.text(start, 410 - 26 * (at % 3), word.text, fontsize=7, va="top")
        if at and start - words[at - 1].end / output.rate >= LEAST_PAUSE_S:
            for axis in (middle, bottom):
                axis.axvspan(words[at - 1].end / output.rate, start, color="#88aaff", alpha=0.25, linewidth=0)
        if stop > shown:
            break
    with atomic_path(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _outline(output: SpeechOutput) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(highest, lowest) of each column of the whole, and the first samples of it."""
    width = max(1, -(-output.length // COLUMNS))
    columns = -(-output.length // width)
    highs, lows = np.zeros(columns), np.zeros(columns)
    wanted = round(SHOWN_S * output.rate)
    head: list[np.ndarray] = []
    at = kept = 0
    gain = output.gain
    for block in joined(output.pieces(), output.rate):
        scaled = block * np.float32(gain)
        if kept < wanted and len(scaled):
            head.append(scaled[: wanted - kept])
            kept += len(head[-1])
        places = (at + np.arange(len(scaled))) // width
        np.maximum.at(highs, places, scaled)
        np.minimum.at(lows, places, scaled)
        at += len(scaled)
    return highs, lows, np.concatenate(head) if head else np.zeros(1, np.float32)
