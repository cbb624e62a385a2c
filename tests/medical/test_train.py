"""The recipe: what a batch may hold, that training learns, knows how sure it is, and resumes to the bit."""

import argparse

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.medical import corpus
from longtake.medical import lighter as lighten
from longtake.medical.corpus import Group, Subject, held_back, history
from longtake.medical.diffusion import levels
from longtake.medical.held_out import calibration_of, forecasts
from longtake.medical.lesson import draw
from longtake.medical.lighter import followed, kept, lighter, narrower
from longtake.medical.net import LongitudinalNet
from longtake.medical.pipeline import LongitudinalPipeline
from longtake.medical.train import Wrapped, groups, train_model
from longtake.train import Dice, Settings
from medical_nets import SMALL, random_net, visits

CPU = torch.device("cpu")


def blob(number, shape=(2, 16, 16)):
    """A ball that grows, or shrinks, at a speed of its own, at irregular times; with a little noise."""
    rng = np.random.default_rng([7, number])
    count = int(rng.integers(3, 6))
    times = np.cumsum(rng.uniform(0.4, 1.6, count)) - 0.4
    speed, start = rng.uniform(-0.1, 0.22), rng.uniform(0.3, 0.55)
    centre, bright = rng.uniform(-0.25, 0.25, 2), rng.uniform(0.5, 0.8)
    y, x = np.meshgrid(*[np.linspace(-1, 1, side) for side in shape[1:]], indexing="ij")
    far = np.hypot(y - centre[0], x - centre[1])
    scans = [0.1 + bright / (1 + np.exp((far - start - speed * time) / 0.06)) for time in times]
    images = np.stack([np.broadcast_to(scan, shape) for scan in scans]) + 0.01 * rng.standard_normal((count, *shape))
    return Subject(np.round(images.clip(0, 1) * 255).astype(np.uint8), times, None, "simulated", "years", number)


def settings(steps, rate=3e-3, ema=0.98):
    return Settings(steps, rate, warmup=20, ema=ema, checkpoint_every=10**6, ends_at=0.0, graphs=False)


def row(count=6, rows=1000, scheme=0, seed=0):
    """Histories of rows with one scheme and every target."""
    dice = Dice(seed, scheme, CPU)
    exists = torch.ones(rows, count, dtype=torch.bool)
    times = torch.arange(count).float().expand(rows, -1)
    target = 1 + dice.integers(count - 1, rows)
    found = history(torch.full((rows,), scheme), exists, times, target, dice.uniform(rows, count + 1))
    return found, target


@pytest.mark.parametrize("scheme", [0, 1, 2, 3])
def test_s9_a_target_is_never_in_its_own_history(scheme):
    found, target = row(scheme=scheme)
    assert not found.gather(1, target[:, None]).any()
    assert found.any(1).all()


def test_s9_histories_of_the_released_scheme_keep_first_and_previous_and_half_of_the_rest():
    found, target = row(rows=10_000)
    place = torch.arange(6)[None]
    assert found[:, 0].all()
    assert found.gather(1, target[:, None] - 1).all()
    between = (place > 0) & (place < target[:, None] - 1)
    assert abs(float(found[between].float().mean()) - 0.5) < 0.03
    assert not found[place.expand_as(found) >= target[:, None]].any()


def test_s9_only_the_scheme_that_fills_gaps_sees_later_visits():
    seen = []
    for scheme in range(4):
        found, target = row(scheme=scheme)
        seen.append(bool(found[torch.arange(6)[None] > target[:, None]].any()))
    assert seen == [False, False, False, True]


def test_a_batch_is_on_the_nets_scale_and_a_function_of_seed_and_step():
    group = Group.of([blob(n) for n in range(5)], 64, turns=True)
    one, same, other = (group.batch(Dice(0, step, CPU)) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), same.tensors(), strict=True))
    assert not torch.equal(one.target, other.target)
    assert one.observed.any(1).all() and float(one.target[one.scored].abs().max()) < 2
    assert float(one.delta[one.observed].abs().min()) > 0


def test_every_fifth_patient_is_held_back_and_no_patient_is_on_both_sides():
    everyone = [blob(n) for n in range(12)]
    train, aside = held_back(everyone)
    assert [one.patient for one in aside] == [4, 9]
    assert len(train) + len(aside) == 12


def test_forecasts_hold_earlier_visits_alone_and_the_truth_is_none_of_them():
    subject = blob(3)
    cases = list(forecasts(subject))
    assert len(cases) == len(subject.times) - 1
    for case in cases:
        assert case.series.times[-1] < case.time
        assert not any(np.array_equal(case.truth, image) for image in case.series.images)
    same = Subject(subject.images, np.zeros(len(subject.times)), None, "simulated", "years", 0)
    assert list(forecasts(same)) == []


def test_prepared_data_are_the_data(tmp_path):
    subject = blob(1)
    masked = Subject(subject.images, subject.times, subject.images > 40, "cxr", "days", 9)
    read = corpus.load(corpus.save(tmp_path / "data.zip", [subject, masked]))
    for one, other in zip([subject, masked], read, strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.times, other.times)
        assert (one.modality, one.unit, one.patient) == (other.modality, other.unit, other.patient)
    assert read[0].valid is None and np.array_equal(read[1].valid, masked.valid)


def test_missing_and_damaged_data_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cxr_train\.npz does not exist"):
        corpus.read(tmp_path, "train")
    (tmp_path / "cxr_train.npz").write_bytes(b"PK\3\4 torn")
    with pytest.raises(UserError, match=r"cxr_train\.npz is damaged"):
        corpus.read(tmp_path, "train")


def trained(folder, steps):
    torch.manual_seed(0)
    people = [blob(n) for n in range(8)]
    run = Settings(steps, 1e-3, warmup=100, checkpoint_every=3, graphs=False)  # all within the warm-up
    return train_model(LongitudinalNet(**SMALL), people, people[:1], folder, run, rows={"simulated-8": 4})


def test_s19_a_training_that_was_cut_resumes_to_the_same_weights(tmp_path):
    whole = trained(tmp_path / "whole", 6).state_dict()
    trained(tmp_path / "cut", 3)
    resumed = trained(tmp_path / "cut", 6).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def psnr(pairs):
    return -10 * np.log10(np.mean([np.mean(np.square((a - b) / 255)) for a, b in pairs]))


@pytest.mark.slow
def test_s11_s12_it_learns_growth_beats_the_last_scan_needs_the_times_and_knows_where_it_errs(tmp_path):
    torch.manual_seed(0)
    net = LongitudinalNet(**{**SMALL, "features": 2, "width": 24, "channels": (16,)})  # its rest needs no second level
    assert sum(parameter.numel() for parameter in net.parameters()) <= 300_000
    people, unseen = [blob(n) for n in range(160)], [blob(n) for n in range(1000, 1024)]
    rows = {"simulated-8": 8}
    net = train_model(net, people, unseen[:2], tmp_path, settings(220, 6e-3, ema=0.97), rows=rows)
    pipe = LongitudinalPipeline(net)
    pipe.calibration = calibration_of(pipe, [blob(n) for n in range(2000, 2012)])
    rng = np.random.default_rng(0)
    truth, last, mean, one, shuffled, spread, error, inside = [], [], [], [], [], [], [], []
    for subject in unseen:
        *_, case = forecasts(subject)
        found = pipe.predict(case.series, case.time, samples=8, num_inference_steps=4)
        truth.append(case.truth)
        last.append(case.series.images[-1])
        mean.append(found.samples[:4].mean(0)[0])
        one.append(found.samples[0, 0])
        mixed = rng.permutation(len(case.series))
        while len(mixed) > 1 and (mixed == np.arange(len(mixed))).all():
            mixed = rng.permutation(len(case.series))
        case.series.images = case.series.images[mixed]
        shuffled.append(pipe.predict(case.series, case.time, samples=4, num_inference_steps=4).mean[0])
        spread.append(found.std[0].ravel())
        error.append(np.abs(found.mean[0] - case.truth).ravel())
        inside.append(((case.truth >= found.lower[0]) & (case.truth <= found.upper[0])).mean())
    scores = {
        name: psnr(zip(values, truth, strict=True))
        for name, values in {"last": last, "mean": mean, "one": one, "shuffled": shuffled}.items()
    }
    likeness = np.corrcoef(np.concatenate(spread), np.concatenate(error))[0, 1]
    print(scores, "std against error", likeness, "coverage of the 90 % interval", np.mean(inside))
    assert scores["mean"] >= scores["last"] + 1.0
    assert scores["one"] >= scores["last"]
    assert scores["shuffled"] <= scores["mean"] - 0.5
    assert likeness > 0.4


def known(net, count=2):
    """What a net knows of some targets, with noise and its levels."""
    torch.manual_seed(5)
    shown = visits(count, shape=(2, 16, 16))
    with torch.no_grad():
        look = net.outlook(*shown, torch.zeros(count, dtype=torch.long))
    return torch.randn(count, 1, 2, 16, 16), torch.rand(count), look


def test_a_denoiser_whose_channels_are_all_kept_says_what_the_old_one_says(monkeypatch):
    teacher = random_net(3, channels=(16, 24, 32))
    monkeypatch.setattr(lighten, "KEPT", ())
    net = lighter(teacher).eval()
    told = known(teacher)
    with torch.no_grad():
        both = net(*told, guidance=None)
        assert torch.equal(both[:, :1], teacher(*told)) and torch.equal(both[:, 1:], both[:, :1]), "nothing is learned"


def test_the_channels_that_are_read_most_are_kept_in_each_group():
    assert narrower((32, 64, 96, 128)) == (24, 48, 96, 128) and narrower((16, 8)) == (16, 8)
    assert kept(torch.tensor([1.0, 5, 2, 9, 3, 4, 8, 7]), 4, 2).tolist() == [1, 3, 6, 7]
    teacher = random_net(3, channels=(32, 32))
    net = lighter(teacher)
    assert [block.second.out_channels for block in net.denoiser.down] == [24] and net.denoiser.middle[
        0
    ].first.in_channels == 32
    rows = {tuple(row.tolist()) for row in teacher.denoiser.enter.weight[:, :1, 1, 1]}
    assert {tuple(row.tolist()) for row in net.denoiser.enter.weight[:, :1, 1, 1]} < rows


def test_both_ways_of_guidance_are_one_pass(monkeypatch):
    net = random_net(4, ways=2)
    told, passes = known(net), []
    forward = net.denoiser.forward
    monkeypatch.setattr(net.denoiser, "forward", lambda *rest: passes.append(1) or forward(*rest))
    with torch.no_grad():
        both = net(*told, guidance=None)
        for scale in (0.0, 1.0, 1.7, 3.0):
            assert torch.allclose(
                net(*told, guidance=scale), both[:, 1:] + scale * (both[:, :1] - both[:, 1:]), atol=1e-6
            )
        mixed = net(*told, keep=torch.tensor([True, False]))
    assert torch.equal(mixed[0], both[0, :1]) and torch.equal(mixed[1], both[1, 1:])
    assert len(passes) == 6 and not torch.allclose(both[:, :1], both[:, 1:])


def test_a_lighter_denoiser_learns_what_the_old_one_says_and_leaves_encoder_and_mean_alone(tmp_path):
    people = [blob(n, (1, 16, 16)) for n in range(6)]
    teacher = random_net(3, channels=(32, 16), stem=2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    net = lighter(teacher)

    def away(student):
        drawn = draw(groups(people, CPU, {"simulated-1": 6})["simulated-1"], Dice(5, 0, CPU), teacher.step, 2)
        with torch.no_grad():
            return float(followed(Wrapped(student), teacher, levels().float(), drawn))

    first = away(net)
    run = {"rows": {"simulated-1": 4}, "teacher": teacher}
    learned = train_model(net, people, people[:1], tmp_path / "whole", settings(16), **run)
    assert away(learned) < 0.8 * first
    for name, value in learned.state_dict().items():
        if name.split(".")[0] in ("encoder", "kinds", "expect"):
            assert torch.equal(value, before[name]), name
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())

    def cut(folder, steps):
        run_for = Settings(steps, 1e-3, warmup=100, checkpoint_every=2, graphs=False)
        return train_model(lighter(teacher), people, people[:1], folder, run_for, **run).state_dict()

    torch.manual_seed(1)
    whole = cut(tmp_path / "whole again", 4)
    torch.manual_seed(1)
    cut(tmp_path / "cut", 2)
    resumed = cut(tmp_path / "cut", 4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_groups_keep_grids_apart():
    flat, deep = blob(0, (1, 16, 16)), blob(1)
    assert set(groups([flat, deep, blob(2)], CPU)) == {"simulated-1", "simulated-8"}


def test_prepare_needs_data(tmp_path):
    from longtake.medical.train import run

    with pytest.raises(UserError, match="--data"):
        run(
            argparse.Namespace(
                prepare=tmp_path / "x", data=None, simulated=0, rate=1e-3, judge_every=1, calibrate=False, lighter=False
            )
        )
