"""A net of the smallest size with random weights as a prior, and a prediction without a net, for doors and files."""

from pathlib import Path

import numpy as np


def tiny_prior(folder: Path) -> Path:
    """Write it; the same each time."""
    import torch
    from longtake.medical.net import LongitudinalNet
    from longtake.medical.pipeline import LongitudinalPipeline

    torch.manual_seed(0)
    sizes = {"channels": (8, 8, 8, 8), "mean_channels": (8, 8, 8, 8), "condition": 16}
    net = LongitudinalNet(width=16, heads=2, patch=8, frame_layers=1, place_layers=1, **sizes)
    return LongitudinalPipeline(net, name="tiny").save(folder)


def identity(series, times=(24.0,), samples=3, seed=0, truth=None):
    """A MedicalOutput whose samples are the last image; with `seed` above 0 each with a little of its own."""
    from longtake.medical.outputs import MedicalOutput
    from longtake.medical.prediction import Prediction

    last = series.images[np.flatnonzero(series.observed)[-1]]
    drawn = np.broadcast_to(last, (samples, len(times), *last.shape)).copy()
    if seed:
        drawn += np.random.default_rng(seed).normal(0, 3, drawn.shape).astype(np.float32)
    mean = drawn.mean(0)
    info = {"model": "identity", "weights": "0" * 64, "seed": seed, "samples": samples, "scheduler": "ddim",
            "steps": 1, "guidance": 1.0, "observed": [bool(flag) for flag in series.observed]}  # fmt: skip
    made = Prediction(
        drawn, np.asarray(times, float), series.unit, series, 0.9, mean - 4, mean + 4, mean, np.full_like(mean, 2),
        np.ones(len(times), bool), info,
    )  # fmt: skip
    return MedicalOutput(made, truth, info={"completed": True, "steps": 1})
