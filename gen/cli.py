"""The command line: `longtake`, `python -m longtake`, `torchrun -m longtake`.

A domain (see `domain`) is a command of its own; its package may have train.py and evaluate.py, which each define
    add_arguments(parser: argparse.ArgumentParser) -> None      and      run(args: argparse.Namespace) -> int
and are imported only when asked for, so `longtake --help` imports neither them nor torch. A package may bring further
commands, by entry points of the group "longtake.commands": modules of the same form, with an ABOUT for the help.

Exit codes: 0 done; 1 an unexpected error (its traceback is shown); 2 a mistake of the user (one line); 75 another rank
failed; 130 interrupted. Of several ranks only rank 0 prints to standard output and tells of a user's mistake; one that
rank 0 cannot know of is told by the rank that met it: "longtake: error (rank 1): ...".
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from longtake.domain import command_of, domain_of, further_commands, installed
from longtake.errors import UserError, one_line

_TASKS = {"train": "train a prior on your data", "evaluate": "measure a prior on held-out data"}
_SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors: one line, as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        for word in words:
            if word.startswith("--") and word.endswith("=--"):  # argparse makes a list of it
                self.error(f"argument {word[:-3]}: expected one argument")
            if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
                self.error(f"an argument is no valid text: {ascii(word)[:60]}")
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from longtake.launch import rank as rank_of
    from longtake.watchdog import begin

    standard_output = sys.stdout
    silence = None
    rank = 0
    try:
        rank = rank_of()
        if rank != 0:
            silence = open(os.devnull, "w")
            sys.stdout = silence
        begin()
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        _end_ranks(code)
        return code
    except UserError as error:
        if not _tell_ranks(error):
            who = f" (rank {rank})" if rank else ""
            print(f"longtake: error{who}: {one_line(error)}", file=sys.stderr)
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


def commands() -> dict[str, tuple[str, Callable[[Any], None], Callable[[argparse.Namespace], int]]]:
    """Command -> (its line in the help, what adds its options, what runs it); nothing of it is imported yet."""

    def of(module: str) -> tuple[Callable[[Any], None], Callable[[argparse.Namespace], int]]:
        return (
            lambda parser: import_module(module).add_arguments(parser),
            lambda args: int(import_module(module).run(args) or 0),
        )

    def make(name: str) -> tuple[Callable[[Any], None], Callable[[argparse.Namespace], int]]:
        from longtake import command

        return (
            lambda parser: command.add_arguments(parser, domain_of(name)),
            lambda args: command.run(args, domain_of(name)),
        )

    found = {name: (domain_of(name).ABOUT, *make(name)) for name in installed()}
    for name in further_commands():
        module = command_of(name)
        found[name] = (module.ABOUT, module.add_arguments, module.run)
    found["batch"] = ("make many jobs of a manifest, on one rank or many", *of("longtake.batch"))
    if find_spec("longtake.demos") is not None:
        found["demo"] = ("a page in the browser: a tab for each modality", *of("longtake.demos.command"))
    found["bench"] = ("other libraries' attention over ranks beside ours: right or wrong", *of("longtake.bench"))
    found["info"] = ("versions, devices and why, attention backends, priors found", lambda parser: None, _info)
    found["completion"] = ('completions for a shell: eval "$(longtake completion bash)"', _add_shell, _complete)
    return found


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in _TASKS:
        return _run_task(argv[0], argv[1:])
    known = commands()
    if argv and argv[0] in known:
        about, add, run = known[argv[0]]
        return _run(f"longtake {argv[0]}", about, add, run, argv[1:])
    parser = Parser(prog="longtake", description="Long takes from short-clip generators.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    listed = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (about, _, _) in known.items():
        listed.add_parser(name, help=about, add_help=False)
    for name, text in _TASKS.items():
        listed.add_parser(name, help=f"{text}: longtake {name} {{{','.join(installed())}}}", add_help=False)
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    if args.version:
        from importlib.metadata import version

        print(f"longtake {version('longtake')}")
        return 0
    parser.print_help()
    return 0


def _run_task(task: str, argv: list[str]) -> int:
    domains = installed()
    if not argv or argv[0] in ("-h", "--help"):
        names = [*domains, "all"] if task == "train" else domains
        print(f"usage: longtake {task} {{{','.join(names)}}} ...   (longtake {task} {domains[0]} --help)")
        if not argv:
            raise UserError(f"longtake {task} needs a domain: {', '.join(domains)}")
        return 0
    name = argv[0]
    if (task, name) == ("train", "all"):
        from longtake import together

        return _run("longtake train all", together.__doc__ or "", together.add_arguments, together.run, argv[1:])
    if name not in domains:
        raise UserError(f"no domain {name!r} is installed; installed: {', '.join(domains)}")
    module = f"{domain_of(name).package}.{task}"
    prog = f"longtake {task} {name}"
    if find_spec(module) is None:
        raise UserError(f"{prog!r} is not available: the installed {name!r} has no {task}.py")
    found = import_module(module)
    return _run(prog, found.__doc__ or "", found.add_arguments, found.run, argv[1:])


def _run(prog: str, about: str, add: Callable[[Any], None], run: Callable[..., Any], argv: list[str]) -> int:
    parser = Parser(prog=prog, description=about.strip().split("\n\n")[0])
    add(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    for name in ("out", "prepare"):
        _check_folder(getattr(args, name, None), name)
    return int(run(args) or 0)


def _check_folder(path: Path | None, name: str) -> None:
    """UserError before anything is computed where no file can come to be: a file stands in its way."""
    for place in (path, *path.parents) if isinstance(path, Path) else ():
        if place.exists():
            if not place.is_dir() and (place != path or name == "out"):
                raise UserError(f"--{name} {path}: {place} is a file, not a folder")
            return


# ---------------------------------------------------------------------------------------------------- completions


def _add_shell(parser: Any) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="your shell")


def _complete(args: argparse.Namespace) -> int:
    """Print a script that completes every command and its options."""
    import shtab

    parser = argparse.ArgumentParser(prog="longtake")
    listed = parser.add_subparsers()
    for name, (about, add, _) in commands().items():
        add(listed.add_parser(name, help=about))
    for task, about in _TASKS.items():
        listed.add_parser(task, help=about).add_argument("domain", choices=installed())
    print(shtab.complete(parser, args.shell))
    return 0


# ------------------------------------------------------------------------------------------------- several ranks


def _ranks() -> Any:
    """The run that this process is in, if there is one; a signal may come while its module is being imported."""
    current = getattr(sys.modules.get("longtake.distributed"), "current", None)
    return None if current is None else current()


def _tell_ranks(error: BaseException) -> bool:
    """Before this rank reports its error: let the others know; whether another rank tells the user of it. Does not
    return when another's came first."""
    from longtake.errors import told
    from longtake.launch import has_agent, read_address, read_environment
    from longtake.watchdog import MUSTER_S, take

    try:
        launch = read_environment()
        if launch.world == 1:
            return False
    except UserError:
        return False
    if (ranks := _ranks()) is not None:
        ranks.fail(error)
        return launch.rank != 0
    if (watchdog := take()) is not None:
        kind = "user" if isinstance(error, UserError) else "error"
        late = MUSTER_S if isinstance(error, Exception) else 0.0
        return watchdog.report(kind, told(error), late_s=late) and launch.rank != 0
    if has_agent() and isinstance(error, Exception):
        from longtake.distributed import leave_word

        return leave_word(error)
    try:
        read_address()
    except UserError:  # no rank can meet any other: one of them tells
        return launch.rank != 0
    return False


def _end_ranks(code: int) -> None:
    from longtake.watchdog import take

    if (ranks := _ranks()) is not None:
        if code == 0:
            ranks.finish()
        else:
            ranks.fail(SystemExit(code))
    elif (watchdog := take()) is not None:
        watchdog.leave()


# ---------------------------------------------------------------------------------------------------------- info


def _info(_: argparse.Namespace) -> int:
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
    for domain in installed():
        priors = shipped_priors(domain_of(domain).package)
        print(f"  {domain}: {', '.join(priors) if priors else 'none'}")
    print("text encoder")
    try:
        print(f"  MiniLM-L6: found in {package_folder()}")
    except UserError as error:
        print(f"  MiniLM-L6: {error}")
    print(f"hub: {'offline (HF_HUB_OFFLINE)' if hub_is_offline() else 'used when a name is not found on this machine'}")
    return 0
