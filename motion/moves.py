"""The second table of ``longtake evaluate motion``: how a prior's people move, kind by kind, beside real clips.

Each action, and walks and runs in the manners the data have, made under several seeds by the pipeline as a user gets
it: root speed, foot skate (toes within 3 cm of their lowest place), how much bones change (in the features: the joints
of a result are a rigid body's), the worst frame's jerk, how far seeds lie apart beside real clips, and whether the
nearest real clip shows the action asked for.
Legend: F frames, D = 263 features, C clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from longtake.evaluation import Table, figure
from longtake.motion.captions import ACTIONS
from longtake.motion.data import Clip, features_of, mirrored_features
from longtake.motion.metrics import described, diversity
from longtake.motion.stop import FRAMES, Asked, Figures, middle

if TYPE_CHECKING:
    from longtake.motion.pipeline import LongMotionPipeline

MANNERED = ("walk", "run")
MANNERS_SHOWN = ("exhausted", "elderly", "active", "masculine", "feminine", "youthful")
KINDS = (
    *(Asked(action) for action in ACTIONS),
    *(Asked(action, manner) for action in MANNERED for manner in MANNERS_SHOWN),
)


@dataclass(frozen=True)
class Move:
    """One line: what was asked for, made and real figures, diversity and the share of the seeds that show the action.

    None where too few real clips are there for a deviation.
    """

    label: str
    clips: int
    made: Figures
    real: Figures
    diversity: float | None
    right: float


class Nearest:
    """The action of the real clip that is nearest to a motion, by mean and deviation over time of each feature."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        from longtake.motion.captions import mirrored_action

        features = [middle(part) for part in features_of(clips)]
        names = [clip.action for clip in clips]
        rows = torch.stack([described(part) for part in [*features, *map(mirrored_features, features)]])
        self.actions = [*names, *(mirrored_action(name) for name in names)]
        self.mean, self.std = rows.mean(0), rows.std(0).clamp_min(1e-6)
        self.rows = self._seen(rows)

    def _seen(self, rows: torch.Tensor) -> torch.Tensor:
        return ((rows - self.mean) / self.std).clamp(-4, 4)  # a number that hardly varies is not to decide alone

    def action(self, features: torch.Tensor) -> str:
        """Of features (F, D)."""
        gap = (self.rows - self._seen(described(features))).square().sum(1)
        return self.actions[int(gap.argmin())]

    def right(self, clips: Sequence[Clip]) -> float:
        """Share of clips whose action it finds."""
        found = [self.action(middle(part)) == clip.action for part, clip in zip(features_of(clips), clips, strict=True)]
        return sum(found) / len(found)


def moves(
    pipe: LongMotionPipeline, clips: Sequence[Clip], nearest: Nearest, seeds: int, settings: dict[str, Any]
) -> list[Move]:
    """A line for each kind of which there are real clips; ``settings``: of the pipeline's call."""
    rows = []
    for one in KINDS:
        real = [clip for clip in clips if one.fits(clip)]
        if not real:
            continue
        outs = [pipe(one.caption, FRAMES, seed=seed, **settings) for seed in range(seeds)]
        features = [torch.from_numpy(out.features) for out in outs]
        spread = None
        if len(real) > 2 and seeds > 1:
            spread = diversity(features, [middle(part) for part in features_of(real)])
        stretched = Figures.of([pipe.space.form.recover(part) for part in features]).bones
        rows.append(
            Move(
                one.name,
                len(real),
                replace(Figures.of([torch.from_numpy(out.joints) for out in outs]), bones=stretched),
                Figures.of([middle(clip.joints) for clip in real]),
                spread,
                sum(nearest.action(part) == one.action for part in features) / seeds,
            )
        )
    return rows


TABLE = Table(
    {
        "asked for": lambda row: row.label,
        "clips": lambda row: str(row.clips),
        "action right": lambda row: figure(row.right, 2),
        "speed m/s (real)": lambda row: _beside(row, "speed", 2),
        "skate m/s (real)": lambda row: _beside(row, "skate", 2),
        "bones % (real)": lambda row: _beside(row, "bones", 2, 100),
        "worst jerk m/s3 (real)": lambda row: _beside(row, "jerk", 0),
        "diversity": lambda row: figure(row.diversity, 2),
    }
)


def _beside(row: Move, name: str, digits: int, times: float = 1.0) -> str:
    made, real = (times * getattr(which, name) for which in (row.made, row.real))
    return f"{made:.{digits}f} ({real:.{digits}f})"


def summary(rows: Sequence[Move]) -> dict[str, float]:
    """Over the kinds with at least ten recordings: action right, skate as a share of real, bones, diversity; over all
    the worst frame's jerk beside the largest real one."""
    common = [row for row in rows if row.clips >= 10] or list(rows)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else float("nan")

    return {
        "action_right": mean([row.right for row in common]),
        "skate_share": mean([row.made.skate for row in common]) / max(mean([row.real.skate for row in common]), 1e-6),
        "bones": mean([row.made.bones for row in common]),
        "diversity": mean([row.diversity for row in common if row.diversity is not None]),
        "worst_jerk": max(row.made.jerk for row in rows),
        "largest_real_jerk": max(row.real.jerk for row in rows),
    }


def told(rows: Sequence[Move], right: float) -> str:
    """The table and its summary as markdown; right: how often the nearest clip is right on unseen real clips."""
    found = summary(rows)
    said = (
        f"Kinds with ten recordings or more: action right {found['action_right']:.2f} (unseen real clips {right:.2f}), "
        f"skate {found['skate_share']:.2f} of real, bones {100 * found['bones']:.2f} %, diversity "
        f"{found['diversity']:.2f}. Worst jerk of all {found['worst_jerk']:.0f} m/s3, largest real "
        f"{found['largest_real_jerk']:.0f}."
    )
    return f"{said}\n\n{TABLE.markdown(rows)}\n"
