"""A generator with fewer channels: which go, what the others say then, and how it learns."""

import pytest
import torch
from longtake.speech import distil, vocoder
from speech_prior import drawn

KERNEL = 3


def made(channels=32):
    return drawn(vocoder.Config(channels=channels))


def heard(channels=12, samples=200):
    """Sounds in which channel 5 is a copy of channel 2 and channel 8 nearly silent."""
    z = torch.randn(3, channels, samples, generator=torch.Generator().manual_seed(0))
    z[:, 5] = 0.7 * z[:, 2]
    z[:, 8] *= 0.01
    return z


def test_the_error_of_what_goes_is_that_of_least_squares():
    z = heard()
    weight = torch.randn(6, 12, KERNEL, generator=torch.Generator().manual_seed(1))
    (gram,) = distil._products(z, KERNEL)
    order, errors = distil.surgery(gram, weight.flatten(1), KERNEL)
    assert sorted(order) == list(range(12)) and set(order[:2]) <= {2, 5, 8}
    wide = torch.cat([distil._rows(z[row : row + 1], KERNEL) for row in range(3)]).double()
    said = torch.nn.functional.conv1d(z, weight, padding=1).permute(0, 2, 1).flatten(0, 1).double()
    for gone in (3, 6, 11, 12):
        stays = [c for c in range(12) if c not in order[:gone]]
        columns = [c * KERNEL + tap for c in stays for tap in range(KERNEL)] + [12 * KERNEL]
        left = said - wide[:, columns] @ torch.linalg.lstsq(wide[:, columns], said).solution
        assert errors[gone] == pytest.approx(float(left.square().sum()), rel=2e-3)
    assert errors[2] < 1e-3 * errors[3]


def test_wide_layers_lose_a_few_channels_at_once_and_the_error_is_still_that_of_least_squares():
    z = torch.randn(1, 130, 900, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(4, 130, 1, generator=torch.Generator().manual_seed(1))
    (gram,) = distil._products(z, 1)
    order, errors = distil.surgery(gram, weight.flatten(1), 1)
    stays = sorted(order[60:])
    wide, said = z[0].T.double(), torch.einsum("oc,cn->no", weight[:, :, 0], z[0]).double()
    columns = torch.cat([wide[:, stays], wide.new_ones(900, 1)], 1)
    left = said - columns @ torch.linalg.lstsq(columns, said).solution
    assert errors[60] == pytest.approx(float(left.square().sum()), rel=2e-3)


def test_products_are_shared_out_where_they_cost_least():
    easy = distil.Cut(list(range(32)), [0.001 * n for n in range(33)], 1.0)
    hard = distil.Cut(list(range(32)), [0.1 * n for n in range(33)], 1.0)
    assert distil.share_out([easy, hard], 0.7) == [8, 32]  # 40 of 44.8: 16 would be 48
    assert distil.share_out([easy, hard], 1.0) == [32, 32]
    assert distil.share_out([distil.Cut([0, 1], [0.0, 1.0, 2.0], 1.0)], 0.1) == [2]  # fewer than a group: all stay


def test_with_every_channel_it_says_what_the_teacher_says():
    teacher = made()
    mel = torch.randn(4, 80, 24, generator=torch.Generator().manual_seed(0)) - 4
    student = distil.slimmed(teacher, mel, 1.0).eval()
    assert student.config.hidden == tuple(16 >> stage for stage in range(4) for _ in range(9))
    new = torch.randn(1, 80, 30, generator=torch.Generator().manual_seed(1)) - 4
    assert (student(new) - teacher(new)).square().mean() < 1e-3 * teacher(new).square().mean()


def test_solving_anew_says_more_than_leaving_out(tmp_path, monkeypatch):
    """Against the same channels left out and nothing solved, on mels that neither saw; saved and loaded."""
    teacher = made(64)
    mel = torch.randn(6, 80, 30, generator=torch.Generator().manual_seed(0)) - 4
    student = distil.slimmed(teacher, mel, 0.6).eval()
    state, config = student.state_dict(), student.config
    plain = {key: value.clone() for key, value in teacher.state_dict().items()}
    for key in state:
        if "convs1" in key:  # which channels stayed is told by their biases
            stays = [
                int((teacher.state_dict()[key.replace("weight", "bias")] == bias).nonzero()[0, 0])
                for bias in state[key.replace("weight", "bias")]
            ]
            plain[key] = plain[key][stays]
            if key.endswith("weight"):
                second = key.replace("convs1", "convs2")
                plain[second] = plain[second][:, stays]
    left_out = vocoder.from_state(plain, config)
    new = torch.randn(2, 80, 40, generator=torch.Generator().manual_seed(1)) - 4
    want, _ = teacher.streams(new)
    student.requires_grad_(False)
    solved, plainly = (float(distil.apart(net.streams(new)[0], want)) for net in (student, left_out))
    assert solved < 0.7 * plainly
    again = vocoder.load(vocoder.save(student, tmp_path / "slim"))
    assert again.config.hidden == config.hidden and vocoder.config_of(state) == config
    assert (again(new) - student(new)).abs().mean() < 0.05 * student(new).abs().mean()
    plain_way = again(new)
    monkeypatch.setattr(vocoder, "product_format", lambda device: None)
    assert (again.quicken()(new) - plain_way).abs().max() < 1e-5


def test_hidden_channels_are_told_for_every_pair_or_not_at_all():
    from longtake import UserError

    with pytest.raises(UserError, match="for each pair or not at all, got 3"):
        vocoder.Vocoder(vocoder.Config(channels=32, hidden=(8, 8, 8)))
