"""Joint attention: video tokens cut over ranks, text tokens on every rank, all in one softmax.

For diffusion transformers whose text and video share a softmax, called with their own tensors (`shard_transformer`
serves whole models); the adapters of HunyuanVideo and CogVideoX will call it.

Diffusion transformers of the MM-DiT kind (Stable Diffusion 3, arXiv 2403.03206, section 3) let video and text attend to
both. Each rank takes its share of the text's rows beside its rows of video, so the call is self-attention over
N + T positions under any strategy, and no text row is computed twice; the text's outputs are brought together at the
end.

Shapes: B batch, H heads, Hk key heads, n video rows of this rank, N of all, T text rows, D head size.

    video, text = joint_attention(q, k, v, text_q, text_k, text_v, mesh=transport)
"""

from collections.abc import Sequence
from typing import Any

import torch
from longtake.kernels.calls.api import attention
from longtake.kernels.errors import ShapeError
from longtake.kernels.masks.basic import Full
from longtake.kernels.masks.tables import KeyPadding
from longtake.kernels.partition import Partition
from longtake.kernels.plan.layout import Layout
from longtake.kernels.plan.plan import make_plan
from longtake.kernels.precision import alike
from longtake.kernels.ranks.agreement import agree
from longtake.kernels.ranks.mesh import as_transport
from longtake.kernels.ranks.rows import gather_rows
from torch import Tensor


def joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    text_q: Tensor,
    text_k: Tensor,
    text_v: Tensor,
    *,
    mesh: Any = None,
    sizes: Sequence[int] | None = None,
    text_lengths: Sequence[int] | None = None,
    strategy: str = "auto",
    backend: str = "auto",
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of video and text over video and text. Returns (O of this rank's video (B, H, n, Dv), O of all text
    (B, H, T, Dv), the same on every rank).

    q (B, H, n, D), k (B, Hk, n, D), v (B, Hk, n, Dv): this rank's video; text_q, text_k, text_v alike with T rows, the
    same on every rank. sizes: video rows of every rank, in order; without it ranks tell each other at every call.
    text_lengths: real tokens of each batch entry's text, the rest of its keys is padding. mesh, strategy, backend,
    scale: as for `attention`.
    Gradients: each rank's copy of the text gets a share; the sum over ranks is the gradient, as for parameters that
    every rank holds. Raises ShapeError, or PlanMismatch on every rank.
    """
    q, k, v, text_q, text_k, text_v = alike(q, k, v, text_q, text_k, text_v)
    transport, degree = as_transport(mesh)
    length = text_q.shape[2]
    for name, x, text in (("q", q, text_q), ("k", k, text_k), ("v", v, text_v)):
        if text.shape != (*x.shape[:2], length, x.shape[3]):
            raise ShapeError(f"{name} {tuple(x.shape)} and its text {tuple(text.shape)} do not fit {length} text rows")
    lengths = text_lengths or ()
    if text_lengths is not None and (len(lengths) != q.shape[0] or not all(0 <= n <= length for n in lengths)):
        raise ShapeError(f"text_lengths must be {q.shape[0]} numbers from 0 to {length}, given {tuple(text_lengths)}")
    if sizes is None:
        told = agree(transport, {"text rows": length}, q.device, free={"rows": q.shape[2]})
        sizes = [own["rows"] for own in told]
    if len(sizes) != transport.world or sizes[transport.rank] != q.shape[2]:
        raise ShapeError(f"sizes {tuple(sizes)} do not say {q.shape[2]} rows for rank {transport.rank}")
    total = sum(sizes)
    video, share = Partition.from_sizes(sizes), Partition.even(length, transport.world)
    runs = tuple(
        (video.range(rank), range(total + share.pieces[rank][0], total + share.pieces[rank][1]))
        for rank in range(transport.world)
    )
    mask = Full() if text_lengths is None else KeyPadding(tuple(total + n for n in text_lengths))
    plan = make_plan(
        Layout(runs, total + length), mask, strategy=strategy, degree=degree, heads=q.shape[1], kv_heads=k.shape[1]
    )
    start, stop = share.pieces[transport.rank]
    rows = [torch.cat([x, text[:, :, start:stop]], 2) for x, text in ((q, text_q), (k, text_k), (v, text_v))]
    out = attention(*rows, mesh=transport, plan=plan, backend=backend, scale=scale)
    text_out = gather_rows(out[:, :, q.shape[2] :], transport, share, 2, add_up=True)
    return out[:, :, : q.shape[2]], text_out
