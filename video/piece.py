"""What one rank knows while a patched model runs: its frames, its neighbours, the scope of this step.

Every adapter (unet3d.py, wan.py, legacy.py, chunked.py) works on a `Piece`. It answers "which frames do I hold" and
"what may a frame attend to at this step", and computes temporal attention with the exchange of the strategy.

Legend: N batch times pixels, T frames held here, F frames of the video, C channels, H heads, P window, S global set.

    piece = Piece(Partition.even(19, 3), Transport(), Scope(window=2, global_frames=5, gate="off"))
    piece.begin(batch=2, timestep=None)
    out_NTC = piece.attend(q_NTC, k_NTC, v_NTC, heads=4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from longtake.errors import UserError
from longtake.kernels import dual_scope_attention
from longtake.kernels.masks.basic import DualScope
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import Transport
from torch import Tensor, nn

TextProvider = Callable[[range], Tensor]


class ScopeSchedule(Protocol):
    """What a piece needs of a scope: `Scope`, or the released rule of legacy.py."""

    @property
    def needs_timestep(self) -> bool: ...

    def at(self, timestep: float | None, total: int) -> DualScope: ...


class UnsupportedModule(UserError):
    """The model mixes frames in a module that no adapter covers; the message names it."""


class Exchange(StrEnum):
    """How ranks share what temporal attention needs. All members compute the same function.

    Members:
        AUTO: the cheaper of HALO and TRANSPOSE by the byte formula.
        HALO: window frames from the neighbours and the global frames from everybody; bytes do not grow with T.
        TRANSPOSE: all-to-all, so that each rank holds all frames of some pixels; cheaper for short pieces.
        GATHER: every key and value on every rank; for tests.
    """

    AUTO = "auto"
    HALO = "halo"
    TRANSPOSE = "transpose"
    GATHER = "gather"


class Mode(StrEnum):
    """What is computed.

    Members:
        EXACT: the function of one process, whatever the number of ranks.
        FAST: one exchange per temporal conv layer instead of four; its inner group norms then see this rank's frames
            only, so the result depends slightly on the split.
        LEGACY: the released Video-Infinity code, clip edges and all; see legacy.py.
    """

    EXACT = "exact"
    FAST = "fast"
    LEGACY = "legacy"


class Piece:
    """The frames of this rank and the way to the others.

    Args:
        partition: frames of every rank.
        transport: messages; its world must equal `partition.parts`.
        scope: None is full attention over all frames.
        strategy: HALO, TRANSPOSE or GATHER.
        mode: see `Mode`.
    """

    def __init__(
        self,
        partition: Partition,
        transport: Transport,
        scope: ScopeSchedule | None,
        strategy: Exchange = Exchange.HALO,
        mode: Mode = Mode.EXACT,
    ):
        if transport.world != partition.parts:
            raise UserError(
                f"the partition has {partition.parts} pieces but the process group has {transport.world} ranks: "
                "give one piece to each rank (a piece may be empty)"
            )
        if partition.total < 1:
            raise UserError("a video needs at least one frame")
        partition.validate_disjoint()
        self.partition = partition
        self.transport = transport
        self.scope = scope
        self.strategy = strategy
        self.mode = mode
        self.total = partition.total
        self.mine = partition.range(transport.rank)
        self.whole = len(self.mine) == self.total  # this rank holds the video, the others nothing
        self.alone = transport.world == 1
        self.batch = 1
        self.tokens = 1  # of a frame, in video transformers
        self.dual: DualScope | None = None
        self.fixed_timestep: float | None = None
        self.text_provider: TextProvider | None = None
        self.text: Tensor | None = None
        self._span = self.mine

    @property
    def empty(self) -> bool:
        """This rank has no frames: it computes one dummy frame and takes part in every exchange with nothing."""
        return len(self.mine) == 0

    @property
    def frames(self) -> int:
        """Frames in the tensors that the model sees on this rank (1 dummy frame when the piece is empty)."""
        return max(len(self.mine), 1)

    # ---- one model call -------------------------------------------------------------------------------------------

    def begin(self, batch: int, timestep: Any) -> None:
        """Fix the batch size and the scope of the model call that starts."""
        self.batch = batch
        self.dual = None if self.scope is None else self.scope.at(self.read_timestep(timestep), self.total)
        self._span = self.mine

    def read_timestep(self, timestep: Any) -> float | None:
        """The timestep as a number; only a tensor on an accelerator costs a host sync, and `set_timestep` avoids it."""
        assert self.scope is not None
        if not self.scope.needs_timestep:
            return None
        if self.fixed_timestep is not None:
            return self.fixed_timestep
        if not isinstance(timestep, Tensor):
            return None if timestep is None else float(timestep)
        if timestep.ndim > 1 and not self.alone:
            raise UserError(
                "a timestep per token differs between ranks, so they might disagree about the phase of the gate: "
                "call handle.set_timestep(t) before the model, or use gate='off'"
            )
        return float(timestep.max())

    def load_text(self, rows: range | None = None) -> None:
        """Ask the provider for this rank's text states, (B, T, n, D); None when the model's own text is used."""
        self.text = None
        if self.text_provider is None:
            return
        frames = rows if rows is not None else (range(0, 1) if self.empty else self.mine)
        text = self.text_provider(frames)
        if text.ndim != 4 or tuple(text.shape[:2]) != (self.batch, len(frames)):
            raise UserError(
                f"the text provider must return (batch, frames, tokens, width) = ({self.batch}, {len(frames)}, n, D) "
                f"for frames {frames.start}..{frames.stop - 1}; it returned {tuple(text.shape)}"
            )
        self.text = text.flatten(0, 1)

    def check_frames(self, frames: int) -> None:
        """Refuse a local batch that is not this rank's piece."""
        if frames != len(self.mine):
            raise UserError(
                f"rank {self.transport.rank} was given {frames} frames, but its piece of the partition is frames "
                f"{self.mine.start}..{self.mine.stop} ({len(self.mine)} frames of {self.total})"
            )

    # ---- temporal attention ---------------------------------------------------------------------------------------

    @contextmanager
    def holding(self, span: range) -> Iterator[None]:
        """Inside, tensors hold the frames `span` instead of this rank's piece (after a transpose)."""
        before, self._span = self._span, span
        try:
            yield
        finally:
            self._span = before

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
        """Attention over the time axis within the scope of this step, exchanging keys and values as needed.

        q, k, v: (N, T, C) with the frames held here, C = heads * d; or (N, T, n, C), frames of n tokens, where a token
            sees all tokens of the frames in its scope. Returns the shape of q.
        """
        dual, span = self.dual, self._span
        if len(span) == self.total and (self.alone or span is not self.mine):
            return self._attend(q, k, v, None, None, span, span, heads, scale)
        if dual is None or self.strategy == Exchange.GATHER:
            everything = self.transport.start_gather([k, v], 1, self.partition, range(self.total)).wait()
            k_all, v_all = everything
            k_shared, v_shared = self._own_global(k_all, v_all)
            return self._attend(q, k_all, v_all, k_shared, v_shared, span, range(self.total), heads, scale)
        reach = dual.window if dual.local_open else 0
        with self.transport.round():
            halo = self.transport.start_halo([k, v], 1, self.partition, reach, reach)
            wanted = dual.global_indices if dual.global_open else ()
            shared = self.transport.start_gather([k, v], 1, self.partition, wanted)
        (k_left, k_right), (v_left, v_right) = halo.wait()
        k_shared, v_shared = shared.wait() if wanted else (None, None)
        if k_left.shape[1] + k_right.shape[1]:
            k, v = torch.cat([k_left, k, k_right], 1), torch.cat([v_left, v, v_right], 1)
        keys = range(span.start - k_left.shape[1], span.stop + k_right.shape[1])
        return self._attend(q, k, v, k_shared, v_shared, span, keys, heads, scale)

    def _own_global(self, k: Tensor, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Global keys and values out of tensors that hold every frame."""
        if self.dual is None or not self.dual.global_open:
            return None, None
        index = torch.tensor(self.dual.global_indices, device=k.device)
        return k.index_select(1, index), v.index_select(1, index)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_shared: Tensor | None,
        v_shared: Tensor | None,
        q_span: range,
        k_span: range,
        heads: int,
        scale: float | None,
    ) -> Tensor:
        if q.shape[1] == 0:
            return q

        tokens = q.shape[2] if q.ndim == 4 else 1

        def split(x: Tensor) -> Tensor:
            rows = x.flatten(1, 2) if x.ndim == 4 else x
            return rows.unflatten(-1, (heads, -1)).transpose(1, 2)

        if self.dual is None:
            out = nnf.scaled_dot_product_attention(split(q), split(k), split(v), scale=scale)
        else:
            out = dual_scope_attention(
                split(q),
                split(k),
                split(v),
                scope=self.dual,
                q_pos=q_span,
                k_pos=k_span,
                k_global=None if k_shared is None else split(k_shared),
                v_global=None if v_shared is None else split(v_shared),
                total=self.total,
                scale=scale,
                tokens_per_frame=tokens,
            )
        return out.transpose(1, 2).reshape(q.shape).to(q.dtype)


def forward_of(module: Any) -> Callable[..., Any]:
    """What a module's call runs now: the instance's own forward (offload, caches, ours), or its class's."""
    own = module.__dict__.get("forward")
    return own if own is not None else module.forward  # type: ignore[no-any-return]


class Patches:
    """Reversible changes to a model; `undo` restores every module exactly as it was found."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def forward(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Replace the forward of this instance only."""
        had = "forward" in module.__dict__
        before = module.__dict__.get("forward")
        module.__dict__["forward"] = forward

        def restore() -> None:
            if had:
                module.__dict__["forward"] = before
            else:
                module.__dict__.pop("forward", None)

        self._undo.append(restore)

    def processor(self, attention: nn.Module, processor: Any) -> None:
        """Replace the attention processor of this instance only."""
        before = attention.processor
        attention.set_processor(processor)  # type: ignore[operator]
        self._undo.append(lambda: attention.set_processor(before))  # type: ignore[operator]

    def pre_hook(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """A forward pre-hook that sees keyword arguments."""
        self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def post_hook(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """A forward hook."""
        self._undo.append(module.register_forward_hook(hook).remove)

    def restore(self, undo: Callable[[], object]) -> None:
        """Remember how to take back a change that was made elsewhere."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Take everything back, last change first; a second call does nothing."""
        while self._undo:
            self._undo.pop()()
