"""Goldens of medical: weights and inputs by formula, numbers of the originals, tolerances as stored."""

import json
from pathlib import Path

import numpy as np
import torch
from golden.fill import noise, values

GOLDEN = Path(__file__).resolve().parent / "golden" / "medical"


class Case:
    """One golden: its configuration, the state that it fills, its inputs and its checks."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        self.stored = np.load(GOLDEN / f"{name}.npz")
        self.config = self.facts["config"]

    def state(self):
        """The checkpoint, under the release's keys."""
        keys = self.facts["parameters"]["keys"]
        return {key: torch.from_numpy(values(key, tuple(shape))) for key, shape in keys.items()}

    def given(self, name, tag=None):
        """An input: a tensor, or a plain list. tag: in place of the stored one."""
        told = self.facts["inputs"][name]
        if not isinstance(told, dict):
            return torch.tensor(told)
        made = noise(tag or told["tag"], tuple(told["shape"])) * np.float32(told.get("scale", 1.0))
        out = torch.from_numpy(made + np.float32(told.get("shift", 0.0)))
        if told.get("then", "").startswith("last frame"):
            out[:, -1] = 0
        return out

    def draws(self, name, shape):
        """The sampler's noise: "xT", then "z<i>"."""
        tag = f"shared/{self.facts['case']}/{name}"
        return torch.from_numpy(noise(tag, tuple(shape)))

    def check(self, name, found):
        """The largest difference is within the tolerance."""
        wanted, told = self.stored[name], self.facts["outputs"][name]
        assert tuple(found.shape) == wanted.shape, name
        worst = np.abs(found.detach().numpy().astype(np.float64) - wanted).max()
        assert worst <= told["tolerance"], f"{name}: {worst} for {told['tolerance']}"


def parts(volume):
    """The parts of a large volume that a golden stores."""
    return {
        "stride": volume[:, :, ::4, ::8, ::8],
        "block": volume[:, :, 12:20, 56:72, 56:72],
        "pool": torch.nn.functional.avg_pool3d(volume, (4, 8, 8)),
        "edge": volume[:, :, 0, ::2, ::2],
        "corner": volume[:, :, -4:, -8:, -8:],
    }
