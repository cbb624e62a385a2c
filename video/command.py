"""``longtake video``: a prompt or a Timeline in, one mp4 of any length out; alike under torchrun.

    longtake video "person running" --frames 240 --out running.mp4 --preview running.png
    longtake video "0s: a dog | 6s: a cat" --frames 144 --out pets.mp4
    longtake video "someone swims" --extend running.mp4 --frames 120 --out longer.mp4
    torchrun --nproc_per_node 2 -m longtake video "person running" --frames 240 --out running.mp4

Beside OUT.mp4 stands OUT.run/, the run's record: checkpoints while it works, the clean latents when it is done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from longtake.distributed import Ranks
    from longtake.timeline import Timeline
    from longtake.video.pipeline import Context, LongVideoPipeline
    from longtake.video.scope import Scope

LATENTS = "latents.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake video``."""
    parser.add_argument("prompt", help='text, a Timeline "0s: a dog | 4s: a cat", or a .json or .csv file of one')
    parser.add_argument("--frames", type=int, default=240, help="frames to make (default 240)")
    parser.add_argument("--fps", type=float, default=12.0, help="frames per second of the file and the Timeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16, help="denoising steps (default 16)")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance, 1 switches it off")
    parser.add_argument("--negative", default="", help="what the video should not show")
    parser.add_argument(
        "--prior", default=None, help="a shipped prior, a local folder or a Hub id (default emoji-small)"
    )
    parser.add_argument("--base", default=None, help="pipeline that lends a bare UNet its text encoder and autoencoder")
    parser.add_argument("--height", type=int, default=None, help="pixels (default: as the prior was trained)")
    parser.add_argument("--width", type=int, default=None, help="pixels (default: as the prior was trained)")
    parser.add_argument("--window", type=int, default=None, help="frames seen on each side of a frame (default 8)")
    parser.add_argument("--global-frames", type=int, default=16, help="frames seen by every frame (default 16)")
    parser.add_argument(
        "--gate", choices=("soft", "hard", "off"), default="off", help="window and global frames by turns"
    )
    parser.add_argument("--noise", choices=("independent", "freenoise"), default="independent", help="initial noise")
    parser.add_argument("--out", type=Path, default=Path("video.mp4"), help="mp4, gif, or a folder of png files")
    parser.add_argument("--preview", type=Path, default=None, help="contact sheet, a png file")
    parser.add_argument("--save-latents", type=Path, default=None, metavar="FILE.safetensors", help="clean latents")
    parser.add_argument(
        "--extend", type=Path, default=None, metavar="RUN", help="add frames to a run: its mp4 or latents"
    )
    parser.add_argument("--redo", default=None, metavar="A:B", help="make frames A to B-1 of --extend RUN anew")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> int:
    """Make the video; every mistake of the user is found before anything is written."""
    from longtake.errors import UserError
    from longtake.media import check_output
    from longtake.timeline import Timeline

    if args.frames < 1:
        raise UserError(f"--frames must be at least 1, got {args.frames}")
    if not args.fps > 0:
        raise UserError(f"--fps must be greater than 0, got {args.fps}")
    if args.steps < 1:
        raise UserError(f"--steps must be at least 1, got {args.steps}")
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    if args.redo is not None and args.extend is None:
        raise UserError("--redo needs --extend RUN: the run whose frames are to be made anew")
    if args.resume and args.overwrite:
        raise UserError("--resume goes on with a run and --overwrite begins anew: give one of them")
    timeline = Timeline.parse(args.prompt, fps=args.fps)
    resumed = args.resume and args.out.exists()
    check_output(args.out, (".mp4", ".gif", ""), args.overwrite or resumed)
    for path, suffix in ((args.preview, ".png"), (args.save_latents, ".safetensors")):
        if path is not None:
            check_output(path, (suffix,), args.overwrite or args.resume)
    if resumed:
        print(f"{args.out} is complete: nothing to resume")
        return 0

    from longtake.distributed import setup

    return _run(args, timeline, setup())


def _run(args: argparse.Namespace, timeline: Timeline, ranks: Ranks) -> int:
    from longtake.runs import close_run, open_run, quiet_libraries, stop_on_interrupt
    from longtake.video.pipeline import DEFAULT_PRIOR, LongVideoPipeline

    quiet_libraries()
    context, recorded = (None, {}) if args.extend is None else read_run(args.extend)
    prior = args.prior or recorded.get("prior") or DEFAULT_PRIOR
    print(ranks.choice.line)
    pipe = LongVideoPipeline.from_prior(prior, dtype=ranks.choice.dtype, base=args.base)
    pipe.to(ranks.device)
    pipe.set_progress_bar_config(desc="denoising", mininterval=0.5)
    where = None if context is None else _context(args, context)
    scope = _scope(args, where)
    _check(args, pipe, timeline, where, scope, ranks)

    folder = args.out.with_suffix(".run")
    plan = _plan(args, pipe, prior, timeline, where, scope, ranks)
    journal = open_run(folder, plan, ranks, resume=args.resume, overwrite=args.overwrite, result=LATENTS)
    with stop_on_interrupt(pipe):
        output = pipe(
            timeline,
            args.frames,
            seed=args.seed,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            negative_prompt=args.negative,
            fps=args.fps,
            height=args.height,
            width=args.width,
            scope=scope,
            initial_noise=args.noise,
            context=where,
            ranks=ranks,
            journal=journal,
            output_type="stream",
        )
    print(output.info["run"])
    if not ranks.is_main:
        for _ in output.chunks():
            pass
        ranks.barrier()
        return 0
    note = {
        "prior": str(prior),
        "fps": args.fps,
        "prompt": args.prompt,
        "seed": args.seed,
        "steps": output.info["steps"],
    }
    assert output.latents is not None
    save_latents(folder / LATENTS, output.latents, note)
    if args.save_latents is not None:
        save_latents(args.save_latents, output.latents, note)
    output.save(args.out, overwrite=args.overwrite, preview=args.preview)
    ranks.barrier()
    close_run(journal, folder, output.info)
    frames, seconds = output.info["frames"], output.info["frames"] / args.fps
    ending = "" if output.info["completed"] else f" (stopped after step {output.info['steps']} of {args.steps})"
    made = f"made in {output.info['seconds']:.0f} s{ending}"
    print(f"wrote {args.out}: {frames} frames, {seconds:.1f} s at {args.fps:g} fps, {made}")
    return 0


def _scope(args: argparse.Namespace, context: Context | None) -> Scope:
    from longtake.video.pipeline import CONTEXT_FRAMES, default_scope
    from longtake.video.scope import Scope

    total = args.frames if context is None else len(context.window(CONTEXT_FRAMES))
    window = default_scope(total).window if args.window is None else args.window
    bias = 10.0 if args.gate == "soft" else 0.0
    return Scope(window=window, global_frames=args.global_frames, gate=args.gate, bias=bias)


def _context(args: argparse.Namespace, latents: torch.Tensor) -> Context:
    from longtake.errors import UserError
    from longtake.video.pipeline import Context

    if args.redo is None:
        return Context.extend(latents, args.frames)
    first, colon, last = args.redo.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise UserError(f"--redo wants two frame numbers A:B, got {args.redo!r}")
    return Context.redo(latents, int(first), int(last))


def _check(
    args: argparse.Namespace,
    pipe: LongVideoPipeline,
    timeline: Timeline,
    context: Context | None,
    scope: Scope,
    ranks: Ranks,
) -> None:
    """What the pipeline would refuse, before a run folder is made."""
    from longtake.denoising import check_scheduler
    from longtake.video.pipeline import CONTEXT_FRAMES, check_frames

    check_scheduler(pipe.scheduler)
    pipe.latent_shape(args.height, args.width)
    new = args.frames if context is None else context.stop - context.start
    check_frames(new if context is None else len(context.window(CONTEXT_FRAMES)), ranks.world, scope, None, new=new)
    timeline.validate(new)


def _plan(
    args: argparse.Namespace,
    pipe: Any,
    prior: str,
    timeline: Timeline,
    context: Context | None,
    scope: Scope,
    ranks: Ranks,
) -> dict[str, Any]:
    """All that decides the result, and nothing else: a run may go on with another number of ranks or another name."""
    import hashlib
    from dataclasses import asdict

    from longtake.video.convert import find_base, is_bare_unet
    from longtake.weights import WEIGHT_SUFFIXES, file_hash, resolve

    weights = None
    if ranks.is_main:
        folders = [resolve(str(prior), kind="video prior", priors_package="longtake.video")]
        if is_bare_unet(folders[0]):
            folders.append(find_base(args.base, str(prior)))
        weights = [file_hash(folder, WEIGHT_SUFFIXES) for folder in folders]
    plan = {
        "domain": "video",
        "prior": str(prior),
        "weights": ranks.broadcast_object(weights),
        "timeline": timeline.to_json(),
        "frames": args.frames,
        "seed": args.seed,
        "steps": args.steps,
        "guidance": args.guidance,
        "negative": args.negative,
        "size": list(pipe.latent_shape(args.height, args.width)),
        "scope": {key: str(value) for key, value in asdict(scope).items()},
        "noise": args.noise,
    }
    if context is not None:
        kept = hashlib.sha256(context.latents.contiguous().numpy().tobytes()).hexdigest()
        plan["context"] = {"latents": kept, "start": context.start, "stop": context.stop}
    return plan


def save_latents(path: Path, latents: torch.Tensor, note: dict[str, Any]) -> None:
    """Clean latents (F, c, h, w) with the facts that ``--extend`` needs, as safetensors, atomically."""
    from longtake.journal import write_tensors

    write_tensors(path, {"latents": latents}, {"longtake": json.dumps(note)})


def read_run(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Latents (F, c, h, w) and the note of an earlier run, from its mp4, its .run folder or a latents file.

    Raises UserError when there is no such run or its latents are missing or damaged.
    """
    from longtake.errors import UserError
    from longtake.weights import load_state
    from safetensors import safe_open

    file = path
    if path.suffix != ".safetensors":
        folder = path if path.is_dir() and (path / LATENTS).exists() else path.with_suffix(".run")
        file = folder / LATENTS
    if not file.is_file():
        raise UserError(f"there is no run at {path}: expected {file}")
    state = load_state(file)
    if "latents" not in state or state["latents"].ndim != 4:
        raise UserError(f"{file} holds no latents of a run (F, c, h, w)")
    with safe_open(file, framework="pt") as opened:
        note = json.loads((opened.metadata() or {}).get("longtake", "{}"))
    return state["latents"].float(), note
