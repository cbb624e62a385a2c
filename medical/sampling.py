"""Drawing samples of one target: noise by sample and slice, a stock scheduler, guidance, windows.

The noise of a slice is named by (seed, target, sample, slice), so that neither batch, window, device nor number of
ranks changes it. Samples come in pairs from one noise and its mirror image (antithetic variates, Hammersley and Morton
1956): what is linear in the noise cancels in the mean.

Legend: S samples, D slices, H, W padded rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from longtake.denoising import frame_noise
from longtake.medical.diffusion import scheduler
from longtake.medical.net import EDGE, LongitudinalNet, Outlook
from longtake.medical.ranks import Team
from longtake.medical.windows import Windows
from longtake.noise import noise

APART = 1 << 20  # slices a volume may have: the numbers of noise streams stay apart
Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How samples are drawn. steps: of the scheduler. guidance: 1 is none. scheduler: "ddim", "ddpm" or "dpm"."""

    steps: int = 12
    guidance: float = 1.0
    scheduler: str = "dpm"
    seed: int = 0


def start_noise(seed: int, sample: int, target: int, slices: Sequence[int], shape: tuple[int, int]) -> torch.Tensor:
    """(1, D, H, W) float32 on the CPU: of sample 2n the noise of pair n, of sample 2n + 1 its mirror image."""
    drawn = noise(seed, sample // 2, [target * APART + number for number in slices], 0, shape)
    return (drawn if sample % 2 == 0 else -drawn)[None]


@dataclass
class View:
    """A net, what it knows of a target, and the windows it looks through. parts: what it knows in each window."""

    net: LongitudinalNet
    outlook: Outlook
    windows: Windows | None = None
    parts: list[Outlook] | None = None
    team: Team | None = None

    @torch.inference_mode()
    def velocity(self, x: torch.Tensor, level: float, guidance: float) -> torch.Tensor:
        """(S, 1, D, H, W) float32 v of the rest."""
        if self.windows is None or self.parts is None:
            return self._through(x, level, guidance, self.outlook)
        total = torch.zeros_like(x)
        for index, part in enumerate(self.parts):
            self.windows.add(total, self._through(self.windows.cut(x, index), level, guidance, part), index)
        return total

    def _through(self, x: torch.Tensor, level: float, guidance: float, outlook: Outlook) -> torch.Tensor:
        levels = torch.full((len(x),), level, device=x.device)
        return self.net(x, levels, outlook, team=self.team, guidance=guidance)


def look(
    net: LongitudinalNet,
    windows: Windows | None,
    visits: torch.Tensor,
    delta: torch.Tensor,
    observed: torch.Tensor,
    kind: torch.Tensor,
    valid: torch.Tensor | None,
    team: Team | None = None,
) -> View:
    """What a net knows of a target, through windows where there are any. visits: (1, K, D, H, W), H and W padded where
    there are windows; the others as ``LongitudinalNet.outlook`` has them."""
    with torch.inference_mode():
        if windows is None:
            return View(net, net.outlook(visits, delta, observed, kind, valid, team), team=team)
        parts = []
        mean = torch.zeros_like(visits[:, :1])
        scale = torch.zeros_like(mean)
        for index in range(len(windows.places)):
            shown = None if valid is None else windows.cut(valid, index)
            part = net.outlook(windows.cut(visits, index), delta, observed, kind, shown)
            windows.add(mean, part.mean, index)
            windows.add(scale, part.scale, index)
            parts.append(part)
        return View(net, replace(parts[0], mean=mean, scale=scale), windows, parts)


def draw_rest(view: View, recipe: Recipe, start: torch.Tensor, samples: Sequence[int], first: int = 0) -> torch.Tensor:
    """(S, 1, D, H, W) float32, the rest of each sample, from the noise they start with.

    samples: their numbers; first: number of the first slice. Both name the noise of schedulers that draw some.
    """
    stock = scheduler(recipe.scheduler)
    stock.set_timesteps(recipe.steps)
    shares = stock.alphas_cumprod
    count, _, depth = start.shape[:3]
    x = (start * stock.init_noise_sigma).to(view.outlook.mean.device)
    numbers = [(1 + sample) * APART + first + number for sample in samples for number in range(depth)]
    step = _stepper(stock, count, depth)
    with frame_noise(stock, recipe.seed, numbers):
        for time in stock.timesteps:
            v = view.velocity(x, float(shares[int(time)]), recipe.guidance)
            x = step(v, time, x)
    return x


def _stepper(stock: Any, count: int, depth: int) -> Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]:
    """A scheduler's step on (S, 1, D, H, W), shown to it with a row for each slice."""

    def step(v: torch.Tensor, time: Any, x: torch.Tensor) -> torch.Tensor:
        flat = [part.transpose(1, 2).flatten(0, 1) for part in (v, x)]
        moved: torch.Tensor = stock.step(flat[0], time, flat[1], return_dict=False)[0]
        return moved.unflatten(0, (count, depth)).transpose(1, 2)

    return step


def finished(outlook: Outlook, rest: torch.Tensor, spread: float) -> torch.Tensor:
    """(S, D, h, w): samples on the net's scale from their rests, cut back to the size that was asked for."""
    whole = (outlook.mean + spread * outlook.scale * rest).clamp(-EDGE, EDGE)
    return whole[:, 0, :, : outlook.size[0], : outlook.size[1]]
