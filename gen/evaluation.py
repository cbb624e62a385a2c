"""What every ``longtake evaluate`` shares: a judge that is trained once, a table, and the command that made it.

judge, report = cached_judge(folder, "evaluator", identity, train, build, measure)
table = Table({"method": lambda row: row.label, "jerk": lambda row: figure(row.jerk, 4)})
write_table(folder, "table", table.markdown(rows), {"command": told_command("motion"), "rows": table.json(rows)})
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from longtake.journal import atomic_path, fingerprint, write_tensors

if TYPE_CHECKING:
    from torch import nn


class Judge(Protocol):
    """A trained evaluator. ``weights`` holds all that training made; ``facts`` what ``build`` needs beside them."""

    @property
    def weights(self) -> nn.Module: ...

    @property
    def facts(self) -> dict[str, Any]: ...


J = TypeVar("J", bound=Judge)


def cached_judge(
    folder: Path,
    name: str,
    identity: Mapping[str, Any],
    train: Callable[[str], J],
    build: Callable[[dict[str, Any]], J],
    measure: Callable[[J], dict[str, Any]],
    *,
    again: bool = False,
) -> tuple[J, dict[str, Any]]:
    """The judge from ``folder/<name>-<hash of identity>.safetensors``, or trained and written there; and its report.

    identity: JSON values of all that decides it: settings, and a hash of the data's content. train(name of its files):
    a judge. build(report): an untrained one. measure(judge): figures for the report, beside its facts, the hash and
    the seconds of training. again: train even if the files are there.
    """
    from longtake.weights import load_state

    mark = fingerprint(dict(identity))[:12]
    label = f"{name}-{mark}"
    path, record, state = (folder / f"{label}.{suffix}" for suffix in ("safetensors", "json", "state"))
    if again:
        for old in (path, record, state):
            old.unlink(missing_ok=True)
    if path.is_file() and record.is_file():
        report = json.loads(record.read_text(encoding="utf-8"))
        judge = build(report)
        judge.weights.load_state_dict(load_state(path))
        return judge, report
    started = time.monotonic()
    judge = train(label)
    seconds = round(time.monotonic() - started, 1)
    judge.weights.cpu()
    write_tensors(path, dict(judge.weights.state_dict()))
    report = {"hash": mark, "seconds": seconds, **judge.facts, **measure(judge), "settings": identity["settings"]}
    text = json.dumps(report, indent=1)
    with atomic_path(record) as partial:
        partial.write_text(text, encoding="utf-8")
    state.unlink(missing_ok=True)  # resuming is over; the weights are in the safetensors
    return judge, json.loads(text)


class Table:
    """Columns: title -> how a row is shown in it. The first column is text, the others are numbers."""

    def __init__(self, columns: Mapping[str, Callable[[Any], str]]) -> None:
        self.columns = dict(columns)

    def markdown(self, rows: Sequence[Any]) -> str:
        """Aligned columns, the first to the left, the others to the right."""
        cells = [list(self.columns), *([show(row) for show in self.columns.values()] for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(self.columns))]

        def line(texts: Sequence[str]) -> str:
            first, *others = zip(texts, widths, strict=True)
            return f"| {' | '.join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])} |"

        rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        return "\n".join([line(cells[0]), f"|{rule}|", *(line(one) for one in cells[1:])])

    def json(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows, dataclasses, with all their fields; None for a figure that is not finite."""
        return [finite(asdict(row)) for row in rows]


def figure(value: float | None, digits: int) -> str:
    """A figure with so many digits after the point; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def finite(value: Any) -> Any:
    """JSON values with None in place of every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def told_command(domain: str) -> str | None:
    """The command line ``longtake evaluate <domain> ...`` of this process; None when it was called from Python."""
    return shlex.join(["longtake", *sys.argv[1:]]) if sys.argv[1:3] == ["evaluate", domain] else None


def write_table(folder: Path, name: str, text: str, facts: Mapping[str, Any]) -> None:
    """``folder/<name>.json`` and ``folder/<name>.md``, each written whole over an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"json": json.dumps(finite(facts), indent=1, allow_nan=False), "md": text}
    for suffix, content in contents.items():
        with atomic_path(folder / f"{name}.{suffix}") as partial:
            partial.write_text(content.rstrip("\n") + "\n", encoding="utf-8")
