"""What the clips of the motion prior are called: wordings to train on, wordings kept for judging, manners.

caption("walk-turn-left", "elderly", rng)      # "someone walks and turns left like an elderly person"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Action(NamedTuple):
    """``wordings`` join in training after "a person" and its like; ``held_out`` are whole sentences that never do."""

    wordings: tuple[str, ...]
    held_out: tuple[str, ...]


ACTIONS: dict[str, Action] = {
    "walk": Action(
        ("walks", "walks forward", "walks straight ahead", "is walking", "strolls along"),
        ("somebody goes for a walk", "the man paces forward"),
    ),
    "walk-turn-left": Action(
        (
            "walks and turns left",
            "walks turning to the left",
            "turns left while walking",
            "walks in a curve to the left",
        ),
        ("somebody takes a left turn on foot", "the man is walking, then heads left"),
    ),
    "walk-turn-right": Action(
        (
            "walks and turns right",
            "walks turning to the right",
            "turns right while walking",
            "walks in a curve to the right",
        ),
        ("somebody takes a right turn on foot", "the man is walking, then heads right"),
    ),
    "walk-back": Action(("walks backwards", "walks back", "steps backwards"), ("somebody is walking in reverse",)),
    "walk-left": Action(("walks sideways to the left", "side-steps left"), ("somebody steps sideways, leftward",)),
    "walk-right": Action(("walks sideways to the right", "side-steps right"), ("somebody steps sideways, rightward",)),
    "run": Action(
        ("runs", "runs forward", "is running", "runs straight ahead", "goes jogging"),
        ("somebody jogs along", "the man is on the run"),
    ),
    "dash": Action(("dashes", "sprints", "dashes forward", "runs very fast"), ("somebody breaks into a sprint",)),
    "wave-left-hand": Action(
        ("waves with the left hand", "waves the left hand", "is waving the left arm"),
        ("somebody says hello with a wave of the left hand",),
    ),
    "wave-right-hand": Action(
        ("waves with the right hand", "waves the right hand", "is waving the right arm"),
        ("somebody says hello with a wave of the right hand",),
    ),
    "wave-both-hands": Action(
        ("waves with both hands", "waves both hands", "waves both arms", "is waving two hands in the air"),
        ("somebody greets the crowd, waving both arms",),
    ),
    "raise-up-left-hand": Action(
        ("raises the left hand", "lifts the left arm", "puts the left hand up", "raises the left arm"),
        ("somebody holds up a left hand",),
    ),
    "raise-up-right-hand": Action(
        ("raises the right hand", "lifts the right arm", "puts the right hand up", "raises the right arm"),
        ("somebody holds up a right hand",),
    ),
    "raise-up-both-hands": Action(
        ("raises both hands", "lifts both arms", "puts both hands up", "raises the arms"),
        ("somebody holds up both hands",),
    ),
    "bow": Action(("bows", "bows politely", "takes a bow"), ("somebody bends forward in greeting",)),
    "bye": Action(("waves goodbye", "says goodbye"), ("somebody is waving farewell",)),
    "byebye": Action(("says bye-bye", "waves bye-bye"), ("somebody waves farewell to a friend",)),
    "guide": Action(("shows the way", "guides someone", "points the way"), ("somebody gives directions by hand",)),
    "call": Action(("calls out", "beckons someone"), ("somebody calls for a friend",)),
    "respond": Action(("responds", "answers a call"), ("somebody reacts to a call",)),
    "kick": Action(("kicks", "makes kicks"), ("somebody does a kick",)),
    "punch": Action(("punches", "throws a punch"), ("somebody boxes",)),
    "slash": Action(("slashes with a sword", "swings a sword"), ("somebody cuts the air with a blade",)),
    "dance-short": Action(("dances",), ("somebody moves to the music",)),
}

MANNERS: dict[str, tuple[str, ...]] = {
    "normal": ("normally", "in a normal way"),
    "active": ("actively", "with energy"),
    "feminine": ("in a feminine way", "like a lady"),
    "youthful": ("like a young person", "in a youthful way"),
    "masculine": ("in a masculine way", "like a strong man"),
    "masculinity": ("in a masculine way", "like a strong man"),
    "exhausted": ("exhausted", "in an exhausted way"),
    "tired": ("tired", "tiredly"),
    "elderly": ("like an elderly person", "in an elderly way"),
    "old": ("like an old person", "in old age"),
    "angry": ("angrily", "in anger"),
    "musical": ("to music", "rhythmically"),
    "proud": ("proudly", "with pride"),
    "childish": ("like a child", "childishly"),
    "chimpira": ("like a thug", "with a swagger"),
    "sad": ("sadly", "in sorrow"),
    "not-confident": ("without confidence", "shyly"),
    "giant": ("like a giant", "with heavy steps"),
    "happy": ("happily", "full of joy"),
}

WHO = ("a person", "someone", "a man", "a woman", "")


def mirrored_action(action: str) -> str:
    """The action that a left-right mirrored clip shows."""
    sides = {"left": "right", "right": "left"}
    return "-".join(sides.get(word, word) for word in action.split("-"))


def captions_of(action: str, style: str, *, manners: bool = True) -> list[str]:
    """Every text that a clip is trained under, those without a manner first, and without ``manners`` no others."""
    plain = [f"{who} {wording}".strip() for wording in ACTIONS[action].wordings for who in WHO]
    if not manners:
        return plain
    return plain + [f"{text} {manner}" for text in plain for manner in MANNERS[style]]


def caption(action: str, style: str, rng: np.random.Generator) -> str:
    """One text for a clip; four in ten say nothing of the manner."""
    wordings, manners = ACTIONS[action].wordings, MANNERS[style]
    text = f"{WHO[int(rng.integers(len(WHO)))]} {wordings[int(rng.integers(len(wordings)))]}".strip()
    if rng.random() < 0.4:
        return text
    return f"{text} {manners[int(rng.integers(len(manners)))]}"
