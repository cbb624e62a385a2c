"""Whether the frames of a model meet only where the adapter looks: how a class is admitted to the record table.

    leaks = check_local(model, given, frames=7)      # {} when frames meet in attention alone

Attention is held within each frame (and text rows hear no video), one frame of the input is changed, and the frames of
the output that change are noted. A frame that changes beside its own is a leak: a temporal convolution, a norm over
time, an attention that is not torch's. A model whose attention layers never call torch's attention leaks nothing here
and is refused too, because its scope could not be held.
"""

from __future__ import annotations

from typing import Any

import torch
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport
from longtake.video.dit import adapter
from longtake.video.dit.positions import Positions
from longtake.video.dit.records import Record, record_of
from longtake.video.piece import Patches, Piece, UnsupportedModule
from longtake.video.scope import Scope
from torch import Tensor

ALONE = Scope(window=0, global_frames=0, gate="off")


@torch.no_grad()
def check_local(
    model: Any, given: dict[str, Any], frames: int, record: Record | None = None
) -> dict[int, tuple[int, ...]]:
    """Frames (of tokens) that a changed frame reaches besides itself, by changed frame; empty when none.

    given: keyword arguments of a whole call. record: of a class that has none yet. Raises UnsupportedModule when the
    layers that the record names do not call torch's attention.
    """
    record = record or record_of(model)
    piece = Piece(Partition.even(frames, 1), DryTransport(0, 1), ALONE)
    patches = Patches()
    try:
        call = adapter.install(model, record, piece, patches, positions=Positions(), whole=True)
        call.blind = True
        stock = _frames_first(record, _sample(model(**given)), frames)
        silent = sorted(set(adapter.layers_of(model, record)) - set(call.asked))
        if silent:
            raise UnsupportedModule(
                f"{silent[0]} ({len(silent)} such layers) of {type(model).__name__} does not call torch's attention: "
                "its scope cannot be held"
            )
        leaks: dict[int, tuple[int, ...]] = {}
        for frame in {0, frames // 2, frames - 1}:
            out = _frames_first(record, _sample(model(**_changed(record, given, frame, frames))), frames)
            moved = (out - stock).abs().flatten(1).amax(1).nonzero().flatten().tolist()
            if frame not in moved:
                raise UnsupportedModule(f"a change of frame {frame} does not reach it: the record's axes are wrong")
            others = tuple(other for other in moved if other != frame)
            if others:
                leaks[frame] = others
        return leaks
    finally:
        patches.undo()


def _sample(out: Any) -> Tensor:
    sample: Tensor = out[0] if isinstance(out, tuple) else out.sample
    return sample


def _frames_first(record: Record, x: Tensor, frames: int) -> Tensor:
    """(F, ...) of a model's sample, patches of time together."""
    axis = record.sample[1]
    return x.movedim(axis, 0).unflatten(0, (frames, -1)).flatten(1)


def _changed(record: Record, given: dict[str, Any], frame: int, frames: int) -> dict[str, Any]:
    name, axis = record.sample
    x = given[name].clone()
    unit = x.shape[axis] // frames
    x.narrow(axis, frame * unit, unit).add_(1.0)
    return {**given, name: x}
