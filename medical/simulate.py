"""Series whose truth is known: growing lesions, a beating ring, a shrinking brain, at irregular times with scanner
drift.

    case = simulate("lesions", seed=3, shape=(8, 48, 48))
    case.images, case.clean, case.times, case.volume        # (K, D, H, W) twice, (K,), (K,)

Coordinates lie in [-1, 1] along each axis; a single slice is the plane z = 0.
Legend: K visits, D slices, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from longtake.errors import UserError
from numpy.random import Generator

SOFT = 0.03  # width of an edge, where a voxel is not wider
Array = np.ndarray
Scene = Callable[[float], tuple[Array, float]]


@dataclass(frozen=True)
class Simulated:
    """images: (K, D, H, W) float32 in [0, 1], what a scanner sees. clean: the same without drift and noise. times: (K,)
    float64 in ``unit``. volume: (K,) the share of the grid that the lesion, cavity or ventricle fills. modality: of the
    net's table."""

    images: Array
    clean: Array
    times: Array
    unit: str
    volume: Array
    modality: str


def rising(x: Array | float) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + np.exp(-np.clip(x, -40, 40)))


def grid(shape: Sequence[int]) -> Array:
    """(3, D, H, W): z, y, x of voxel centres."""
    axes = [np.linspace(-1 + 1 / n, 1 - 1 / n, n) if n > 1 else np.zeros(1) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float64)


class Texture:
    """A smooth random field in coordinates, of deviation 1: waves of random direction about three voxels long."""

    def __init__(self, rng: Generator, shape: Sequence[int], waves: int = 24) -> None:
        finest = math.pi * max(shape) / 8
        self.waves = rng.normal(0, finest, (waves, 3)) * ([0.0, 1, 1] if shape[0] == 1 else [0.3, 1, 1])
        self.phases = rng.uniform(0, 2 * math.pi, waves)

    def __call__(self, r: Array) -> Array:
        turned = np.tensordot(self.waves, r, 1) + self.phases[:, None, None, None]
        return np.cos(turned).sum(0) * math.sqrt(2 / len(self.phases))


def lesions(rng: Generator, shape: Sequence[int], span: float) -> Scene:
    """Lesions that grow by a logistic, some of them treated, and push the tissue aside; times in years."""
    r, field, edge = grid(shape), Texture(rng, shape), max(SOFT, 1 / shape[-1])
    axes = np.array([0.6, 1, 1.2])[:, None, None, None]
    head = rising((0.9 - np.sqrt((axes * r * r).sum(0))) / 0.04)
    found: list[dict[str, Any]] = []
    for _ in range(min(4, 1 + rng.poisson(1))):
        centre = rng.uniform(-0.5, 0.5, 3) * ([0.0, 1, 1] if shape[0] == 1 else [0.7, 1, 1])
        found.append(
            {
                "centre": centre[:, None, None, None],
                "size": rng.uniform(0.15, 0.4),
                "rate": math.exp(rng.uniform(math.log(0.5), math.log(3))),
                "begin": rng.uniform(0.1, 0.9) * span,
                "axes": rng.uniform(0.8, 1.25, 3)[:, None, None, None],
                "treated": rng.uniform(0.3, 0.7) * span if rng.random() < 0.15 else math.inf,
                "fall": rng.uniform(0.2, 1.0),
                "bright": rng.uniform(0.25, 0.5),
                "ring": float(rng.random() < 0.5),
            }
        )

    def at(time: float) -> tuple[Array, float]:
        moved, inside, added = r.copy(), np.zeros(shape), np.zeros(shape)
        for one in found:
            radius = one["size"] * float(rising(one["rate"] * (min(time, one["treated"]) - one["begin"])))
            radius *= math.exp(-one["fall"] * max(0.0, time - one["treated"]))
            off = (r - one["centre"]) / one["axes"]
            far = np.sqrt((off * off).sum(0)) + 1e-9
            moved -= 0.3 * radius * (off / far) * np.exp(-((far / (2 * radius + 1e-6)) ** 2))
            ball = rising((radius - far) / edge)
            inside = np.maximum(inside, ball)
            added += one["bright"] * (ball - 0.7 * one["ring"] * rising((0.6 * radius - far) / edge))
        image = head * (0.35 + 0.04 * field(moved) + added)
        return np.clip(image, 0, 1), float((inside * head).mean())

    return at


def cine(rng: Generator, shape: Sequence[int], span: float) -> Scene:
    """A ring that contracts and opens again within one beat, half of them with a stunned sector; times in cycles."""
    z, y, x = grid(shape)
    field, edge = Texture(rng, shape), max(SOFT, 1 / shape[-1])
    end, power = rng.uniform(0.3, 0.42), rng.uniform(0.7, 1.5)
    size, wall, squeeze = rng.uniform(0.25, 0.4), rng.uniform(0.1, 0.16), rng.uniform(0.1, 0.45)
    stunned, where = (rng.uniform(0.5, 1.0) if rng.random() < 0.5 else 0.0), rng.uniform(-math.pi, math.pi)
    taper = np.sqrt(1 - 0.7 * ((z + 1) / 2) ** 2)
    far, angle = np.hypot(x, y) + 1e-9, np.arctan2(y, x)
    off = np.angle(np.exp(1j * (angle - where)))
    local = squeeze * (1 - stunned * np.exp(-((off / 0.8) ** 2)))

    def at(time: float) -> tuple[Array, float]:
        p = time % 1.0
        if p < end:
            active = math.sin(math.pi * p / (2 * end)) ** 2
        else:
            active = max(0.0, math.cos(math.pi / 2 * (p - end) / (1 - end)) ** 2) ** power
        inner = size * taper * (1 - local * active)
        outer = np.sqrt(inner**2 + taper**2 * ((size + wall) ** 2 - size**2))
        rest = taper * (size + wall)
        pulled = np.where(far > outer, far + (rest - outer) * np.exp(-(far - outer) / 0.2), far)
        cavity, muscle = rising((inner - far) / edge), rising((outer - far) / edge)
        around = 0.4 + 0.06 * field(np.stack([z, y / far * pulled, x / far * pulled]))
        return np.clip(around * (1 - muscle) + 0.25 * (muscle - cavity) + 0.8 * cavity, 0, 1), float(cavity.mean())

    return at


def atrophy(rng: Generator, shape: Sequence[int], span: float) -> Scene:
    """A ventricle that widens while the brain draws back from a fixed skull; times in years."""
    r, field, edge = grid(shape), Texture(rng, shape), max(SOFT, 1 / shape[-1])
    half = np.array([rng.uniform(0.2, 0.35), rng.uniform(0.4, 0.6), rng.uniform(0.15, 0.25)])[:, None, None, None]
    centre = np.array([0.0, *rng.uniform(-0.1, 0.1, 2)])[:, None, None, None]
    rate, faster = 0.03 * math.exp(0.6 * rng.standard_normal()), rng.uniform(0, 0.01)
    width, thinning = rng.uniform(0.3, 0.45), rng.uniform(0.002, 0.008)
    head = np.sqrt((np.array([0.6, 1, 1.2])[:, None, None, None] * r * r).sum(0))
    off = r - centre
    bell = np.exp(-(off * off).sum(0) / (2 * width**2))

    def at(time: float) -> tuple[Array, float]:
        size = math.exp(rate * time + faster * time * time / 2)
        moved = r - min(0.5, 1 - size ** (-1 / 3)) * bell * off
        brain = rising((0.85 * (1 - thinning * time) - head) / edge)
        gap = np.sqrt((((moved - centre) / half) ** 2).sum(0))
        ventricle = rising((1 - gap) * float(half.min()) / edge)
        skull = rising((head - 0.88) / edge) * rising((0.95 - head) / edge)
        tissue = (0.5 + 0.04 * field(moved)) * (1 - ventricle) + 0.12 * ventricle
        fluid = 0.12 * rising((0.9 - head) / edge)
        return np.clip(tissue * brain + fluid * (1 - brain) + 0.75 * skull, 0, 1), float((ventricle * brain).mean())

    return at


KINDS: dict[str, tuple[Callable[[Generator, Sequence[int], float], Scene], str, str, float]] = {
    "lesions": (lesions, "simulated", "years", 5.0),
    "cine": (cine, "cine", "cycle", 1.0),
    "atrophy": (atrophy, "simulated", "years", 8.0),
}


def visit_times(rng: Generator, kind: str, span: float) -> Array:
    """Irregular times from 0, some visits dropped, two at least."""
    if kind == "cine":
        count = int(rng.integers(8, 17))
        times = (np.arange(count) + np.clip(0.3 * rng.standard_normal(count), -0.45, 0.45)) / count
        times = times - times[0]
    else:
        count = int(rng.integers(3, 9))
        gaps = rng.gamma(2, span / (2 * count), count - 1)
        times = np.concatenate([[0.0], np.cumsum(gaps)])
    keep = rng.random(count) >= 0.2
    keep[0] = True
    if keep.sum() < 2:
        keep[int(rng.integers(1, count))] = True
    kept: Array = times[keep].astype(np.float64)
    return kept


def scanned(rng: Generator, clean: Array, r: Array, drift: float, noise: float) -> Array:
    """One visit as a scanner sees it: gain, shading, offset, Rician noise."""
    gain = rng.normal(1, drift) * (1 + np.tensordot(rng.normal(0, drift, 3), r, 1))
    seen = gain * clean + rng.normal(0, drift / 3) + noise * rng.standard_normal(clean.shape)
    return np.clip(np.hypot(seen, noise * rng.standard_normal(clean.shape)), 0, 1)


def simulate(
    kind: str,
    seed: int,
    shape: Sequence[int] = (8, 48, 48),
    *,
    times: Sequence[float] | None = None,
    drift: float = 0.03,
    noise: float = 0.02,
) -> Simulated:
    """One subject. kind: "lesions", "cine" or "atrophy". shape: (D, H, W). times: of the visits, instead of drawn ones.

    drift: deviation of gain and shading per visit. noise: of the signal. Raises UserError for an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    scene, modality, unit, span = KINDS[kind]
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    at = scene(rng, shape, span)
    when = visit_times(rng, kind, span) if times is None else np.asarray(times, np.float64)
    clean, volume = zip(*(at(float(time)) for time in when), strict=True)
    r = grid(shape)
    images = np.stack([scanned(rng, one, r, drift, noise) for one in clean])
    return Simulated(
        images.astype(np.float32),
        np.stack(clean).astype(np.float32),
        when,
        unit,
        np.array(volume),
        modality,
    )
