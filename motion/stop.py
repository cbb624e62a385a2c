"""The stop figures of a training: what a few samples of the fresh prior are worth, beside real clips.

Made on the device right after the training, under captions whose vectors are known, so that no text encoder is needed.
Legend: R rows, F frames, D features, E text features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from longtake.motion.captions import ACTIONS, MANNERS
from longtake.motion.data import FPS, Clip, features_of
from longtake.motion.metrics import bone_variation, diversity, foot_skate, frame_jerk, root_speed
from longtake.motion.objective import SCHEDULE
from longtake.motion.pipeline import GUIDANCE, STEPS

if TYPE_CHECKING:
    from longtake.motion.model import MDM
    from longtake.motion.prepare import Prepared
    from longtake.motion.space import MotionSpace

FRAMES, SEEDS = 80, 8
TOE = 0.03  # metres: how far above its lowest place a foot counts as down
MOST_REAL = 60  # clips of an action that the made ones are set beside


class Asked(NamedTuple):
    """What is sampled: an action and a manner, None for a caption that names none."""

    action: str
    manner: str | None = None

    @property
    def name(self) -> str:
        return self.action if self.manner is None else f"{self.action}, {self.manner}"

    @property
    def caption(self) -> str:
        plain = f"a person {ACTIONS[self.action].wordings[0]}"
        return plain if self.manner is None else f"{plain} {MANNERS[self.manner][0]}"

    def fits(self, clip: Clip) -> bool:
        """Whether a clip shows it."""
        return clip.action == self.action and self.manner in (None, clip.style)


ASKED = (
    *(Asked("walk"), Asked("walk", "exhausted"), Asked("walk", "elderly"), Asked("run")),
    *(Asked("wave-right-hand"), Asked("raise-up-left-hand")),
)


@dataclass(frozen=True)
class Figures:
    """Of motions of one kind: m/s, m/s, share, m/s3 (the worst frame of all)."""

    speed: float
    skate: float
    bones: float
    jerk: float

    @classmethod
    def of(cls, motions: Sequence[torch.Tensor]) -> Figures:
        """Of joints (F, 22, 3) in metres."""

        def mean(values: Sequence[torch.Tensor]) -> float:
            return float(torch.stack(list(values)).mean())

        return cls(
            mean([root_speed(joints, FPS) for joints in motions]),
            mean([foot_skate(joints, FPS, height=TOE) for joints in motions]),
            mean([bone_variation(joints) for joints in motions]),
            max(float(frame_jerk(joints, FPS).amax()) for joints in motions),
        )


def middle(joints: torch.Tensor, frames: int = FRAMES) -> torch.Tensor:
    """At most so many frames from the middle of (F, *)."""
    start = max(0, len(joints) - frames) // 2
    return joints[start : start + frames]


@torch.no_grad()
def sample(
    model: MDM,
    space: MotionSpace,
    text: torch.Tensor,
    frames: int = FRAMES,
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> torch.Tensor:
    """Features (R, F, D) of the texts (R, E), not normalised, on the net's device: DDIM with guidance, as the pipeline
    samples one row of one prompt."""
    from diffusers import DDIMScheduler
    from longtake.motion.sampling import TextDenoiser
    from longtake.train import Dice

    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    rows = range(len(text))
    net = TextDenoiser(model, text, guidance, lengths=[frames] * len(text), transition=None)
    x = Dice(seed, 0, text.device).normal(len(text), frames, space.mean.shape[0])
    for time in scheduler.timesteps:
        x = scheduler.step(net(x, int(time), rows).float(), time, x).prev_sample
    return space.denormalize(x)


def figures(model: MDM, space: MotionSpace, prepared: Prepared, *, seed: int = 0) -> dict[str, Any]:
    """Each kind of motion made under ``SEEDS`` seeds and real, and the summary over all. model and space lie on one
    device. Kinds that the clips do not show are left out."""
    device = space.mean.device
    shown = [one for one in ASKED if one.caption in prepared.texts and any(map(one.fits, prepared.train))]
    if not shown:
        return {}
    text = torch.stack([prepared.texts[one.caption] for one in shown]).to(device).repeat_interleave(SEEDS, 0)
    features = sample(model, space, text, seed=seed)
    joints = space.form.recover(features)
    made = [part.cpu() for part in joints.split(SEEDS)]
    told = [part.cpu() for part in features.split(SEEDS)]
    rows = {}
    for one, bodies, numbers in zip(shown, made, told, strict=True):
        clips = [clip for clip in prepared.train if one.fits(clip)]
        clips = clips[:: max(1, len(clips) // MOST_REAL)]
        real = Figures.of([middle(clip.joints) for clip in clips])
        row: dict[str, Any] = {"made": asdict(Figures.of(bodies.unbind())), "real": asdict(real)}
        row["diversity"] = diversity(numbers.unbind(), [middle(part) for part in features_of(clips)])
        rows[one.name] = row
    return {"kinds": rows, **summary(rows, prepared.val)}


def summary(rows: Mapping[str, Any], val: Sequence[Clip]) -> dict[str, float]:
    """Over all kinds: skate as a share of real, bones, the worst jerk beside the largest of unseen clips, diversity."""

    def mean(which: str, name: str) -> float:
        return sum(row[which][name] for row in rows.values()) / len(rows)

    largest = max(float(frame_jerk(clip.joints, FPS).amax()) for clip in val if len(clip.joints) > 3)
    return {
        "skate_share": mean("made", "skate") / max(mean("real", "skate"), 1e-6),
        "bones": mean("made", "bones"),
        "worst_jerk": max(row["made"]["jerk"] for row in rows.values()),
        "largest_real_jerk": largest,
        "diversity": sum(row["diversity"] for row in rows.values()) / len(rows),
    }


def report(model: MDM, space: MotionSpace, prepared: Prepared, folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """``figures``, printed and kept as ``folder``/stop.json."""
    import json

    from longtake.journal import atomic_path

    found = figures(model, space, prepared, seed=seed)
    with atomic_path(folder / "stop.json") as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in lines(found):
        print(line)
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures in words, one kind a line."""
    said = [
        f"{name}: speed {row['made']['speed']:.2f} m/s (real {row['real']['speed']:.2f}), skate "
        f"{row['made']['skate']:.2f} ({row['real']['skate']:.2f}), bones {100 * row['made']['bones']:.2f} % "
        f"({100 * row['real']['bones']:.2f}), worst jerk {row['made']['jerk']:.0f} ({row['real']['jerk']:.0f}), "
        f"diversity {row['diversity']:.2f}"
        for name, row in found.get("kinds", {}).items()
    ]
    if said:
        said.append(
            f"all: skate {found['skate_share']:.2f} of real, bones {100 * found['bones']:.2f} %, worst jerk "
            f"{found['worst_jerk']:.0f} of {found['largest_real_jerk']:.0f}, diversity {found['diversity']:.2f}"
        )
    return said
