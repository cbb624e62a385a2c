"""``longtake evaluate motion``: one table that sets long motions beside real clips and what a user would try first.

Sequences of eight prompts, 4 s each, drawn at random from the actions that have enough real clips, made by every method
with the same seeds; the prior alone is judged by single clips, under wordings it was trained on and others.
Legend: F frames, W windows.

    longtake evaluate motion --data DATA                     # trains the evaluator first, if it is not there

A second table (``moves``) says how its people move, action by action.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.evaluation import Table, figure, told_command, write_table

if TYPE_CHECKING:
    import torch
    from longtake.motion.data import Clip
    from longtake.motion.evaluator import Evaluator
    from longtake.motion.pipeline import LongMotionPipeline

PROMPTS, INTERVAL = 8, 80  # prompts a sequence, frames a prompt
SEAM = 30  # frames of the window around a transition


class Way(StrEnum):
    """How a sequence of prompts becomes one motion."""

    TIMELINE = "timeline"  # one call with a timeline
    JOINED = "joined"  # a call for each prompt, one clip after the other
    PLAIN = "plain"  # one row, with all prompts in one sentence


@dataclass(frozen=True)
class Method:
    """A line of the table. mode, take2: of the call. lock: standing feet are held."""

    label: str
    way: Way = Way.TIMELINE
    mode: str = "canvas"
    take2: str | None = None
    lock: bool = False


METHODS = {
    "longtake": Method("longtake (canvas)"),
    "longtake+locked": Method("longtake, feet locked", lock=True),
    "longtake+release": Method("longtake, second take as released", take2="release"),
    "longtake+paper": Method("longtake, second take as in the paper", take2="paper"),
    "rows": Method("rows, first take as released", mode="rows"),
    "rows+release": Method("DoubleTake as released (rows, both takes)", mode="rows", take2="release"),
    "joined": Method("joined clips", Way.JOINED),
    "plain": Method("one long plain sample", Way.PLAIN),
}


@dataclass
class Row:
    """One line of the table; None where a column does not apply. Jerk in metres a frame cubed, skate in m/s."""

    label: str
    motions: int
    windows: int
    action_right: float
    frechet: float | None
    peak_jerk: float | None
    inside_jerk: float
    foot_skate: float


@dataclass
class Motion:
    """Something to judge: features (F, 263), joints (F, 22, 3), where prompts change, the action of each stretch."""

    features: torch.Tensor
    joints: torch.Tensor
    boundaries: list[int]
    actions: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate motion``."""
    parser.add_argument("--data", type=Path, required=True, help="folder with bandai_train.npz and bandai_val.npz")
    parser.add_argument(
        "--prior",
        default=None,
        help="shipped prior or folder (default: the command's; with --pairs the block's own)",
    )
    parser.add_argument("--sequences", type=int, default=8, help=f"sequences of {PROMPTS} prompts for each method")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=8, help="motions of each kind in the second table (0: without it)")
    parser.add_argument("--pairs", action="store_true", help="judge the two-person block instead")
    parser.add_argument("--pair-block", default="bandai-pair", help="with --pairs: a shipped block or a folder")
    parser.add_argument("--steps", type=int, default=None, help="of sampling (default: the command's)")
    parser.add_argument("--guidance", type=float, default=None, help="of sampling (default: the command's)")
    parser.add_argument("--evaluator-steps", type=int, default=None, help="training steps of the evaluator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate-motion"), help="table and evaluator")


def run(args: argparse.Namespace) -> int:
    """Train or load the evaluator, make and judge everything, print the table and write it as JSON and markdown."""
    if args.sequences < 1:
        raise UserError(f"--sequences must be at least 1, got {args.sequences}")
    if args.seeds < 0:
        raise UserError(f"--seeds must be 0 (no second table) or more, got {args.seeds}")
    if args.evaluator_steps is not None and args.evaluator_steps < 1:
        raise UserError(f"--evaluator-steps must be at least 1, got {args.evaluator_steps}")
    if args.pairs:
        from longtake.motion.pair.evaluate import run_pairs

        return run_pairs(args)
    from longtake.motion.data import load_motions
    from longtake.motion.evaluator import EvaluatorSettings, load_or_train
    from longtake.motion.pipeline import DEFAULT_PRIOR, GUIDANCE, STEPS, LongMotionPipeline

    clips, val = load_motions(args.data, "train"), load_motions(args.data, "val")
    pipe = LongMotionPipeline.from_prior(args.prior or DEFAULT_PRIOR)
    pipe.set_progress_bar_config(disable=True)
    wanted = EvaluatorSettings()
    if args.evaluator_steps is not None:
        wanted = replace(wanted, steps=args.evaluator_steps)
    judge, report = load_or_train(clips, val, args.out, wanted)
    steps = STEPS if args.steps is None else args.steps
    guidance = GUIDANCE if args.guidance is None else args.guidance
    rows = evaluate(pipe, judge, clips, val, args.methods, args.sequences, steps, guidance, args.seed)
    text = markdown(rows, report)
    facts = {
        "prior": str(args.prior or DEFAULT_PRIOR),
        "steps": steps,
        "guidance": guidance,
        "seed": args.seed,
        "command": told_command("motion"),
        "evaluator": report,
        "rows": TABLE.json(rows),
    }
    write_table(args.out, "table", text, facts)
    print(text)
    if args.seeds:
        settings = {"num_inference_steps": steps, "guidance_scale": guidance}
        print(moved(pipe, clips, val, args, settings))
    return 0


def moved(
    pipe: LongMotionPipeline, clips: Sequence[Clip], val: Sequence[Clip], args: argparse.Namespace, settings: Any
) -> str:
    """The second table as markdown, kept as ``--out``/moves.md and moves.json."""
    from longtake.motion.moves import TABLE as MOVES
    from longtake.motion.moves import Nearest, moves, summary, told

    nearest = Nearest(clips)
    rows, right = moves(pipe, clips, nearest, args.seeds, settings), nearest.right(val)
    text = told(rows, right)
    facts = {**settings, "seeds": args.seeds, "command": told_command("motion"), "nearest_right_on_real": right}
    write_table(args.out, "moves", text, {**facts, "summary": summary(rows), "rows": MOVES.json(rows)})
    return text


def evaluate(
    pipe: LongMotionPipeline,
    judge: Evaluator,
    clips: Sequence[Clip],
    val: Sequence[Clip],
    methods: Sequence[str],
    sequences: int,
    steps: int,
    guidance: float,
    seed: int,
) -> list[Row]:
    """All rows of the table."""
    import numpy as np
    from longtake.motion.captions import ACTIONS
    from longtake.motion.evaluator import windows_of

    train_windows, _ = windows_of(clips, judge.actions)
    reference = judge.classify(train_windows)[1]
    rows = [real_row("real, training clips", clips[:: max(1, len(clips) // 200)], judge, None)]
    rows.append(real_row("real, validation clips", val, judge, reference))
    rng = np.random.Generator(np.random.PCG64([seed, 11]))
    plans = [[str(name) for name in rng.choice(judge.actions, PROMPTS)] for _ in range(sequences)]
    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}

    def single(label: str, wording: Any) -> None:
        made = []
        for number, action in enumerate(name for plan in plans for name in plan):
            out = pipe(wording(action), INTERVAL, seed=seed, item=number, **settings)
            made.append(_motion(out, [action]))
        rows.append(judge_row(label, made, judge, reference))

    single("prior, training captions", lambda action: f"a person {ACTIONS[action].wordings[0]}")
    single("prior, wordings never seen", lambda action: ACTIONS[action].held_out[0])
    for method in (METHODS[name] for name in methods):
        started = time.monotonic()
        made = [make(pipe, method, plan, seed, number, settings) for number, plan in enumerate(plans)]
        rows.append(judge_row(method.label, made, judge, reference))
        print(f"{method.label}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return rows


def make(
    pipe: LongMotionPipeline, method: Method, actions: Sequence[str], seed: int, number: int, settings: dict[str, Any]
) -> Motion:
    """One sequence of prompts by one method."""
    import torch
    from longtake.motion.captions import ACTIONS
    from longtake.timeline import Timeline

    texts = [f"a person {ACTIONS[action].wordings[0]}" for action in actions]
    if method.way is Way.JOINED:
        # each clip alone, one after the other: the root goes on from where it is, the pose jumps
        parts = [
            pipe(text, INTERVAL, seed=seed, item=1000 * number + place, **settings) for place, text in enumerate(texts)
        ]
        features = torch.cat([torch.from_numpy(part.features) for part in parts])
        borders = [INTERVAL * place for place in range(1, len(texts))]
        return Motion(features, pipe.space.form.recover(features), borders, list(actions))
    if method.way is Way.PLAIN:
        frames = INTERVAL * len(texts)
        out = pipe(", then ".join(texts), frames, seed=seed, item=number, longest_row=frames + 64, **settings)
        made = _motion(out, actions)
        return Motion(made.features, made.joints, [INTERVAL * place for place in range(1, len(texts))], list(actions))
    # the same prompt twice in a row is one segment of a timeline: its border is no transition
    starts = [(INTERVAL * place, text) for place, text in enumerate(texts) if place == 0 or text != texts[place - 1]]
    timeline = Timeline(tuple(starts), blend=0)
    out = pipe(
        timeline,
        INTERVAL * len(texts),
        seed=seed,
        item=number,
        mode=method.mode,
        take2=method.take2,
        **settings,
    )
    if method.lock:
        out.lock_feet()
    return _motion(out, actions)


def _motion(out: Any, actions: Sequence[str]) -> Motion:
    import torch

    return Motion(torch.from_numpy(out.features), torch.from_numpy(out.joints), list(out.boundaries), list(actions))


def judge_row(label: str, made: Sequence[Motion], judge: Evaluator, reference: torch.Tensor) -> Row:
    """A row for generated motions whose stretches of 80 frames show ``actions``."""
    import torch
    from longtake.motion.evaluator import WINDOW, frechet_distance
    from longtake.motion.metrics import foot_skate, jerk, jerk_curve, peak_jerk, seam_windows

    windows, actions, seams, lengths, skate, inside = [], [], [], [], [], []
    for motion in made:
        for place, action in enumerate(motion.actions):
            middle = INTERVAL * place + INTERVAL // 2
            windows.append(motion.features[middle - WINDOW // 2 : middle + WINDOW // 2])
            actions.append(action)
            inside.append(jerk(motion.joints[None, middle - 15 : middle + 15]).amax())
        if motion.boundaries:
            part, valid = seam_windows(motion.joints, motion.boundaries, SEAM)
            seams.append(part)
            lengths.append(valid)
        skate.append(foot_skate(motion.joints, 20.0))
    every = torch.stack(windows)
    embedding = judge.classify(every)[1]
    return Row(
        label,
        len(made),
        len(windows),
        judge.accuracy(every, actions),
        frechet_distance(embedding, reference),
        float(peak_jerk(jerk_curve(torch.cat(seams), torch.cat(lengths)))) if seams else None,
        float(torch.stack(inside).mean()),
        float(torch.stack(skate).mean()),
    )


def real_row(label: str, clips: Sequence[Clip], judge: Evaluator, reference: torch.Tensor | None) -> Row:
    """A row for real clips; the peak of their jerk curve over windows at the clips' middles stands for transitions.

    Jerk and foot skate are means over actions, each action counting alike, as the sequences draw them: runs are three
    times as jerky as waves, and real clips have more of these.
    """
    import torch
    from longtake.motion.evaluator import frechet_distance, windows_of
    from longtake.motion.metrics import foot_skate, jerk, peak_jerk

    windows, actions = windows_of(clips, judge.actions)
    chosen: dict[str, list[torch.Tensor]] = {}
    for clip in clips:
        if len(clip.joints) > SEAM and clip.action in judge.actions:
            chosen.setdefault(clip.action, []).append(clip.joints)
    curves, skate = [], []
    for members in chosen.values():
        curves.append(jerk(torch.stack([joints[(len(joints) - SEAM) // 2 :][:SEAM] for joints in members])))
        skate.append(torch.stack([foot_skate(joints, 20.0) for joints in members]).mean())
    distance = None if reference is None else frechet_distance(judge.classify(windows)[1], reference)
    return Row(
        label,
        sum(map(len, chosen.values())),
        len(windows),
        judge.accuracy(windows, actions),
        distance,
        float(peak_jerk(torch.stack([curve.mean(0) for curve in curves]).mean(0))),
        float(torch.stack([curve.amax(-1).mean() for curve in curves]).mean()),
        float(torch.stack(skate).mean()),
    )


TABLE = Table(
    {
        "method": lambda row: row.label,
        "motions": lambda row: str(row.motions),
        "windows": lambda row: str(row.windows),
        "action right": lambda row: figure(row.action_right, 2),
        "Fréchet": lambda row: figure(row.frechet, 2),
        "jerk at transitions": lambda row: figure(row.peak_jerk, 4),
        "jerk inside": lambda row: figure(row.inside_jerk, 4),
        "foot skate m/s": lambda row: figure(row.foot_skate, 3),
    }
)


def markdown(rows: Sequence[Row], report: dict[str, Any]) -> str:
    """The table as markdown, with what it rests on."""
    told = (
        f"Evaluator: {100 * report['accuracy_real_held_out']:.1f} % of {report['windows']} held-out real windows "
        f"right, {len(report['actions'])} actions."
    )
    return f"{told}\n\n{TABLE.markdown(rows)}\n"
