"""Bytes and rounds of a full-size UNet (VideoCrafter2, ZeroScope), counted with meta tensors."""

import pytest
import torch
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport
from longtake.video import piece as piece_module
from longtake.video.parallelize import Exchange, parallelize
from longtake.video.scope import Scope

# of the full-size UNet at 320x512 (40x64 latents), batch 2, float16, elements per frame; published plan of this project
ATTENTION, CONVOLUTION, TRANSFORMER, NORMS, GROUPS = 34_119_680, 15_052_800, 16_076_800, 105, 32
BATCH, BYTES = 2, 2
WORLD, WINDOW, COUNT = 8, 8, 16


@pytest.fixture(scope="module")
def full_size():
    from diffusers import UNet3DConditionModel

    with torch.device("meta"):
        return UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64).half().eval()


def count(model, monkeypatch, frames_per_rank=24, rank=3, gate="off", timestep=500, **settings):
    monkeypatch.setattr(piece_module, "dual_scope_attention", lambda q, *args, **kwargs: q)  # traffic only
    partition = Partition.even(frames_per_rank * WORLD, WORLD)
    scope = Scope(WINDOW, COUNT, gate=gate)
    with torch.no_grad(), torch.device("meta"):
        handle = parallelize(model, partition, scope, transport=DryTransport(rank, WORLD), **settings)
        with handle:
            model(
                torch.empty(BATCH, 4, frames_per_rank, 40, 64, dtype=torch.float16),
                timestep,
                torch.empty(BATCH, 7, 1024, dtype=torch.float16),
            )
        return handle, handle.counter.as_dict()


def test_a9_bytes_and_rounds_of_the_exact_halo_strategy(full_size, monkeypatch):
    _, counter = count(full_size, monkeypatch, strategy="halo")
    received = counter["received"]
    assert received["halo"] == (4 * WINDOW * ATTENTION + 8 * CONVOLUTION) * BYTES
    assert received["gather"] == 2 * COUNT * (WORLD - 1) // WORLD * ATTENTION * BYTES
    assert received["moments"] == NORMS * BATCH * GROUPS * 16
    assert counter["rounds"] <= 34 * 2 + 22 * 4 + 17 == 173


def test_a9_fast_mode_needs_fewer_rounds_for_the_same_bytes(full_size, monkeypatch):
    _, counter = count(full_size, monkeypatch, strategy="halo", mode="fast")
    assert counter["received"]["halo"] == (4 * WINDOW * ATTENTION + 8 * CONVOLUTION) * BYTES
    assert counter["rounds"] <= 90


def test_a9_bytes_of_the_transpose_strategy(full_size, monkeypatch):
    _, counter = count(full_size, monkeypatch, strategy="transpose")
    assert counter["received"]["transpose"] == 2 * 24 * (WORLD - 1) // WORLD * TRANSFORMER * BYTES
    assert counter["received"]["halo"] == 8 * CONVOLUTION * BYTES
    assert counter["rounds"] <= 173


@pytest.mark.parametrize(("timestep", "local"), [(500, 1), (900, 0)])
def test_a9_hard_gate_bytes(full_size, monkeypatch, timestep, local):
    _, counter = count(full_size, monkeypatch, strategy="halo", gate="hard", timestep=timestep)
    received = counter["received"]
    assert received["halo"] == (local * 4 * WINDOW * ATTENTION + 8 * CONVOLUTION) * BYTES
    shared = 2 * COUNT * (WORLD - 1) // WORLD * ATTENTION * BYTES
    assert received.get("gather", 0) == (1 - local) * shared


@pytest.mark.parametrize(("frames_per_rank", "expected"), [(24, Exchange.TRANSPOSE), (64, "transpose"), (80, "halo")])
def test_auto_takes_the_cheaper_strategy_which_changes_near_73_frames_a_rank(full_size, frames_per_rank, expected):
    partition = Partition.even(frames_per_rank * WORLD, WORLD)
    scope = Scope(WINDOW, COUNT, gate="off")
    with parallelize(full_size, partition, scope, transport=DryTransport(3, WORLD)) as handle:
        assert handle.strategy == expected
        assert "fewest elements" in handle.explain() and expected in handle.explain()
