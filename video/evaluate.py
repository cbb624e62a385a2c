"""``longtake evaluate video``: one table that sets long takes beside real clips and what a user would try first.

Rows are methods at a length, columns what metrics.py measures; short 16-frame samples judge the prior itself, under the
captions it was trained on and under wordings it never saw. Each video is kept in ``--out`` under a name made of all
that decides it but the code, so a rerun continues where the last one ended; more ``--subjects`` add to what is there.

    longtake evaluate video --data DATA                     # trains the evaluator first, if it is not there
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.evaluation import told_command, write_table
from longtake.video.entries import LABELS, LONG_METHODS, Entry, Method, Settings, Video, make_all

if TYPE_CHECKING:
    import numpy as np
    from longtake.video.data import Clip
    from longtake.video.evaluator import Evaluator
    from longtake.video.pipeline import LongVideoPipeline

BASE_FRAMES = 240  # --subjects counts prompts at this length; longer videos get fewer, so that lengths cost alike


# ------------------------------------------------------------------------------------------------------ what is asked


def choose_subjects(subjects: Sequence[str], count: int) -> list[str]:
    """``count`` subjects, spread at random but always the same; more of them contain fewer of them."""
    import numpy as np

    order = np.random.Generator(np.random.PCG64(0)).permutation(len(subjects))
    return [sorted(subjects)[index] for index in order[: max(0, count)]]


def long_entries(
    subjects: Sequence[str], methods: Sequence[Method], frames: Sequence[int], count: int, seed: int
) -> list[Entry]:
    """Entries of the long rows, one subject after the other.

    ``count`` subjects at 240 frames, in proportion fewer (one at least, if ``count`` is not 0) at greater lengths.
    """
    from longtake.video.subjects import SUBJECTS

    asked = []
    for place, name in enumerate(choose_subjects(subjects, count)):
        for length in frames:
            if place < max(1, round(count * min(1.0, BASE_FRAMES / length))):
                asked += [Entry(method, name, SUBJECTS[name].captions[0], length, seed) for method in methods]
    return asked


def short_entries(subjects: Sequence[str], count: int, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Entries of 16-frame clips: by the first caption, and by the first held-out wording, of ``count`` subjects."""
    from longtake.video.subjects import SUBJECTS

    chosen = choose_subjects(subjects, count)
    by_caption = [Entry(Method.SHORT, name, SUBJECTS[name].captions[0], 16, seed) for name in chosen]
    return by_caption, [Entry(Method.SHORT, name, SUBJECTS[name].held_out[0], 16, seed) for name in chosen]


def reference(clips: Sequence[Clip], subject: str, frames: int) -> np.ndarray:
    """A real clip of the subject looped to a length: a held-out one if there is one, else its first. uint8 (F, H, W,
    3)."""
    own = sorted((clip for clip in clips if clip.subject == subject), key=lambda clip: not clip.held_out)
    return own[0].frames[own[0].window(0, frames)]


# ------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate video``."""
    parser.add_argument("--data", type=Path, required=True, help="folder with emoji_train.zip, or the zip itself")
    parser.add_argument("--prior", default=None, help="shipped prior, folder or Hub id (default: the one that ships)")
    parser.add_argument("--frames", type=int, nargs="*", default=[240, 960], help="lengths of the long videos")
    parser.add_argument("--subjects", type=int, default=2, help="prompts at 240 frames; fewer for longer videos")
    parser.add_argument(
        "--short", type=int, default=60, help="subjects judged by 16-frame clips, with two prompts each"
    )
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=[str(method) for method in LONG_METHODS],
        default=[str(method) for method in LONG_METHODS],
        help="long rows to make (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="of sampling, default: the pipeline's")
    parser.add_argument("--guidance", type=float, default=None, help="default: the pipeline's")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/evaluate-video"),
        help="table, evaluator, videos; another after changes of the code",
    )
    parser.add_argument("--minutes", type=float, default=15, help="limit for making videos, a rerun goes on (0: none)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the prior's weights")
    parser.add_argument("--save-videos", action="store_true", help="write an mp4 of each long video beside the table")
    parser.add_argument(
        "--train-evaluator", action="store_true", help="train the evaluator anew, say how good it is, end"
    )
    parser.add_argument("--evaluator-steps", type=int, default=None, help="training steps of the evaluator")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16", help="of the evaluator's training")


def check(args: argparse.Namespace) -> None:
    """Raise UserError for numbers that cannot be, and for several ranks."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("the evaluation runs in one process: start it without torchrun")
    for length in args.frames:
        if length < 17:
            raise UserError(f"--frames {length}: a long video has more than 16 frames (use --short for 16-frame clips)")
    for name in ("subjects", "short", "seed", "minutes"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must be 0 or more, got {getattr(args, name)}")
    for name in ("steps", "evaluator_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")


def run(args: argparse.Namespace) -> int:
    """Train or load the evaluator, make what is missing, judge, print the table and write it as JSON and markdown."""
    check(args)
    from longtake.video.data import load_clips
    from longtake.video.evaluator import EvaluatorSettings, load_or_train

    clips = load_clips(args.data)
    wanted = EvaluatorSettings(precision=args.precision)
    if args.evaluator_steps is not None:
        wanted = replace(wanted, steps=args.evaluator_steps)
    if args.train_evaluator:
        from longtake.video.table import describe_evaluator

        print(describe_evaluator(load_or_train(clips, args.out, wanted, again=True)[1]))
        return 0
    pipe, name, settings = load_prior(args)  # before minutes of training: it may not exist
    evaluator, report = load_or_train(clips, args.out, wanted)
    evaluate(pipe, clips, evaluator, report, settings, args, name)
    return 0


def load_prior(args: argparse.Namespace) -> tuple[LongVideoPipeline, str, Settings]:
    """The prior, its name, and the settings of every generated video. Raises UserError when it does not make 64x64."""
    import torch
    from longtake.video.pipeline import DEFAULT_PRIOR, LongVideoPipeline
    from longtake.weights import WEIGHT_SUFFIXES, file_hash, resolve

    name = args.prior or DEFAULT_PRIOR
    pipe = LongVideoPipeline.from_prior(name, dtype=getattr(torch, args.dtype))
    _, height, width = pipe.latent_shape(None, None)
    if (height, width) != (8, 8):
        raise UserError(f"the evaluator sees frames of 64x64, but {name} makes {8 * width}x{8 * height}")
    defaults = inspect.signature(LongVideoPipeline.__call__).parameters
    settings = Settings(
        file_hash(resolve(name, kind="video prior", priors_package="longtake.video"), WEIGHT_SUFFIXES),
        int(defaults["num_inference_steps"].default) if args.steps is None else args.steps,
        float(defaults["guidance_scale"].default) if args.guidance is None else args.guidance,
        args.dtype,
    )
    return pipe, name, settings


def evaluate(
    pipe: LongVideoPipeline,
    clips: Sequence[Clip],
    evaluator: Evaluator,
    report: dict[str, Any],
    settings: Settings,
    args: argparse.Namespace,
    name: str,
) -> dict[str, Any]:
    """Make and judge everything; returns what ``table.json`` holds."""
    from longtake.video import table

    methods = [Method(method) for method in args.methods]
    lengths = sorted(set(args.frames))
    long = long_entries(evaluator.subjects, methods, lengths, args.subjects, args.seed)
    by_caption, by_wording = short_entries(evaluator.subjects, args.short, args.seed)
    first = [entry for entry in long if entry.frames == lengths[0] and entry.subject == long[0].subject]
    order = list(dict.fromkeys([*by_caption, *first, *by_wording, *long]))
    videos = make_all(pipe, order, settings, args.out / "videos", minutes=args.minutes)
    judge = table.Judge(evaluator, clips)
    rows = table.real_rows(judge, pipe.vae)

    def add(label: str, asked: Sequence[Entry]) -> None:
        if asked:
            made = [(entry.subject, videos[entry]) for entry in asked if entry in videos]
            rows.append(judge.row(label, asked[0].frames, made))

    add("prior, training captions", by_caption)
    add("prior, wordings never seen", by_wording)
    for length in lengths:
        asked = [entry for entry in long if entry.frames == length]
        subjects = list(dict.fromkeys(entry.subject for entry in asked))
        if subjects:
            real = [(subject, Video(reference(clips, subject, length))) for subject in subjects]
            rows.append(judge.row(LABELS[Method.REAL], length, real))
        for method in methods:
            add(LABELS[method], [entry for entry in asked if entry.method is method])
    result = {
        "prior": name,
        **asdict(settings),
        "seed": args.seed,
        "evaluator_subjects": len(evaluator.subjects),
        "command": told_command("video"),
        "evaluator": report,
        "rows": table.TABLE.json(rows),
    }
    text = table.markdown(rows, result)
    write_table(args.out, "table", text, result)
    table.sheets(videos, long, args.out, mp4=args.save_videos)
    print(text)
    if len(videos) < len(order):
        print(f"{len(order) - len(videos)} of {len(order)} videos are not made: run the command again to go on")
    return result
