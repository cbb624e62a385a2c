"""Backends that come with torch: the fused CPU op, and the readable definition that serves everything."""

from dataclasses import replace

from longtake.kernels.backends.contract import FLOATS, Backend, Capabilities, Request, lacks
from longtake.kernels.backends.partial import PartialBackend, partial_attention, partial_backward
from longtake.kernels.plan.tiles import Tile, TileKind
from longtake.kernels.precision import accumulator_dtype
from torch import Tensor


class PartialTiles:
    """Tiles through `partial_attention` and `partial_backward`, with one of their two implementations."""

    def __init__(self, name: str, implementation: PartialBackend, capabilities: Capabilities, softcap: float = 0.0):
        self.name = name
        self._implementation = implementation
        self._capabilities = capabilities
        self._softcap = softcap

    def capped(self, softcap: float) -> "PartialTiles":
        """The same with a soft cap of the logits."""
        return PartialTiles(self.name, self._implementation, self._capabilities, softcap)

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def refuses(self, request: Request) -> str | None:
        return lacks(self._capabilities, request)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        return partial_attention(
            q, k, v, bias=bias_on(tile, q), causal=tile.kind is TileKind.CAUSAL, blind=tile.blind, scale=scale,
            softcap=self._softcap, backend=self._implementation,
        )  # fmt: skip

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return partial_backward(
            d_out, q, k, v, out, lse, bias=bias_on(tile, q), causal=tile.kind is TileKind.CAUSAL, scale=scale,
            softcap=self._softcap, backend=self._implementation,
        )  # fmt: skip


def bias_on(tile: Tile, q: Tensor) -> Tensor | None:
    """A tile's bias on q's device, in float32 (float64 for float64)."""
    if tile.bias is None:
        return None
    return tile.bias.to(q.device, accumulator_dtype(q.dtype))


def make_backends() -> list[Backend]:
    """In order of preference."""
    fused = Capabilities(dtypes=FLOATS, devices=frozenset({"cpu"}))
    anything = replace(Capabilities(), value_dim_differs=True, softcap=True, head_dims=range(1, 1 << 20))
    return [
        PartialTiles("aten_cpu", PartialBackend.ATEN_CPU, fused),
        PartialTiles("math", PartialBackend.MATH, anything),
    ]
