"""DoubleTake, second take: each transition again, in view of both its neighbours, without text.

A sandwich is one transition with the cores beside it (core i | handshake | core i+1), which lie side by side in the
unfolded motion. It is noised to an earlier step and denoised again, with the first take held in the clean estimate by a
share m a frame: x0 <- m first + (1 - m) x0. Presets (paper and released code disagree):

release  from step T - 1 - T/10 (t = 899 of 1000); the handshake itself is held (m = 1) and only ``blend`` frames on
         each side are made again, m = 0.85 .. 0.085 and 0 .. 0.765.
paper    from step 0.7 T - 1 (t = 699); m = 0.1 on the handshake, 0.85 or 1 on the cores, a linear ramp of ``blend``
         frames between (arXiv 2303.01418, section 4.2).

    second = SecondTake("release", blend=10)
    made = second.remake(plan, whole, denoise.unconditional(lengths), schedule, noise)
    whole = second.write_back(plan, whole, made)

Legend: N frames of the whole, P = B - 1 sandwiches, K frames of the longest, J features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from longtake.distributed import Ranks
from longtake.kernels.partition import Partition
from longtake.motion.first_take import SANDWICHES, draws
from longtake.motion.row_plan import CHUNK_ROWS, Mode, RowPlan
from longtake.motion.rows import MotionRun
from longtake.motion.sampling import Denoise, Schedule, sample

HELD = 0.85  # share of the first take at the outer end of the ramp (release), on the cores (paper)
SOFT = 0.1  # share of the first take on the handshake (paper)


class Preset(StrEnum):
    """Which second take."""

    RELEASE = "release"
    PAPER = "paper"


@dataclass(frozen=True)
class Sandwich:
    """One transition with its neighbours. start: first frame in the whole. left, middle, right: frames of its parts."""

    start: int
    left: int
    middle: int
    right: int

    @property
    def length(self) -> int:
        return self.left + self.middle + self.right

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.length)


def sandwiches(plan: RowPlan) -> list[Sandwich]:
    """One sandwich a pair of rows. The first row's core leaves out as many frames as its one handshake has, as
    released; likewise the last."""
    found = []
    for pair, middle in enumerate(plan.handshakes):
        first, second = pair, pair + 1
        lead = plan.before(first) or middle
        tail = plan.after(second) or middle
        left = plan.lengths[first] - lead - middle
        right = plan.lengths[second] - middle - tail
        if min(left, right) < 0:
            raise ValueError(f"rows {first} and {second} leave no core beside their handshake of {middle} frames")
        found.append(Sandwich(plan.starts[first] + lead, left, middle, right))
    return found


def held_share(sandwich: Sandwich, preset: Preset, blend: int, core: float = 1.0) -> torch.Tensor:
    r"""(length,) float32: the share m of the first take in each frame. core: m on the cores, of the paper preset.

    ::

        release  1 ______               ____________                ______
                         \  0.85      |             |      0.77 /|
                 0        \___________|             |__________/ |
                  core     blend        handshake      blend        core
                                                                            (the jump to 1 is the released ramp's)
        paper    1 ______                                          ______
                         \_                                     _/
                 0.1       \___________________________________/
                  core     blend        handshake      blend        core
    """
    left, middle = sandwich.left, sandwich.middle
    blend = blend if blend >= 2 else 0
    if blend > min(left, sandwich.right):
        raise ValueError(
            f"a blend of {blend} frames does not fit beside a transition with cores of {left} and {sandwich.right} "
            "frames"
        )
    place = torch.arange(blend, dtype=torch.float32)
    share = torch.ones(sandwich.length)
    if preset is Preset.RELEASE:
        share[left - blend : left] = HELD * (1 - place / max(blend, 1))
        share[left + middle : left + middle + blend] = HELD * place / max(blend, 1)
        return share
    share[:] = core
    share[left : left + middle] = SOFT
    ramp = core + (SOFT - core) * (place + 1) / (blend + 1)
    share[left - blend : left] = ramp
    share[left + middle : left + middle + blend] = ramp.flip(0)
    return share


def first_timestep(preset: Preset, train_steps: int) -> int:
    """The timestep a second take begins at: 899 (release) or 699 (paper) of 1000, in proportion for other counts."""
    if preset is Preset.RELEASE:
        return train_steps - 1 - round(train_steps / 10)
    return max(round(0.7 * train_steps) - 1, 0)


@dataclass(frozen=True)
class SecondTake:
    """How a second take is made.

    blend: frames beside a handshake that are made again; below 2 with "release" nothing changes. core: share of the
    first take on the cores, "paper" only. timestep: where to begin; default the preset's. pad_to: pad every sandwich
    with zeros to so many frames, as the released code does for nets that attend to padding. chunk_rows, mixed: see
    ``RowPlan.chunks``. Raises ValueError for settings that do not go together.
    """

    preset: Preset = Preset.RELEASE
    blend: int = 10
    core: float = 1.0
    timestep: int | None = None
    chunk_rows: int = CHUNK_ROWS
    mixed: bool = False
    pad_to: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "preset", Preset(self.preset))
        if self.core != 1.0 and self.preset is Preset.RELEASE:
            raise ValueError("core is a setting of the paper preset; the released one holds cores altogether")

    def share(self, sandwich: Sandwich) -> torch.Tensor:
        """(length,) see ``held_share``."""
        return held_share(sandwich, self.preset, self.blend, self.core)

    def remake(
        self,
        plan: RowPlan,
        whole: torch.Tensor,
        denoise: Denoise,
        schedule: Schedule,
        noise: Callable[[int, Sequence[int]], torch.Tensor],
        pairs: Sequence[int] | None = None,
    ) -> dict[int, torch.Tensor]:
        """Pair -> its sandwich (length, J) as the second take has it; see ``reference.take_two``."""
        every = sandwiches(plan)
        first_time = first_timestep(self.preset, schedule.train_steps) if self.timestep is None else self.timestep
        begin = schedule.first_at(first_time)
        made: dict[int, torch.Tensor] = {}
        if self.preset is Preset.RELEASE and self.blend < 2:
            return made
        wanted = [pair for pair in (range(len(every)) if pairs is None else pairs) if plan.handshakes[pair] > 0]
        for group in grouped(every, wanted, self.chunk_rows, self.mixed or self.pad_to is not None):
            frames = self.pad_to or max(every[pair].length for pair in group)
            first = whole.new_zeros(len(group), frames, whole.shape[-1])
            share = whole.new_ones(len(group), frames, 1)
            for place, pair in enumerate(group):
                length = every[pair].length
                first[place, :length] = whole[every[pair].span]
                share[place, :length, 0] = self.share(every[pair]).to(whole)

            def hold(
                x0: torch.Tensor, step: int, first: torch.Tensor = first, share: torch.Tensor = share
            ) -> torch.Tensor:
                return share * first + (1 - share) * x0

            def draw(count: int, group: Sequence[int] = group) -> torch.Tensor:
                return noise(count, group)

            out = sample(denoise, schedule, draw, rows=group, start=first, first=begin, adjust=hold)
            made.update({pair: out[place, : every[pair].length] for place, pair in enumerate(group)})
        return made

    def write_back(self, plan: RowPlan, whole: torch.Tensor, made: dict[int, torch.Tensor]) -> torch.Tensor:
        """The whole with the sandwiches' changed frames; a frame that two of them changed fades from one to the
        other."""
        every = sandwiches(plan)
        result = whole.clone()
        weight = whole.new_zeros(len(whole), 1)
        for pair in sorted(made):
            sandwich = every[pair]
            changed = self.share(sandwich) < 1
            frames = torch.arange(sandwich.start, sandwich.start + sandwich.length)[changed].to(whole.device)
            new = made[pair][changed.to(whole.device)]
            twice = weight[frames] > 0
            # on a core that both its sandwiches changed, the share of the later one grows along the core
            rise = ((torch.arange(sandwich.length) + 1) / (sandwich.left + 1)).clamp(max=1.0)
            rise = rise[changed].to(whole).unsqueeze(1)
            result[frames] = torch.where(twice, (1 - rise) * result[frames] + rise * new, new)
            weight[frames] = 1.0
        return result


def second_take(
    run: MotionRun, whole: torch.Tensor, schedule: Schedule, preset: Preset, blend: int, ranks: Ranks, mode: Mode
) -> torch.Tensor:
    """The whole (N, J) of a run with its transitions made again, shared by the ranks; what a control holds stays."""
    plan, every = run.plan, sandwiches(run.plan)
    # nets that attend to padding get the released padding in the released mode, none otherwise
    pad_to = None
    if mode is Mode.ROWS and not run.mixed:
        pad_to = max(part.length for part in every)
    second = SecondTake(preset, blend, chunk_rows=run.chunk_rows, mixed=run.mixed, pad_to=pad_to)
    draw = draws(run, SANDWICHES, lambda pairs: pad_to or max(every[pair].length for pair in pairs))
    groups = grouped(every, range(len(every)), run.chunk_rows, run.mixed or pad_to is not None)
    mine = [pair for index in Partition.even(len(groups), ranks.world).range(ranks.rank) for pair in groups[index]]
    bare = run.denoise.unconditional([part.length for part in every])  # type: ignore[attr-defined]
    made = second.remake(plan, whole, bare, schedule, draw, mine)
    together: dict[int, torch.Tensor] = {}
    for share in ranks.gather_object({pair: part.cpu() for pair, part in made.items()}):
        together.update({pair: part.to(whole) for pair, part in share.items()})
    result = second.write_back(plan, whole, together)
    return result if run.control is None else run.control.adjust(result)


def grouped(every: Sequence[Sandwich], wanted: Sequence[int], most: int, mixed: bool) -> list[list[int]]:
    """The wanted sandwiches in runs of at most ``most`` for one call of the net; see ``RowPlan.chunks``."""
    groups: list[list[int]] = []
    for pair in wanted:
        fits = groups and len(groups[-1]) < most
        if fits and (mixed or every[groups[-1][0]].length == every[pair].length):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups
