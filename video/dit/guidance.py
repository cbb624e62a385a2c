"""The two passes of classifier-free guidance on two halves of the ranks.

The first half of the ranks computes one pass, the second half the other, each half cutting the video over its own
ranks; then every rank gets both results from its partner. With two ranks nothing but these results travels. The film is
that of one process, as it is when all ranks share both passes; fewer ranks share a frame's keys, so less travels.

    halves = Halves.of(ranks)                         # an even number of ranks
    guided = Guided(halves, calls=2, sample="hidden_states")
    out = guided(model_forward, given, number, words)        # in place of model_forward(**given)

Pipelines that call their transformer twice a step (Wan, SkyReels-V2) have their second call's text known from a probe;
pipelines that stack both passes in one batch (LTX, CogVideoX, Mochi) have their rows parted.
"""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass
class Guided:
    """The passes of one step. calls: how often the pipeline calls its transformer in a step. sample: name of the
    latents' argument."""

    halves: Halves
    calls: int
    sample: str
    both: tuple[Tensor, Tensor] | None = field(default=None)

    def __call__(
        self, stock: Callable[..., Any], given: Given, number: int, words: Callable[[int, Given], Given]
    ) -> Any:  # fmt: skip
        """The answer to call `number` of the step. words(call, given): the arguments with the text of that call."""
        if self.calls == 2:
            if number == 0:
                self.both = self.halves.exchange(_first(stock(**words(self.halves.number, given))))
            assert self.both is not None
            return _like(self.both[number], given)
        given = words(number, given)
        batch = given[self.sample].shape[0]
        first = self.halves.number * batch // 2
        own = {name: _rows(name, value, batch, first) for name, value in given.items()}
        return _like(torch.cat(self.halves.exchange(_first(stock(**own)))), given)


def _rows(name: str, value: Any, batch: int, first: int) -> Any:
    """Half of the batch of an argument that has one."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != batch:
        return value
    if name.endswith(("_pos", "rotary_emb")) or name in ("control_hidden_states_scale", "fps"):
        return value
    return value[first : first + batch // 2]


def check_passes(calls: int, batch: int, name: str) -> None:
    """Raise UserError unless a step has two passes that can be parted."""
    if calls == 2 or (calls == 1 and batch == 2):
        return
    raise UserError(
        f"guidance over ranks needs two passes a step; {name} makes {calls} call(s) of batch {batch} (guidance 1, or a "
        "distilled model?)"
    )


def _first(out: Any) -> Tensor:
    sample: Tensor = out[0] if isinstance(out, tuple) else out.sample
    return sample


def _like(sample: Tensor, given: Given) -> Any:
    if given.get("return_dict") is False:
        return (sample,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)
