"""``longtake demo``: a page in the browser for every modality, offline, on the priors that ship.

    longtake demo
    longtake demo --host 0.0.0.0 --auth ann:a-long-password --output results/
    longtake demo --set video.prior=models/wan --set video.fps=16 --set video.steps=50

One run at a time; others see their place in the queue. Nothing leaves this machine. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

from longtake.errors import UserError, explain_disk_errors

PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake demo``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT}); 0 takes a free one")
    parser.add_argument("--auth", default=None, metavar="USER:PASSWORD", help="login, a must for other hosts")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="keep a copy of every result here")
    parser.add_argument(
        "--set", action="append", default=[], metavar="MODALITY.NAME=VALUE",
        help="a setting for all runs of the page, as the modality's command spells it: --set video.prior=FOLDER",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C. Raises UserError before anything slow is loaded."""
    auth = login(args.auth if args.auth is not None else os.environ.get("LONGTAKE_DEMO_AUTH"))
    if not is_local(args.host) and auth is None:
        raise UserError(f"--host {args.host} lets others in: give --auth USER:PASSWORD too")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is 0 to 65535, got {args.port}")
    if args.output is not None:
        with explain_disk_errors(args.output):
            args.output.mkdir(parents=True, exist_ok=True)
    settings = read_pairs(args.set)
    from longtake.demos.app import serve

    print("starting the page…", file=sys.stderr)
    serve(args.host, args.port, auth, args.output, settings)
    return 0


def read_pairs(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """Settings by modality of "video.steps=50"; each is checked. Raises UserError."""
    from longtake.domain import domain_of

    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        left, equals, word = pair.partition("=")
        modality, dot, name = left.partition(".")
        if not (equals and dot and modality and name):
            raise UserError(f"--set is MODALITY.NAME=VALUE, as video.steps=50; got {pair!r}")
        knob = domain_of(modality).knob(name.replace("-", "_"))
        if knob is None:
            known = ", ".join(knob.name for knob in domain_of(modality).KNOBS)
            raise UserError(f"{modality} has no setting {name!r}; it has {known}")
        found.setdefault(modality, {})[knob.name] = knob.from_word(word)
    return found


def login(text: str | None) -> tuple[str, str] | None:
    """(user, password) of "user:password". Raises UserError."""
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise UserError("--auth is USER:PASSWORD, both with at least one letter")
    return user, password


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
