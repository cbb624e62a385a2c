"""A CUDA device on a machine without one, for tests: it has places, shapes and number formats, and no numbers.

    with PretendCuda() as cuda:
        model.to(CUDA)
        cuda.waiting = False
        loss = step(model)  # raises where the step waits for the device, or mixes devices

Tensors that go to CUDA become fake ones (`torch._subclasses.FakeTensorMode`); those of the CPU stay as they are. So
mixed precision shows, which "meta" does not have: `torch.autocast("cuda")` chooses number formats as on a GPU, and
formats that do not fit raise. There is no backward: torch built for CUDA asks the driver for it, and ends the process
where there is none. "meta" has it. What needs kernels does not show: whether they exist, their speed, their results.
"""

from contextlib import ExitStack
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
COPIES = {"aten::_to_copy", "aten::copy_", "aten::_has_compatible_shallow_copy_type"}


class Waits(AssertionError):
    """A step looked at a number of the device, so that the CPU had to wait for it."""


class Generator(torch.Generator):
    """One of the CPU under any device's name: the pretended device has no numbers to draw."""

    def __new__(cls, device=None):
        return super().__new__(cls, "cpu")


def put(parameter, applied):
    """What a module's `to` does with a parameter that is there already."""
    parameter.data = applied.data


class PretendCuda(TorchDispatchMode):
    """Inside the block CUDA can be used. waiting: whether numbers of the device may be brought to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = True
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)  # also on the stack: torch then looks for no driver
        self.stack = ExitStack()

    def __enter__(self):
        patches = [
            mock.patch.object(torch, "Generator", Generator),
            mock.patch("torch.utils.swap_tensors", put),  # the stock one refuses a fake tensor that the mode remembers
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            mock.patch("torch.amp.autocast_mode.torch.cuda.is_bf16_supported", lambda *_: True),
        ]
        for patch in patches:
            self.stack.enter_context(patch)
        self.stack.enter_context(self.fakes)
        return super().__enter__()

    def __exit__(self, *error):
        try:
            return super().__exit__(*error)
        finally:
            self.stack.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        target = torch.device(kwargs.get("device") or "cpu")
        if target.type != "cuda" and not any(isinstance(x, FakeTensor) for x in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func._schema.name not in COPIES:
            places = {x.device.type for x in tensors if x.ndim}  # a single number of the CPU may join
            assert len(places) < 2, f"{func._schema.name} was given tensors on {sorted(places)}"
        brought = target.type == "cpu" and "device" in kwargs and kwargs["device"] is not None
        if func._schema.name == "aten::copy_":
            brought = args[0].device.type == "cpu"
        if brought and not self.waiting:
            raise Waits(f"{func._schema.name} brings numbers of the device to the CPU")
        args, kwargs = tree_map_only(torch._C.Generator, lambda _: None, (args, kwargs))
        args, kwargs = tree_map_only(torch.Tensor, self.faked, (args, kwargs))
        return func(*args, **kwargs)

    def faked(self, x):
        return x if isinstance(x, FakeTensor) else self.fakes.from_tensor(x, static_shapes=True)
