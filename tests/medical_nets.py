"""Small nets for tests: layers that start at zero are given numbers, so that each input shows in the output."""

import numpy as np
import torch
from longtake.medical.net import LongitudinalNet
from longtake.medical.pipeline import LongitudinalPipeline
from longtake.medical.series import Series
from longtake.medical.simulate import simulate

SMALL = {"width": 32, "heads": 2, "channels": (16, 32), "mean_channels": (16, 32), "condition": 32, "place_layers": 1}


def random_net(seed=0, **settings):
    torch.manual_seed(seed)
    net = LongitudinalNet(**{**SMALL, **settings})
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.abs().sum():
                parameter.normal_(0, 0.05)
    return net.eval()


def random_pipeline(seed=0, **settings):
    return LongitudinalPipeline(random_net(seed, **settings), name="random")


def growing(shape=(2, 24, 32), seed=1, kind="lesions"):
    """A simulated series."""
    made = simulate(kind, seed, shape)
    return Series(f"{kind} {seed}", made.images, made.times, made.unit, modality=made.modality)


def visits(batch=2, count=5, shape=(2, 16, 24), seed=0):
    """History, times, and which visits are observed, of which each row lacks some."""
    rng = np.random.default_rng(seed)
    history = torch.from_numpy(rng.uniform(-1, 1, (batch, count, *shape))).float()
    delta = torch.from_numpy(np.sort(rng.uniform(-3, 0, (batch, count)))).float()
    observed = torch.ones(batch, count, dtype=torch.bool)
    observed[0, 1] = observed[-1, 3] = observed[-1, 0] = False
    return history, delta, observed
