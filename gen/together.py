"""``longtake train all``: every recipe side by side on one device, for a machine that is lent for minutes.

A domain whose ``train.py`` has ``whole(prepared, minutes, out)`` takes part: it names the commands that train its
priors, one after the other, in that time. Each domain's commands run in processes of their own; what they say goes to
``OUT/<domain>/log.txt``, their priors, sheets and stop figures to ``OUT/<domain>``. A rerun resumes.

    longtake train all --data DATA --prepare DIR           # DIR/<domain>.prepared, on the machine that has the data
    longtake train all --prepared DIR --minutes 9 --out OUT
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from longtake.domain import domain_of, installed
from longtake.errors import UserError
from longtake.records import read

SHOW_EVERY = 20.0  # seconds between two lines of what has been reached
PREPARED = ".prepared"
Whole = Callable[[Path, float, Path], list[list[str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train all``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prepared", type=Path, metavar="DIR", help="folder with <domain>.prepared of each domain")
    source.add_argument("--data", type=Path, help="folder with a folder of training data for each domain")
    parser.add_argument(
        "--prepare", type=Path, metavar="DIR", help="with --data: write the prepared files here, and end"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="how long all of it takes (9)")
    parser.add_argument("--out", type=Path, default=Path("runs/train-all"), help="a folder for each domain")


def recipes() -> dict[str, Whole]:
    """Domain -> its ``whole``, of those that have one."""
    found = {}
    for name in installed():
        module = f"{domain_of(name).package}.train"
        if find_spec(module) is not None and hasattr(import_module(module), "whole"):
            found[name] = import_module(module).whole
    return found


def run(args: argparse.Namespace) -> int:
    """Prepare or train every domain; returns 1 when one of them failed, after the others have ended."""
    if not (math.isfinite(args.minutes) and args.minutes > 0):
        raise UserError(f"--minutes must be a number of minutes above 0, got {args.minutes}")
    known = recipes()
    if (args.data is None) != (args.prepare is None):
        raise UserError("longtake train all takes --prepared DIR, or --data DIR and --prepare DIR together")
    if args.data is not None:
        chains = {
            name: [["train", name, "--data", str(args.data / name), "--prepare", str(args.prepare / (name + PREPARED))]]
            for name in known
        }
        return _side_by_side(chains, args.prepare)
    files = {name: args.prepared / (name + PREPARED) for name in known}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"no prepared data at {', '.join(missing)}: longtake train all --data DATA --prepare DIR")
    chains = {name: whole(files[name], args.minutes, args.out / name) for name, whole in known.items()}
    code = _side_by_side(chains, args.out)
    for name in known:
        for path in sorted((args.out / name).glob("stop*.json")):
            told = {key: value for key, value in json.loads(path.read_text()).items() if not isinstance(value, dict)}
            print(f"{name}, {path.stem}: {json.dumps(told)}")
    return code


def _side_by_side(chains: dict[str, list[list[str]]], out: Path) -> int:
    """Run each domain's commands one after the other, the domains at the same time."""
    started = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}

    def follow(name: str) -> int:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "ab") as log:
            for words in chains[name]:
                code = _one(name, words, log, running)
                if code:
                    return code
        return 0

    # a scheduler ends a job with SIGTERM: the trainings must not outlive this process
    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number)) if mine else None
    with ThreadPoolExecutor(max(1, len(chains))) as pool:
        waiting = {name: pool.submit(follow, name) for name in chains}
        try:
            while not all(task.done() for task in waiting.values()):
                wait(waiting.values(), timeout=SHOW_EVERY)
                print(f"{time.monotonic() - started:5.0f} s  {_reached(out, chains)}", flush=True)
        except BaseException:
            for process in running.values():
                process.terminate()
            raise
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
    codes = {name: task.result() for name, task in waiting.items()}
    for name, code in codes.items():
        if code:
            last = (out / name / "log.txt").read_text(errors="replace").strip().splitlines()[-8:]
            print(f"{name} failed (exit code {code}); the end of {out / name / 'log.txt'}:\n  " + "\n  ".join(last))
    return 1 if any(codes.values()) else 0


def _one(name: str, words: list[str], log: IO[bytes], running: dict[str, subprocess.Popen[bytes]]) -> int:
    log.write(("longtake " + " ".join(words) + "\n").encode())
    log.flush()
    running[name] = subprocess.Popen([sys.executable, "-m", "longtake", *words], stdout=log, stderr=subprocess.STDOUT)
    return running[name].wait()


def _reached(out: Path, chains: dict[str, list[list[str]]]) -> str:
    """The last line of each record, in short."""
    parts = []
    for name in chains:
        records = sorted((out / name).glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        if not records:
            parts.append(f"{name}: starting")
            continue
        rows = list(read(records[-1]))
        last = rows[-1] if rows else {}
        shown = ", ".join(f"{key} {value:.4g}" for key, value in last.items() if key not in ("rate", "seconds"))
        parts.append(f"{name}: {records[-1].stem} {shown}")
    return " | ".join(parts)
