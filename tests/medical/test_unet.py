"""The nets of slices and volumes: a few slices at a time, or with what entered before, they say the same."""

import pytest
import torch
from live_bytes import peak_bytes
from longtake.medical import unet
from longtake.medical.unet import UNet, filled, pieces


def net(stem=2):
    torch.manual_seed(0)
    made = UNet(5, 2, (8, 16, 24), 12, stem=stem).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.abs().sum():
                parameter.normal_(0, 0.1)
    return made


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 2**10, 2**12, 2**20])
def test_piece_by_piece_is_the_whole_in_every_size_of_piece(monkeypatch, depth, most):
    monkeypatch.setitem(unet.PIECE, "cpu", most)
    model, x, condition = net(), torch.randn(2, 5, depth, 16, 24), torch.randn(2, 12)
    whole = model(x, condition)
    with torch.inference_mode():
        apart = model(x, condition)
    assert whole.requires_grad and whole.shape == (2, 2, depth, 16, 24)
    assert torch.allclose(whole, apart, atol=2e-5)


def test_pieces_never_cross_a_row_and_cover_all():
    for depth in (1, 3, 7):
        for most in (1, 20, 45, 1000):
            parts = pieces(3, depth, 10, most)
            assert [n for part in parts for n in range(part.start, part.stop)] == list(range(3 * depth))
            assert all(part.start // depth == (part.stop - 1) // depth for part in parts)
            assert all(part.stop - part.start <= max(1, most // 10) for part in parts)
    x = torch.randn(6, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    out = filled(pieces(2, 3, 10, 20), lambda part: x[part])
    assert torch.equal(out, x) and out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("grad", [True, False])
def test_what_entered_before_equals_entering_at_every_step_and_nothing_equals_zeros(grad):
    model, x, condition = net(), torch.randn(2, 5, 3, 16, 16), torch.randn(2, 12)
    with torch.set_grad_enabled(grad):
        whole = model(x, condition)
        entered = model.entered(x[:, 2:])
        assert torch.allclose(model(x[:, :2], condition, entered=entered), whole, atol=2e-5)
        one = model(x[:1, :2].repeat(2, 1, 1, 1, 1), condition, entered=model.entered(x[:1, 2:]))
        assert torch.allclose(one[:1], whole[:1], atol=2e-5), "what entered may be of one row for all"
        blank = torch.cat([x[:, :2], torch.zeros_like(x[:, 2:])], 1)
        assert torch.allclose(model(x[:, :2], condition), model(blank, condition), atol=2e-5)


def test_a_volume_held_piece_by_piece_takes_about_half(monkeypatch):
    """What lives at once: a few layers of the whole volume, not every intermediate of a block."""
    model, x, condition = net(), torch.randn(1, 5, 16, 32, 32), torch.randn(1, 12)
    found = {}
    for most in (2**12, 2**30):
        monkeypatch.setitem(unet.PIECE, "cpu", most)
        found[most] = peak_bytes(lambda: model(x, condition))
    layer = 16 * 8 * 16 * 16 * 4  # bytes of the finest one
    assert found[2**12] < 0.55 * found[2**30] and found[2**12] < 5 * layer, (found, layer)
