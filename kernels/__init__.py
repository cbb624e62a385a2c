"""The ground floor: exact windowed and distributed attention primitives on plain torch.

Always import it as `longtake.kernels`. The folder is called `kernels`, which is also the name of a Hugging Face package
that transformers and diffusers look for; a Python started in the project's root (`python -m`, `torchrun -m`) finds this
folder first. When that happens the lines below hand the import over to the installed package of that name. Without one
the import must still succeed: transformers imports what it finds, sees no version, and concludes that there is none.

    from longtake.kernels import DualScope, Partition, Transport, dual_scope_attention
"""

import importlib
import sys
from typing import Any

if __name__ == "kernels":
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _root = Path(__file__).resolve().parent.parent
    _elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _root]
    _spec = PathFinder.find_spec("kernels", _elsewhere)
    if _spec is not None and _spec.loader is not None:
        _module = module_from_spec(_spec)
        sys.modules["kernels"] = _module
        _spec.loader.exec_module(_module)

_PUBLIC = {
    "attention": "api",
    "explain": "api",
    "Explanation": "api",
    "make_plan": "plan",
    "Plan": "plan",
    "Strategy": "plan",
    "Layout": "layout",
    "Partition": "partition",
    "Mask": "masks",
    "Full": "masks",
    "Causal": "masks",
    "SlidingWindow": "masks",
    "Lambda": "masks",
    "BlockSparse": "block_masks",
    "Documents": "block_masks",
    "KeyPadding": "block_masks",
    "KeyMask": "block_masks",
    "Ranges": "block_masks",
    "SliceKind": "block_masks",
    "Dense": "block_masks",
    "And": "combined_masks",
    "Or": "combined_masks",
    "DualScope": "masks",
    "Overlap": "masks",
    "Edge": "masks",
    "TileKind": "masks",
    "attention_reference": "reference",
    "partial_attention": "partial",
    "partial_backward": "partial",
    "merge": "partial",
    "Backend": "backends",
    "Capabilities": "backends",
    "Request": "backends",
    "register": "backends",
    "choose_backend": "backends",
    "Tile": "tiles",
    "ShapeError": "errors",
    "CapabilityError": "errors",
    "PlanMismatch": "errors",
    "DistTimeout": "errors",
    "dual_scope_attention": "dual_scope",
    "Counter": "transport",
    "Pending": "transport",
    "Transport": "transport",
    "DryTransport": "transport",
    "group_moments": "moments",
    "prompt_guided_pool3d": "pooling",
    "pool_reference": "pooling",
    "Windows": "pooling",
    "WeightMode": "pooling",
    "linear_attention": "linear",
    "linear_attention_reference": "linear",
    "prefix_scan": "scan",
    "diagonal_scan": "scan",
    "diagonal_ssm": "scan",
    "conv_s5": "scan",
    "Discretization": "scan",
    "plan_batch": "schedule",
    "static_plan": "schedule",
    "BatchPlan": "schedule",
    "Cost": "schedule",
    "hip_select": "selection",
    "HiPStage": "selection",
    "infllm_select": "selection",
    "attention_recall": "selection",
    "squeeze": "clusters",
    "squeezed_select": "clusters",
    "SqueezedContext": "clusters",
    "routing_select": "clusters",
    "routing_update": "clusters",
    "relative_attention": "relative",
    "relative_bias_tile": "relative",
    "lambda_attention": "lambda_rotary",
    "linear_attention_triton": "triton_linear",
    "merge_triton": "triton_merge",
    "joint_attention": "joint",
    "shard_transformer": "processor",
    "AttentionProcessor": "processor",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package costs no torch import."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"longtake.kernels.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
