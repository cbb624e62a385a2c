"""Two people: the published numbers, symmetry, what learns, and where they stand."""

import pytest
import torch
from longtake.motion.control import Control
from longtake.motion.convert import build
from longtake.motion.kinematics import axis_angle_to_matrix
from longtake.motion.pair.model import ComMDM, PairDenoiser, decode_canon, encode_canon, place_pair
from longtake.motion.row_plan import RowPlan
from longtake.motion.sampling import Schedule, sample
from motion_models import Golden, injected, kept, sample_long_pair, theirs, tiny_net


@pytest.mark.parametrize("case", ["M5_forward_mid_comm2", "M5_forward_end_comm1"])
@torch.no_grad()
def test_m5_forward_equals_the_original(case: str) -> None:
    golden = Golden(case)
    net, times, text = build(golden.state()), torch.tensor(golden["timesteps"]), golden.text()
    a, b = golden.given("xa"), golden.given("xb")
    golden.check("out_a", theirs(net(a, b, times, text)))
    golden.check("out_b", theirs(net(b, a, times, text)))
    golden.check("uncond_a", theirs(net(a, b, times, None)))


@pytest.mark.parametrize("case", ["M5_sample5", "M5_prefix5"])
@torch.no_grad()
def test_m5_sampling_equals_the_original(case: str) -> None:
    golden = Golden(case)
    steps = golden["schedule"]["steps"]
    net = PairDenoiser(build(golden.state()), golden.text(), golden["guidance"]["scale"])

    def people(draw) -> torch.Tensor:
        return torch.stack([draw(person) for person in ("a", "b")], 1)

    noise = golden.noise(steps)
    seen: dict[int, torch.Tensor] = {}
    settings: dict = {}
    if case == "M5_prefix5":
        given = people(lambda person: golden.given("given", person=person))
        mask = torch.zeros(given.shape[2], 1, dtype=torch.bool)
        mask[:21] = True
        settings = {"start": given, "quiet": mask, "adjust": Control(mask, given).adjust}
    out = sample(
        net,
        Schedule.make(steps),
        lambda k: people(lambda person: noise(k, person=person)),
        rows=range(golden["batch"]),
        on_step=kept(seen),
        **settings,
    )
    for place, person in enumerate("ab"):
        golden.check(person, theirs(out[:, place]))
        golden.check(f"{person}_mid", theirs(seen[1][:, place]))


@torch.no_grad()
def test_d1_two_people_are_treated_alike_and_without_the_block_they_are_alone() -> None:
    prior = tiny_net(features=30)
    net = ComMDM.around(prior, comm_layers=2, split=1).eval()
    a, b, text = torch.randn(2, 17, 30), torch.randn(2, 17, 30), torch.randn(2, 8)
    one, two = net.both(a, b, 3, text)
    swapped_two, swapped_one = net.both(b, a, 3, text)
    assert torch.equal(one, swapped_one) and torch.equal(two, swapped_two)
    assert torch.equal(net(a, b, 3, text), one)
    assert not torch.allclose(one, net(a, b + 1, 3, text))
    last = net.comm.blocks[-1].norm2
    last.weight.data.zero_()
    last.bias.data.zero_()
    plain = prior(a[:, 1:], 3, text)
    assert float((net(a, b, 3, text)[:, 1:] - plain).abs().max()) <= 1e-6


def test_d1_only_the_block_learns() -> None:
    net = ComMDM.around(tiny_net(features=30), comm_layers=1).train()
    assert not net.prior.training and net.comm.training
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    a, b, text = torch.randn(2, 17, 30), torch.randn(2, 17, 30), torch.randn(2, 8)
    net(a, b, 3, text).square().mean().backward()
    assert all(p.grad is None for p in net.prior.parameters())
    optimizer.step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("comm.") for key in changed)
    full = ComMDM(comm_layers=2)
    assert sum(p.numel() for p in full.comm.parameters()) == 4_737_028
    with pytest.raises(ValueError, match="split"):
        ComMDM(layers=2, split=3)


def test_d2_the_canon_token_places_the_second_person() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        yaw = (torch.rand(2, generator=generator, dtype=torch.float64) - 0.5) * 6
        spot = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        token = encode_canon(yaw, spot)
        assert token.shape == (2, 263) and not token[:, 4:].any()
        turn, place = decode_canon(token)
        up = torch.stack([torch.zeros_like(yaw), yaw, torch.zeros_like(yaw)], -1)
        want = axis_angle_to_matrix(up)
        assert float((turn - want).abs().max()) <= 1e-6
        assert float((place[:, [0, 2]] - spot).abs().max()) <= 1e-6
        joints = torch.randn(2, 5, 22, 3, generator=generator, dtype=torch.float64)
        a, b = place_pair(joints[0], joints[1], token[0], token[1])
        rigid = joints[1] @ (want[0] @ want[1].T).T + (place[1] - place[0])
        assert torch.equal(a, joints[0]) and float((b - rigid).abs().max()) <= 1e-6


@torch.no_grad()
def test_d2_a_long_pair_has_two_people_over_all_prompts() -> None:
    net = PairDenoiser(ComMDM.around(tiny_net(features=30), comm_layers=1).eval(), torch.randn(3, 8), 1.0)
    plan, schedule = RowPlan.make([30, 30, 40], 8), Schedule.make(5)
    canvas, canon = injected(1, (plan.total, 2, 30)), injected(2, (3, 2, 30))
    x, tokens = sample_long_pair(plan, net, schedule, lambda k: (canvas(k), canon(k)))
    assert x.shape == (plan.total, 2, 30) and tokens.shape == (3, 2, 30)
    swapped, _ = sample_long_pair(plan, net, schedule, lambda k: (canvas(k).flip(1), canon(k).flip(1)))
    assert torch.equal(swapped.flip(1), x)
    alone = RowPlan.make([30], 0)
    one = PairDenoiser(net.model, net.text[:1], 1.0)
    long, _ = sample_long_pair(alone, one, schedule, lambda k: (canvas(k)[:30], canon(k)[:1]))
    state = lambda k: torch.cat([canon(k)[:1].unsqueeze(2), canvas(k)[:30].transpose(0, 1).unsqueeze(0)], 2)  # noqa: E731
    short = sample(one, schedule, state)
    assert torch.allclose(short[0, :, 1:].transpose(0, 1), long, atol=1e-6), "one prompt is plain two-person sampling"


@torch.no_grad()
def test_two_people_share_a_modulated_prior_and_with_a_silent_block_are_alone() -> None:
    from longtake.motion.pair.train import silence

    prior = tiny_net(modulated=True, condition_tokens=2, padding="mask")
    for layer in prior.blocks:
        torch.nn.init.normal_(layer.modulate.weight, std=0.2)
    model = ComMDM.around(prior, split=1).eval()
    assert model.config["modulated"] and model.config["condition_tokens"] == 2
    a, b, text = torch.randn(2, 1 + 11, 12), torch.randn(2, 1 + 11, 12), torch.randn(2, 8)
    lengths = torch.tensor([11, 6])
    seen, _ = model.both(a, b, 40, text, lengths=lengths)
    alone = prior(a[:, 1:], 40, text, lengths=lengths)
    assert not torch.allclose(seen[:, 1:], alone, atol=1e-4)
    assert torch.allclose(seen, model(a, b, 40, text, lengths=lengths), atol=1e-5)
    silence(model)
    quiet, _ = model.both(a, b, 40, text, lengths=lengths)
    assert torch.allclose(quiet[:, 1:], alone, atol=1e-5)
