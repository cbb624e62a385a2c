"""What the motion recipes minimise: errors of features, and of what the features mean in the world.

The released loss is the L2 of features (MDM, arXiv 2209.14916) with a term for feet that stand. Here the root's four
numbers weigh more, first differences of positions join in, and three terms of decoded positions: the lengths of bones,
how far each joint moves in ten frames (a slow walk shows there, not in a step), and the speed of standing feet.
Legend: B rows, F frames, D features, J joints.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from longtake.motion.representation import HUMANML3D

if TYPE_CHECKING:
    from longtake.motion.space import MotionSpace

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
ROOT_WEIGHT, DIFFERENCE_WEIGHT, FOOT_WEIGHT = 6.0, 5.0, 0.2
BONE_WEIGHT = 2.0  # of the mean error of a bone's length, in deviations of positions
STRIDE_WEIGHT = 1.0
STRIDE = 10  # frames, half a second
STRIDE_SPREAD = 0.3  # metres: about the deviation of what a joint moves in a stride
STANDING_SPEED = 0.0076  # metres a frame: root mean square speed of the real feet that are in contact


def error_of(out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of normalised features (*, F, D), the root's numbers weighted, a mean; valid: (*, F, 1), 0 or 1."""
    weight = clean.new_ones(clean.shape[-1])
    weight[:4] = ROOT_WEIGHT
    square = ((out - clean).square() * weight).mean(-1, keepdim=True) / weight.mean()
    return _mean(square, valid)


def difference_of(out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of the steps of local positions, normalised; arguments as of ``error_of``."""
    places = HUMANML3D.slices["positions"]
    step = (out[..., places] - clean[..., places]).diff(dim=-2)
    return _mean(step.square().mean(-1, keepdim=True), valid[..., 1:, :])


def world_terms(
    out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor, share: torch.Tensor, space: MotionSpace
) -> dict[str, torch.Tensor]:
    """Errors of decoded motion: "bone", "stride" and "slide".

    out, clean: (B, F, D) normalised, float32. valid: (B, F, 1), 0 beyond a row's end. share: (B,) the signal's share
    of the variance at the row's noise level. Where it is small the best estimate is a mean of many motions, whose bones
    are shorter and whose feet never stand, so "bone" and "slide" weigh by it.
    """
    rows, places = len(out), HUMANML3D.slices
    parents, feet = _numbers(out.device)
    with torch.autocast(out.device.type, enabled=False):  # a way is a running sum: not in half precision
        features = space.denormalize(torch.cat([out, clean]).float())
        way = Way.of(features)
        hip = torch.nn.functional.pad(features[..., 3:4], (1, 1))  # (2 B, F, 3): the root over its own ground
        body = torch.cat([hip, features[..., places["positions"]]], -1).unflatten(-1, (-1, 3))
        by_row = share[:, None, None]

        bones = ((body[..., 1:, :] - body.index_select(-2, parents)).square().sum(-1) + 1e-8).sqrt()
        gap = (bones[:rows] - bones[rows:]).abs().mean(-1, keepdim=True)
        told = {"bone": _mean(gap * by_row, valid) / space.std[places["positions"].start]}

        over = way.world(body)  # (2 B, F, J, 2)
        away = _gap(way, over, body[..., 1], STRIDE, rows).mean(-1, keepdim=True)
        told["stride"] = _mean(away, valid[:, STRIDE:]) / STRIDE_SPREAD**2

        slip = _gap(way, over.index_select(2, feet), body[..., 1].index_select(2, feet), 1, rows)
        contact = features[rows:, :-1, places["contacts"]] * valid[:, 1:]
        told["slide"] = (slip * contact * by_row).sum() / contact.sum().clamp_min(1) / STANDING_SPEED**2
    return told


class Way(NamedTuple):
    """A root's way over the ground (*, F, 2), metres x and z from the origin, and its heading's cosine and sine (*, F):
    ``HUMANML3D.root`` in numbers of the plane, without a constant that would have to be sent to the device."""

    place: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Way:
        """Of features (*, F, D) that are not normalised."""
        angle = 2 * torch.nn.functional.pad(features[..., :-1, 0].cumsum(-1), (1, 0))
        way = cls(features[..., :2], angle.cos(), angle.sin())
        step = torch.nn.functional.pad(features[..., :-1, 1:3], (0, 0, 1, 0))
        return way._replace(place=way.turned(step).cumsum(-2))

    def turned(self, seen: torch.Tensor) -> torch.Tensor:
        """What is (x, z) as seen from the heading, (*, F, 2), in the world's axes."""
        x, z = seen.unbind(-1)
        return torch.stack([self.cos * x - self.sin * z, self.sin * x + self.cos * z], -1)

    def world(self, body: torch.Tensor) -> torch.Tensor:
        """(x, z) in the world (*, F, J, 2) of joints as seen from the heading (*, F, J, 3)."""
        wide = Way(self.place.unsqueeze(-2), self.cos.unsqueeze(-1), self.sin.unsqueeze(-1))
        return wide.turned(body[..., ::2]) + wide.place

    def seen(self, moved: torch.Tensor) -> torch.Tensor:
        """World moves (*, f, J, 2), f <= F, as seen from the heading of the frame where each begins."""
        frames = moved.shape[-3]
        back = Way(self.place, self.cos[..., :frames].unsqueeze(-1), -self.sin[..., :frames].unsqueeze(-1))
        return back.turned(moved)


def _gap(way: Way, over: torch.Tensor, height: torch.Tensor, frames: int, rows: int) -> torch.Tensor:
    """Squared metres (B, F - frames, J) by which the first ``rows`` differ from the others in what their joints move in
    so many frames, as seen from their own heading: the world's axes would turn with every error of it so far."""
    last = max(0, over.shape[1] - frames)
    moved = way.seen(over[:, frames:] - over[:, :last])
    risen = height[:, frames:] - height[:, :last]
    return (moved[:rows] - moved[rows:]).square().sum(-1) + (risen[:rows] - risen[rows:]).square()


@cache
def _numbers(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The parents of joints 1.. and the feet, kept on the device."""
    skeleton = HUMANML3D.skeleton
    return torch.tensor(skeleton.parents[1:], device=device), torch.tensor(skeleton.feet, device=device)


def terms(
    out: torch.Tensor, clean: torch.Tensor, lengths: torch.Tensor, share: torch.Tensor, space: MotionSpace
) -> dict[str, torch.Tensor]:
    """Every term of the prior's loss, each with its weight: "error", "difference", "bone", "stride", "slide".

    out, clean: (B, F, D). lengths: (B,) valid frames. share: see ``world_terms``.
    """
    frames = clean.shape[1]
    valid = (torch.arange(frames, device=clean.device) < lengths[:, None]).to(clean.dtype).unsqueeze(-1)
    world = world_terms(out, clean, valid, share, space)
    return {
        "error": error_of(out, clean, valid),
        # neighbouring frames differ by about a fifth of the spread of positions, hence the large weight
        "difference": DIFFERENCE_WEIGHT * difference_of(out, clean, valid),
        "bone": BONE_WEIGHT * world["bone"],
        "stride": STRIDE_WEIGHT * world["stride"],
        "slide": FOOT_WEIGHT * world["slide"],
    }


def _mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over the frames that count; both (*, F, 1)."""
    return (values * valid).sum() / valid.sum().clamp_min(1)
