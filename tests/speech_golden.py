"""Goldens of speech: weights and inputs by formula, numbers of the originals, tolerances as stored."""

import json
from pathlib import Path

import numpy as np
import torch
from golden.fill import noise, values

GOLDEN = Path(__file__).resolve().parent / "golden" / "speech"


class Case:
    """One golden: its configuration, the state that it fills, its inputs and its checks."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        self.stored = np.load(GOLDEN / f"{name}.npz")
        self.config = self.facts["config"]

    def state(self):
        """The checkpoint, under the keys of the public layout."""
        keys = self.facts["parameters"]["keys"]
        return {key: torch.from_numpy(values(key, tuple(shape))) for key, shape in keys.items()}

    def given(self, name):
        """An input: a tensor, or a plain number or list."""
        told = self.facts["inputs"][name]
        if not isinstance(told, dict):
            return told
        if told["kind"] == "npz":
            return torch.from_numpy(self.stored[told["key"]])
        if told["kind"] == "lengths":
            steps = torch.arange(told["shape"][-1])
            return (steps < torch.tensor(told["lengths"])[:, None]).float()[:, None]
        made = noise(told["tag"], tuple(told["shape"])) * np.float32(told.get("scale", 1.0))
        return torch.from_numpy(made + np.float32(told.get("shift", 0.0)))

    def check(self, name, found):
        """The largest difference is within the tolerance."""
        wanted, told = self.stored[name], self.facts["outputs"][name]
        assert tuple(found.shape) == wanted.shape, name
        worst = np.abs(found.detach().numpy().astype(np.float64) - wanted).max()
        assert worst <= told["tolerance"], f"{name}: {worst} for {told['tolerance']}"
