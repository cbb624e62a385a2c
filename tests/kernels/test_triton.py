"""Triton kernels on a CPU, in Triton's interpreter, in one process of their own (see triton_cases.py)."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from longtake.kernels.backends.triton_block_sparse import block_sparse_triton
from longtake.kernels.backends.triton_dual_scope import dual_scope_triton
from longtake.kernels.masks.basic import DualScope
from longtake.kernels.pooling.fused import pool_triton
from longtake.kernels.pooling.windows import resolve_windows

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
# (O and L, gradients); bf16 operands are exact inputs widened to float32, so the output's rounding is the error
BOUNDS = {"fp32": (2e-6, 1e-5), "fp16": (1e-3, 5e-3), "bf16": (8e-3, 2e-2)}


def errors(**environment: str) -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_cases.py"))],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(found: dict[str, dict[str, float]]) -> None:
    kinds = {(name.split()[0], name.split()[-1]) for name in found}
    wanted = {(kind, dtype) for kind in ("dual", "block", "pool", "guided") for dtype in BOUNDS}
    assert wanted <= kinds and len(found) == 27
    for name, error in found.items():
        bound, grad_bound = BOUNDS[name.split()[-1]]
        assert error["o"] <= bound and error["l"] <= bound and error["g"] <= grad_bound, (name, error)
    for dtype in BOUNDS:
        worst = {key: max(error[key] for name, error in found.items() if name.endswith(dtype)) for key in "olg"}
        print(dtype, worst)


@needs_triton
def test_f_every_kernel_in_the_interpreter_equals_the_reference() -> None:
    check(errors(TRITON_INTERPRET="1"))


@needs_triton
@pytest.mark.gpu
def test_h_every_kernel_on_the_gpu_equals_the_reference() -> None:
    check(errors(TRITON_INTERPRET="0"))


def test_mistakes_raise_before_triton_is_needed() -> None:
    from longtake.kernels.masks.tables import BlockSparse

    x, places = torch.zeros(1, 2, 6, 8), range(6)
    with pytest.raises(ValueError, match="edge zero"):
        dual_scope_triton(x, [(x, x, places)], DualScope(2, edge="zero"), places)
    with pytest.raises(ValueError, match="row_scale"):
        dual_scope_triton(x, [(x, x, places)], DualScope(2, row_scale=4.0), places)
    with pytest.raises(ValueError, match="occurs twice"):
        dual_scope_triton(x, [(x, x, places), (x, x, places)], DualScope(2), places)
    with pytest.raises(ValueError, match="one to three pieces"):
        dual_scope_triton(x, [], DualScope(2), places)
    with pytest.raises(ValueError, match="one dtype"):
        dual_scope_triton(x.double(), [(x, x, places)], DualScope(2), places)
    with pytest.raises(ValueError, match="3 heads"):
        block_sparse_triton(x, x, x, BlockSparse(2, 2, torch.ones(3, 3, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="one dtype"):
        block_sparse_triton(x.double(), x, x, BlockSparse(2, 2, torch.ones(3, 3, dtype=torch.bool)))
    windows = resolve_windows((2, 2, 2), 2)
    with pytest.raises(ValueError, match="must be"):
        pool_triton(torch.zeros(1, 2, 2, 2, 4), torch.zeros(1, 2, 2, 3), windows, 1.0)
    with pytest.raises(ValueError, match="temperature > 0"):
        pool_triton(torch.zeros(1, 2, 2, 2, 4), torch.zeros(1, 2, 2, 2), windows, -math.inf)
