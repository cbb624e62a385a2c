"""``longtake batch``: many jobs over many ranks, through the night: dynamic order, one failure recorded, resume.

    longtake batch jobs.jsonl --out runs/
    torchrun --nproc_per_node 2 -m longtake.batch jobs.jsonl --out runs/ --resume

A line of the manifest is one job: an id and a request (see `request`):
    {"id": "a1", "modality": "motion", "prompt": "a person walks", "seed": 1,
     "parameters": {"frames": 80, "outputs": [".glb", ".mp4"], "preview": true}}
In ``--out`` stand the files of each job, named by its id, and results.jsonl: a line for each job as it ends.

A job runs whole on one rank, with the seed it names and with ``--threads`` threads (1, whatever the machine has:
sums are rounded otherwise with another number of threads), so any number of ranks gives the same files. On CPU start
one rank a core. A job that alone would outlast a fair share of all work is made first, by all ranks together (the same
within 1e-4; ``--span never`` forbids it). Of the others ranks take the next one, longest first, from a counter in the
process group's store. A job that fails is recorded and the rest goes on; a rank that dies ends the run, and
``--resume`` does what is not proven complete: same fingerprint (job, weights, version) in results.jsonl and files that
open. A long job leaves checkpoints in ID.run/ and goes on from them. One batch at a time works in a folder.

Ctrl-C once ends the run after the jobs at work, twice at once; both keep what is done.
Exit codes: 0 all jobs are done, 1 some failed, 2 nothing could be begun, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Forecast, domain_of
from longtake.errors import UserError, one_line, told
from longtake.make import UNFINISHED, Maker, Targets, on_interrupt
from longtake.records import RESULTS, append, hold, read
from longtake.request import Request, names_of

if TYPE_CHECKING:
    from longtake.distributed import Ranks

SPAN_SECONDS = 20.0  # a job that is estimated to be shorter stays on one rank,
RECORD_SECONDS = 20.0  # and needs no checkpoints
MOST_MANIFEST = 1 << 30  # bytes
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Job:
    """One line of the manifest that can be made."""

    line: int
    id: str
    request: Request
    forecast: Forecast

    @property
    def cost(self) -> float:
        """Seconds, estimated."""
        return self.forecast.seconds

    def fingerprint(self, maker: Maker) -> str:
        """64 hex digits of all that decides the job's files."""
        from longtake.journal import fingerprint

        marks = {
            name: self.request.domain.input_mark(name, path) for name, path in self.request.inputs.items()
        }  # fmt: skip
        plan = self.request.plan(maker.weights(self.request), marks, maker.dtype)
        return fingerprint({"id": self.id, "job": plan, "version": version("longtake")})

    def told(self) -> dict[str, Any]:
        """What all ranks must have read alike."""
        return {"id": self.id, "job": self.request.plan("", {}), "outputs": self.request.outputs}


@dataclass(frozen=True)
class Mistake:
    """A line that is no job, and why."""

    line: int
    id: str | None
    error: str

    def row(self) -> dict[str, Any]:
        """As results.jsonl tells it."""
        return {"id": self.id, "line": self.line, "status": "failed", "error": self.error}


def add_arguments(parser: Any) -> None:
    """Options of ``longtake batch``."""
    parser.add_argument("jobs", type=Path, help="manifest: one JSON object a line")
    parser.add_argument("--out", type=Path, default=Path("runs/batch"), help="folder of results (default runs/batch)")
    parser.add_argument("--resume", action="store_true", help="do what is not proven complete in --out")
    parser.add_argument("--overwrite", action="store_true", help="make every job anew")
    parser.add_argument("--span", choices=("auto", "never"), default="auto", help="long jobs by all ranks together")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a rank; the same number, the same bits")
    parser.add_argument("--device", default=None, help="as torch names it (default: the best; LONGTAKE_DEVICE wins)")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16, float16 (default: by device)")
    parser.add_argument("--dry-run", action="store_true", help="print order, time and memory, and make nothing")


def run(args: argparse.Namespace) -> int:
    """Make the jobs; 0 when all are done, 1 when some failed."""
    from longtake.device import parse_device, parse_dtype
    from longtake.launch import world

    if args.resume and args.overwrite:
        raise UserError("--resume keeps what is complete and --overwrite makes it anew: give one of them")
    if not 1 <= args.threads <= 1024:
        raise UserError(f"--threads must be at least 1 and at most 1024, got {args.threads}")
    device, dtype = parse_device(args.device), parse_dtype(args.dtype)
    jobs, mistakes = read_manifest(args.jobs)
    if args.dry_run:
        print(forecast(jobs, mistakes, world(), args.span == "auto"))
        return 1 if mistakes else 0
    from longtake.distributed import check_same, setup

    ranks = setup(device=device, dtype=dtype)
    check_same([job.told() for job in jobs], "the manifest", ranks)
    check_same([args.span, args.threads, args.resume, args.overwrite, str(args.dtype)], "the options", ranks)
    with hold(args.out, args.resume, args.overwrite) if ranks.is_main else nullcontext():
        ranks.barrier()
        total = _make(args, jobs, mistakes, ranks)
    ranks.finish()  # failed jobs are no failure of a rank
    return 1 if total else 0


def _make(args: argparse.Namespace, jobs: list[Job], mistakes: list[Mistake], ranks: Ranks) -> int:
    """Make what is not complete; how many jobs and lines failed."""
    from longtake.progress import Progress

    results = args.out / RESULTS
    maker = Maker(ranks)
    rows = list(read(results)) if args.resume and ranks.is_main else []
    # a refused line, e.g. a twin's, says nothing of a job
    old = {row["id"]: row for row in rows if "seed" in row and isinstance(row.get("id"), str)}
    complete = {job.id for job in jobs if _proven(job, old.get(job.id), maker, args.out)} if ranks.is_main else set()
    complete = ranks.broadcast_object(complete)
    if ranks.is_main:
        for mistake in mistakes:
            if mistake.row() not in rows:
                append(results, mistake.row())
        if complete:
            print(f"{len(complete)} of {len(jobs)} jobs are complete")
    todo = [job for job in jobs if job.id not in complete]
    long, short = spanning(todo, 1 if args.span == "never" else ranks.world)
    with Progress("jobs", visible=ranks.is_main, unit="job") as progress:
        worker = Worker(maker, args.out, ranks, lambda done: progress.at(done, len(todo)), args.resume, args.overwrite)
        with _threads(args.threads), on_interrupt("stopping after the jobs at work", worker.stop):
            failed, indivisible = worker.together(long)
            failed += worker.apart([*indivisible, *short])
    if any(ranks.gather_object(worker.stopped)):
        raise KeyboardInterrupt
    total = sum(ranks.gather_object(failed)) + len(mistakes)
    if ranks.is_main:
        done = len(jobs) + len(mistakes) - total
        print(f"{done} of {len(jobs) + len(mistakes)} jobs are done, {total} failed: {results}")
    return total


# ------------------------------------------------------------------------------------------------------- manifest


def read_manifest(path: Path) -> tuple[list[Job], list[Mistake]]:
    """The jobs of a manifest, longest first, and the lines that are none. Raises UserError for an unreadable file or
    one without a line."""
    try:
        if not path.is_file():
            raise UserError(f"cannot read the manifest {path}: it is {'no file' if path.exists() else 'not there'}")
        if path.stat().st_size > MOST_MANIFEST:
            raise UserError(f"cannot read the manifest {path}: it has more than {MOST_MANIFEST} bytes")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read the manifest {path}: {one_line(error)}") from error
    jobs: list[Job] = []
    mistakes: list[Mistake] = []
    seen: set[str] = set()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        name: str | None = None
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise UserError("a job is a JSON object")
            name = line.get("id") if isinstance(line.get("id"), str) else None
            job = parse_job(number, line, path.parent)
            if job.id in seen:
                raise UserError(f"the id {job.id!r} was used by an earlier line")
            seen.add(job.id)
            jobs.append(job)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            mistakes.append(Mistake(number, None, f"line {number} is not JSON: {one_line(error)}"))
        except Exception as error:  # whatever a strange value raises: it is this line's mistake
            mistakes.append(Mistake(number, name, f"line {number}: {one_line(error)[:1000]}"))
    if not jobs and not mistakes:
        raise UserError(f"the manifest {path} has no jobs")
    return sorted(jobs, key=lambda job: (-job.cost, job.line)), mistakes


def parse_job(number: int, line: dict[str, Any], folder: Path = Path()) -> Job:
    """One line of a manifest, checked; relative input files are looked for in ``folder``. Raises UserError, or whatever
    a strange value raises."""
    from longtake.request import KEYS

    unknown = sorted(set(line) - {"id", *KEYS})
    if unknown:
        raise UserError(f"unknown key {unknown[0][:60]!r}; a job has id, {', '.join(KEYS)}")
    name = line.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name) or name == RESULTS:
        shown = ascii(name)[:60]
        raise UserError(f"an id has 1 to 100 letters, digits, '.', '_' or '-', no leading sign; given {shown}")
    if name.endswith((UNFINISHED, ".run")):
        raise UserError(f"an id does not end in {UNFINISHED} or .run, which are endings of what stands beside a job")
    files = {item.name for item in domain_of(line.get("modality")).INPUTS}
    parameters = line.get("parameters")
    misplaced = sorted(files.intersection(parameters)) if isinstance(parameters, dict) else []
    if misplaced:
        raise UserError(
            f"{line['modality']} knows no parameter {misplaced[0]!r}: it is a file to start from, which is given as "
            f'"inputs": {{"{misplaced[0]}": FILE}} beside the parameters'
        )
    request = Request.read({key: value for key, value in line.items() if key != "id"}, folder)
    return Job(number, name, request, request.domain.forecast(request))


def forecast(jobs: Sequence[Job], mistakes: Sequence[Mistake], ranks: int, span: bool = True) -> str:
    """What a run would do: order, the rank that each job is likely to reach, time and memory, for people to read."""
    lines = [f"{'job':<24} {'modality':<9} {'what':>16} {'seconds':>8}  rank"]
    long, short = spanning(jobs, ranks if span else 1)
    busy = [sum(job.cost for job in long) / ranks] * ranks
    for job in (*long, *short):
        where = "all" if job in long else str(busy.index(min(busy)))
        if job not in long:
            busy[int(where)] += job.cost
        lines.append(f"{job.id:<24.24} {job.request.modality:<9} {job.forecast.amount:>16} {job.cost:>8.1f}  {where}")
    lines += [f"line {mistake.line}: refused: {mistake.error}" for mistake in mistakes]
    memory = max((job.forecast.memory_gb for job in jobs), default=0.0)
    lines.append(
        f"{len(jobs)} jobs on {ranks} ranks: about {max(busy):.0f} s on cores like the reference machine's, "
        f"{memory:.1f} GB a rank (each keeps the models it has used)"
    )
    return "\n".join(lines)


def _proven(job: Job, row: dict[str, Any] | None, maker: Maker, folder: Path) -> bool:
    """Whether a row of the record and the files on the disk say that the job is done."""
    if row is None or row.get("status") != "done" or not isinstance(row.get("files"), list):
        return False
    domain, request = job.request.domain, job.request
    outputs, sides = names_of(request, folder / job.id)
    try:
        if row.get("fingerprint") != job.fingerprint(maker):
            return False
        for path, suffix in zip(outputs, request.outputs, strict=True):
            domain.file_kinds()[suffix].whole(path)
        for name, path in sides.items():
            domain.side(name).whole(path)
    except Exception:  # whatever a damaged file makes its reader raise: it is made again
        return False
    return {path.name for path in (*outputs, *sides.values())} <= set(map(str, row["files"]))


# ------------------------------------------------------------------------------------------------------- the work


def _claims(ranks: Ranks) -> tuple[Callable[[], int], Callable[[int], int], Callable[[bool], bool]]:
    """(number of the next job that nobody took, jobs that ended after adding some, whether a rank asks to stop, after
    asking for it or not) over all ranks."""
    if ranks.world == 1:
        counts = {"next": 0, "ended": 0, "stop": 0}

        def add(key: str, amount: int) -> int:
            counts[key] += amount
            return counts[key]
    else:
        from torch.distributed import PrefixStore
        from torch.distributed.distributed_c10d import _get_default_store

        store = PrefixStore("longtake/batch", _get_default_store())

        def add(key: str, amount: int) -> int:
            return int(store.add(key, amount))

    return (
        lambda: add("next", 1) - 1,
        lambda amount: add("ended", amount),
        lambda mine: add("stop", int(mine)) > 0,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside the block torch computes with so many CPU threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spanning(jobs: Sequence[Job], ranks: int) -> tuple[list[Job], list[Job]]:
    """(jobs that all ranks make together, jobs that one rank makes), both longest first. A job spans the ranks when it
    alone would outlast a fair share of all work, so that the others would wait for it at the end, and is long."""
    left, rest = sum(job.cost for job in jobs), list(jobs)
    together: list[Job] = []
    while ranks > 1 and rest and rest[0].cost > max(left / ranks, SPAN_SECONDS):
        left -= rest[0].cost
        together.append(rest.pop(0))
    return together, rest


class Worker:
    """Makes jobs and records how they ended. on_done: told how many have ended, of all ranks. overwrite: begin each
    anew instead of going on from its checkpoints. resume: files that are there may be an earlier try's."""

    def __init__(
        self,
        maker: Maker,
        folder: Path,
        ranks: Ranks,
        on_done: Callable[[int], Any],
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.maker, self.folder, self.ranks, self.on_done, self.overwrite = maker, folder, ranks, on_done, overwrite
        self.fresh = not resume and not overwrite
        self.stopped = False
        self.done = 0

    def stop(self) -> None:
        """Begin no further job."""
        self.stopped = True

    def together(self, jobs: Sequence[Job]) -> tuple[int, list[Job]]:
        """Jobs by all ranks at once, one after the other: (the number that failed, on rank 0; jobs that so many ranks
        cannot share). What only one rank could not do ends the run, for the others wait for it in the middle of a
        sum."""
        failed, indivisible, ranks = 0, [], self.ranks
        for job in jobs:
            if ranks.broadcast_object(self.stopped):
                break
            if not self._divisible(job):
                indivisible.append(job)
                continue
            row = self.one(job, self.maker)
            if ranks.is_main:
                append(self.folder / RESULTS, {**row, "rank": 0, "ranks": ranks.world})
                failed += row["status"] == "failed"
            self._tell(self.done + 1)
        return failed, indivisible

    def apart(self, jobs: Sequence[Job]) -> int:
        """Jobs by single ranks until none is left; the number that failed on this rank."""
        from longtake.distributed import Ranks

        take, ended, stops = _claims(self.ranks)
        alone = self.maker.shared(Ranks.single(self.ranks.device, self.ranks.choice.dtype))
        failed, before = 0, self.done
        while not stops(self.stopped) and (number := take()) < len(jobs):
            row = self.one(jobs[number], alone)
            append(self.folder / RESULTS, {**row, "rank": self.ranks.rank})
            failed += row["status"] == "failed"
            self._tell(before + ended(1))
        # Not in a barrier: a collective's longest wait is shorter than a long job.
        while (count := ended(0)) < len(jobs) and not stops(self.stopped):
            self._tell(before + count)
            time.sleep(0.2)
        self._tell(before + ended(0))
        self.ranks.barrier()
        return failed

    def one(self, job: Job, maker: Maker) -> dict[str, Any]:
        """Make one job and say how it ended."""
        row: dict[str, Any] = {"id": job.id, "line": job.line, "seed": job.request.seed}
        started = time.monotonic()
        try:
            stem = self.folder / job.id
            targets = Targets.of_stem(job.request, stem, run=job.cost >= RECORD_SECONDS)
            for path in [*targets.files, *maker.beside(job.request, targets.outputs)] if self.fresh else ():
                if path.exists():
                    raise UserError(f"{path} exists and is not of this batch: move it, or --overwrite")
            again = {"overwrite": True} if self.overwrite else {"resume": "same"}
            made = maker.make(job.request, targets, **again)
            row |= {
                "status": "done",
                "output": made.files[0].name,
                "files": [file.name for file in made.files],
                "weights": maker.weights(job.request),
                "fingerprint": job.fingerprint(maker),
            }
            if made.warnings:
                row["warnings"] = made.warnings
        except Exception as error:  # one job's failure is its own; the record names it
            if maker.ranks.world > 1 and not isinstance(error, UserError):
                raise
            row |= {"status": "failed", "error": told(error)}
        return {**row, "seconds": round(time.monotonic() - started, 3)}

    def _divisible(self, job: Job) -> bool:
        """Whether so many ranks can share a job."""
        try:
            pipe = self.maker.pipe(job.request)
            return job.request.domain.most_ranks(pipe, job.request) >= self.ranks.world
        except UserError:
            return False  # what is wrong with it is told where it is made

    def _tell(self, done: int) -> None:
        if done > self.done:
            self.done = done
            self.on_done(done)


if __name__ == "__main__":
    from longtake.cli import main

    sys.exit(main(["batch", *sys.argv[1:]]))
