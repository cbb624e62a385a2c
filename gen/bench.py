"""`longtake bench attention`: distributed attention of other libraries beside ours, right or wrong, on gloo ranks.

Each library computes the same four calls, forward and backward, on 2, 3 and 4 processes of this machine: all keys;
causal; padded keys hidden by a mask; shards of uneven lengths. What comes out is held against one process in float64.
A library that raises has refused, and its words are shown; one that is not installed is named. Where a library's own
kernel needs a GPU, torch's CPU kernel is put in its place, and the row says so: what is judged is its distribution.

    longtake bench attention --world 2 3 --only diffusers yunchang

Findings carry the public report that we know of. Nothing here is timed: tests/benchmarks/strategies.py does that.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ROWS, HEADS, WIDTH = 24, 12, 16  # tokens of a rank; heads that 2, 3 and 4 ranks can share
HIDDEN = 5  # padded keys at the end
CASES = ("all keys", "causal", "padded keys", "uneven")
RIGHT = 1e-4  # of the largest value, in float32
SECONDS = 40.0  # for the rest of one library's cases on one group of ranks
REPORTS = {  # public ones, said behind what did not come out right
    ("diffusers ring", "all keys"): "diffusers issue 14265 is its other wrong gradient, mended in 0.42",
    ("diffusers ring", "padded keys"): "diffusers pull request 13545: its variant for uneven lengths takes no mask",
    ("diffusers ring", "uneven"): "diffusers pull request 13545: ring_anything",
    ("diffusers Ulysses", "uneven"): "diffusers issue 12706: ulysses_anything",
    ("ring-attention-pytorch", "all keys"): "no report known",
    ("ring-attention-pytorch", "causal"): "no report known",
    ("ring-attention-pytorch", "padded keys"): "no report known",
    ("yunchang ring", "uneven"): "EasyContext issue 47: a zigzag ring of the same family",
}


@dataclass
class Task:
    """One rank's part of one call: q, k, v are leaves (1, H, n, D); hidden: (N,) bool, keys of all ranks to hide."""

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    hidden: Tensor | None
    rank: int
    world: int
    sizes: list[int]

    @property
    def swapped(self) -> list[Tensor]:
        """q, k, v as (1, n, H, D)."""
        return [x.transpose(1, 2) for x in (self.q, self.k, self.v)]

    def only(self, mask: bool = False, causal: bool = True) -> None:
        """Refuse in the library's place what its function has no argument for."""
        if self.hidden is not None and not mask:
            raise NotImplementedError("takes no mask")
        if self.causal and not causal:
            raise NotImplementedError("is not causal")


# ---- the libraries: Task -> O (1, H, n, D), with gradients ----


def ours(task: Task) -> Tensor:
    from longtake.kernels import Causal, Full, KeyPadding, Transport, attention, make_plan

    total = sum(task.sizes)
    mask = Causal() if task.causal else Full() if task.hidden is None else KeyPadding(total - HIDDEN)
    out: Tensor = attention(task.q, task.k, task.v, mesh=Transport(), plan=make_plan(task.sizes, mask, strategy="ring"))
    return out


def torch_ring(task: Task) -> Tensor:
    """torch's ring under `context_parallel`, which itself knows only kernels of GPUs: the CPU's is put in."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor.experimental._context_parallel import _attention

    task.only()
    peer: Any = _attention
    peer._cp_options.enable_load_balance = False
    aten, group = torch.ops.aten, dist.group.WORLD

    def forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, **_: Any) -> Any:
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)

    def backward(**given: Any) -> Any:
        names = ("query", "key", "value", "out", "logsumexp")
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            given["grad_out"], *(given[name] for name in names), 0.0, given["is_causal"]
        )

    class Ring(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, lse = peer._templated_ring_attention(group, 2, forward, q, k, v, is_causal=task.causal)[:2]
            ctx.save_for_backward(q, k, v, out, lse)
            return out

        @staticmethod
        def backward(ctx: Any, d_out: Tensor) -> Any:
            return peer._templated_ring_attention_backward(
                group, 2, backward, d_out, "grad_out", *ctx.saved_tensors, task.causal
            )

    found: Tensor = Ring.apply(task.q, task.k, task.v)
    return found


def diffusers(task: Task, ring: bool) -> Tensor:
    import torch
    import torch.distributed as dist
    from diffusers import ContextParallelConfig
    from diffusers.models import attention_dispatch as peer
    from diffusers.models._modeling_parallel import ParallelConfig

    degrees = (task.world, 1) if ring else (1, task.world)
    mesh = dist.device_mesh.init_device_mesh("cpu", degrees, mesh_dim_names=("ring", "ulysses"))
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(*degrees))
    config.setup(task.rank, task.world, torch.device("cpu"), mesh=mesh)
    mask = None if task.hidden is None else ~task.hidden[None, None, None]
    if not ring:
        found = peer.dispatch_attention_fn(
            *task.swapped, attn_mask=mask, is_causal=task.causal, backend="native", parallel_config=config
        )  # fmt: skip
        return found.transpose(1, 2)
    aten = torch.ops.aten

    def forward(
        ctx: Any, q: Any, k: Any, v: Any, mask: Any, p: Any, causal: Any, *_: Any, _save_ctx: Any, **__: Any
    ) -> Any:
        if _save_ctx:
            ctx.save_for_backward(q, k, v)
            ctx.causal, ctx.mask = causal, mask
        bias = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        heads = [x.transpose(1, 2) for x in (q, k, v)]
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*heads, p, causal, attn_mask=bias)
        return out.transpose(1, 2), lse.transpose(1, 2)

    def backward(ctx: Any, d_out: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, **_: Any) -> Any:
        heads = [x.transpose(1, 2) for x in (d_out, query, key, value, out)]
        bias = None if ctx.mask is None else torch.zeros(ctx.mask.shape).masked_fill(~ctx.mask, -torch.inf)
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *heads, lse.transpose(1, 2).contiguous(), 0.0, ctx.causal, attn_mask=bias
        )
        return [x.transpose(1, 2) for x in grads]

    found = peer._templated_context_parallel_attention(
        *task.swapped, mask, 0.0, task.causal, None, False, False, forward_op=forward, backward_op=backward,
        _parallel_config=config,
    )  # fmt: skip
    return found.transpose(1, 2)


def diffusers_ring(task: Task) -> Tensor:
    return diffusers(task, ring=True)


def diffusers_ulysses(task: Task) -> Tensor:
    return diffusers(task, ring=False)


def ring_attention_pytorch(task: Task) -> Tensor:
    from ring_attention_pytorch.ring_flash_attention import ring_flash_attn

    first = sum(task.sizes[: task.rank])
    mine = None if task.hidden is None else ~task.hidden[None, first : first + task.sizes[task.rank]]
    found = ring_flash_attn(*task.swapped, mine, task.causal, 1024, True, False, None, task.world)
    return found.transpose(1, 2)


def yunchang_ring(task: Task) -> Tensor:
    import torch
    import torch.distributed as dist
    import yunchang.kernels.attention as inner
    from yunchang.ring import ring_pytorch_attn_func

    task.only()

    def op(
        q: Any, k: Any, v: Any, p: float = 0.0, is_causal: bool = False, *_: Any, scale: Any = None, **__: Any
    ) -> Any:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, p, is_causal, scale=scale)

    inner._scaled_dot_product_flash_attention = op
    found = ring_pytorch_attn_func(*(x.contiguous() for x in task.swapped), causal=task.causal, group=dist.group.WORLD)
    out = found[0] if isinstance(found, tuple) else found
    return out.transpose(1, 2)


# name -> (function, package, how it is run)
PEERS: dict[str, tuple[Callable[[Task], Any], str, str]] = {
    "longtake ring": (ours, "longtake", ""),
    "torch ring": (torch_ring, "torch", "its CPU kernel put in"),
    "diffusers ring": (diffusers_ring, "diffusers", "torch's CPU kernel put in"),
    "diffusers Ulysses": (diffusers_ulysses, "diffusers", "native backend"),
    "ring-attention-pytorch": (ring_attention_pytorch, "ring_attention_pytorch", ""),
    "yunchang ring": (yunchang_ring, "yunchang", "torch's CPU kernel put in"),
}


# ---- one rank ----


def judge(peer: str, case: str, rank: int, world: int) -> dict[str, Any]:
    """Errors of O, dQ, dK and dV of this rank's shards, over the largest right value."""
    import torch

    total = ROWS * world - (1 if case == "uneven" else 0)
    sizes = [ROWS] * (world - 1) + [total - ROWS * (world - 1)]
    generator = torch.Generator().manual_seed(world)
    q, k, v, d_out = (torch.randn(1, HEADS, total, WIDTH, generator=generator, dtype=torch.float64) for _ in range(4))
    hidden = torch.arange(total) >= total - HIDDEN if case == "padded keys" else None
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    logits = whole[0] @ whole[1].mT * WIDTH**-0.5
    if case == "causal":
        logits = logits.masked_fill(torch.ones(total, total).triu(1).bool(), -torch.inf)
    if hidden is not None:
        logits = logits.masked_fill(hidden, -torch.inf)
    right = logits.softmax(-1) @ whole[2]
    wanted = [right.detach(), *torch.autograd.grad(right, whole, d_out)]
    mine = slice(ROWS * rank, ROWS * rank + sizes[rank])
    leaves = [x[:, :, mine].float().clone().requires_grad_() for x in (q, k, v)]
    task = Task(leaves[0], leaves[1], leaves[2], case == "causal", hidden, rank, world, sizes)
    out = PEERS[peer][0](task)
    if out.shape != leaves[0].shape:
        raise ValueError(f"O is {tuple(out.shape)}, wanted {tuple(leaves[0].shape)}")

    def errors(names: tuple[str, ...], found: list[Tensor], right: list[Tensor]) -> dict[str, Any]:
        return {
            name: float((x - y[:, :, mine]).abs().nan_to_num(torch.inf).max() / y.abs().max())
            for name, x, y in zip(names, found, right, strict=True)
        }

    found = errors(("O",), [out.detach()], wanted[:1])
    try:
        out.backward(d_out[:, :, mine].float())
    except Exception as error:
        return found | {"refused": "backward: " + words(error)}
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return found | errors(("dQ", "dK", "dV"), grads, wanted[1:])


def words(error: Exception) -> str:
    """A library's complaint in one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def work(folder: str, peer: str, cases: list[str], rank: int, world: int) -> None:
    """One rank: each case in order; ends at the first that raises, because its group may hang in a message."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # what a library says is in its answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    store = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS))
    for case in cases:
        try:
            answer: dict[str, Any] = judge(peer, case, rank, world)
        except Exception as error:
            answer = {"refused": words(error)}
        place = Path(folder, f"{case}-{rank}")
        place.with_suffix(".partial").write_text(json.dumps(answer))
        place.with_suffix(".partial").replace(place)
        if "refused" in answer:
            os._exit(1)
    dist.barrier()
    os._exit(0)


# ---- all of them ----


def group(peer: str, cases: list[str], world: int) -> dict[str, dict[str, Any]]:
    """Case -> what its ranks said together, up to the first refusal; a case that nobody answered in time is stuck."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=work, args=(folder, peer, cases, rank, world)) for rank in range(world)]
        for process in ranks:
            process.start()
        until = time.monotonic() + SECONDS
        while any(process.is_alive() for process in ranks) and time.monotonic() < until:
            time.sleep(0.05)
            if any(process.exitcode for process in ranks):
                time.sleep(0.5)  # the others may have words of their own
                break
        crashed = [-process.exitcode for process in ranks if process.exitcode and process.exitcode < 0]
        for process in ranks:
            process.kill()
            process.join()
        for case in cases:
            answers = [
                json.loads(place.read_text())
                for rank in range(world)
                if (place := Path(folder, f"{case}-{rank}")).exists()
            ]
            refusals = [answer["refused"] for answer in answers if "refused" in answer]
            if refusals:
                errors = [answer for answer in answers if "O" in answer]
                found[case] = {name: max(answer.get(name, 0) for answer in errors) for name in ("O",) if errors}
                found[case]["refused"] = refusals[0]
            elif len(answers) == world:
                found[case] = {name: max(answer[name] for answer in answers) for name in answers[0]}
                continue
            elif crashed:
                found[case] = {"refused": f"a process ended by signal {crashed[0]}"}
            else:
                found[case] = {"refused": f"stuck: no answer in {SECONDS:.0f} s"}
            break
    return found


def verdict(answer: dict[str, Any]) -> str:
    """In a few words: right, wrong and by how much, or what was said."""
    wrong = {name: error for name, error in answer.items() if name != "refused" and error > RIGHT}
    told = "WRONG " + ", ".join(f"{name} {error:.2g}" for name, error in wrong.items()) if wrong else "right"
    if "refused" not in answer:
        return told
    before = f"O {told}, " if "O" in answer else ""
    return f"{before}refused ({answer['refused'][:90]})"


def all_cases(peer: str, world: int) -> dict[str, str]:
    """Case -> verdict; after a refusal the rest is asked of fresh processes."""
    found: dict[str, str] = {}
    while rest := [case for case in CASES if case not in found]:
        found |= {case: verdict(answer) for case, answer in group(peer, rest, world).items()}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["attention"], help="what is held against other libraries")
    parser.add_argument("--world", type=int, nargs="+", default=[2, 3, 4], help="numbers of ranks, 2 to 8")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="libraries whose name begins so")


def run(args: argparse.Namespace) -> int:
    """Print the page. UserError for a world or a library that there is not."""
    if any(not 2 <= world <= 8 or HEADS % world for world in args.world):
        raise UserError(f"--world: ranks must divide {HEADS} heads, given {args.world}; allowed are 2, 3, 4 and 6")
    names = [name for name in PEERS if not args.only or any(name.startswith(begin) for begin in args.only)]
    if not names:
        raise UserError(f"--only: no library begins with {args.only}; there are {', '.join(PEERS)}")
    print(f"{ROWS} tokens a rank, {HEADS} heads, float32, gloo; wrong is more than {RIGHT:g} of the largest value\n")
    absent = []
    for name in names:
        _, package, how = PEERS[name]
        if find_spec(package) is None:
            absent.append(f"{name} (pip install {package.replace('_', '-')})")
            continue
        print(f"{name} {_version(package)}{', ' + how if how else ''}")
        for world in args.world:
            for case, said in all_cases(name, world).items():
                report = REPORTS.get((name, case), "") if said != "right" else ""
                print(f"  {world} ranks  {case:<12} {said}{' [' + report + ']' if report else ''}", flush=True)
    if absent:
        print("\nnot installed: " + "; ".join(absent))
    return 0


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return ""
