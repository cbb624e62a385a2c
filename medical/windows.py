"""Windows over a volume that does not fit: the net sees one at a time, its outputs are blended at every step.

All windows share one noise volume and one state; only what the net says is blended, with weights that fall towards a
window's edge and sum to 1 at each voxel. So there are no seams of finished samples, and the order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from longtake.errors import UserError

OVERLAP = 0.5  # of a window, least
FLOOR = 1e-3  # of a weight at a window's edge


@dataclass(frozen=True)
class Windows:
    """places: the start of each window (d, h, w). size: of all windows. weights: (d, h, w) before they are shared."""

    places: list[tuple[int, int, int]]
    size: tuple[int, int, int]
    weights: torch.Tensor
    total: torch.Tensor

    def cut(self, volume: torch.Tensor, index: int) -> torch.Tensor:
        """The part of (..., D, H, W) that a window sees."""
        d, h, w = (slice(at, at + side) for at, side in zip(self.places[index], self.size, strict=True))
        return volume[..., d, h, w]

    def share(self, index: int) -> torch.Tensor:
        """(d, h, w) of a window's part in the blend."""
        return self.weights / self.cut(self.total, index)

    def add(self, total: torch.Tensor, part: torch.Tensor, index: int) -> None:
        """Add a window's output to a volume, in place, with its share."""
        self.cut(total, index).add_(part * self.share(index).to(part))


def starts(length: int, window: int) -> list[int]:
    """Evenly spread starts of windows of one axis, overlapping by ``OVERLAP`` at least."""
    if window >= length:
        return [0]
    step = max(1, int(window * (1 - OVERLAP)))
    count = -(-(length - window) // step) + 1
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def windows(shape: Sequence[int], window: Sequence[int] | None, step: int) -> Windows | None:
    """Windows over a (padded) volume; None when one holds it all. step: what H and W of a window must be multiples of.

    Raises UserError for a window that is no three positive numbers.
    """
    if window is None:
        return None
    if len(window) != 3 or min(window) < 1:
        raise UserError(f"window must be three sizes (slices, rows, columns) of 1 or more, got {tuple(window)}")
    depth, height, width = shape
    wanted = (window[0], window[1] + -window[1] % step, window[2] + -window[2] % step)
    size = (min(wanted[0], depth), min(wanted[1], height), min(wanted[2], width))
    if size == (depth, height, width):
        return None
    lines = [starts(length, side) for length, side in zip(shape, size, strict=True)]
    places = [(d, h, w) for d in lines[0] for h in lines[1] for w in lines[2]]
    bells = [bell(side) for side in size]
    weights = bells[0][:, None, None] * bells[1][None, :, None] * bells[2][None, None, :]
    total = torch.zeros(depth, height, width, dtype=torch.float64)
    made = Windows(places, size, weights, total)
    for index in range(len(places)):
        made.cut(total, index).add_(weights)
    return made


def bell(side: int) -> torch.Tensor:
    """(side,) float64 Gaussian weights, an eighth of the window wide."""
    off = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / max(side / 4, 0.5)
    return torch.exp(-0.5 * off * off).clamp_min(FLOOR)


FIXED = 30e6  # bytes: weights and what libraries take at their first call
KNOW, PER_VISIT = 420.0, 110.0  # bytes a voxel: of the encoder and the mean's head, in float32
STEP, PER_SAMPLE = 300.0, 590.0  # bytes a voxel: of a denoising step


def estimate_memory(
    shape: Sequence[int], visits: int, samples: int = 2, window: Sequence[int] | None = None, step: int = 16
) -> int:
    """Bytes that a prediction with the usual net takes above those of an idle process, about (measured on a CPU in
    float32: peak of the process at 8 and 16 slices of 128 x 128, 3 and 8 visits, 1 and 2 samples).

    shape: (D, H, W). samples: that are drawn at once, two where samples come in pairs. Windows keep what each of them
    knows, and take the work of one at a time.
    """
    depth, height, width = shape[0], shape[1] + -shape[1] % step, shape[2] + -shape[2] % step
    cut = windows((depth, height, width), window, step)
    at_once = depth * height * width if cut is None else cut.size[0] * cut.size[1] * cut.size[2]
    work = at_once * max(KNOW + PER_VISIT * visits, STEP + PER_SAMPLE * samples)
    held = depth * height * width * (5.0 * visits + 12.0 * samples)
    kept = 0.0 if cut is None else 64.0 * at_once * len(cut.places)
    return int(FIXED + work + held + kept)
