"""The kernels tab: a mask, its plan over ranks as a picture, and the bytes that would travel, before anything runs."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, one_line

if TYPE_CHECKING:
    import numpy as np
    from longtake.kernels import Mask, Plan

MOST_LENGTH, MOST_RANKS, PICTURE = 2048, 16, 512
MASKS = ("causal", "full", "sliding window", "dual scope", "lambda", "documents")
LAYOUTS = ("contiguous", "zigzag", "striped")
STRATEGIES = ("auto", "ulysses", "ring", "usp", "allgather_kv", "halo")
DTYPES = ("bfloat16", "float32")
# colours that stay apart for most eyes, one a rank, used again after eight
_COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (213, 94, 0), (150, 140, 60), (110, 90, 170),
)  # fmt: skip
_HIDDEN = (236, 239, 243)


@dataclass(frozen=True)
class Question:
    """What the controls ask. window: of a sliding window, dual scope or lambda; others: global or first tokens, or the
    number of documents."""

    mask: str
    length: int
    ranks: int
    layout: str
    strategy: str
    window: int
    others: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        for name, allowed in (("mask", MASKS), ("layout", LAYOUTS), ("strategy", STRATEGIES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is one of {', '.join(allowed)}; given {getattr(self, name)!r}")
        limits = {"length": MOST_LENGTH, "ranks": MOST_RANKS, "heads": 128, "kv_heads": 128, "head_dim": 512}
        for name, most in {**limits, "window": MOST_LENGTH, "others": MOST_LENGTH}.items():
            value = getattr(self, name)
            least = 0 if name in ("window", "others") else 1
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise UserError(f"{name} is a whole number from {least} to {most} here; given {value!r}")
        if self.ranks > self.length:
            raise UserError(f"{self.ranks} ranks cannot share {self.length} tokens")
        if self.heads % self.kv_heads:
            raise UserError(f"{self.heads} heads are no multiple of {self.kv_heads} key heads")


def mask_of(question: Question) -> Mask:
    """The mask of longtake.kernels that the controls name. Raises UserError."""
    from longtake.kernels import And, Causal, Documents, DualScope, Full, Lambda, SlidingWindow

    length, window, others = question.length, question.window, question.others
    try:
        if question.mask == "causal":
            return Causal()
        if question.mask == "full":
            return Full()
        if question.mask == "sliding window":
            return SlidingWindow(window, window)
        if question.mask == "dual scope":
            chosen = sorted({round(place * (length - 1) / max(1, others - 1)) for place in range(min(others, length))})
            return DualScope(window, tuple(chosen))
        if question.mask == "lambda":
            return Lambda(others, window)
        count = max(1, min(others, length))
        return And(Documents(tuple(length * k // count for k in range(count + 1))), Causal())
    except ValueError as error:
        raise UserError(one_line(error)) from error


def answer(question: Question) -> tuple[Any, list[list[Any]], str, str]:
    """(picture RGB uint8 (S, S, 3), a row of the table a rank, a summary, Python). Raises UserError."""
    import torch
    from longtake.kernels import balance, flops, forecast, make_plan

    mask = mask_of(question)
    try:
        plan = make_plan(
            question.length, mask, world=question.ranks, layout=question.layout, strategy=question.strategy,
            heads=question.heads, kv_heads=question.kv_heads,
        )  # fmt: skip
        shape = {"batch": 1, "heads": question.heads, "kv_heads": question.kv_heads, "head_dim": question.head_dim}
        dtype = getattr(torch, question.dtype)
        rows = []
        for rank in range(question.ranks):
            both, forward = (
                sum(forecast(plan, rank, **shape, dtype=dtype, backward=backward).sent.values())
                for backward in (True, False)
            )
            numbers = (flops(plan, rank, **shape) / 1e6, forward / 1e3, (both - forward) / 1e3)
            rows.append([rank, plan.queries.sizes[rank], *(round(number, 3) for number in numbers)])
    except (ValueError, RuntimeError) as error:
        raise UserError(one_line(error)) from error
    total = sum(row[3] + row[4] for row in rows)
    summary = (
        f"**{plan.strategy}**, balance {balance(plan, question.heads):.2f} (busiest rank over the mean), "
        f"{total:,.0f} kB sent by all ranks, forward and backward. {_why(plan, question)}"
    )
    return draw(plan, mask, question.length), rows, summary, _python(question, mask)


def draw(plan: Plan, mask: Mask, length: int) -> np.ndarray:
    """Queries downwards, keys to the right; a visible pair has the colour of the rank that holds the query, darker
    where it holds the key too (nothing travels for those). A bar on top shows who holds the keys."""
    import numpy as np

    visible = mask.dense(range(length), range(length)).cpu().numpy().reshape(length, length)
    owner = np.empty(length, np.int64)
    for rank in range(plan.world):
        owner[plan.queries.positions(rank).numpy()] = rank
    colours = np.array(_COLOURS, np.float64)[owner % len(_COLOURS)]
    own = owner[:, None] == owner[None, :]
    pale = 0.45 * colours + 0.55 * 255
    picture = np.where(visible[..., None], np.where(own[..., None], colours[:, None], pale[:, None]), _HIDDEN)
    scale = max(1, PICTURE // length)
    picture = np.repeat(np.repeat(picture, scale, 0), scale, 1).astype(np.uint8)
    bar = np.repeat(np.repeat(colours[None].astype(np.uint8), scale, 1), 10, 0)
    gap = np.full((4, picture.shape[1], 3), 255, np.uint8)
    return np.concatenate([bar, gap, picture])


def _why(plan: Plan, question: Question) -> str:
    from longtake.kernels.plan.plan import pick_strategy

    if question.strategy != "auto":
        return "Chosen by you."
    chosen = pick_strategy(
        plan.mask, plan.queries, plan.keys, question.heads, question.kv_heads, None, plan.block
    )  # fmt: skip
    return "Why: " + "; ".join(html.escape(reason) for reason in chosen.reasons) + "."


def _python(question: Question, mask: Mask) -> str:
    text = repr(mask)
    known = ("And", "Causal", "Documents", "DualScope", "Full", "Lambda", "SlidingWindow")
    names = [name for name in known if name in text]
    if "DualScope" in names:
        text = f"DualScope({question.window}, {mask.global_indices})"  # type: ignore[attr-defined]
    return "\n".join(
        [
            f"from longtake.kernels import {', '.join(names)}, attention, make_plan",
            "",
            f"plan = make_plan({question.length}, {text}, world={question.ranks}, layout={question.layout!r},",
            f"                 strategy={question.strategy!r}, heads={question.heads}, kv_heads={question.kv_heads})",
            "out = attention(q, k, v, plan=plan, mesh=group)      # local shards, on every rank",
        ]
    )


def kernels_tab(tab: Any) -> None:
    """Build the tab inside gr.Blocks. Its event is /kernels; the first plan is drawn when the tab is opened."""
    import gradio as gr

    gr.Markdown(
        "What one exact attention call would do on several ranks: who computes which pairs, and what must travel. "
        "Nothing is sent; the plan counts.",
        elem_classes="about",
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            mask = gr.Dropdown(list(MASKS), value="causal", label="Mask")
            with gr.Row():
                length = gr.Slider(16, MOST_LENGTH, 256, step=1, label="Tokens")
                ranks = gr.Slider(1, MOST_RANKS, 4, step=1, label="Ranks")
            with gr.Row():
                layout = gr.Radio(list(LAYOUTS), value="zigzag", label="Layout")
                strategy = gr.Dropdown(list(STRATEGIES), value="auto", label="Strategy")
            with gr.Row():
                window = gr.Number(24, label="Window", precision=0, minimum=0, min_width=90)
                others = gr.Number(4, label="Globals, first tokens or documents", precision=0, minimum=0, min_width=90)
            with gr.Row():
                heads = gr.Number(8, label="Heads", precision=0, minimum=1, min_width=90)
                kv_heads = gr.Number(8, label="Key heads", precision=0, minimum=1, min_width=90)
                head_dim = gr.Number(64, label="Head width", precision=0, minimum=1, min_width=90)
                dtype = gr.Dropdown(list(DTYPES), value="bfloat16", label="Numbers", min_width=110)
            go = gr.Button("Draw the plan", variant="primary", min_width=140)
        with gr.Column(scale=5, min_width=300):
            picture = gr.Image(
                label="Mask and ranks", show_label=False, interactive=False, format="png",
                buttons=["download", "fullscreen"], elem_classes="mask",
            )  # fmt: skip
            gr.Markdown(
                "Queries downwards, keys across, one colour a rank: dark where it holds both, pale where the key must "
                "come from another.",
                elem_classes="about",
            )
            summary = gr.Markdown()
            with gr.Accordion("Figures: work and bytes by rank", open=False):
                table = gr.Dataframe(
                    headers=["rank", "tokens", "MFLOP forward", "kB sent forward", "kB sent backward"],
                    datatype="number", interactive=False, label="By rank", elem_classes="ranks",
                )  # fmt: skip
            with gr.Accordion("Python", open=False):
                python = gr.Code(
                    label="Python", show_label=False, language="python", interactive=False, wrap_lines=True
                )

    def plan(
        mask: str, length: int, ranks: int, layout: str, strategy: str, window: int, others: int, heads: int,
        kv_heads: int, head_dim: int, dtype: str,
    ) -> tuple[Any, Any, str, str]:  # fmt: skip
        try:
            question = Question(
                mask, _whole(length), _whole(ranks), layout, strategy, _whole(window), _whole(others), _whole(heads),
                _whole(kv_heads), _whole(head_dim), dtype,
            )  # fmt: skip
            return answer(question)
        except UserError as error:
            raise gr.Error(one_line(error), print_exception=False) from error

    inputs = [mask, length, ranks, layout, strategy, window, others, heads, kv_heads, head_dim, dtype]
    outputs = [picture, table, summary, python]
    go.click(plan, inputs, outputs, api_name="kernels", concurrency_id="kernels", concurrency_limit=1)
    tab.select(plan, inputs, outputs, api_visibility="private", concurrency_id="kernels", concurrency_limit=1)


def _whole(value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"a number is missing: {value!r}") from None
    if number != int(number):
        raise UserError(f"a whole number is needed; given {value!r}")
    return int(number)
