"""The one place that decides device and number format, and says why. Attention backends: kernels/backends/registry.py.

    choice = choose_device()
    print(choice.line)      # device cpu, float32: no CUDA device is available

The environment variable LONGTAKE_DEVICE ("cpu", "cuda", "cuda:1", "mps") overrides the choice.
No other module chooses a device; kernels only ask what type a tensor's is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch
from longtake.errors import UserError, shorten

_ENVIRONMENT = "LONGTAKE_DEVICE"
_TYPES = ("cpu", "cuda", "mps")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """device; dtype for weights and activations; reason: why, in a few words."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def line(self) -> str:
        return f"device {self.device}, {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def choose_device(
    prefer: str | torch.device | None = None, dtype: torch.dtype | None = None, local_rank: int = 0
) -> Choice:
    """Choose the device of this process.

    prefer: a device the caller asks for; LONGTAKE_DEVICE wins over it. None: the best there is.
    dtype: a number format that the caller asks for; None: bfloat16 or float16 on a GPU, float32 elsewhere.
    local_rank: number of this process on its machine; each gets a GPU of its own.
    Raises UserError for a device that is unknown or not there, or for more processes than GPUs.
    """
    override = os.environ.get(_ENVIRONMENT, "").strip()
    asked = override or (str(prefer) if prefer is not None else "")
    source = f"asked for by {_ENVIRONMENT}" if override else "asked for by the caller"
    if not asked:
        asked, source = _best_available()
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in _TYPES:
        raise UserError(f"unknown device {asked!r} ({source}); allowed are {', '.join(_TYPES)} and e.g. cuda:1")

    if device.type == "cuda":
        device = _cuda_device(device, asked, source, local_rank)
        bf16 = torch.cuda.is_bf16_supported()
        reason = f"{source}, {torch.cuda.get_device_name(device)} {'has' if bf16 else 'lacks'} bfloat16"
        return Choice(device, dtype or (torch.bfloat16 if bf16 else torch.float16), reason)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device mps was {source}, but it is not available on this machine; set {_ENVIRONMENT}=cpu")
    return Choice(device, dtype or torch.float32, source)


def _best_available() -> tuple[str, str]:
    if torch.cuda.is_available():
        return "cuda", f"{torch.cuda.device_count()} CUDA device(s) found"
    return "cpu", "no CUDA device is available"


def _cuda_device(device: torch.device, asked: str, source: str, local_rank: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = local_rank if device.index is None else device.index
    if count == 0:
        raise UserError(f"device {asked} was {source}, but torch finds no CUDA device; set {_ENVIRONMENT}=cpu")
    if index >= count:
        raise UserError(
            f"this machine has {count} CUDA device(s), but number {index} is needed (one for each process): start at "
            f"most {count} processes on it or set {_ENVIRONMENT}=cpu"
        )
    return torch.device("cuda", index)


def records(device: torch.device) -> bool:
    """Whether a device can record what it is told to do and replay it (see ``longtake.graphs``)."""
    return device.type == "cuda"


def product_format(device: torch.device) -> torch.dtype | None:
    """The number format in which a CPU multiplies several times as fast as in float32: bfloat16 where it has
    instructions for it, AMX tiles or AVX512_BF16 (on an AMD EPYC with the latter 500 for 112 GFLOPS a core, and a
    vocoder twice as fast).

    For nets that forgive eight bits. None: there is none, or the device is no CPU.
    """
    if device.type != "cpu":
        return None
    able = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if able else None


def keep_few_products() -> None:
    """Let oneDNN keep 128 ready-made products instead of 1,024, unless the user set it.

    It makes one for each new shape: where sentences of ever new lengths are said they came to hundreds of MB. To be
    called before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def training_precision(device: torch.device) -> str:
    """The fastest of "no", "bf16" and "fp16" to train in on a device.

    On a CPU without instructions for bfloat16 its products have a tenth of float32's speed (5.9 for 51 GFLOPS on an
    AMD EPYC of AVX2).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "no" if product_format(device) is None else "bf16"


def activate(device: torch.device) -> None:
    """Make `device` the current one of this process, as NCCL needs. Nothing to do off CUDA."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def group_backend(device: torch.device) -> str:
    """The torch.distributed backend string: gloo alone, or gloo for CPU tensors beside NCCL for GPU tensors."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def describe_devices() -> list[str]:
    """One line for each device of this machine, for `longtake info`."""
    lines = [f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps: Apple GPU")
    return lines


def describe_attention() -> list[str]:
    """One line for each attention backend of kernels, in order of preference: usable on the best device, or why not."""
    from longtake.kernels.backends.registry import Request, backends, declines

    choice = choose_device()
    request = Request(choice.dtype, head_dim=64, value_dim=64, device=choice.device.type)
    reasons = ((backend.name, declines(backend, request)) for backend in backends())
    return [f"{name}: usable" if reason is None else f"{name}: not usable, {reason}" for name, reason in reasons]


def free_memory_bytes(device: torch.device) -> int | None:
    """Memory that is free on `device` now, bytes: of a GPU, or of this machine; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device, reset: bool = False) -> str:
    """The most memory in use since the last reset, in words: of the device, or of the process on a CPU (no reset)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    import resource

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process"


def most_that_fit(device: torch.device, each: int, beside: int = 0) -> int | None:
    """How many things of `each` bytes fit into four fifths of the memory that is free on `device` now, with `beside`
    bytes taken by something else: 0 or more; None where nobody tells what is free. The fifth is for what an allocator
    cannot use of its blocks, and for kernels' workspaces."""
    if each < 1 or beside < 0:
        raise ValueError(f"each must be at least 1 byte and beside at least 0, given {each} and {beside}")
    free = free_memory_bytes(device)
    return None if free is None else max((free * 4 // 5 - beside) // each, 0)


def parse_device(text: str | None) -> str | None:
    """A device in words as `choose_device` takes it: "cpu", "cuda", "cuda:1", "mps"; "auto" and None: the best there
    is, None. Raises UserError for another word; whether the device is there, `choose_device` says."""
    if text is None or text.strip() == "auto":
        return None
    text = text.strip()
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise UserError(f"unknown device {shorten(text, 40)!r}; allowed are auto, {', '.join(_TYPES)} and e.g. cuda:1")
    return text


def parse_dtype(text: str | None) -> torch.dtype | None:
    """A number format in words; "auto" and None: what suits the device, None. Raises UserError for another word."""
    if text is None or text.strip() == "auto":
        return None
    if text.strip() not in _DTYPES:
        raise UserError(f"unknown dtype {shorten(text, 40)!r}; allowed are auto, {', '.join(_DTYPES)}")
    return _DTYPES[text.strip()]
