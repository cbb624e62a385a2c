"""The kernels tab tells what the kernels' own plan tells."""

import numpy as np
import pytest
import torch
from longtake.demos.kernels_tab import LAYOUTS, MASKS, STRATEGIES, Question, answer, mask_of
from longtake.errors import UserError
from longtake.kernels import flops as plan_flops
from longtake.kernels import forecast, make_plan

ASKED = Question("causal", 96, 3, "zigzag", "ring", 8, 4, 6, 2, 16, "bfloat16")


def asked(**change) -> Question:
    return Question(**{**ASKED.__dict__, **change})


def test_bytes_and_flops_are_the_plans() -> None:
    _, rows, summary, python = answer(ASKED)
    plan = make_plan(96, mask_of(ASKED), world=3, layout="zigzag", strategy="ring", heads=6, kv_heads=2)
    shape = {"batch": 1, "heads": 6, "kv_heads": 2, "head_dim": 16}
    for rank, tokens, flops, forward, backward in rows:
        both = sum(forecast(plan, rank, **shape, dtype=torch.bfloat16).sent.values())
        assert tokens == plan.queries.sizes[rank] and 1e3 * (forward + backward) == pytest.approx(both, abs=1)
        assert 1e6 * flops == pytest.approx(plan_flops(plan, rank, **shape), abs=1e3) and forward > 0 and backward > 0
    assert "ring" in summary and "Causal" in python


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mask_and_layout_is_drawn(mask: str, layout: str) -> None:
    question = asked(mask=mask, layout=layout, strategy="auto")
    picture, rows, _, python = answer(question)
    assert len(rows) == 3 and sum(row[1] for row in rows) == 96
    scale = (picture.shape[1]) // 96
    cells = picture[14::scale, ::scale]
    visible = mask_of(question).dense(range(96), range(96)).numpy()
    assert np.array_equal((cells != (236, 239, 243)).any(-1), visible)
    namespace: dict = {}
    exec(python.rsplit("\n", 1)[0], namespace)
    assert namespace["plan"].world == 3


def test_a_rank_is_dark_where_it_holds_both() -> None:
    picture, *_ = answer(asked(mask="full", layout="contiguous", strategy="ring"))
    scale = picture.shape[1] // 96
    cells = picture[14::scale, ::scale]
    assert tuple(cells[0, 0]) == (0, 114, 178) and tuple(cells[95, 95]) == (0, 158, 115)
    assert tuple(cells[0, 95]) not in {(0, 114, 178), (0, 158, 115)}
    assert np.array_equal(picture[0, 0], cells[0, 0]), "the bar on top shows who holds the keys"


@pytest.mark.parametrize(
    "change",
    [
        {"mask": "sparse"}, {"length": 0}, {"length": 10**6}, {"ranks": 0}, {"ranks": 17}, {"heads": 5},
        {"layout": "spiral"}, {"strategy": "teleport"}, {"dtype": "int8"}, {"window": -1}, {"length": 1.5},
        {"length": 2, "ranks": 3}, {"mask": "lambda", "window": 0},
    ],
)  # fmt: skip
def test_wrong_questions_are_refused_in_one_line(change) -> None:
    with pytest.raises(UserError) as caught:
        answer(asked(**change))
    assert "\n" not in str(caught.value)


def test_every_strategy_serves_or_says_why_not() -> None:
    served = 0
    for strategy in STRATEGIES:
        try:
            answer(asked(strategy=strategy))
            served += 1
        except UserError as error:
            assert str(error)
    assert served >= 5
