"""Training steps as CUDA graphs: the device runs what was recorded once, and the CPU does not launch each kernel.

A small network's step is thousands of kernels of some microseconds each, so that launching them takes longer than
running them. A loss in two parts, ``Split``, can be recorded: ``draw`` makes the tensors of a step, ``value`` is a
function of the model and of them alone, without a look at a number of the device and with shapes that it knows. For
each set of shapes forward and backward are recorded the first time and replayed from then on (see "CUDA graphs" in
PyTorch's notes); dropout draws new numbers in each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WARM = 3  # runs before the recording: libraries choose their kernels and take their memory
Run = Callable[[], torch.Tensor]
Record = Callable[[Run, Callable[[], None]], tuple[torch.Tensor, Callable[[], None]]]


@dataclass(frozen=True)
class Split:
    """A loss, ``loss(model, step) -> scalar``, in two parts.

    draw: step -> the step's tensors, on the model's device. value: (model, *tensors) -> the scalar.
    """

    draw: Callable[[int], Sequence[torch.Tensor]]
    value: Callable[..., torch.Tensor]

    def __call__(self, model: nn.Module, step: int) -> torch.Tensor:
        return self.value(model, *self.draw(step))


@dataclass(frozen=True)
class Tape:
    """One recording. inputs: what a replay reads. value, gradients: what it writes."""

    inputs: list[torch.Tensor]
    value: torch.Tensor
    gradients: list[torch.Tensor | None]
    replay: Callable[[], None]


class Graphs:
    """Values and gradients of a ``Split``'s second part, recorded for each set of shapes.

    value, model: as in ``Split``. autocast: makes the context in which ``value`` runs. record: ``CudaRecord``, or what
    stands for it where there is no CUDA.
    """

    def __init__(
        self,
        value: Callable[..., torch.Tensor],
        model: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]],
        record: Record | None = None,
    ) -> None:
        self.value, self.model, self.autocast = value, model, autocast
        self.parameters: list[nn.Parameter] = list(model.parameters())
        self.kept: list[torch.Tensor] = list(model.buffers())
        self.record = record or CudaRecord()
        self.tapes: dict[tuple[Any, ...], Tape] = {}

    def __call__(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of a step's tensors, a scalar of its own; the parameters' gradients are those of this step, until
        the next one."""
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
        if key not in self.tapes:
            self.tapes[key] = self.tape(tensors)
        tape = self.tapes[key]
        for place, tensor in zip(tape.inputs, tensors, strict=True):
            place.copy_(tensor)
        tape.replay()
        for parameter, gradient in zip(self.parameters, tape.gradients, strict=True):
            parameter.grad = gradient
        return tape.value.clone()

    def tape(self, tensors: Sequence[torch.Tensor]) -> Tape:
        """Record a step of these shapes."""
        inputs = [tensor.clone() for tensor in tensors]

        def run() -> torch.Tensor:
            with self.autocast():
                value = self.value(self.model, *inputs)
            value.backward()
            return value.detach()

        before = [buffer.clone() for buffer in self.kept]
        value, replay = self.record(run, self.forget)
        with torch.no_grad():  # what warming up made of statistics and codebooks is not a step's
            for buffer, value_before in zip(self.kept, before, strict=True):
                buffer.copy_(value_before)
        gradients = [parameter.grad for parameter in self.parameters]
        self.forget()
        return Tape(inputs, value, gradients, replay)

    def forget(self) -> None:
        """No parameter has a gradient: a backward makes tensors of its own for them."""
        for parameter in self.parameters:
            parameter.grad = None


class CudaRecord:
    """Records what a function makes the current CUDA device do; all recordings share one pool of memory."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Run, forget: Callable[[], None]) -> tuple[torch.Tensor, Callable[[], None]]:
        """What ``run`` returned when it was recorded, a tensor that a replay writes anew, and the replay.

        forget: called before each run.
        """
        dice = torch.cuda.get_rng_state()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                forget()
                run()
        torch.cuda.current_stream().wait_stream(beside)
        forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            value = run()
        self.pool = graph.pool()
        torch.cuda.set_rng_state(dice)  # warming up has drawn numbers that the first step is to draw
        return value, graph.replay
