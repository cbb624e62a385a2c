"""The command line: `longtake`, `python -m longtake`, `torchrun -m longtake`.

A domain brings its own options: <domain>/command.py, train.py and evaluate.py each define
    add_arguments(parser: argparse.ArgumentParser) -> None      and      run(args: argparse.Namespace) -> int
and are imported only when their sub-command is asked for, so `longtake --help` imports neither them nor torch.

Exit codes: 0 done; 1 an unexpected error (its traceback is shown); 2 a mistake of the user (one line); 75 another rank
failed; 130 interrupted. Of several ranks only rank 0 prints to standard output and tells of a user's mistake.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

from longtake.errors import UserError, one_line

# Domains by name; one is offered when its package is installed.
DOMAINS = {
    "video": "make a long video from prompts",
    "motion": "make long human motion from prompts",
    "speech": "read a text aloud",
    "medical": "make longitudinal scans (synthetic)",
}
_TASKS = {"train": "train a prior on your data", "evaluate": "measure a prior on held-out data"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors: one line, as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    rank = int(os.environ.get("RANK") or 0)
    standard_output = sys.stdout
    silence = None
    if rank != 0:
        silence = open(os.devnull, "w")
        sys.stdout = silence
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        _end_ranks(code)
        return code
    except UserError as error:
        _tell_ranks(error)
        if rank == 0:
            print(f"longtake: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        _tell_ranks(error)
        if rank == 0:
            print("longtake: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        _tell_ranks(error)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout = standard_output
        if silence is not None:
            silence.close()


def installed_domains() -> list[str]:
    """Names of the domains whose packages are installed."""
    return [name for name in DOMAINS if find_spec(f"longtake.{name}") is not None]


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in DOMAINS:
        return _run_module(f"longtake {argv[0]}", argv[0], "command", argv[1:])
    if argv and argv[0] in _TASKS:
        return _run_task(argv[0], argv[1:])
    if argv and argv[0] == "batch":
        return _run("longtake batch", import_module("longtake.batch"), argv[1:])
    if argv and argv[0] == "demo" and find_spec("longtake.demos") is not None:
        return _run("longtake demo", import_module("longtake.demos.command"), argv[1:])
    parser = Parser(prog="longtake", description="Long takes from short-clip generators.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in installed_domains():
        commands.add_parser(name, help=DOMAINS[name], add_help=False)
    for name, text in _TASKS.items():
        commands.add_parser(name, help=f"{text}: longtake {name} {{{','.join(installed_domains())}}}", add_help=False)
    commands.add_parser("batch", help="make many jobs of a manifest, on one rank or many", add_help=False)
    if find_spec("longtake.demos") is not None:
        commands.add_parser("demo", help="a page in the browser: video, motion and kernels", add_help=False)
    commands.add_parser("info", help="versions, devices and why, attention backends, priors found")
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    if args.version:
        from importlib.metadata import version

        print(f"longtake {version('longtake')}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    return _info()


def _run_task(task: str, argv: list[str]) -> int:
    domains = installed_domains()
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: longtake {task} {{{','.join(domains)}}} ...   (longtake {task} {domains[0]} --help)")
        if not argv:
            raise UserError(f"longtake {task} needs a domain: {', '.join(domains)}")
        return 0
    return _run_module(f"longtake {task} {argv[0]}", argv[0], task, argv[1:])


def _run_module(prog: str, domain: str, name: str, argv: list[str]) -> int:
    """Parse `argv` with the options of longtake.<domain>.<name> and run it."""
    if domain not in installed_domains():
        raise UserError(f"no domain {domain!r} is installed; installed: {', '.join(installed_domains())}")
    full_name = f"longtake.{domain}.{name}"
    if find_spec(full_name) is None:
        raise UserError(f"{prog!r} is not available: the installed {domain!r} has no {name}.py")
    return _run(prog, import_module(full_name), argv)


def _run(prog: str, module: ModuleType, argv: list[str]) -> int:
    parser = Parser(prog=prog, description=(module.__doc__ or "").strip().split("\n\n")[0])
    module.add_arguments(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    return int(module.run(args) or 0)


# ------------------------------------------------------------------------------------------------- several ranks


def _tell_ranks(error: BaseException) -> None:
    """Before this rank reports its error: let the others know. Does not return when another's came first."""
    distributed = sys.modules.get("longtake.distributed")
    if distributed is not None and (ranks := distributed.current()) is not None:
        ranks.fail(error)


def _end_ranks(code: int) -> None:
    distributed = sys.modules.get("longtake.distributed")
    if distributed is not None and (ranks := distributed.current()) is not None:
        if code == 0:
            ranks.finish()
        else:
            ranks.fail(SystemExit(code))


# ---------------------------------------------------------------------------------------------------------- info


def _info() -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from longtake.device import choose_device, describe_attention, describe_devices
    from longtake.text import package_folder
    from longtake.weights import hub_is_offline, shipped_priors

    print(f"longtake {version('longtake')}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "diffusers", "transformers", "accelerate", "numpy", "safetensors", "av"):
        try:
            print(f"  {package} {version(package)}")
        except PackageNotFoundError:
            print(f"  {package} is not installed")
    print("devices")
    for line in describe_devices():
        print(f"  {line}")
    print(f"  chosen: {choose_device().line}")
    print("attention backends")
    for line in describe_attention():
        print(f"  {line}")
    print("priors that ship")
    for domain in installed_domains():
        priors = shipped_priors(f"longtake.{domain}")
        print(f"  {domain}: {', '.join(priors) if priors else 'none'}")
    print("text encoder")
    try:
        print(f"  MiniLM-L6: found in {package_folder()}")
    except UserError as error:
        print(f"  MiniLM-L6: {error}")
    print(f"hub: {'offline (HF_HUB_OFFLINE)' if hub_is_offline() else 'used when a name is not found on this machine'}")
    return 0
