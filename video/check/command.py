"""Look through a film of any generator: seams, loops, freezes, drift of colour and sharpness, flicker.

longtake check film.mp4 --out report.json --picture check.png
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from longtake.errors import UserError

ABOUT = "look through any film: seams, loops, freezes, drift, flicker"
_CODES = (
    "Exit code: 0 nothing found, 1 something found, 2 an error (the film cannot be read, a file cannot be written)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("film", type=Path, help="a film file: mp4, webm, mov, mkv, gif, ...")
    parser.add_argument("--out", dest="report", type=Path, metavar="FILE.json", help="write the report as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the curves with the findings marked")
    parser.add_argument(
        "--allow", default="", metavar="KINDS",
        help="kinds that are wanted, with commas: cut, seam, loop, freeze, drift, flicker (cut: an edited film)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names")
    parser.epilog = _CODES


def run(args: argparse.Namespace) -> int:
    """Check the film; 0 when nothing was found, 1 when something was, 2 when it could not be checked."""
    try:
        return _run(args)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception:  # 1 would say that something was found
        traceback.print_exc()
        return 2


def _run(args: argparse.Namespace) -> int:
    from longtake.media import check_outputs
    from longtake.progress import Progress
    from longtake.video.check.report import check_film

    targets = [path for path in (args.report, args.picture) if path is not None]
    for path, suffix in ((args.report, ".json"), (args.picture, ".png")):
        if path is not None:
            check_outputs([path], (suffix,), args.overwrite)
    check_outputs(targets, (".json", ".png"), args.overwrite)
    allow = [name.strip() for name in args.allow.split(",") if name.strip()]
    with Progress("reading", unit="frame") as progress:

        def on_frame(done: int, of: int) -> None:
            if of and (done == of or done % 16 == 0):
                progress.at(done, of)
            elif not of and done % 1000 == 0 and sys.stderr.isatty():
                progress.say(f"{done} frames")

        report = check_film(args.film, allow=allow, on_frame=on_frame)
    print(report.table())
    if args.report is not None:
        report.write_json(args.report, args.overwrite)
    if args.picture is not None:
        from longtake.video.check.picture import draw_report

        draw_report(report, args.picture, args.overwrite)
    return 0 if report.clean else 1
