"""The two passes of classifier-free guidance on two halves of the ranks.

The first half of the ranks computes one pass, the second half the other, each half cutting the video over its own
ranks; then every rank gets both results from its partner. With two ranks nothing but these results travels. The film is
that of one process, as it is when all ranks share both passes; fewer ranks share a frame's keys, so less travels.

    halves = Halves.of(ranks)                         # an even number of ranks
    guided = Guided(halves, [Pass(1), Pass(1)], "hidden_states", "WanPipeline")
    out = guided(model_forward, given, number, words)        # in place of model_forward(**given)

Pipelines that call their transformer twice a step (Wan, SkyReels-V2) have their second call's text known from a probe;
pipelines that stack both passes in one batch (LTX, CogVideoX, Mochi) have their rows parted. LTX-2 stacks too and calls
twice more: for guidance by skipped layers, and by streams that do not hear each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.kernels.ranks.transport import Transport
from torch import Tensor

Given = dict[str, Any]
_groups: dict[int, list[Any]] = {}  # halves of a world, made once in a process


@dataclass
class Halves:
    """This rank's half. number: 0 or 1. inner: the transport of the half. outer: that of all ranks."""

    number: int
    partner: int
    size: int
    inner: Transport
    outer: Transport

    @classmethod
    def of(cls, ranks: Ranks) -> Halves:
        """Raises UserError for an odd number of ranks; every rank calls it together."""
        import torch.distributed as dist

        if ranks.world % 2:
            raise UserError(f"guidance over ranks parts them in two halves; given {ranks.world} ranks")
        half = ranks.world // 2
        if ranks.world not in _groups:
            _groups[ranks.world] = [dist.new_group(list(range(at, at + half))) for at in (0, half)]
        number = ranks.rank // half
        inner = Transport(_groups[ranks.world][number])
        return cls(number, (ranks.rank + half) % ranks.world, half, inner, Transport(ranks.group))

    def exchange(self, mine: Tensor) -> tuple[Tensor, Tensor]:
        """The results of the first half and of the second."""
        mine = mine.contiguous()
        theirs = torch.empty_like(mine)
        self.outer.wire.connect(mine.device)
        self.outer.start_messages("guidance", [(self.partner, mine)], [(self.partner, theirs)]).wait()
        return (mine, theirs) if self.number == 0 else (theirs, mine)


_MODES = ("isolate_modalities", "spatio_temporal_guidance_blocks")  # LTX-2: how a call's pass differs from others'


@dataclass(frozen=True)
class Pass:
    """One call of a step. batch: 2 where both passes of guidance are in it. modes: arguments that make it another pass
    than calls with the same text."""

    batch: int
    modes: Given = field(default_factory=dict)

    @classmethod
    def of(cls, given: Given, sample: str) -> Pass:
        return cls(int(given[sample].shape[0]), {name: given[name] for name in _MODES if name in given})


@dataclass
class Guided:
    """The passes of one step, by call. sample: name of the latents' argument; name: of the pipeline, for errors.

    A call of batch 2 is parted by rows. Calls of batch 1 go in pairs, one after the other: at the first of them each
    half computes one, at the second both results are there. Raises UserError for calls that do not go in pairs.
    """

    halves: Halves
    passes: Sequence[Pass]
    sample: str
    name: str
    both: tuple[list[Tensor], list[Tensor]] | None = field(default=None)
    firsts: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.firsts = firsts_of([one.batch for one in self.passes], self.name)

    def __call__(
        self, stock: Callable[..., Any], given: Given, number: int, words: Callable[[int, Given], Given]
    ) -> Any:  # fmt: skip
        """The answer to call `number` of the step. words(call, given): the arguments with the text of that call."""
        if self.passes[number].batch == 1:
            if number in self.firsts:
                mine = number + self.halves.number
                own = _parts(stock(**{**words(mine, given), **self.passes[mine].modes}))
                pairs = [self.halves.exchange(part) for part in own]
                self.both = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            assert self.both is not None
            return _like(self.both[0 if number in self.firsts else 1], given)
        given = words(number, given)
        first = self.halves.number
        own_rows = {name: _rows(name, value, 2, first) for name, value in given.items()}
        return _like([torch.cat(self.halves.exchange(part)) for part in _parts(stock(**own_rows))], given)


def _rows(name: str, value: Any, batch: int, first: int) -> Any:
    """Half of the batch of an argument that has one."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != batch:
        return value
    if name.endswith(("_pos", "rotary_emb")) or name in ("control_hidden_states_scale", "fps"):
        return value
    return value[first : first + batch // 2]


def firsts_of(batches: Sequence[int], name: str) -> set[int]:
    """Which calls of a step, by their batches, begin a pair. Raises UserError unless all passes go in pairs."""
    firsts: set[int] = set()
    number = 0
    while number < len(batches):
        if batches[number] == 1 and batches[number + 1 : number + 2] == [1]:
            firsts.add(number)
            number += 1
        elif batches[number] != 2:
            told = ", ".join(map(str, batches))
            raise UserError(
                f"guidance over ranks needs passes in pairs; {name} makes calls of batch {told} a step (guidance 1, a "
                "distilled model, or guidance of three kinds?)"
            )
        number += 1
    return firsts


def _parts(out: Any) -> list[Tensor]:
    """The video's prediction, and the sound's where a model has one."""
    if isinstance(out, tuple):
        return [part for part in out[:2] if isinstance(part, Tensor)]
    sound = getattr(out, "audio_sample", None)
    return [out.sample] if sound is None else [out.sample, sound]


def _like(parts: list[Tensor], given: Given) -> Any:
    if given.get("return_dict") is False:
        return tuple(parts)
    if len(parts) > 1:
        from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput

        return AudioVisualModelOutput(sample=parts[0], audio_sample=parts[1])
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=parts[0])
