"""``longtake evaluate motion --pairs``: do two people stand and move as their prompt says?

For each kind of pair (``pair.data.KINDS``) and each of its wordings the pipeline makes two people, and three figures
are taken of them beside those of real windows and of an untrained block, which leaves two independent people:
    place m      distance of the second person's first place from where the kind's prompt puts him
    facing deg   his heading against what the prompt says
    drift m      how much the distance between the two has changed at the end (kinds that move together)
The losses are on held-out clips at equal noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.evaluation import Table, figure, told_command, write_table
from longtake.motion.pair.data import KINDS, Pairs
from longtake.motion.pair.model import CANON, ComMDM, first_token, place_pair

if TYPE_CHECKING:
    from longtake.motion.pipeline import LongMotionPipeline

FRAMES = 80


def facing(joints: np.ndarray) -> float:
    """Heading of a pose (22, 3) about +y in radians, 0 along +z: across the hips and the shoulders."""
    across = (joints[1] - joints[2]) + (joints[16] - joints[17])  # to the left
    return math.atan2(-across[2], across[0])


def figures(kind: str, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """place, facing (degrees) and drift of two people (F, 22, 3) in one world."""
    asked = KINDS[kind]
    turn = facing(first[0])
    gap = second[0, 0, [0, 2]] - first[0, 0, [0, 2]]
    cos, sin = math.cos(turn), math.sin(turn)
    seen = np.array([cos * gap[0] - sin * gap[1], sin * gap[0] + cos * gap[1]])
    off = (facing(second[0]) - turn - asked.yaw + math.pi) % (2 * math.pi) - math.pi
    found = {"place": float(np.linalg.norm(seen - asked.place)), "facing": abs(math.degrees(off))}
    if asked.together:
        apart = np.linalg.norm((second - first)[:, 0, [0, 2]], axis=-1)
        found["drift"] = float(abs(apart[-1] - apart[0]))
    return found


def made(pipe: LongMotionPipeline, block: ComMDM, wordings: Sequence[tuple[str, str]], seeds: int) -> dict[str, float]:
    """Mean figures of (kind, prompt) pairs made by the pipeline."""
    rows = []
    for kind, prompt in wordings:
        for seed in range(seeds):
            output = pipe.pair(prompt, FRAMES, block=block, seed=seed, num_inference_steps=20)
            assert output.second is not None
            rows.append(figures(kind, output.joints, output.second))
    return mean(rows)


def real(pairs: Pairs, pipe: LongMotionPipeline, count: int, seed: int) -> dict[str, float]:
    """Mean figures of made-up pairs of real windows, of every kind alike."""
    from longtake.train import Dice

    rows: list[dict[str, float]] = []
    while len(rows) < count:
        batch = pairs.batch(FRAMES, 5, Dice(seed, len(rows), pairs.features.device))
        for motion, canon, kind in zip(batch.motion, batch.canon, batch.names, strict=True):
            a, b = (pipe.space.joints(motion[person]) for person in (0, 1))
            a, b = place_pair(a, b, first_token()[:CANON], canon[:CANON])
            rows.append(figures(kind, a.numpy(), b.numpy()))
    return mean(rows)


class PlaceOnly(torch.nn.Module):
    """A two-person block that tells where the second one stands and leaves the motion alone."""

    def __init__(self, comm: torch.nn.Module) -> None:
        super().__init__()
        self.comm = comm

    def forward(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``CommunicationBlock.forward``, without its correction."""
        correction, numbers = self.comm(*args)
        return torch.zeros_like(correction), numbers


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


@dataclass
class Row:
    """A line of the table; None where a column does not apply."""

    label: str
    place: float | None = None
    facing: float | None = None
    drift: float | None = None
    motion_loss: float | None = None
    canon_loss: float | None = None


TABLE = Table(
    {
        "pairs": lambda row: row.label,
        "place m": lambda row: figure(row.place, 3),
        "facing deg": lambda row: figure(row.facing, 1),
        "drift m": lambda row: figure(row.drift, 3),
        "held-out motion loss": lambda row: figure(row.motion_loss, 3),
        "held-out canon loss": lambda row: figure(row.canon_loss, 4),
    }
)


def all_rows(pipe: LongMotionPipeline, data: Path, block: str, seeds: int, seed: int) -> list[Row]:
    """All rows of the table."""
    from diffusers import DDIMScheduler
    from longtake.motion.data import load_motions
    from longtake.motion.objective import SCHEDULE
    from longtake.motion.pair.pipeline import load_block
    from longtake.motion.pair.train import held_out, silence

    pipe.set_progress_bar_config(disable=True)
    scheduler = DDIMScheduler(**SCHEDULE)
    unseen = Pairs.of(load_motions(data, "val"), pipe.space, pipe.text_encoder, mirror=True)
    trained = load_block(pipe, block)
    torch.manual_seed(seed)
    blank = ComMDM.around(pipe.model, comm_layers=int(trained.config["comm_layers"])).eval()
    silence(blank)
    said = [(name, text) for name, kind in KINDS.items() for text in kind.captions]
    never = [(name, text) for name, kind in KINDS.items() for text in kind.held_out]
    placed = load_block(pipe, block)
    placed.comm = PlaceOnly(trained.comm)  # type: ignore[assignment]
    rows = [Row("real windows, unseen clips", **real(unseen, pipe, 100, seed))]
    methods = (
        ("two-person block", trained),
        ("its places, two people alone", placed),
        ("untrained block: two people alone", blank),
    )
    for name, model in methods:
        losses = held_out(model, unseen, scheduler, seed, pipe.space)
        told = {"motion_loss": losses["motion"], "canon_loss": losses["canon"]}
        rows.append(Row(f"{name}, training captions", **made(pipe, model, said, seeds), **told))
        rows.append(Row(f"{name}, wordings never seen", **made(pipe, model, never, seeds)))
    return rows


def run_pairs(args: Any) -> int:
    """Print the table, and keep it as ``--out``/pairs.md and pairs.json."""
    from longtake.make import quiet_libraries
    from longtake.motion.pair.pipeline import prior_of
    from longtake.motion.pipeline import DEFAULT_PRIOR, LongMotionPipeline

    quiet_libraries()
    prior = args.prior or prior_of(args.pair_block) or DEFAULT_PRIOR
    pipe = LongMotionPipeline.from_prior(prior)
    rows = all_rows(pipe, args.data, args.pair_block, args.sequences, args.seed)
    text = TABLE.markdown(rows)
    facts = {"prior": str(prior), "block": str(args.pair_block), "seed": args.seed}
    write_table(args.out, "pairs", text, {**facts, "command": told_command("motion"), "rows": TABLE.json(rows)})
    print(text)
    return 0
