"""Reducers side by side at equal tokens, on questions whose answers are known: which wins on which task.

    python -m longtake.video.reading.compare --data FOLDER --reader runs/reader/reader.safetensors

The small reader (`train`) answers through every reducer; its films are of characters and actions that no training has
seen together. A number in brackets is half the width of the 95 % interval. Also written: `compare.json` and `.md`.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from longtake.device import choose_device
from longtake.errors import UserError
from longtake.evaluation import Table, figure, write_table
from longtake.train import Dice
from longtake.video.reading.puzzles import KINDS, Cast
from longtake.video.reading.reader import SIZE, Reader, chosen
from longtake.video.reading.reducers import REDUCERS

ALL = "all tokens"
BATCH = 16


@dataclass(frozen=True)
class Row:
    """Share of right answers in percent; `half`: half the width of the 95 % interval of `right`."""

    reducer: str
    tokens: int
    right: float
    half: float
    when: float
    where: float
    what: float


def compare(
    reader: Reader, cast: Cast, reducers: Sequence[str], budgets: Sequence[int], films: int, seed: int = 0
) -> list[Row]:
    """All tokens first, then each reducer at each budget, on the same `films` films."""
    every = math.prod(SIZE)
    hits: dict[tuple[str, int], list[torch.Tensor]] = {}
    kinds = []
    with torch.inference_mode():
        for first in range(0, films, BATCH):
            batch = cast.batch(min(BATCH, films - first), Dice(seed, first, cast.device))
            kind = batch.kind[:, 0]
            kinds.append(kind.cpu())
            found = reader.reduced(batch.films, batch.words, ["average"], [every])
            found = {(ALL, every): found["average", every]}
            found |= reader.reduced(batch.films, batch.words, reducers, budgets)
            for key, logits in found.items():
                hits.setdefault(key, []).append((chosen(logits, kind) == batch.answer[:, 0]).float().cpu())
    every_kind = torch.cat(kinds)
    rows = []
    for (name, budget), parts in hits.items():
        right = torch.cat(parts)
        share = float(right.mean())
        by = [100 * float(right[every_kind == number].mean()) for number in range(len(KINDS))]
        half = 196 * math.sqrt(max(share * (1 - share), 1e-9) / len(right))
        rows.append(Row(name, budget, 100 * share, half, *by))
    return rows


def winners(rows: Sequence[Row], budgets: Sequence[int]) -> list[str]:
    """For each budget and task who is best, and what plain averages reach there."""
    lines = []
    for budget in budgets:
        there = [row for row in rows if row.tokens == budget and row.reducer != ALL]
        average = next((row for row in there if row.reducer == "average"), None)
        for task in ("right", *KINDS):
            best = max(there, key=lambda row: getattr(row, task))
            name = "all questions" if task == "right" else task
            alike = sum(getattr(row, task) == getattr(best, task) for row in there) - 1
            others = f" ({alike} more alike)" if alike else ""
            told = f"{budget} tokens, {name}: {best.reducer}{others} {getattr(best, task):.1f} %"
            lines.append(told if average is None else f"{told}, average {getattr(average, task):.1f} %")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the zips of clips")
    parser.add_argument("--reader", type=Path, required=True, help="reader.safetensors of the recipe")
    parser.add_argument("--films", type=int, default=600, help="films, with a question each")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 512, 128, 64])
    parser.add_argument("--reducers", nargs="+", choices=list(REDUCERS), default=list(REDUCERS))
    parser.add_argument("--seen", action="store_true", help="films of the clips that the reader was trained on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/reader"), help="folder of compare.json and compare.md")


def run(args: argparse.Namespace) -> int:
    """Print the table and the winners, and write both."""
    if args.films < 1 or min(args.budgets) < 1:
        raise UserError(f"films and budgets are at least 1, {args.films} and {args.budgets} given")
    place = choose_device().device
    reader = Reader.load(args.reader).to(place)
    cast = Cast.load(args.data, place, held_out=not args.seen)
    rows = compare(reader, cast, args.reducers, args.budgets, args.films, args.seed)
    table = Table(
        {
            "reducer": lambda row: row.reducer,
            "tokens": lambda row: str(row.tokens),
            "right %": lambda row: f"{figure(row.right, 1)} ({figure(row.half, 1)})",
            "when": lambda row: figure(row.when, 1),
            "where": lambda row: figure(row.where, 1),
            "what": lambda row: figure(row.what, 1),
        }
    )
    text = table.markdown(rows)
    told = winners(rows, args.budgets)
    print(text, *told, sep="\n")
    facts = {"films": args.films, "seed": args.seed, "held_out": not args.seen, "rows": table.json(rows), "best": told}
    write_table(args.out, "compare", "\n".join([text, "", *told]), facts)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
