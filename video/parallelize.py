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

from collections.abc import Sequence
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import Counter, Transport
from longtake.video.piece import Exchange, Mode, Patches, Piece, TextProvider, UnsupportedModule
from longtake.video.scope import Scope
from torch import Tensor, nn

if TYPE_CHECKING:
    import torch.distributed as dist
    from longtake.video.dit.adapter import Call
    from longtake.video.dit.positions import Positions
    from longtake.video.dit.scopes import FrameScope
    from longtake.video.legacy import LegacyConfig

__all__ = ["Handle", "Mode", "Exchange", "UnsupportedModule", "parallelize"]

_HANDLE = "_longtake_handle"  # marks a patched model


class Handle:
    """A parallelized model. Ends with `remove()` or as a context manager."""

    def __init__(
        self,
        model: nn.Module,
        piece: Piece,
        patches: Patches,
        reason: str,
        chunk_frames: int | None,
        call: Call | None = None,
    ):
        self._call = call
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

    def set_prompts(self, weights: Tensor | None, length: int | Sequence[int] | None = None) -> None:
        """Prompts along the video, for video transformers. The text arguments of the calls that follow hold P texts of
        `length` tokens (or of a length each) side by side, and frame f hears text p with weights[f, p].

        weights: (F, P) over all latent frames, rows add up to 1. None: the text given to the model, for all frames.
        """
        from longtake.video.dit.prompts import set_prompts

        set_prompts(self._transformer("set_prompts"), weights, length)

    def set_through(self, through: bool) -> None:
        """Whether attention goes through our own way even where torch's stock call computes the same: to compare."""
        self._transformer("set_through").through = through

    def set_step(self, step: int | None) -> None:
        """Denoising steps done, for scopes that change from step to step. None: changes of the timestep are counted."""
        self._transformer("set_step").step = step

    def _transformer(self, what: str) -> Call:
        if self._call is None:
            raise UserError(f"{what} is for video transformers; this model is a UNet")
        return self._call

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
    scope: Scope | FrameScope | None,
    *,
    group: dist.ProcessGroup | None = None,
    strategy: Exchange | str = Exchange.AUTO,
    mode: Mode | str = Mode.EXACT,
    chunk_frames: int | None = None,
    legacy: LegacyConfig | None = None,
    transport: Transport | None = None,
    positions: Positions | str | None = None,
    whole: bool = False,
) -> Handle:
    """Patch `model` so that each rank computes its frames of one long video.

    Args:
        model: UNet3DConditionModel, UNetMotionModel (AnimateDiff, see `unet_motion.py`), or a video transformer with a
            record in `video/dit/records.py` (Wan, VACE, SkyReels-V2, LTX, HunyuanVideo, CogVideoX, ConsisID, Mochi,
            Kandinsky, Cosmos), in eval mode when called.
        partition: frames of every rank; pieces may be uneven or empty.
        scope: what a frame attends to; None is full attention over all frames. Video transformers take the family of
            `video/dit/scopes.py` too.
        group: process group, default the world; without torch.distributed, one process.
        strategy: see `Exchange`.
        mode: see `Mode`.
        chunk_frames: compute spatial layers this many frames at a time, which bounds memory; None is all at once.
        legacy: settings of mode=legacy.
        transport: ready-made messages instead of `group` (a `DryTransport` forecasts traffic).
        positions: how frames of a video transformer get their place in time, a `Positions` or its policy's name;
            None is absolute, as stock.
        whole: video transformers only: the model is called with whole inputs and gives the whole output on every rank,
            so a stock pipeline can call it; without it every rank gives and gets its own frames.

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
    schedule: Any = scope
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
        if _is_unet(model):
            if positions is not None or whole or not isinstance(scope, (Scope, NoneType)):
                raise UserError("positions, whole and scopes other than Scope are for video transformers")
            return Handle(
                model, piece, patches, _install_unet(model, piece, patches, chunk_frames, legacy), chunk_frames
            )
        if chunk_frames is not None:
            raise UserError("chunk_frames is for UNets")
        call, reason = _install_transformer(model, piece, patches, positions, whole)
    except BaseException:
        patches.undo()
        raise
    return Handle(model, piece, patches, reason, None, call)


def _is_unet(model: nn.Module) -> bool:
    # by name along the bases: a subclass with another time embedding (VideoCrafter2) has the same temporal modules
    return any(base.__name__ in ("UNet3DConditionModel", "UNetMotionModel") for base in type(model).__mro__)


def _install_unet(
    model: nn.Module, piece: Piece, patches: Patches, chunk_frames: int | None, legacy: LegacyConfig | None
) -> str:
    """Settle the strategy, patch; returns why the strategy was chosen."""
    from longtake.video import chunked, unet3d, unet_motion
    from longtake.video import legacy as released

    if unet_motion.is_motion_unet(model):
        return unet_motion.install(model, piece, patches, chunk_frames)
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


def _install_transformer(
    model: nn.Module, piece: Piece, patches: Patches, positions: Positions | str | None, whole: bool
) -> tuple[Call, str]:
    """Patch a video transformer of the record table."""
    from longtake.video.dit import adapter
    from longtake.video.dit.positions import Positions
    from longtake.video.dit.records import record_of

    record = record_of(model)
    if not isinstance(positions, Positions):
        positions = Positions("absolute" if positions is None else positions)
    if piece.strategy == Exchange.AUTO:
        piece.strategy = Exchange.HALO
    call = adapter.install(model, record, piece, patches, positions=positions, whole=whole)
    return call, "one process, nothing to exchange" if piece.alone else "the frames that are seen, whole"


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
