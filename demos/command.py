"""``longtake demo``: a page in the browser for every modality, offline, on the priors that ship.

    longtake demo
    longtake demo --host 0.0.0.0 --auth ann:a-long-password --output results/

One run at a time; others see their place in the queue. Nothing leaves this machine. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path

from longtake.errors import UserError, explain_disk_errors

PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake demo``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT}); 0 takes a free one")
    parser.add_argument("--auth", default=None, metavar="USER:PASSWORD", help="login, a must for other hosts")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="keep a copy of every result here")


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
    from longtake.demos.app import serve

    print("starting the page…", file=sys.stderr)
    serve(args.host, args.port, auth, args.output)
    return 0


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
