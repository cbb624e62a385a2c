"""The layers that VALL-E R fills in at once are filled in by several ranks as by one."""

import pytest
import torch
from longtake.kernels import Transport
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import Size
from ranks import run_ranks


def completed(rank, world, frames):
    torch.manual_seed(0)
    model = NAR(Size(32, 4, 2, 64), entries=40, layers_of_codes=4, tie="same", around=1).double().eval()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(40, (4, frames), generator=generator)
    text = torch.randint(1, 178, (7,), generator=generator)
    pointer = torch.arange(frames) * 7 // frames
    alone = model.complete(text, codes, pointer, 5)
    shared = model.complete(text, codes, pointer, 5, mesh=Transport())
    books = torch.randn(4, 40, 6, generator=generator, dtype=torch.float64)
    expected = [model.expect(text, codes, pointer, 5, books, mesh)[1] for mesh in (None, Transport())]
    same = torch.equal(alone, shared) and float((expected[0] - expected[1]).abs().max()) < 1e-12
    return same, shared.tolist()


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "frames"), [(1, 20), (2, 31), (3, 50)])
def test_ranks_fill_in_the_same_codes_as_one(world, frames):
    found = run_ranks(completed, world, frames)
    assert all(same for same, _ in found) and all(codes == found[0][1] for _, codes in found)
