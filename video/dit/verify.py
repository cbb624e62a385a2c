"""Shows on the user's own machine that a checkpoint is served: which class, whose preset, exact or not, how fast.

    longtake verify /models/Wan2.1-T2V-1.3B-Diffusers --height 256 --width 256
    torchrun --nproc_per_node 2 -m longtake verify /models/...          # exactness over these ranks too

One call of the checkpoint's own transformer is caught from its stock pipeline (real text states, first step), then:
locality (frames meet in attention only), every frame in scope against the stock call, the same over ranks, and a
window with rotating anchors for time and memory. Nothing is generated and nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from longtake.device import peak_memory, settle
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport, Transport
from longtake.video.dit.locality import check_local
from longtake.video.dit.pipeline import TransformerVideoPipeline
from longtake.video.dit.scopes import RotatingAnchors
from longtake.video.parallelize import parallelize
from longtake.video.scope import Scope
from torch import Tensor

FRAMES = 9  # latent frames of the check
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest output
REPEATS = 3


@dataclass(frozen=True)
class Line:
    """One finding. good: None for what is told only."""

    what: str
    found: str
    good: bool | None = None


def verify(
    pipe: TransformerVideoPipeline, ranks: Ranks, *, frames: int = FRAMES, height: int | None = None,
    width: int | None = None,
) -> Iterator[Line]:  # fmt: skip
    """The findings, one after the other. frames: latent frames of the call. height, width: pixels, the preset's unless
    given. Raises UserError for a pipeline whose transformer cannot be asked."""
    record, preset, model = pipe.record, pipe.preset, pipe.stock.transformer
    if frames < 3:
        raise UserError(f"verify needs at least 3 latent frames; given {frames}")
    weights = sum(parameter.numel() for parameter in model.parameters())
    dtype = next(model.parameters()).dtype
    yield Line("class", f"{record.name}, {weights / 1e9:.2f} B parameters, {str(dtype).removeprefix('torch.')}")
    yield Line(
        "preset",
        f"{pipe.name or 'of the class'}: {preset.length} latent frames = {preset.frames} frames at {preset.fps:g} fps, "
        f"films of {preset.stride} k + 1",
    )
    given = pipe.first_call("a dog runs", frames, height=height, width=width)
    sample = given[record.sample[0]]
    yield Line("call", f"{record.sample[0]} {tuple(sample.shape)} on {sample.device}")
    leaks = check_local(model, given, frames // record.patch(model)[0])
    yield Line("locality", "frames meet in attention only" if not leaks else f"frames leak: {leaks}", not leaks)

    total = frames // record.patch(model)[0]
    stock, seconds, memory = _timed(lambda: _first(model(**given)), sample.device)
    yield Line("stock call", f"{seconds:.3f} s, peak {memory}")
    limit = TOLERANCE.get(dtype, 1e-4)
    everything = Scope(total, 0, gate="off")
    alone = DryTransport(0, 1)
    with parallelize(model, Partition.even(total, 1), everything, transport=alone, whole=True) as handle:
        handle.set_through(True)  # not by torch's stock call
        error = _error(_first(model(**given)), stock)
    yield Line("all frames in scope", f"differs from stock by {error:.1e} of the largest output", error <= limit)
    if ranks.world > 1:
        transport = Transport(ranks.group)
        with parallelize(model, Partition.even(total, ranks.world), everything, transport=transport, whole=True):
            error = _error(_first(model(**given)), stock)
        yield Line(f"over {ranks.world} ranks", f"differs from stock by {error:.1e}", error <= limit)
    window = RotatingAnchors(max(5, min(preset.length, total - 1)), window=1)
    with parallelize(model, Partition.even(total, 1), window, transport=DryTransport(0, 1), whole=True) as handle:
        handle.set_step(0)
        _, seconds, memory = _timed(lambda: _first(model(**given)), sample.device)
    yield Line("window and anchors", f"{seconds:.3f} s, peak {memory} ({window.budget} of {total} frames seen)")
    if ranks.world > 1:
        one = _scoped(model, given, total, window, DryTransport(0, 1), 1)
        over = _scoped(model, given, total, window, Transport(ranks.group), ranks.world)
        error = _error(over, one)
        yield Line(f"window over {ranks.world} ranks", f"differs from one process by {error:.1e}", error <= limit)
    else:
        yield Line("ranks", "one process: torchrun --nproc_per_node 2 -m longtake verify ... compares several")


def _scoped(model: Any, given: dict[str, Any], total: int, scope: Any, transport: Any, world: int) -> Tensor:
    with parallelize(model, Partition.even(total, world), scope, transport=transport, whole=True) as handle:
        handle.set_step(0)
        return _first(model(**given))


def as_json(lines: list[Line]) -> list[dict[str, Any]]:
    return [asdict(line) for line in lines]


@torch.no_grad()
def _timed(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, str]:
    """The result, the least seconds of a few calls, and the peak of memory in words."""
    peak_memory(device, reset=True)
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        out = call()
        settle(device)
        took.append(time.perf_counter() - started)
    return out, min(took), peak_memory(device)


def _first(out: Any) -> Tensor:
    sample: Tensor = out[0] if isinstance(out, tuple) else out.sample
    return sample


def _error(made: Tensor, wanted: Tensor) -> float:
    """Largest difference, in parts of the largest value."""
    made, wanted = made.detach(), wanted.detach()
    return float((made.float() - wanted.float()).abs().max()) / max(float(wanted.float().abs().max()), 1e-12)
