"""Number formats of the backbone: what `--dtype` means on a device.

fp32 means fp32 everywhere: GPUs round the inputs of fp32 convolutions to 10 bits unless told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raysers.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A number format of the backbone; `on_cpu` tells whether CPUs compute in it at all."""

    name: str
    dtype: torch.dtype
    on_cpu: bool = True


PRECISIONS: dict[str, Precision] = {
    row.name: row
    for row in (
        Precision(name="fp32", dtype=torch.float32),
        Precision(name="bf16", dtype=torch.bfloat16),
        Precision(name="fp16", dtype=torch.float16, on_cpu=False),
    )
}

#: First CUDA generation (Ampere) with bfloat16 units.
_BF16_CAPABILITY = (8, 0)


def dtype_name(requested: str, device: str) -> str:
    """fp32, bf16 or fp16 for `--dtype`: `auto` is bf16 where the hardware has it, else fp32.

    Args:
        requested: auto, fp32, bf16 or fp16.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: unknown, or not on this device.
    """
    if requested == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    precision = PRECISIONS.get(requested)
    if precision is None:
        raise ConfigError(f"--dtype {requested!r}: choose from auto, {', '.join(PRECISIONS)}")
    if device.startswith("cpu") and not precision.on_cpu:
        raise ConfigError(f"--dtype {requested} needs a GPU; on CPUs use auto, bf16 or fp32")
    return precision.name


def has_gpu() -> bool:
    """Whether this process can compute on a GPU."""
    return torch.cuda.is_available()


def choose_dtype(requested: str, device: str) -> torch.dtype:
    """The type torch has for `--dtype`; arguments and errors as of `dtype_name`."""
    return PRECISIONS[dtype_name(requested, device)].dtype


@contextlib.contextmanager
def exact_convolutions(dtype: torch.dtype) -> Iterator[None]:
    """Keep cuDNN from rounding fp32 convolutions to 10 bits; all else of it stays as it is set."""
    if dtype != torch.float32:
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(  # whatever is not passed is reset, `enabled` to False
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


def _has_bf16(device: str) -> bool:
    if device.startswith("cpu"):
        return any(
            getattr(torch.cpu, probe, bool)()
            for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
    return torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
