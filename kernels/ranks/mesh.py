"""What a caller calls a mesh, as the `Transport` that carries the messages.

transport, degree = as_transport(mesh)
"""

from typing import Any

import torch.distributed as dist
from longtake.kernels.errors import CapabilityError
from longtake.kernels.ranks.transport import DryTransport, Transport


def alone() -> Transport:
    """A world of one, also where torch.distributed is initialised: what an operator without a mesh runs on."""
    return DryTransport(0, 1)


def as_transport(mesh: Any) -> tuple[Transport, int | None]:
    """A transport, and the Ulysses degree of a two-dimensional mesh.

    mesh: None (one process by itself), a Transport, a process group, a DeviceMesh of one dimension, or one of two
    dimensions (ring, ulysses) over all ranks. Raises CapabilityError for other meshes.
    """
    if isinstance(mesh, Transport):
        return mesh, None
    if mesh is None:
        return alone(), None
    if isinstance(mesh, dist.ProcessGroup):
        return Transport(mesh), None
    if mesh.ndim == 1:
        return Transport(mesh.get_group()), None
    if mesh.ndim == 2:
        if mesh.size() != dist.get_world_size() or mesh.mesh.flatten().tolist() != list(range(mesh.size())):
            raise CapabilityError(
                "a two-dimensional mesh must hold all ranks in order; flatten a sub-mesh and give the plan a degree"
            )
        return Transport(), int(mesh.size(1))
    raise CapabilityError(f"a mesh of {mesh.ndim} dimensions; one (ring or ulysses) or two (ring, ulysses) are served")
