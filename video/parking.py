"""Where activations wait that are not needed for a while: in memory up to a budget, then in a temporary file.

A file keeps the process small whatever the length of the video: plain reads and writes, no memory map, so its pages do
not count as memory of this process. The file has no name and is gone with the process. It lies where TMPDIR says.

    parking = Parking(budget_bytes=64 << 20)
    ticket = parking.put(x)                # (B, T, C, h, w)
    part = parking.frames(ticket, 16, 32)  # (B, 16, C, h, w)
    parking.free(ticket)
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import IO

import torch
from longtake.errors import UserError, explain_disk_errors
from torch import Tensor


@dataclass
class Ticket:
    """A parked tensor: itself, or its place in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    tensor: Tensor | None
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Parking:
    """Tensors of shape (B, T, ...), read back by frames. Last in, first out is cheapest: the file shrinks with it."""

    def __init__(self, budget_bytes: int):
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, x: Tensor) -> Ticket:
        """Keep a copy of x."""
        ticket = Ticket(tuple(x.shape), x.dtype, x.device, None)
        if self.held_bytes + ticket.nbytes <= self.budget_bytes:
            ticket.tensor = x.clone()
            self.held_bytes += ticket.nbytes
            return ticket
        with explain_disk_errors(tempfile.gettempdir()):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="longtake-", buffering=0)
            ticket.offset = self._end
            self._file.seek(self._end)
            for item in x:
                view = memoryview(_bytes(item))
                while len(view):  # a raw write may take less than it is given
                    view = view[self._file.write(view) :]
        self._end += ticket.nbytes
        return ticket

    def frames(self, ticket: Ticket, start: int, stop: int) -> Tensor:
        """Frames start..stop of every batch entry, (B, stop - start, ...); a view when the tensor is in memory."""
        if ticket.tensor is not None:
            return ticket.tensor[:, start:stop]
        assert self._file is not None
        batch, total, *rest = ticket.shape
        out = torch.empty((batch, stop - start, *rest), dtype=ticket.dtype)
        frame = ticket.nbytes // max(batch * total, 1)
        for index in range(batch):
            self._file.seek(ticket.offset + (index * total + start) * frame)
            view = memoryview(_bytes(out[index]))
            while len(view):
                count = self._file.readinto(view)  # type: ignore[attr-defined]
                if not count:
                    raise UserError(f"the temporary file in {tempfile.gettempdir()} was cut short by something else")
                view = view[count:]
        return out.to(ticket.device)

    def free(self, ticket: Ticket) -> None:
        """Give the place back."""
        if ticket.tensor is not None:
            self.held_bytes -= ticket.nbytes
            ticket.tensor = None
        elif self._file is not None and ticket.offset + ticket.nbytes == self._end:
            self._end = ticket.offset
            self._file.truncate(self._end)

    def close(self) -> None:
        """Drop everything."""
        if self._file is not None:
            self._file.close()
        self._file, self._end, self.held_bytes = None, 0, 0


def _bytes(x: Tensor) -> memoryview:
    """The memory of a tensor, copied first if it is elsewhere or not contiguous; else writes reach the tensor."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
