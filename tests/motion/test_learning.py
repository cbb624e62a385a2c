"""A tiny net learns a synthetic gait, and DoubleTake joins what it learnt. This says nothing about real motion."""

import pytest
import torch
from longtake.motion.metrics import jerk, seam_windows
from longtake.motion.model import MDM
from longtake.motion.reference import take_one_canvas
from longtake.motion.row_plan import RowPlan
from longtake.motion.sampling import Schedule, TextDenoiser, betas, sample
from motion_models import injected

JOINTS, FRAMES, STEPS = 4, 40, 20


def gait(kind: torch.Tensor, phase: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, frames, 12): two gaits, a slow and a quick one, of any phase."""
    pace = torch.where(kind == 0, 0.2, 0.3).view(-1, 1, 1)
    time = torch.arange(frames).view(1, -1, 1) * pace
    joint = torch.arange(JOINTS * 3).view(1, 1, -1)
    return torch.sin(time + phase.view(-1, 1, 1) + 0.5 * joint)


@pytest.mark.slow
def test_a_tiny_net_learns_and_its_takes_join_without_a_jerk() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = MDM(features=12, width=64, layers=2, feedforward=128, text_width=2, dropout=0.0, positions=200)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    level = (1 - betas(STEPS)).cumprod(0).float()
    losses = []
    net.train()
    total = 600
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / total)
        kind = torch.randint(2, (16,))
        clean = gait(kind, 6.283 * torch.rand(16), FRAMES)
        text = torch.nn.functional.one_hot(kind, 2).float() * (torch.rand(16, 1) > 0.1)
        t = torch.randint(STEPS, (16,))
        noisy = level[t].sqrt().view(-1, 1, 1) * clean + (1 - level[t]).sqrt().view(-1, 1, 1) * torch.randn_like(clean)
        loss = (net(noisy, t, text) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 10 * sum(losses[-50:]) / 50 <= sum(losses[:5]) / 5, (losses[:5], losses[-5:])

    net.eval()
    plan, schedule = RowPlan.make([FRAMES] * 3, 16), Schedule.make(STEPS)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    denoise = TextDenoiser(net, text, 1.0)
    joined, pasted, inside = [], [], []
    with torch.no_grad():
        for seed in range(4):
            take = take_one_canvas(plan, denoise, schedule, injected(seed, (plan.total, 12))).view(-1, JOINTS, 3)
            bounds = [start + 8 for start in plan.starts[1:]]
            joined.append(jerk(seam_windows(take, bounds, 20)[0]).mean(0).max())
            inside.append(jerk(seam_windows(take, [start + 20 for start in plan.starts], 12)[0]).mean(0).max())
            rows = sample(denoise, schedule, injected(seed, (3, FRAMES, 12)), rows=range(3))
            naive = rows.reshape(-1, JOINTS, 3)
            pasted.append(jerk(seam_windows(naive, [FRAMES, 2 * FRAMES], 20)[0]).mean(0).max())
    joint, inner, paste = (float(torch.stack(values).mean()) for values in (joined, inside, pasted))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.4f}; peak jerk: {inner:.3f}, joined {joint:.3f}, pasted {paste:.3f}")
    assert joint <= 1.5 * inner and paste >= 3 * joint, (inner, joint, paste)
