"""``longtake evaluate video``: tables that set long takes beside real clips and what a user would try first.

Three tables: 16-frame clips judge the prior itself, by what it names and by what it never saw; Timelines, of a prior of
KayKit, stand beside real films of the same actions; long videos, by every method, beside real clips that loop. The
prior says which corpus it is of. What will be made, and about how long that takes, is told first. Each video is kept in
``--out`` under a name made of all that decides it but the code, so a rerun continues where the last one ended; more
``--subjects`` add to what is there.

    longtake evaluate video --data DATA --quick             # trains the evaluator first, if it is not there
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.evaluation import told_command, write_table
from longtake.video.catalogue import Catalogue, corpus_of
from longtake.video.data import Corpus, load_clips, load_truth
from longtake.video.entries import LABELS, LONG_METHODS, Entry, Method, Settings, Video, make_all, missing

if TYPE_CHECKING:
    from longtake.video import table
    from longtake.video.data import Clip, Film
    from longtake.video.evaluator import Evaluator
    from longtake.video.films import FilmRow
    from longtake.video.pipeline import LongVideoPipeline

TRUTH = "kaykit_truth.zip"
KAYKIT_STEPS = 1500  # of the evaluator's training: fifty actions take longer than thirty subjects
JOINED_FRAMES = 48  # three clips
QUICK = {"subjects": 1, "short": 8, "films": 2, "joined": 2}
BASE_FRAMES = 240  # --subjects counts prompts at this length; longer videos get fewer, so that lengths cost alike


# ------------------------------------------------------------------------------------------------------ what is asked


def choose_subjects(subjects: Sequence[str], count: int) -> list[str]:
    """``count`` subjects, spread at random but always the same; more of them contain fewer of them."""
    import numpy as np

    order = np.random.Generator(np.random.PCG64(0)).permutation(len(subjects))
    return [sorted(subjects)[index] for index in order[: max(0, count)]]


def long_entries(
    prompts: Mapping[str, str], methods: Sequence[Method], frames: Sequence[int], count: int, seed: int
) -> list[Entry]:
    """Entries of the long rows, one subject after the other. prompts: subject -> what the model is told.

    ``count`` subjects at 240 frames, in proportion fewer (one at least, if ``count`` is not 0) at greater lengths.
    """
    asked = []
    for place, name in enumerate(choose_subjects(list(prompts), count)):
        for length in frames:
            if place < max(1, round(count * min(1.0, BASE_FRAMES / length))):
                asked += [Entry(method, name, prompts[name], length, seed) for method in methods]
    return asked


def short_entries(prompts: Mapping[str, str], count: int, seed: int) -> list[Entry]:
    """Entries of 16-frame clips of ``count`` subjects. prompts: subject -> what the model is told."""
    return [Entry(Method.SHORT, name, prompts[name], 16, seed) for name in choose_subjects(list(prompts), count)]


@dataclass(frozen=True)
class Plan:
    """All that a run asks for, by the rows it goes into."""

    named: list[Entry]
    unseen: list[Entry]
    films: dict[Entry, Film]
    joined: list[Entry]
    long: list[Entry]

    @classmethod
    def of(cls, asked: Catalogue, films: Sequence[Film], args: argparse.Namespace) -> Plan:
        """The plan of a catalogue, the truth films of its corpus, and the options."""
        from longtake.video.films import film_entry

        lengths = sorted(set(args.frames))
        looping = {name: asked.named[name] for name in asked.looping}
        few = short_entries(asked.named, args.joined, args.seed)
        return cls(
            named=short_entries(asked.named, args.short, args.seed),
            unseen=short_entries(asked.unseen, args.short, args.seed),
            films={film_entry(film, args.seed): film for film in films[: args.films]},
            joined=[replace(entry, method=Method.JOINED, frames=JOINED_FRAMES) for entry in few],
            long=long_entries(looping, [Method(method) for method in args.methods], lengths, args.subjects, args.seed),
        )

    def order(self) -> list[Entry]:
        """Every entry once: the named clips first, then the films, a first long subject, and all others."""
        first = [entry for entry in self.long if (entry.frames, entry.subject) == self._first()]
        return list(dict.fromkeys([*self.named, *self.films, *first, *self.unseen, *self.joined, *self.long]))

    def _first(self) -> tuple[int, str]:
        return (min(entry.frames for entry in self.long), self.long[0].subject)

    def told(self, missing: Sequence[Entry], steps: int) -> str:
        """What will be made and about how long it takes, in one line. missing: the entries that are not made yet."""
        from longtake.video.domain import SECONDS

        parts = (
            (len(self.named) + len(self.unseen), "clips of 16 frames"),
            (len(self.films), "Timelines"),
            (len(self.joined), f"joined videos of {JOINED_FRAMES} frames"),
            (len(self.long), "long videos"),
        )
        listed = ", ".join(f"{count} {what}" for count, what in parts if count) or "nothing"
        frames = sum(entry.frames for entry in missing)
        return (
            f"plan: {listed}; {len(missing)} are not made yet: {frames} frames in {steps} steps, about "
            f"{frames * steps * SECONDS / 60:.0f} minutes on two quiet cores"
        )


# ------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake evaluate video``."""
    from longtake.train import add_precision

    parser.add_argument("--data", type=Path, required=True, help="folder with the zips of clips, or one zip")
    parser.add_argument("--prior", default=None, help="shipped prior, folder or Hub id (default: the one that ships)")
    parser.add_argument(
        "--corpus", choices=[str(corpus) for corpus in Corpus], default=None,
        help="clips that the prior is of (default: as the prior says)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, nargs="*", default=[240, 960], help="lengths of the long videos")
    parser.add_argument("--subjects", type=int, default=2, help="prompts at 240 frames; fewer for longer videos")
    parser.add_argument(
        "--short", type=int, default=1000, help="subjects judged by 16-frame clips, known and unseen (default: all)"
    )
    parser.add_argument("--films", type=int, default=100, help="truth films made by their Timelines (default: all)")
    parser.add_argument(
        "--joined", type=int, default=8, help="subjects of which three clips are joined: do they change who is seen?"
    )
    parser.add_argument(
        "--quick", action="store_true", help="at most 1 long subject at 240 frames, 8 clips, 2 films, 2 joined"
    )
    parser.add_argument("--sheet", type=Path, default=None, help="png: a line of 8 frames for each subject's clip")
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
    add_precision(parser, "of the evaluator's training")


def check(args: argparse.Namespace) -> None:
    """Settle --quick, and raise UserError for numbers that cannot be, and for several ranks."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("the evaluation runs in one process: start it without torchrun")
    if args.quick:
        args.frames = [BASE_FRAMES]
        for name, most in QUICK.items():
            setattr(args, name, min(getattr(args, name), most))
    for length in args.frames:
        if length < 17:
            raise UserError(f"--frames {length}: a long video has more than 16 frames (use --short for 16-frame clips)")
    for name in ("subjects", "short", "films", "joined", "seed", "minutes"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must be 0 or more, got {getattr(args, name)}")
    for name in ("steps", "evaluator_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.sheet is not None:
        from longtake.media import check_output

        check_output(args.sheet, (".png",), True)


def run(args: argparse.Namespace) -> int:
    """Train or load the evaluator, make what is missing, judge, print the table and write it as JSON and markdown."""
    check(args)
    from longtake.priors import known_texts
    from longtake.train import precision_of
    from longtake.video import table
    from longtake.video.evaluator import EvaluatorSettings, load_or_train
    from longtake.video.pipeline import DEFAULT_PRIOR
    from longtake.weights import resolve

    folder = resolve(args.prior or DEFAULT_PRIOR, kind="video prior", priors_package="longtake.video")
    clips = load_clips(args.data, corpus_of(folder, args.corpus))
    asked = Catalogue.of(clips, known_texts(folder))
    kaykit = any(clip.character for clip in clips)
    wanted = EvaluatorSettings(precision=precision_of(args), steps=KAYKIT_STEPS if kaykit else EvaluatorSettings.steps)
    if args.evaluator_steps is not None:
        wanted = replace(wanted, steps=args.evaluator_steps)
    if args.train_evaluator:
        print(table.describe_evaluator(load_or_train(clips, args.out, wanted, again=True)[1]))
        return 0
    pipe, name, settings = load_prior(args)  # before minutes of training: it may be damaged
    films = []
    if kaykit and args.films and args.data.is_dir() and (args.data / TRUTH).is_file():
        films = load_truth(args.data)
    plan = Plan.of(asked, films, args)
    print(plan.told(missing(plan.order(), settings, args.out / "videos"), settings.steps), flush=True)
    evaluator, report = load_or_train(clips, args.out, wanted)
    evaluate(pipe, clips, asked, plan, evaluator, report, settings, args, name)
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
    asked: Catalogue,
    plan: Plan,
    evaluator: Evaluator,
    report: dict[str, Any],
    settings: Settings,
    args: argparse.Namespace,
    name: str,
) -> dict[str, Any]:
    """Make and judge everything; returns what ``table.json`` holds."""
    from longtake.video import table
    from longtake.video.sheets import sheets, subject_sheet

    order = plan.order()
    videos = make_all(pipe, order, settings, args.out / "videos", minutes=args.minutes)
    judge = table.Judge(evaluator, clips)
    rows = table.real_rows(judge, pipe.vae, [entry.subject for entry in plan.named])

    def add(label: str, some: Sequence[Entry]) -> None:
        if some:
            made = [(entry.subject, videos[entry]) for entry in some if entry in videos]
            rows.append(judge.row(label, some[0].frames, made))

    add("prior, training captions", plan.named)
    add(f"prior, {asked.unseen_label}", plan.unseen)
    for length in sorted({entry.frames for entry in [*plan.joined, *plan.long]}):
        for part in (plan.joined, plan.long):
            some = [entry for entry in part if entry.frames == length]
            subjects = list(dict.fromkeys(entry.subject for entry in some))
            if subjects:
                real = [(subject, Video(table.reference(clips, subject, length))) for subject in subjects]
                rows.append(judge.row(LABELS[Method.REAL], length, real))
            for method in LONG_METHODS:
                add(LABELS[method], [entry for entry in some if entry.method is method])
    film_rows = judge_films(judge, plan, videos)
    result = {
        "prior": name,
        **asdict(settings),
        "seed": args.seed,
        "evaluator_subjects": len(evaluator.subjects),
        "command": told_command("video"),
        "evaluator": report,
        "rows": table.TABLE.json(rows),
        "films": table.FILMS.json(film_rows),
    }
    text = table.markdown(rows, film_rows, result)
    write_table(args.out, "table", text, result)
    sheets(videos, plan.long, args.out, mp4=args.save_videos)
    if args.sheet is not None:
        subject_sheet([(entry.subject, videos[entry].frames) for entry in plan.named if entry in videos], args.sheet)
    print(text)
    if len(videos) < len(order):
        print(f"{len(order) - len(videos)} of {len(order)} videos are not made: run the command again to go on")
    return result


def judge_films(judge: table.Judge, plan: Plan, videos: Mapping[Entry, Video]) -> list[FilmRow]:
    """The rows of Timelines: the truth films themselves, and what the prior made of them."""
    from longtake.video.films import FilmJudge
    from longtake.video.watch.pipeline import DEFAULT_PRIOR
    from longtake.video.watch.tower import tower_of

    made = {entry: film for entry, film in plan.films.items() if entry in videos}
    if not made:
        return []
    by = FilmJudge(judge.evaluator, judge.clips, judge.everyone, tower_of(DEFAULT_PRIOR))
    return [
        by.row("real films", [(film, film.frames) for film in made.values()]),
        by.row("longtake", [(film, videos[entry].frames) for entry, film in made.items()]),
    ]
