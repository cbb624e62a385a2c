"""``longtake motion``: a prompt or a Timeline in, files that animators open out; alike under torchrun.

    longtake motion "0s: a person walks | 4s: waves with the right hand | 7s: runs" --out take.bvh --preview take.png
    longtake motion "a person walks" --seconds 8 --out walk.glb --out walk.html --out walk.mp4

Beside the first file OUT.bvh stands OUT.run/, the run's record: checkpoints while it works.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.timeline import Timeline

DEFAULT_PRIOR = "bandai-small"
STEPS = 20
SUFFIXES = (".bvh", ".glb", ".npz", ".csv", ".html", ".mp4", ".gif")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake motion``."""
    parser.add_argument("prompt", help='text, a Timeline "0s: walks | 4s: waves", or a .json or .csv file of one')
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=None, help="length (default: the last prompt gets 4 s)")
    length.add_argument("--frames", type=int, default=None, help="length in frames of the prior, 20 a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"denoising steps (default {STEPS})")
    parser.add_argument("--guidance", type=float, default=2.5, help="classifier-free guidance, 1 switches it off")
    parser.add_argument("--handshake", type=int, default=20, help="frames that neighbouring prompts share (default 20)")
    parser.add_argument("--take2", choices=("release", "paper"), default=None, help="second take at the transitions")
    parser.add_argument("--chunk-rows", type=int, default=16, help="rows of one call of the net; memory grows with it")
    parser.add_argument("--prior", default=DEFAULT_PRIOR, help=f"a shipped prior or a local folder ({DEFAULT_PRIOR})")
    parser.add_argument("--people", type=int, choices=(1, 2), default=1, help="2: two people who see each other")
    parser.add_argument("--pair-block", default=None, metavar="NAME", help="their block: a shipped one or a folder")
    parser.add_argument("--path", default=None, metavar="POINTS", help='floor points to walk along: "0,0 2,1 4,0" (m)')
    parser.add_argument("--lock-feet", action="store_true", help="standing feet do not slide; prints what it cost")
    parser.add_argument("--unit", choices=("m", "cm"), default="m", help=".bvh in m (Blender, Unity) or cm (Maya)")
    kinds = ", ".join(SUFFIXES)
    parser.add_argument("--out", type=Path, action="append", help=f"a file to write, as often as wanted: {kinds}")
    parser.add_argument("--preview", type=Path, default=None, help="contact sheet, a png file")
    parser.add_argument("--report", type=Path, default=None, help="jerk and foot skate at each change: .json")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> int:
    """Make the motion; every mistake of the user is found before anything is written."""
    from longtake.errors import UserError
    from longtake.media import check_output
    from longtake.timeline import Timeline

    outs = args.out or [Path("motion.bvh")]
    if args.steps < 1:
        raise UserError(f"--steps must be at least 1, got {args.steps}")
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    if args.frames is not None and args.frames < 2:
        raise UserError(f"--frames must be at least 2, got {args.frames}")
    if args.seconds is not None and not args.seconds > 0:
        raise UserError(f"--seconds must be greater than 0, got {args.seconds}")
    if args.resume and args.overwrite:
        raise UserError("--resume goes on with a run and --overwrite begins anew: give one of them")
    if args.pair_block is not None and args.people == 1:
        raise UserError("--pair-block needs --people 2")
    if args.people == 2:
        for given, name in ((args.path, "--path"), (args.take2, "--take2"), (args.resume, "--resume")):
            if given:
                raise UserError(f"--people 2 knows no {name}")
    timeline = Timeline.parse(args.prompt, fps=20.0)
    resumed = args.resume and all(path.exists() for path in outs)
    for path in outs:
        check_output(path, SUFFIXES, args.overwrite or args.resume)
    if args.preview is not None:
        check_output(args.preview, (".png",), args.overwrite or args.resume)
    if args.report is not None:
        check_output(args.report, (".json",), args.overwrite or args.resume)
    points = None if args.path is None else _points(args.path)
    if resumed:
        print(f"{', '.join(map(str, outs))}: complete, nothing to resume")
        return 0

    from longtake.distributed import setup

    return _run(args, outs, timeline, points, setup())


def _points(text: str) -> list[tuple[float, float]]:
    """Floor points (x, z) in metres of "x,z x,z ..."."""
    from longtake.errors import UserError

    try:
        points = [(float(x), float(z)) for x, z in (part.split(",") for part in text.split())]
    except ValueError:
        points = []
    if len(points) < 2:
        raise UserError(f'--path needs at least two points "x,z x,z ..." in metres, got {text!r}')
    return points


def _run(
    args: argparse.Namespace,
    outs: list[Path],
    timeline: Timeline,
    points: list[tuple[float, float]] | None,
    ranks: Ranks,
) -> int:
    from longtake.errors import UserError
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.runs import close_run, open_run, quiet_libraries, stop_on_interrupt

    quiet_libraries()
    print(ranks.choice.line)
    pipe = LongMotionPipeline.from_prior(args.prior, dtype=ranks.choice.dtype)
    pipe.to(ranks.device)
    pipe.set_progress_bar_config(desc="denoising", mininterval=0.5)
    fps = float(pipe.space.config.fps)
    frames = args.frames if args.seconds is None else max(2, round(args.seconds * fps))
    settings: dict[str, Any] = {
        "seed": args.seed,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "handshake": args.handshake,
        "chunk_rows": args.chunk_rows,
    }
    if frames is not None:
        timeline.validate(frames)
    prepared, _ = pipe.prepare(timeline, frames, **settings)  # refuses what the pipeline would refuse
    if points is not None:
        settings["control"] = pipe.path_control(points, prepared.plan.total)

    folder = outs[0].with_suffix(".run")
    journal = None
    if args.people == 2:
        from longtake.motion.pair.pipeline import DEFAULT_BLOCK, load_block

        if ranks.world > 1:
            raise UserError("--people 2 runs in one process")
        block = load_block(pipe, args.pair_block or DEFAULT_BLOCK)
        with stop_on_interrupt(pipe):
            output = pipe.pair(timeline, frames, block=block, **settings)
    else:
        plan = _plan(args, pipe, timeline, prepared.plan.total, ranks)
        journal = open_run(folder, plan, ranks, resume=args.resume, overwrite=args.overwrite)
        with stop_on_interrupt(pipe):
            output = pipe(timeline, frames, take2=args.take2, ranks=ranks, journal=journal, **settings)
    if ranks.is_main:
        output.unit = args.unit
        if args.lock_feet:
            print(output.lock_feet().text())
        if args.report is not None:
            output.seams().save(args.report, overwrite=args.overwrite or args.resume)
        for path in outs:
            output.save(path, overwrite=args.overwrite or args.resume)
        if args.preview is not None:
            output.preview(args.preview, overwrite=args.overwrite or args.resume)
        if journal is not None:
            close_run(journal, folder, output.info)
        info = output.info
        ending = "" if info["completed"] else f" (stopped after step {info['steps']} of {args.steps})"
        long = f"{info['frames']} frames, {info['frames'] / fps:.1f} s at {fps:g} fps"
        print(f"wrote {', '.join(map(str, outs))}: {long}, made in {info['seconds']:.0f} s{ending}")
    ranks.barrier()
    return 0


def _plan(
    args: argparse.Namespace, pipe: LongMotionPipeline, timeline: Timeline, frames: int, ranks: Ranks
) -> dict[str, Any]:
    """All that decides the result, and nothing else: a run may go on with another number of ranks or another name."""
    from longtake.weights import WEIGHT_SUFFIXES, file_hash, resolve

    weights = None
    if ranks.is_main:
        folder = resolve(str(args.prior), kind="motion prior", priors_package="longtake.motion")
        weights = file_hash(folder, WEIGHT_SUFFIXES)
    return {
        "domain": "motion",
        "prior": str(args.prior),
        "weights": ranks.broadcast_object(weights),
        "timeline": timeline.to_json(),
        "frames": frames,
        "seed": args.seed,
        "steps": args.steps,
        "guidance": args.guidance,
        "handshake": args.handshake,
        "take2": args.take2,
        "path": args.path,
    }
