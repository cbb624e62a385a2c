"""``longtake <modality>``: one request from the command line, alike for every modality and under torchrun.

    longtake motion "0s: a person walks | 4s: waves" --out take.bvh --out take.glb --preview take.png
    torchrun --nproc_per_node 2 -m longtake video "a barbarian runs" --frames 240 --out running.mp4

Beside the first file stands its record, running.mp4.run/: checkpoints while it works, and what later runs start from.
Exit codes: 0 made, 2 a mistake (one line, nothing written), 130 stopped: what there is stands in
NAME.unfinished.SUFFIX, and ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from longtake.domain import Domain
from longtake.errors import UserError

STOPPED = 130
LONGEST_NAME = 240  # bytes: what stands beside a result has its name and an ending more


def add_arguments(parser: Any, domain: Domain) -> None:
    """The options of a domain: its knobs, its files, and those of every request."""
    for item in domain.INPUTS:
        if item.positional:
            parser.add_argument(item.name, type=Path, metavar=item.metavar, help=item.help)
    if domain.PROMPT is not None:
        parser.add_argument("prompt", nargs="?" if domain.PROMPT_INPUT else None, help=domain.PROMPT)
    for knob in domain.KNOBS:
        knob.add_to(parser)
    parser.add_argument("--seed", type=int, default=0, help="another seed, another take (default 0)")
    for item in domain.INPUTS:
        if not item.positional:
            parser.add_argument(item.option, type=Path, default=None, metavar=item.metavar, help=item.help)
    kinds = ", ".join(suffix or "a folder of png files" for suffix in domain.file_kinds())
    said = f"a file to write, as often as wanted: {kinds} (default {domain.OUT})"
    parser.add_argument("--out", type=Path, action="append", help=said)
    for side in domain.SIDES:
        metavar = f"FILE{side.suffix}"
        parser.add_argument(side.option, type=Path, default=None, metavar=metavar, help=side.help)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--device", default=None, help="as torch names it (default: the best; LONGTAKE_DEVICE wins)")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16, float16 (default: by device)")


def run(args: argparse.Namespace, domain: Domain) -> int:
    """Make the request; every mistake is found before anything is written."""
    from longtake.media import check_outputs
    from longtake.request import Request
    from longtake.weights import hub_is_offline

    if args.resume and args.overwrite:
        raise UserError("--resume goes on with a run and --overwrite begins anew: give one of them")
    outs = tuple(args.out or [Path(domain.OUT)])
    sides = {side.name: getattr(args, side.name) for side in domain.SIDES if getattr(args, side.name) is not None}
    suffixes = []
    for path in outs:
        suffix = domain.suffix_of(path)
        if suffix is None:
            kinds = ", ".join(suffix or "a folder" for suffix in domain.file_kinds())
            raise UserError(f"cannot write {path}: a {domain.NAME} file is one of {kinds}")
        suffixes.append(suffix)
    given = {item.name: getattr(args, item.name) for item in domain.INPUTS}
    request = Request.make(
        domain,
        getattr(args, "prompt", None),
        seed=args.seed,
        settings={knob.name: getattr(args, knob.name) for knob in domain.KNOBS},
        inputs={name: path for name, path in given.items() if path is not None},
        outputs=tuple(suffixes),
        sides=tuple(sides),
    )
    allowed = args.overwrite or args.resume
    endings = [*domain.file_kinds(), *(side.suffix for side in domain.SIDES)]
    check_outputs([*outs, *sides.values()], endings, allowed)
    for name, path in sides.items():
        if not path.name.lower().endswith(domain.side(name).suffix):
            raise UserError(f"{domain.side(name).option} is a {domain.side(name).suffix} file, got {path}")
    for path in outs:
        if len(path.name.encode(errors="replace")) > LONGEST_NAME:
            raise UserError(f"cannot write {path.name[:40]}...: the name is longer than {LONGEST_NAME} bytes")
    if hub_is_offline():
        domain.weights(request)  # what is nowhere is said before torch is imported
    domain.forecast(request)  # refuses what cannot be made

    from longtake.device import parse_device, parse_dtype
    from longtake.make import Targets

    device, dtype = parse_device(args.device), parse_dtype(args.dtype)

    from longtake.distributed import setup

    targets = Targets(outs, sides, outs[0].with_name(outs[0].name + ".run"))
    return _make(request, targets, setup(device=device, dtype=dtype), args.resume, args.overwrite)


def _make(request: Any, targets: Any, ranks: Any, resume: bool, overwrite: bool) -> int:
    from longtake.make import Maker, on_interrupt
    from longtake.progress import Progress

    print(ranks.choice.line)
    asked: list[bool] = []
    with Progress("making", visible=ranks.is_main) as progress, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: progress.say(f"note: {message}")

        def on_step(done: int, of: int, _: Any) -> bool:
            progress.at(done, of)
            return bool(asked)

        with on_interrupt("stopping after this step", lambda: asked.append(True)):
            made = Maker(ranks).make(
                request,
                targets,
                resume=resume,
                overwrite=overwrite,
                on_step=on_step,
                say=lambda text: progress.say(f"note: {text}"),
            )
    names = ", ".join(str(path) for path in made.files)
    if made.output is None:
        print(f"{names}: complete, nothing to resume")
    elif made.complete:
        for line in made.output.info.get("told", []):
            print(line)
        print(f"wrote {names}: {_amount(request, made.output)}, made in {made.seconds:.0f} s")
    else:
        steps = made.output.info.get("steps")
        print(f"stopped after step {steps}: wrote {names}; the same command with --resume goes on")
    ranks.barrier()
    return 0 if made.complete else STOPPED


def _amount(request: Any, output: Any) -> str:
    """How long the result is, in words."""
    frames, fps = output.info.get("frames"), getattr(output, "fps", None)
    if frames is None or not fps:
        return str(request.domain.forecast(request).amount)
    return f"{frames} frames, {frames / fps:.1f} s at {fps:g} fps"
