"""Films for the tests of `longtake check`: textures that move, real clips, and the faults that are planted in them."""

from pathlib import Path

import numpy as np
from longtake.media import VideoWriter, read_video
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "demos/samples"


def texture(seed, height=96, width=128, sigma=3.0):
    """A smooth coloured texture that wraps around, float (height, width, 3) in 0..255."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    smooth = np.stack([gaussian_filter(one, sigma, mode="wrap") for one in noise], 2)
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255)


def moved(picture, path):
    """The picture seen along a path (F, 2) of pixels down and right: uint8 (F, H, W, 3), linear between pixels."""
    frames = []
    for down, right in np.asarray(path, float):
        row, column = int(np.floor(down)), int(np.floor(right))
        below, beside = down - row, right - column
        here = np.roll(picture, (-row, -column), (0, 1))
        upper = (1 - beside) * here + beside * np.roll(here, -1, 1)
        lower = np.roll(here, -1, 0)
        lower = (1 - beside) * lower + beside * np.roll(lower, -1, 1)
        frames.append(np.rint((1 - below) * upper + below * lower).clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def straight(frames, seed, speed=(0.6, 1.1), **shape):
    """A texture that passes at one speed."""
    return moved(texture(seed, **shape), np.arange(frames)[:, None] * np.array(speed))


def swinging(frames, seed, **shape):
    """A texture that swings like a hand-held camera."""
    t = np.arange(frames)
    path = np.stack([14 * np.sin(t / 11.3) + 6 * np.sin(t / 4.1), 20 * np.sin(t / 17.0) + 9 * np.cos(t / 6.3)], 1)
    return moved(texture(seed, **shape), path)


def turning(frames, at, seed):
    """A texture that goes right, and left from frame ``at`` on."""
    t = np.arange(frames, dtype=float)
    return moved(texture(seed), np.stack([0.5 * t, 1.3 * np.minimum(t, 2 * at - t)], 1))


def running():
    """The page's sample: a barbarian who runs, 96 frames of 64 x 64 at 12 a second."""
    return read_video(SAMPLES / "running.mp4")[0]


def along(frames):
    """0 at the first frame to 1 at the last, to be multiplied with frames."""
    return np.linspace(0, 1, len(frames))[:, None, None, None]


def as_pixels(values):
    """Rounded and clipped to uint8."""
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def frozen(film, at, count):
    """The frame before ``at`` stands for ``count`` frames more."""
    return np.concatenate([film[:at], np.repeat(film[at - 1 : at], count, 0), film[at:]])


def blurred(film, most):
    """Sharp at first, blurred with a standard deviation of ``most`` pixels at last."""
    widths = most * np.linspace(0, 1, len(film))
    return np.stack([gaussian_filter(frame, (w, w, 0)) for frame, w in zip(film, widths, strict=True)])


def flickering(film, grey_levels, start=0, stop=None):
    """Brighter and darker by so many grey levels, frame by frame."""
    out = film.astype(float)
    part = slice(start, stop)
    out[part] += grey_levels * np.where(np.arange(len(out[part])) % 2, 1, -1)[:, None, None, None]
    return as_pixels(out)


def write(path, film, fps=24):
    """The frames as an mp4."""
    with VideoWriter(path, fps) as writer:
        writer.write(film)
    return path
