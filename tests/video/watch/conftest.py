"""Films of flat colours with a square that moves, and a tower that knows colours: all that is found is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.media import VideoWriter
from longtake.video.watch.tower import Tower

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128, 128, 128)}


class ColourTower(Tower):
    """A picture's features are its mean colour less grey, a question's vector the colour that it names."""

    size, width, mark = 32, 3, "colours"

    def __init__(self) -> None:
        self.looked = 0

    def look(self, frames):
        self.looked += len(frames)
        return torch.tensor(frames).float().mean((1, 2)) / 128 - 1

    def segment(self, features):
        return torch.nn.functional.normalize(features.mean(0) + 1e-6, dim=-1)

    def ask(self, caption):
        (name,) = [name for name in COLOURS if name in caption]
        return torch.nn.functional.normalize(torch.tensor(COLOURS[name]).float() / 128 - 1 + 1e-6, dim=-1)

    def map(self, frames, caption):
        return torch.ones(len(frames), 4, 4)


@pytest.fixture
def tower() -> ColourTower:
    return ColourTower()


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """film([("red", 2.0), ("blue", 3.0)], fps=10): writes such seconds of such colours."""

    def write(parts, fps: float = 10.0, size: int = 32, name: str = "film.mp4") -> Path:
        path = tmp_path / name
        with VideoWriter(path, fps, overwrite=True) as writer:
            for colour, seconds in parts:
                frames = np.empty((round(seconds * fps), size, size, 3), np.uint8)
                frames[:] = COLOURS[colour]
                for number, frame in enumerate(frames):
                    frame[4:8, (number * 3) % (size - 4) :][:, :4] = 90  # no two pictures alike
                writer.write(frames)
        return path

    return write
