"""``longtake batch``: many jobs over many ranks, through the night: dynamic order, one failure recorded, resume.

    longtake batch jobs.jsonl --out runs/
    torchrun --nproc_per_node 2 -m longtake.batch jobs.jsonl --out runs/ --resume

A line of the manifest is one job:
    {"id": "a1", "modality": "motion", "prompt": "a person walks", "seed": 1, "parameters": {"frames": 80}}
with "timeline" (as ``Timeline.parse`` takes it, or its JSON) in place of "prompt" where wanted. In ``--out`` stand the
files of each job, named by its id, and results.jsonl: a line for each job as it ends.

A job runs whole on one rank, with the seed it names and with ``--threads`` threads (1, whatever the machine has:
sums are rounded otherwise with another number of threads), so any number of ranks gives the same files. On CPU start
one rank a core. A job that alone would outlast a fair share of all work is made first, by all ranks together (the same
within 1e-4; ``--span never`` forbids it). Of the others ranks take the next one, longest first, from a counter in the
process group's store. A job that fails is recorded and the rest goes on; a rank that dies ends the run, and
``--resume`` does what is not proven complete: same fingerprint (job, weights, version) in results.jsonl and files that
open. One batch at a time works in a folder.

What a domain brings, in longtake.<modality>.jobs:
    DEFAULTS: dict                                   parameters of a job and their defaults
    SECONDS, MEMORY_GB                               measured: seconds a frame and step, peak of one process
    check(parameters, timeline) -> (frames, steps)   raises UserError for what cannot be made
    load(prior, ranks) -> pipeline
    make(pipeline, timeline, seed, parameters, ranks, stem) -> list of files, the first one the result; of several
        ranks, rank 0 writes, and all raise what it could not write
    most_ranks(pipeline, timeline, parameters) -> how many ranks can share a job
    opens(path) -> None                              raises when the file is damaged
Ctrl-C once ends the run after the jobs at work, twice at once; both keep what is done.
Exit codes: 0 all jobs are done, 1 some failed, 2 nothing could be begun, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.batch_record import RESULTS, append_result, open_folder, read_results
from longtake.cli import installed_domains
from longtake.errors import UserError, one_line

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.timeline import Timeline

SPAN_SECONDS = 20.0  # a job that is estimated to be shorter stays on one rank
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEYS = {"id", "modality", "prompt", "timeline", "seed", "parameters"}


@dataclass(frozen=True)
class Job:
    """One line of the manifest that can be made. cost: seconds, estimated."""

    line: int
    id: str
    modality: str
    timeline: Timeline
    seed: int
    parameters: dict[str, Any]
    frames: int
    cost: float

    def plan(self) -> dict[str, Any]:
        """What decides the result, for the fingerprint."""
        settled = {key: value for key, value in self.parameters.items() if key != "prior"}
        return {
            "id": self.id,
            "modality": self.modality,
            "timeline": self.timeline.to_json(),
            "seed": self.seed,
            "parameters": settled,
        }


@dataclass(frozen=True)
class Mistake:
    """A line that is no job, and why."""

    line: int
    id: str | None
    error: str

    def row(self) -> dict[str, Any]:
        """As results.jsonl tells it."""
        return {"id": self.id, "line": self.line, "status": "failed", "error": self.error}


@dataclass
class Weights:
    """Hashes of the priors that jobs name, and why one cannot be found."""

    found: dict[tuple[str, str], str] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake batch``."""
    parser.add_argument("jobs", type=Path, help="manifest: one JSON object a line")
    parser.add_argument("--out", type=Path, default=Path("runs/batch"), help="folder of results (default runs/batch)")
    parser.add_argument("--resume", action="store_true", help="do what is not proven complete in --out")
    parser.add_argument("--overwrite", action="store_true", help="make every job anew")
    parser.add_argument("--span", choices=("auto", "never"), default="auto", help="long jobs by all ranks together")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a rank; the same number, the same bits")
    parser.add_argument("--dry-run", action="store_true", help="print order, time and memory, and make nothing")


def run(args: argparse.Namespace) -> int:
    """Make the jobs; 0 when all are done, 1 when some failed."""
    if args.resume and args.overwrite:
        raise UserError("--resume keeps what is complete and --overwrite makes it anew: give one of them")
    if args.threads < 1:
        raise UserError(f"--threads must be at least 1, got {args.threads}")
    jobs, mistakes = read_manifest(args.jobs)
    if args.dry_run:
        print(forecast(jobs, mistakes, int(os.environ.get("WORLD_SIZE") or 1), args.span == "auto"))
        return 1 if mistakes else 0
    from longtake.distributed import check_same, setup
    from longtake.runs import quiet_libraries

    quiet_libraries()
    ranks = setup()
    check_same([job.plan() for job in jobs], "the manifest", ranks)
    weights = _weights(jobs)
    with open_folder(args.out, args.resume, args.overwrite) if ranks.is_main else nullcontext():
        ranks.barrier()
        total = _make(args, jobs, mistakes, weights, ranks)
    ranks.finish()  # failed jobs are no failure of a rank
    return 1 if total else 0


def _make(
    args: argparse.Namespace, jobs: list[Job], mistakes: list[Mistake], weights: Weights, ranks: Ranks
) -> int:
    """Make what is not complete; how many jobs and lines failed."""
    from longtake.runs import on_interrupt
    from tqdm import tqdm

    results = args.out / RESULTS
    rows = list(read_results(results)) if args.resume and ranks.is_main else []
    old = {row.get("id"): row for row in rows if "seed" in row}  # a refused line, e.g. a twin's, says nothing of a job
    complete = {job.id for job in jobs if _proven(job, old.get(job.id), weights, args.out)} if ranks.is_main else set()
    complete = ranks.broadcast_object(complete)
    if ranks.is_main:
        for mistake in mistakes:
            if mistake.row() not in rows:
                append_result(results, mistake.row())
        if complete:
            print(f"{len(complete)} of {len(jobs)} jobs are complete")
    todo = [job for job in jobs if job.id not in complete]
    long, short = spanning(todo, 1 if args.span == "never" else ranks.world)
    bar = tqdm(total=len(todo), desc="jobs", unit="job", mininterval=0.5, disable=not ranks.is_main)
    makers = Makers(weights, args.out, bar)
    with _threads(args.threads), on_interrupt("stopping after the jobs at work", makers.stop):
        failed, indivisible = makers.together(long, ranks)
        failed += makers.apart([*indivisible, *short], ranks)
    bar.close()
    if any(ranks.gather_object(makers.stopped)):
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
            job = parse_job(number, line)
            if job.id in seen:
                raise UserError(f"the id {job.id!r} was used by an earlier line")
            seen.add(job.id)
            jobs.append(job)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            mistakes.append(Mistake(number, None, f"line {number} is not JSON: {one_line(error)}"))
        except Exception as error:  # whatever a strange value raises: it is this line's mistake
            mistakes.append(Mistake(number, name, f"line {number}: {one_line(error)}"))
    if not jobs and not mistakes:
        raise UserError(f"the manifest {path} has no jobs")
    return sorted(jobs, key=lambda job: (-job.cost, job.line)), mistakes


def parse_job(number: int, line: dict[str, Any]) -> Job:
    """One line of a manifest, checked. Raises UserError, or whatever a strange value raises."""
    from longtake.timeline import Timeline

    unknown = sorted(set(line) - _KEYS)
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r}; a job has {', '.join(sorted(_KEYS))}")
    name = line.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name) or name == RESULTS:
        raise UserError(f"an id has 1 to 100 letters, digits, '.', '_' or '-', no leading sign; given {name!r}")
    modality = line.get("modality")
    domain = domain_of(modality)
    seed = line.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"a seed is a whole number from 0 on; given {seed!r}")
    if ("prompt" in line) == ("timeline" in line):
        raise UserError("a job has a prompt or a timeline, one of them")
    given = line.get("parameters", {})
    if not isinstance(given, dict):
        raise UserError("parameters is a JSON object")
    strange = sorted(set(given) - set(domain.DEFAULTS))
    if strange:
        raise UserError(f"{modality} knows no parameter {strange[0]!r}; it knows {', '.join(sorted(domain.DEFAULTS))}")
    parameters = {**domain.DEFAULTS, **given}
    what = line["prompt"] if "prompt" in line else line["timeline"]
    text = what if isinstance(what, str) else json.dumps(what)
    timeline = Timeline.parse(text, fps=float(parameters.get("fps", domain.FPS)))
    frames, steps = domain.check(parameters, timeline)
    timeline.validate(frames)
    job = Job(number, name, str(modality), timeline, seed, parameters, frames, domain.SECONDS * frames * steps)
    job_fingerprint(job, "")  # refuses values that JSON has no word for, such as NaN
    return job


def domain_of(modality: Any) -> Any:
    """The module longtake.<modality>.jobs. Raises UserError."""
    from importlib.util import find_spec

    able = [name for name in installed_domains() if find_spec(f"longtake.{name}.jobs") is not None]
    if modality not in able:
        raise UserError(f"modality must be one of {', '.join(able)}; given {modality!r}")
    return import_module(f"longtake.{modality}.jobs")


def forecast(jobs: Sequence[Job], mistakes: Sequence[Mistake], ranks: int, span: bool = True) -> str:
    """What a run would do: order, the rank that each job is likely to reach, time and memory, for people to read."""
    lines = [f"{'job':<24} {'modality':<9} {'frames':>7} {'seconds':>8}  rank"]
    long, short = spanning(jobs, ranks if span else 1)
    busy = [sum(job.cost for job in long) / ranks] * ranks
    for job in (*long, *short):
        where = "all" if job in long else str(busy.index(min(busy)))
        if job not in long:
            busy[int(where)] += job.cost
        lines.append(f"{job.id:<24.24} {job.modality:<9} {job.frames:>7} {job.cost:>8.1f}  {where}")
    lines += [f"line {mistake.line}: refused: {mistake.error}" for mistake in mistakes]
    memory = max((domain_of(job.modality).MEMORY_GB for job in jobs), default=0.0)
    lines.append(
        f"{len(jobs)} jobs on {ranks} ranks: about {max(busy):.0f} s on cores like the reference machine's, "
        f"{memory:.1f} GB a rank (each keeps the models it has used)"
    )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- weights


def _weights(jobs: Sequence[Job]) -> Weights:
    from longtake.weights import WEIGHT_SUFFIXES, file_hash, resolve

    weights = Weights()
    for key in dict.fromkeys((job.modality, str(job.parameters["prior"])) for job in jobs):
        modality, prior = key
        try:
            folder = resolve(prior, kind=f"{modality} prior", priors_package=f"longtake.{modality}")
            weights.found[key] = file_hash(folder, WEIGHT_SUFFIXES)
        except UserError as error:
            weights.missing[key] = one_line(error)
    return weights


def job_fingerprint(job: Job, weights: str) -> str:
    """64 hex digits of all that decides the job's files."""
    from longtake.journal import fingerprint

    return fingerprint({"job": job.plan(), "weights": weights, "version": version("longtake")})


def _proven(job: Job, row: dict[str, Any] | None, weights: Weights, folder: Path) -> bool:
    known = weights.found.get((job.modality, str(job.parameters["prior"])))
    if row is None or known is None or row.get("status") != "done" or not row.get("files"):
        return False
    if row.get("fingerprint") != job_fingerprint(job, known):
        return False
    try:
        for name in row["files"]:
            domain_of(job.modality).opens(folder / name)
    except Exception:  # whatever a damaged file makes its reader raise: it is made again
        return False
    return True


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


class Makers:
    """Makes jobs and records how they ended; a model is loaded once a rank. bar: of the whole batch, on rank 0."""

    def __init__(self, weights: Weights, folder: Path, bar: Any) -> None:
        self.weights, self.folder, self.bar = weights, folder, bar
        self.stopped = False
        self.pipes: dict[tuple[str, str], Any] = {}

    def stop(self) -> None:
        """Begin no further job."""
        self.stopped = True

    def together(self, jobs: Sequence[Job], ranks: Ranks) -> tuple[int, list[Job]]:
        """Jobs by all ranks at once, one after the other: (the number that failed, on rank 0; jobs that so many ranks
        cannot share). What only one rank could not do ends the run, for the others wait for it in the middle of a
        sum."""
        failed, indivisible = 0, []
        for job in jobs:
            if ranks.broadcast_object(self.stopped):
                break
            if not self.divisible(job, ranks):
                indivisible.append(job)
                continue
            row = self.one(job, ranks)
            if ranks.is_main:
                append_result(self.folder / RESULTS, {**row, "rank": 0, "ranks": ranks.world})
                failed += row["status"] == "failed"
            self.bar.update(1)
        return failed, indivisible

    def divisible(self, job: Job, ranks: Ranks) -> bool:
        """Whether so many ranks can share a job."""
        try:
            pipe = self.pipe(job, ranks)
            return bool(domain_of(job.modality).most_ranks(pipe, job.timeline, job.parameters) >= ranks.world)
        except UserError:
            return False  # what is wrong with it is told where it is made

    def pipe(self, job: Job, ranks: Ranks) -> Any:
        """The pipeline of a job's prior. Raises UserError."""
        key = job.modality, str(job.parameters["prior"])
        if key not in self.weights.found:
            raise UserError(self.weights.missing[key])
        if key not in self.pipes:
            self.pipes[key] = domain_of(job.modality).load(key[1], ranks)
            self.pipes[key].set_progress_bar_config(disable=True)
        return self.pipes[key]

    def apart(self, jobs: Sequence[Job], ranks: Ranks) -> int:
        """Jobs by single ranks until none is left; the number that failed on this rank."""
        from longtake.distributed import Ranks

        take, ended, stops = _claims(ranks)
        alone = Ranks.single(ranks.device, ranks.choice.dtype)
        failed, before = 0, self.bar.n
        while not stops(self.stopped) and (number := take()) < len(jobs):
            row = self.one(jobs[number], alone)
            append_result(self.folder / RESULTS, {**row, "rank": ranks.rank})
            failed += row["status"] == "failed"
            self.bar.update(before + ended(1) - self.bar.n)
        # Not in a barrier: a collective's longest wait is shorter than a long job.
        while (count := ended(0)) < len(jobs) and not stops(self.stopped):
            self.bar.update(before + count - self.bar.n)
            time.sleep(0.2)
        self.bar.update(before + ended(0) - self.bar.n)
        ranks.barrier()
        return failed

    def one(self, job: Job, ranks: Ranks) -> dict[str, Any]:
        """Make one job and say how it ended."""
        key = job.modality, str(job.parameters["prior"])
        row: dict[str, Any] = {"id": job.id, "line": job.line, "seed": job.seed}
        started = time.monotonic()
        try:
            pipe, stem = self.pipe(job, ranks), self.folder / job.id
            files = domain_of(job.modality).make(pipe, job.timeline, job.seed, job.parameters, ranks, stem)
            row |= {
                "status": "done",
                "output": files[0].name,
                "files": [file.name for file in files],
                "weights": self.weights.found[key],
                "fingerprint": job_fingerprint(job, self.weights.found[key]),
            }
        except Exception as error:  # one job's failure is its own; the record names it
            if ranks.world > 1 and not isinstance(error, UserError):
                raise
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            row |= {"status": "failed", "error": kind + one_line(error)}
        return {**row, "seconds": round(time.monotonic() - started, 3)}


if __name__ == "__main__":
    from longtake.cli import main

    sys.exit(main(["batch", *sys.argv[1:]]))
