"""Show on this machine that a checkpoint of a video transformer is served exactly, and how fast.

longtake verify /models/Wan2.1-T2V-1.3B-Diffusers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake.distributed import Ranks

ABOUT = "show that a checkpoint of a video transformer is served: class, preset, exactness, speed"
_CODES = "Exit code: 0 all good, 1 a check failed, 2 the checkpoint cannot be loaded or is not served."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", help="a local folder in diffusers' layout, or a repository that is in the cache")
    parser.add_argument("--frames", type=int, default=9, metavar="N", help="latent frames of the call (default 9)")
    parser.add_argument("--height", type=int, metavar="N", help="pixels (default: the preset's)")
    parser.add_argument("--width", type=int, metavar="N", help="pixels (default: the preset's)")
    parser.add_argument("--length", type=int, metavar="N", help="training length in latent frames, without a preset")
    parser.add_argument("--device", help="as torch names it (default: the best; LONGTAKE_DEVICE wins)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the device's)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the findings as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of this name")
    parser.epilog = _CODES


def run(args: argparse.Namespace) -> int:
    """Print the findings as they come; 0 when all are good, 1 otherwise."""
    from longtake.errors import UserError
    from longtake.media import check_outputs
    from longtake.weights import hub_is_offline, resolve

    if args.out is not None:
        if args.out.suffix.lower() != ".json":
            raise UserError(f"--out must end in .json, got {args.out}")
        check_outputs([args.out], (".json",), args.overwrite)
    if hub_is_offline():
        resolve(args.folder, kind="video prior", priors_package="longtake.video")

    from longtake.device import parse_device, parse_dtype
    from longtake.distributed import setup

    with setup(device=parse_device(args.device), dtype=parse_dtype(args.dtype)) as ranks:
        return _run(args, ranks)


def _run(args: argparse.Namespace, ranks: Ranks) -> int:
    from longtake.errors import UserError
    from longtake.journal import atomic_path
    from longtake.video.dit.verify import as_json, verify
    from longtake.video.pipeline import LongVideoPipeline

    pipe = LongVideoPipeline.from_prior(args.folder, dtype=ranks.choice.dtype, length=args.length)
    if not hasattr(pipe, "record"):
        raise UserError(f"{args.folder} is a UNet: verify is for video transformers")
    pipe.to(ranks.device)
    lines = []
    for line in verify(pipe, ranks, frames=args.frames, height=args.height, width=args.width):
        lines.append(line)
        if ranks.is_main:
            mark = {True: "ok  ", False: "FAIL", None: "    "}[line.good]
            print(f"{mark} {line.what:<22} {line.found}", flush=True)
    if args.out is not None and ranks.is_main:
        with atomic_path(args.out) as path:
            path.write_text(json.dumps(as_json(lines), indent=1) + "\n")
    return 1 if any(line.good is False for line in lines) else 0
