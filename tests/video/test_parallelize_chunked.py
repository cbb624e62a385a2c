"""Chunked mode is the stock model with little memory: equality, peak, text, several ranks."""

import weakref

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video import chunked
from longtake.video.parallelize import parallelize
from longtake.video.parking import Parking
from longtake.video.scope import Scope
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from video_models import keep_mask, mask_time, noise, tiny_unet

TOLERANCE = 1e-5


class LiveBytes(TorchDispatchMode):
    """Bytes of tensor storage made inside and still alive; `peak` is the most at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata in self._known or storage._cdata in given:
                    continue
                self._known[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata, storage.nbytes()))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _forget(self, key, size):
        def gone(_):
            self._known.pop(key, None)
            self.now -= size

        return gone


def inputs(frames, size=(8, 8), batch=2):
    return noise("latents", batch, 4, frames, *size), noise("text", batch, 5, 32)


def stock(frames, keep=None, size=(8, 8), **changes):
    model = tiny_unet(**changes)
    if keep is not None:
        mask_time(model, keep)
    latents, text = inputs(frames, size)
    with torch.no_grad():
        return model(latents, 500, text).sample


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a15_chunked_equals_stock(chunk):
    scope = Scope(2, 5, gate="off")
    for frames, this, keep in [(9, None, None), (9, scope, keep_mask(9, 2, scope.global_indices(9)))]:
        model = tiny_unet()
        latents, text = inputs(frames)
        untouched = latents.clone()
        with torch.no_grad(), parallelize(model, Partition.even(frames, 1), this, chunk_frames=chunk):
            out = model(latents, 500, text, return_dict=False)[0]
        assert (out - stock(frames, keep)).abs().max() <= TOLERANCE
        assert torch.equal(latents, untouched)


def test_a15_chunked_equals_stock_when_upsampling_is_told_its_size_and_blocks_are_deep():
    changes = {"layers_per_block": 2, "block_out_channels": (32, 32), "sample_size": 7}
    model = tiny_unet(**changes)
    latents, text = inputs(6, (7, 5))
    with torch.no_grad(), parallelize(model, Partition.even(6, 1), None, chunk_frames=4):
        out = model(latents, torch.tensor(500), text).sample
    assert (out - stock(6, size=(7, 5), **changes)).abs().max() <= TOLERANCE


def test_a15_peak_activation_is_at_most_a_third_of_stock_at_64_frames():
    model = tiny_unet()
    latents, text = inputs(64)
    with torch.no_grad():
        with LiveBytes() as usual:
            before = model(latents, 500, text).sample
        with parallelize(model, Partition.even(64, 1), None, chunk_frames=4), LiveBytes() as low:
            after = model(latents, 500, text).sample
    assert (before - after).abs().max() <= TOLERANCE
    assert low.peak <= usual.peak / 3


def test_memory_of_the_dual_scope_grows_with_the_hidden_state_only(monkeypatch):
    """Three times the frames: what is alive grows by the hidden states of one layer, not by keys, tokens or skips."""
    monkeypatch.setattr(chunked, "PARK_BYTES", 0)
    model = tiny_unet()
    peaks = {}
    with torch.no_grad():
        for frames in (32, 96):
            latents, text = inputs(frames, (4, 4))
            scope = Scope(2, 4, gate="off")
            with parallelize(model, Partition.even(frames, 1), scope, chunk_frames=8), LiveBytes() as live:
                model(latents, 500, text)
            peaks[frames] = live.peak
    hidden = 2 * 32 * 16 * 4  # bytes of one frame at full resolution: batch, channels, pixels, float32
    assert (peaks[96] - peaks[32]) / (96 - 32) <= 3.5 * hidden


def test_skips_beyond_the_budget_wait_in_a_file(monkeypatch):
    monkeypatch.setattr(chunked, "PARK_BYTES", 20_000)
    model = tiny_unet()
    latents, text = inputs(9)
    with torch.no_grad(), parallelize(model, Partition.even(9, 1), None, chunk_frames=4):
        out = model(latents, 500, text).sample
    assert (out - stock(9)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_parking_gives_back_what_it_was_given(dtype, budget):
    parking = Parking(budget)
    first, second = noise("a", 2, 5, 3).to(dtype), noise("b", 2, 7, 4, 2).to(dtype)
    tickets = [parking.put(first), parking.put(second.transpose(2, 3))]
    assert torch.equal(parking.frames(tickets[1], 2, 6), second.transpose(2, 3)[:, 2:6])
    parking.free(tickets[1])
    again = parking.put(second)
    assert torch.equal(parking.frames(again, 0, 7), second)
    assert torch.equal(parking.frames(tickets[0], 4, 5), first[:, 4:5])
    parking.close()


def frame_text(frames):
    return torch.stack([noise(f"text{frame // 4}", 2, 5, 32) for frame in frames], 1)


def run_chunked(rank, world, sizes, with_text):
    torch.set_grad_enabled(False)
    partition = Partition.from_sizes(sizes)
    mine = partition.range(rank)
    latents, text = inputs(partition.total)
    model = tiny_unet()
    with parallelize(model, partition, Scope(2, 4, gate="off"), chunk_frames=3) as handle:
        handle.set_text(frame_text if with_text else None)
        return model(latents[:, :, mine.start : mine.stop], 500, text).sample


@pytest.mark.distributed
@pytest.mark.parametrize("sizes", [(5, 5, 4), (1, 0, 13)])
def test_chunked_ranks_with_text_along_the_video_equal_one_unchunked_process(sizes):
    latents, text = inputs(14)
    model = tiny_unet()
    with torch.no_grad(), parallelize(model, Partition.even(14, 1), Scope(2, 4, gate="off")) as handle:
        handle.set_text(frame_text)
        alone = model(latents, 500, text).sample
    out = torch.cat(run_ranks(run_chunked, 3, sizes, True), 2)
    assert (out - alone).abs().max() <= TOLERANCE


def test_chunked_refuses_what_it_does_not_compute():
    model = tiny_unet()
    with pytest.raises(UserError, match="at least 1"):
        parallelize(model, Partition.even(6, 1), None, chunk_frames=0)
    with pytest.raises(UserError, match="mode=exact only"):
        parallelize(model, Partition.even(6, 1), None, chunk_frames=2, mode="fast")
    with pytest.raises(UserError, match="transpose"):
        parallelize(model, Partition.even(6, 1), None, chunk_frames=2, strategy="transpose")
    latents, text = inputs(6)
    with parallelize(model, Partition.even(6, 1), None, chunk_frames=2), pytest.raises(UserError, match="residuals"):
        model(latents, 500, text, mid_block_additional_residual=latents)
