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
    "attention": "calls.api",
    "explain": "calls.api",
    "Explanation": "calls.api",
    "make_plan": "plan.plan",
    "Plan": "plan.plan",
    "forecast": "strategies.build",
    "flops": "strategies.build",
    "balance": "strategies.build",
    "Strategy": "plan.plan",
    "Layout": "plan.layout",
    "Partition": "partition",
    "Mask": "masks.basic",
    "Full": "masks.basic",
    "Causal": "masks.basic",
    "SlidingWindow": "masks.basic",
    "Lambda": "masks.basic",
    "BlockSparse": "masks.tables",
    "Documents": "masks.tables",
    "KeyPadding": "masks.tables",
    "KeyMask": "masks.tables",
    "Ranges": "masks.tables",
    "SliceKind": "masks.tables",
    "Dense": "masks.tables",
    "And": "masks.combined",
    "Or": "masks.combined",
    "DualScope": "masks.basic",
    "Overlap": "masks.basic",
    "Edge": "masks.basic",
    "TileKind": "masks.basic",
    "attention_reference": "reference",
    "partial_attention": "backends.partial",
    "partial_backward": "backends.partial",
    "merge": "backends.partial",
    "Backend": "backends.contract",
    "Capabilities": "backends.contract",
    "Request": "backends.contract",
    "register": "backends.registry",
    "choose_backend": "backends.registry",
    "Tile": "plan.tiles",
    "ShapeError": "errors",
    "CapabilityError": "errors",
    "PlanMismatch": "errors",
    "DistTimeout": "errors",
    "dual_scope_attention": "calls.dual_scope",
    "Counter": "ranks.transport",
    "Pending": "ranks.transport",
    "Transport": "ranks.transport",
    "DryTransport": "ranks.transport",
    "group_moments": "ranks.moments",
    "prompt_guided_pool3d": "pooling.guided",
    "pool_reference": "pooling.guided",
    "Windows": "pooling.windows",
    "WeightMode": "pooling.guided",
    "linear_attention": "linear.lasp2",
    "linear_attention_reference": "linear.lasp2",
    "prefix_scan": "linear.scan",
    "diagonal_scan": "linear.scan",
    "diagonal_ssm": "linear.scan",
    "conv_s5": "linear.scan",
    "Discretization": "linear.scan",
    "plan_batch": "schedule",
    "static_plan": "schedule",
    "BatchPlan": "schedule",
    "Cost": "schedule",
    "hip_select": "sparse.selection",
    "HiPStage": "sparse.selection",
    "infllm_select": "sparse.selection",
    "attention_recall": "sparse.selection",
    "squeeze": "sparse.clusters",
    "squeezed_select": "sparse.clusters",
    "SqueezedContext": "sparse.clusters",
    "routing_select": "sparse.clusters",
    "routing_update": "sparse.clusters",
    "relative_attention": "calls.relative",
    "relative_bias_tile": "calls.relative",
    "lambda_attention": "calls.lambda_rotary",
    "linear_attention_triton": "linear.fused",
    "merge_triton": "backends.triton_merge",
    "joint_attention": "calls.joint",
    "shard_transformer": "calls.diffusers_models",
    "AttentionProcessor": "calls.diffusers_models",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package costs no torch import."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"longtake.kernels.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
