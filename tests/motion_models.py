"""What the motion tests share: goldens, tiny nets, an oracle, and the released sampler in plain words.

Golden tensors are (B, J, 1, T); ours are (B, T, J): ``ours`` and ``theirs`` change one into the other.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_fill", ROOT / "fill.py")
assert _spec is not None and _spec.loader is not None
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


class Golden:
    """One case: its json, its arrays, and inputs made from tags."""

    def __init__(self, case: str) -> None:
        self.meta: dict[str, Any] = json.loads((ROOT / "motion" / f"{case}.json").read_text())
        self.arrays = dict(np.load(ROOT / "motion" / f"{case}.npz"))

    def __getitem__(self, key: str) -> Any:
        return self.meta[key]

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        return {
            key: torch.from_numpy(fill.values(prefix + key, tuple(shape)))
            for key, shape in self.meta["checkpoint_keys"].items()
        }

    def given(self, name: str, **where: Any) -> torch.Tensor:
        """Input ``name`` as (B, T, J)."""
        entry = self.meta["inputs"][name]
        return ours(torch.from_numpy(fill.noise(entry["tag"].format(**where), tuple(entry["shape"]))))

    def text(self) -> torch.Tensor:
        entry = self.meta["inputs"]["text"]
        return torch.stack(
            [torch.from_numpy(fill.noise(entry["tag"].format(row=row), (512,))) for row in range(entry["rows"])]
        )

    def noise(self, steps: int, start: str = "x_T", step: str = "step_noise") -> Callable[..., torch.Tensor]:
        """noise(0): the start; noise(k): that of the k-th step of ``steps``."""

        def draw(count: int, **where: Any) -> torch.Tensor:
            return self.given(start, **where) if count == 0 else self.given(step, t=steps - count, **where)

        return draw

    def check(self, name: str, value: torch.Tensor | np.ndarray) -> None:
        """``value`` meets the golden array within the golden's tolerance."""
        got = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        want, limit = self.arrays[name], self.meta["tolerance"]["max_abs_per_array"][name]
        assert got.shape == want.shape, (name, got.shape, want.shape)
        gap = float(np.abs(got.astype(np.float64) - want).max())
        assert gap <= limit, f"{self.meta['case']} {name}: off by {gap:.3g}, allowed {limit:.3g}"


def ours(x: torch.Tensor) -> torch.Tensor:
    return x.squeeze(2).transpose(1, 2).contiguous()


def theirs(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).unsqueeze(2)


def tiny_net(seed: int = 0, **config: Any) -> Any:
    """An MDM with random weights large enough that rows and frames matter to each other."""
    from longtake.motion.model import MDM

    torch.manual_seed(seed)
    settings = {"features": 12, "width": 32, "layers": 2, "feedforward": 64, "text_width": 8, "positions": 400}
    return MDM(**{**settings, **config}).eval()


def make_pipe(kind: str = "DDPMScheduler", steps: int = 6, **config: Any) -> Any:
    """A pipeline around a tiny net with random weights."""
    import diffusers
    from longtake import LongMotionPipeline
    from longtake.motion.space import MotionSpace

    net = tiny_net(**{"features": 263, "padding": "mask", **config})
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    torch.manual_seed(5)
    space = MotionSpace(shortest_row=10).set_statistics(0.1 * torch.randn(263), torch.rand(263) * 0.2 + 0.05)
    pipe = LongMotionPipeline(net, scheduler, space)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def injected(seed: int, shape: Sequence[int]) -> Callable[[int], torch.Tensor]:
    """noise(k) of a given shape, the same for the same k."""

    def draw(count: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + count))

    return draw


def kept(seen: dict[int, torch.Tensor]) -> Callable[[Any], bool]:
    """An ``OnStep`` that keeps what each step ended with, by its number from 0."""

    def on_step(now: Any) -> bool:
        seen[now.number - 1] = now.latents.clone()
        return False

    return on_step


class Oracle:
    """A denoiser that knows the answer: row i's clean motion is a given crop, whatever x is."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __call__(self, x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor:
        return self.rows[list(rows), : x.shape[1]].to(x.dtype)


def released_take_one(
    net: Any,
    text: torch.Tensor,
    scale: float,
    lengths: Sequence[int],
    h: int,
    steps: int,
    noise: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """The released first take, step by step as its code goes: two calls of the net for guidance, ancestral steps with
    tables of its own, the handshake loop row after row. Returns rows (B, M, J)."""
    x = noise(0)
    for count, t in enumerate(reversed(range(steps)), 1):
        x = released_step(net, x, text, scale, t, steps, noise(count), None, None)
        for row in range(1, len(x)):
            end = lengths[row - 1]
            for k in range(h):
                share = k / h
                joined = (1 - share) * x[row - 1, end - h + k] + share * x[row, k]
                x[row - 1, end - h + k] = joined
                x[row, k] = joined
    return x


def released_step(
    net: Any,
    x: torch.Tensor,
    text: torch.Tensor,
    scale: float,
    t: int,
    steps: int,
    draw: torch.Tensor,
    mask: torch.Tensor | None,
    given: torch.Tensor | None,
) -> torch.Tensor:
    """One ancestral step: the net without and with text in turn, whatever the scale; inpainting if asked for."""
    from math import cos, pi

    level = [cos((i / steps + 0.008) / 1.008 * pi / 2) ** 2 for i in range(steps + 1)]
    beta = np.array([min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)])
    abar = np.cumprod(1 - beta)
    before = np.append(1.0, abar[:-1])
    times = torch.full((len(x),), t)
    conditional = net(x, times, text)
    unconditional = net(x, times, torch.zeros_like(text))
    x0 = unconditional + scale * (conditional - unconditional)
    if mask is not None:
        x0 = mask * given + (1 - mask) * x0
    mean = beta[t] * before[t] ** 0.5 / (1 - abar[t]) * x0
    mean = mean + (1 - before[t]) * (1 - beta[t]) ** 0.5 / (1 - abar[t]) * x
    spread = (beta[t] * (1 - before[t]) / (1 - abar[t])) ** 0.5
    return (mean + (spread * draw if t > 0 else 0.0)).float()


def released_both_takes(
    net: Any,
    text: torch.Tensor,
    scale: float,
    lengths: Sequence[int],
    h: int,
    blend: int,
    steps: int,
    noise: Callable[[int], torch.Tensor],
    second: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Both released takes, every row padded to the longest, every sandwich to the longest possible; scale 0 in the
    second take still calls the net twice. Returns the unfolded motion (N, J)."""
    rows = released_take_one(net, text, scale, lengths, h, steps, noise)
    pairs, longest = len(lengths) - 1, max(lengths)
    frames = 2 * (longest - 2 * h) + h
    given = rows.new_zeros(pairs, frames, rows.shape[2])
    mask = torch.ones(pairs, frames, 1)
    for i in range(pairs):
        left = lengths[i] - 2 * h
        parts = [rows[i, h : lengths[i] - h], rows[i + 1, :h], rows[i + 1, h : lengths[i + 1] - h]]
        whole = torch.cat(parts)
        given[i, : len(whole)] = whole
        for j in range(blend):
            mask[i, left - blend + j] = 0.85 * (1 - j / blend)
            mask[i, left + h + j] = 0.85 * j / blend
    first = steps - 1 - round(steps / 10)
    level = (
        np.cos((first + 1) / steps * np.pi / 2 / 1.008 + 0.008 / 1.008 * np.pi / 2) ** 2
        / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    x = (level**0.5 * given + (1 - level) ** 0.5 * second(0)).float()
    empty = text.new_zeros(pairs, text.shape[1])
    for t in range(first, -1, -1):
        x = released_step(net, x, empty, 0.0, t, steps, second(steps - t), mask, given)
    out = [rows[0, : lengths[0]]] + [rows[i, h : lengths[i]] for i in range(1, len(lengths))]
    whole = torch.cat(out)
    start = 0
    for i in range(pairs):
        left = lengths[i] - 2 * h
        begin = start + h
        for place in (range(left - blend, left), range(left + h, left + h + blend)):
            for k in place:
                whole[begin + k] = x[i, k]
        start += lengths[i] - h
    return whole


def sample_long_pair(
    plan: Any,
    denoise: Any,
    schedule: Any,
    noise: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    *,
    first_canon: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two people over many prompts in one plain loop: a DoubleTake canvas a person, a canon token a row and person.

    first_canon: token (J,) of the first person, given to the net at every step without noise, for blocks that were
    trained so.

    noise(0): x_T as canvas (N, 2, J) and canon tokens (B, 2, J); noise(k): those of the k-th step. The block sees the
    two persons of one row. Returns the canvas (N, 2, J) and the canon tokens (B, 2, J); row 0's place the second
    person, later ones say where the net took them to stand.
    """
    x, canon = noise(0)
    if first_canon is not None:
        canon[:, 0] = first_canon
    chunks = plan.chunks(mixed=False)
    for step, timestep in enumerate(schedule.timesteps):
        clean, clean_canon = torch.zeros_like(x), torch.zeros_like(canon)
        for rows in chunks:
            window = torch.stack([x[plan.span(row)].transpose(0, 1) for row in rows])
            state = torch.cat([canon[rows.start : rows.stop].unsqueeze(2), window], 2)
            estimate = denoise(state, timestep, rows)
            clean_canon[rows.start : rows.stop] = estimate[:, :, 0]
            for place, row in enumerate(rows):
                share = plan.weights(row).to(x).unsqueeze(1)
                clean[plan.span(row)] += share * estimate[place, :, 1:].transpose(0, 1)
        draws = noise(step + 1) if float(schedule.sigma[step]) else (None, None)
        x = schedule.update(step, clean, x, draws[0])
        canon = schedule.update(step, clean_canon, canon, draws[1])
        if first_canon is not None:
            canon[:, 0] = first_canon
    return x, canon
