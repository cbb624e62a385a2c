"""Every recipe's forward in bfloat16 on a pretended CUDA device: number formats fit, no step waits or mixes devices."""

import pytest
import test_recipes_on_device as recipes
import torch
from pretend_cuda import CUDA, PretendCuda, Waits

data = recipes.data


def one_forward(monkeypatch, recipe):
    """Run a recipe up to `fit`, then one step's loss in bfloat16, on a pretended CUDA device."""
    from longtake import train

    seen = []
    monkeypatch.setattr(train, "training_device", lambda: CUDA)
    with PretendCuda() as cuda:

        def catch(model, loss, settings, folder, **_):
            model.to(CUDA)
            cuda.waiting = False
            with torch.autocast("cuda", torch.bfloat16):
                seen.append(loss(model, 0))
            raise recipes.Reached

        monkeypatch.setattr(train, "fit", catch)
        with pytest.raises(recipes.Reached):
            recipe()
    assert seen[0].device == CUDA and seen[0].ndim == 0 and seen[0].dtype == torch.float32


@pytest.mark.parametrize("recipe", recipes.RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_forward_in_mixed_precision_fits_a_gpu(recipe, data, tmp_path, monkeypatch):
    one_forward(monkeypatch, lambda: recipe(data, tmp_path))


FAULTS = {
    "device": lambda y: y * torch.ones(2, 1),
    "wait": lambda y: y / float(y.detach().mean()),
    "copy": lambda y: y.cpu(),
    "format": lambda y: torch.lerp(y, torch.ones(2, 1, device=CUDA), 0.5),  # of bfloat16 and float32
}


@pytest.mark.parametrize(
    ("fault", "raised"),
    [("device", AssertionError), ("wait", RuntimeError), ("copy", Waits), ("format", RuntimeError)],
)
def test_the_pretended_device_notices(fault, raised, monkeypatch):
    from longtake import train

    net = torch.nn.Linear(3, 1)

    def loss(network, step):
        return FAULTS[fault](network(torch.ones(2, 3, device=CUDA))).float().mean()

    with pytest.raises(raised):
        one_forward(monkeypatch, lambda: train.fit(net, loss, None, None))
