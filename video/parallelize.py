"""Make a stock diffusers video model run on a piece of a longer video, together with the other ranks.

Video-Infinity (arXiv 2406.16260) shards the frames of one long video over processes and lets the temporal modules talk.
Here the result does not depend on the number of processes: W ranks compute what one process computes on all frames.

    partition = Partition.even(frames, world)
    with parallelize(unet, partition, Scope(window=8, global_frames=16)) as handle:
        part = unet(local_latents, t, encoder_hidden_states=text).sample     # on every rank
        print(handle.explain(), handle.counter.as_dict())

The model is changed in place, module by module, and is the stock model again after `handle.remove()`.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import Counter, Transport
from longtake.video.piece import Exchange, Mode, Patches, Piece, ScopeSchedule, TextProvider, UnsupportedModule
from longtake.video.scope import Scope
from torch import nn

if TYPE_CHECKING:
    import torch.distributed as dist
    from longtake.video.legacy import LegacyConfig

__all__ = ["Handle", "Mode", "Exchange", "UnsupportedModule", "parallelize"]

_HANDLE = "_longtake_handle"  # marks a patched model


class Handle:
    """A parallelized model. Ends with `remove()` or as a context manager."""

    def __init__(self, model: nn.Module, piece: Piece, patches: Patches, reason: str, chunk_frames: int | None):
        self._model = model
        self._piece = piece
        self._patches = patches
        self._reason = reason
        self._chunk_frames = chunk_frames
        model.__dict__[_HANDLE] = self

    @property
    def counter(self) -> Counter:
        """Bytes, calls and rounds of this rank so far."""
        return self._piece.transport.counter

    @property
    def strategy(self) -> Exchange:
        """The strategy in use (never AUTO)."""
        return self._piece.strategy

    @property
    def partition(self) -> Partition:
        """Frames of every rank."""
        return self._piece.partition

    def set_text(self, provider: TextProvider | None) -> None:
        """Text that changes along the video.

        provider: called with a range of frame numbers of the whole video, returns (B, frames, tokens, width) states,
            B the batch of the model call. They replace `encoder_hidden_states` in every spatial cross-attention.
            None: the text given to the model, the same for all frames (stock behaviour).
        """
        self._piece.text_provider = provider

    def set_timestep(self, timestep: float | None) -> None:
        """Fix the timestep that the gate reads, so that a tensor on an accelerator is not copied to the host.

        None: the timestep argument of each model call is read again.
        """
        self._piece.fixed_timestep = timestep

    def explain(self) -> str:
        """One line: ranks, frames, strategy and why, mode."""
        piece = self._piece
        sizes = ", ".join(str(size) for size in piece.partition.sizes)
        chunk = f"; spatial layers {self._chunk_frames} frames at a time" if self._chunk_frames else ""
        mode = str(piece.mode)
        if piece.mode == Mode.FAST:
            mode += " (approximate: inner group norms of the temporal convolutions see one rank's frames)"
        return (
            f"{piece.total} frames on {piece.partition.parts} rank(s) ({sizes}); "
            f"strategy {piece.strategy}: {self._reason}; mode {mode}{chunk}"
        )

    def remove(self) -> None:
        """Give the stock model back, bit for bit. A second call does nothing."""
        self._patches.undo()
        if self._model.__dict__.get(_HANDLE) is self:
            del self._model.__dict__[_HANDLE]

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def parallelize(
    model: nn.Module,
    partition: Partition,
    scope: Scope | None,
    *,
    group: dist.ProcessGroup | None = None,
    strategy: Exchange | str = Exchange.AUTO,
    mode: Mode | str = Mode.EXACT,
    chunk_frames: int | None = None,
    legacy: LegacyConfig | None = None,
    transport: Transport | None = None,
) -> Handle:
    """Patch `model` so that each rank computes its frames of one long video.

    Args:
        model: UNet3DConditionModel or WanTransformer3DModel, in eval mode when called.
        partition: frames of every rank; pieces may be uneven or empty.
        scope: what a frame attends to; None is full attention over all frames.
        group: process group, default the world; without torch.distributed, one process.
        strategy: see `Exchange`.
        mode: see `Mode`.
        chunk_frames: compute spatial layers this many frames at a time, which bounds memory; None is all at once.
        legacy: settings of mode=legacy.
        transport: ready-made messages instead of `group` (a `DryTransport` forecasts traffic).

    Returns:
        Handle. The caller then calls the model as usual with latents (B, C, T_r, h, w) on every rank.

    Raises:
        UnsupportedModule: the model, or a module of it, mixes frames in a way that no adapter covers.
        UserError: arguments that do not go together, or a model that is parallelized already.
    """
    if strategy not in list(Exchange):
        raise UserError(f"strategy must be one of {', '.join(Exchange)}; given {strategy!r}")
    if mode not in list(Mode):
        raise UserError(f"mode must be one of {', '.join(Mode)}; given {mode!r}")
    if _HANDLE in model.__dict__:
        raise UserError("this model is parallelized already: call remove() on its handle first")
    if chunk_frames is not None and chunk_frames < 1:
        raise UserError(f"chunk_frames must be at least 1; given {chunk_frames}")
    mode, strategy = Mode(mode), Exchange(strategy)
    schedule: ScopeSchedule | None = scope
    if mode == Mode.LEGACY:
        from longtake.video.legacy import LegacyConfig, LegacySchedule

        if scope is not None or strategy not in (Exchange.AUTO, Exchange.HALO) or chunk_frames is not None:
            raise UserError(
                "mode=legacy takes its scope from `legacy`: leave scope None, strategy auto, no chunk_frames"
            )
        legacy = legacy if legacy is not None else LegacyConfig()
        schedule = LegacySchedule(legacy, partition)
    elif legacy is not None:
        raise UserError(f"legacy settings are used by mode=legacy only; given mode={mode}")
    transport = transport if transport is not None else Transport(group)
    piece = Piece(partition, transport, schedule, strategy, mode)
    patches = Patches()
    try:
        reason = _install(model, piece, patches, chunk_frames, legacy)
    except BaseException:
        patches.undo()
        raise
    return Handle(model, piece, patches, reason, chunk_frames)


def _install(
    model: nn.Module, piece: Piece, patches: Patches, chunk_frames: int | None, legacy: LegacyConfig | None
) -> str:
    """Choose the adapter by class, settle the strategy, patch; returns why the strategy was chosen."""
    # by name along the bases: a subclass with another time embedding (VideoCrafter2) has the same temporal modules
    known = ("UNet3DConditionModel", "WanTransformer3DModel")
    name = next((base.__name__ for base in type(model).__mro__ if base.__name__ in known), type(model).__name__)
    if name == "UNet3DConditionModel":
        from longtake.video import chunked, unet3d
        from longtake.video import legacy as released

        if legacy is not None:
            piece.strategy = Exchange.HALO
            released.install(model, piece, patches, legacy)
            return "the released exchange"
        if chunk_frames is not None:
            if piece.strategy == Exchange.TRANSPOSE:
                raise UserError("chunk_frames works with strategy halo or gather; transpose holds all frames at once")
            if piece.strategy == Exchange.AUTO:
                piece.strategy = Exchange.HALO
            chunked.install(model, piece, patches, chunk_frames)
            return "one process, nothing to exchange" if piece.alone else "in chunks, halo is the one that applies"
        reason = choose_strategy(model, piece)
        unet3d.install(model, piece, patches)
        return reason
    if name == "WanTransformer3DModel":
        from longtake.video import wan

        if piece.mode != Mode.EXACT or chunk_frames is not None:
            raise UserError(f"{name} is computed in mode=exact, without chunk_frames")
        if piece.strategy == Exchange.AUTO:
            piece.strategy = Exchange.HALO
        wan.install(model, piece, patches)
        return "one process, nothing to exchange" if piece.alone else "the one that applies to tokens of whole frames"
    raise UnsupportedModule(f"{name} has no adapter; there is one for UNet3DConditionModel and WanTransformer3DModel")


def choose_strategy(model: nn.Module, piece: Piece) -> str:
    """Settle AUTO for a UNet; returns the reason in words."""
    from longtake.video import unet3d

    if piece.alone:
        if piece.strategy == Exchange.AUTO:
            piece.strategy = Exchange.HALO
        return "one process, nothing to exchange"
    elements = unet3d.traffic(model, piece)
    costs = ", ".join(f"{name} {elements[name]:.4g}" for name in (Exchange.HALO, Exchange.TRANSPOSE))
    if piece.strategy != Exchange.AUTO:
        return f"as asked; elements received per call, batch entry and latent pixel: {costs}"
    cheaper = min(Exchange.HALO, Exchange.TRANSPOSE, key=lambda name: elements[name])
    piece.strategy = cheaper
    return f"fewest elements received per call, batch entry and latent pixel: {costs}"
