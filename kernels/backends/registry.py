"""Who computes a tile, and who cannot and why: the backends in order of preference, and the choice among them.

`choose_backend` takes the first backend, in order of preference, that serves a request; a forced one that cannot raises
CapabilityError with its reason, and nothing is ever tried and caught.

    backend = choose_backend(Request(dtype=q.dtype, head_dim=64, value_dim=64, device="cpu"), forced=None)
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from longtake.kernels.backends.contract import Backend, Capabilities, Request, takes_whole
from longtake.kernels.errors import CapabilityError
from longtake.kernels.masks.basic import TileKind
from longtake.kernels.plan.tiles import Tile
from torch import Tensor


def declines(backend: Backend, request: Request) -> str | None:
    """Why `auto` passes a backend over; None when it would take it."""
    reserved = backend.capabilities().on_request
    return backend.refuses(request) or (f"serves only when asked for by name: {reserved}" if reserved else None)


@dataclass
class Registry:
    """Backends in order of preference. `lazy` names modules that register more, imported when first asked; each entry
    is (module, package it needs)."""

    lazy: tuple[tuple[str, str | None], ...] = ()
    _known: list[Backend] = field(default_factory=list)
    _loaded: bool = False

    def register(self, backend: Backend, first: bool = False) -> None:
        """Add a backend; ValueError for a name that is taken."""
        if any(known.name == backend.name for known in self._known):
            raise ValueError(f"a backend called {backend.name!r} is registered already")
        self._known.insert(0 if first else len(self._known), backend)

    def all(self) -> list[Backend]:
        if not self._loaded:
            self._loaded = True
            for module, needs in self.lazy:
                if find_spec(module) is not None and (needs is None or find_spec(needs) is not None):
                    made: Callable[[], list[Backend]] = importlib.import_module(module).make_backends
                    for backend in made():
                        self.register(backend)
        return list(self._known)


# Each module has make_backends() -> list of backends. The order is the order of preference.
_REGISTRY = Registry(
    lazy=(
        ("longtake.kernels.backends.triton_dual_scope", "triton"),
        ("longtake.kernels.backends.triton_block_sparse", "triton"),
        ("longtake.kernels.backends.flash_attn", None),
        ("longtake.kernels.backends.torch_cuda", None),
        ("longtake.kernels.backends.flex", None),
        ("longtake.kernels.backends.torch_cpu", None),
    )
)


def register(backend: Backend, first: bool = False) -> None:
    """Make a backend known, before or after the others; ValueError for a name that is taken."""
    _REGISTRY.all()
    _REGISTRY.register(backend, first)


def backends() -> list[Backend]:
    """All backends of this installation, in order of preference."""
    return _REGISTRY.all()


def choose_backend(request: Request, forced: str | None = None) -> Backend:
    """The first backend that serves the request, or the forced one. Where an earlier one serves all tiles but those
    with a bias, the two share the call (`ByKind`).

    Raises CapabilityError with every reason when none can, with its reason when the forced one cannot, and with the
    known names for an unknown one.
    """
    known = backends()
    if forced is not None:
        for backend in known:
            if backend.name == forced:
                reason = backend.refuses(request)
                if reason is not None:
                    raise CapabilityError(f"backend {forced!r} cannot serve: {reason}")
                return _fitted(backend, request)
        names = ", ".join(backend.name for backend in known)
        raise CapabilityError(f"backend {forced!r} is not available here; there are {names}")
    reasons = []
    easier = replace(request, kinds=request.kinds - {TileKind.DENSE}, mask=None)
    quick: Backend | None = None
    for backend in known:
        reason = declines(backend, request)
        if reason is None:
            general = _fitted(backend, request)
            if quick is None or takes_whole(backend.capabilities(), request.mask):
                return general
            return ByKind(_fitted(quick, request), general)
        if quick is None and TileKind.DENSE in request.kinds and declines(backend, easier) is None:
            quick = backend
        reasons.append(f"{backend.name}: {reason}")
    raise CapabilityError("no backend serves this: " + "; ".join(reasons))


class ByKind:
    """Two backends in one call: `plain` for tiles without a bias, `biased` for the others."""

    def __init__(self, plain: Backend, biased: Backend) -> None:
        self.plain, self.biased = plain, biased
        self.name = f"{plain.name}+{biased.name}"

    def capabilities(self) -> Capabilities:
        return replace(self.biased.capabilities(), masks=frozenset())

    def refuses(self, request: Request) -> str | None:
        return self.biased.refuses(request)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        return self._of(tile).forward(q, k, v, tile, scale)

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._of(tile).backward(d_out, q, k, v, out, lse, tile, scale)

    def _of(self, tile: Tile) -> Backend:
        return self.biased if tile.kind is TileKind.DENSE else self.plain


def _fitted(backend: Backend, request: Request) -> Backend:
    """The backend, with the request's soft cap in it."""
    if not request.softcap:
        return backend
    fitted: Backend = backend.capped(request.softcap)  # type: ignore[attr-defined]
    return fitted
