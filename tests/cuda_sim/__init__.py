"""Runs the CUDA kernels of csrc/cuda on the CPU, block by block, and checks every access.

`fprop`, `dgrad` and `wgrad` take tensors on the CPU and return the result with what each launch
cost. An error of a kernel raises `SimulatorError`, which names block, thread, instruction and line.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnext_kernels.problem import ConvProblem

from . import build

ORDERS = ("forward", "reverse", "random")
_ELEMENTS = (torch.bfloat16, torch.float16, torch.float32)  # in the order of Element; then TF32


class SimulatorError(RuntimeError):
    """What a kernel did wrong, or why its launcher refused."""


@dataclass(frozen=True)
class Options:
    """How blocks are run; ``order`` is that of warps and lanes, ``seed`` that of a random one."""

    os_threads: int = 0
    order: str = "forward"
    seed: int = 0
    early_copies: bool = False  # cp.async copies at once, not when it is waited for
    races: bool = True
    shared_bytes: int = 227 * 1024  # that a block may take


@dataclass(frozen=True)
class Gpu:
    """As ``rnk::cuda::Gpu``; bytes of shared memory."""

    multiprocessors: int = 132
    shared_per_block: int = 227 * 1024
    shared_per_multiprocessor: int = 228 * 1024


@dataclass(frozen=True)
class Place:
    """What the instructions at one place of the source cost in a launch, all together."""

    file: str
    line: int
    kind: str  # an asynchronous copy has two places: ld_global and cp_async
    instructions: int  # of a warp
    sectors: int  # of 32 bytes of global memory
    wavefronts: int  # passes over shared memory
    conflicts: int  # those more than without bank conflicts


@dataclass(frozen=True)
class Launch:
    """What a launch cost."""

    counters: dict[str, int]  # counters.h says what they count
    places: list[Place]

    def __getitem__(self, counter: str) -> int:
        return self.counters[counter]


@dataclass(frozen=True)
class Result:
    out: Tensor
    launches: list[Launch]


class _Options(ctypes.Structure):
    _fields_ = [
        ("os_threads", ctypes.c_int32),
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("early_copies", ctypes.c_int32),
        ("races", ctypes.c_int32),
        ("most_shared_bytes", ctypes.c_int32),
    ]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("element_bytes", ctypes.c_int64),
        ("strides", ctypes.c_int64 * 3),
    ]


class Library:
    """One compiled library of the simulator and the functions that it runs."""

    def __init__(self, name: str, sources: list[Path]) -> None:
        self.c = ctypes.CDLL(str(build.library(name, sources)))
        self.c.rnk_sim_counter_names.restype = ctypes.c_char_p
        self.c.rnk_sim_launches.restype = ctypes.c_int64
        self.c.rnk_sim_profile.restype = ctypes.c_char_p
        self.c.rnk_sim_set_options.argtypes = [ctypes.POINTER(_Options)]
        self._names = self.c.rnk_sim_counter_names().decode().split()

    def call(self, name: str, options: Options, *arguments) -> list[Launch]:
        """Call a function that returns an error's text or null; return what its launches cost."""
        function = self.c[name]
        function.restype = ctypes.c_char_p
        self.c.rnk_sim_set_options(
            _Options(
                options.os_threads,
                ORDERS.index(options.order),
                options.seed,
                options.early_copies,
                options.races,
                options.shared_bytes,
            )
        )
        error = function(*arguments)
        if error is not None:
            raise SimulatorError(error.decode())
        return [self._launch(ctypes.c_int64(i)) for i in range(self.c.rnk_sim_launches())]

    def _launch(self, launch: ctypes.c_int64) -> Launch:
        values = (ctypes.c_uint64 * len(self._names))()
        self.c.rnk_sim_counters(launch, values)
        lines = (line.split() for line in self.c.rnk_sim_profile(launch).decode().splitlines())
        return Launch(
            dict(zip(self._names, values, strict=True)),
            [Place(file, int(at), kind, *map(int, costs)) for file, at, kind, *costs in lines],
        )


@functools.cache
def kernels() -> Library:
    """The real kernels."""
    return Library("kernels", [build.HERE / "driver.cpp", *sorted(build.KERNELS.glob("*.cu"))])


def not_supported_reason(problem: ConvProblem, dtype: torch.dtype) -> str | None:
    """Why the kernels do not serve a problem with tensors of ``dtype``, if they do not."""
    function = kernels().c.rnk_sim_not_supported_reason
    function.restype = ctypes.c_char_p
    reason = function(_problem(problem), ctypes.c_int(_ELEMENTS.index(dtype)))
    return reason.decode() if reason is not None else None


def fprop(
    problem: ConvProblem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    *,
    out: Tensor | None = None,
    tf32: bool = False,
    gpu: Gpu | None = None,
    options: Options | None = None,
) -> Result:
    """``relu?(conv(input, weight) + bias + residual)``, into ``out`` if there is one.

    ``tf32``: float32 may be multiplied in TF32.
    """
    out = _images(problem.output_shape, input) if out is None else out
    operands = [input, _channels_last(weight), bias, residual, relu, out]
    return _run("rnk_sim_fprop", problem, operands, gpu, options, tf32)


def dgrad(
    problem: ConvProblem,
    grad_output: Tensor,
    weight: Tensor,
    *,
    out: Tensor | None = None,
    tf32: bool = False,
    gpu: Gpu | None = None,
    options: Options | None = None,
) -> Result:
    """Gradient by the input, into ``out`` if there is one; ``tf32`` as for fprop."""
    out = _images(problem.input_shape, grad_output) if out is None else out
    operands = [grad_output, _channels_last(weight), out]
    return _run("rnk_sim_dgrad", problem, operands, gpu, options, tf32)


def wgrad(
    problem: ConvProblem,
    grad_output: Tensor,
    input: Tensor,
    *,
    gpu: Gpu | None = None,
    options: Options | None = None,
) -> Result:
    """Gradient by the weight, channels_last."""
    out = _images(problem.weight_shape, input)
    return _run("rnk_sim_wgrad", problem, [grad_output, input, out], gpu, options)


def _run(
    name: str,
    problem: ConvProblem,
    operands: list,
    gpu: Gpu | None,
    options: Options | None,
    tf32: bool = False,
) -> Result:
    gpu, options = gpu or Gpu(), options or Options()
    out = operands[-1]
    sizes = (gpu.multiprocessors, gpu.shared_per_block, gpu.shared_per_multiprocessor)
    arguments = [a if isinstance(a, bool) else ctypes.byref(_tensor(a)) for a in operands]
    launches = kernels().call(
        name,
        Options(**{**vars(options), "shared_bytes": gpu.shared_per_block}),
        _problem(problem),
        ctypes.c_int(_ELEMENTS.index(out.dtype) + tf32),
        *arguments,
        (ctypes.c_int * 3)(*sizes),
    )
    return Result(out, launches)


def _problem(p: ConvProblem) -> ctypes.Array:
    (p_h, p_w), (in_h, in_w) = p.out_size, p.in_size
    return (ctypes.c_int64 * 16)(
        p.batch, p.in_channels, in_h, in_w, p.out_channels, p_h, p_w, *p.kernel, *p.stride,
        *p.padding, *p.dilation, p.groups,
    )  # fmt: skip


def _tensor(t: Tensor | None) -> _Tensor:
    if t is None:
        return _Tensor()
    storage = t.untyped_storage()
    size = t.element_size()
    strides = (ctypes.c_int64 * 3)(*[t.stride(i) if t.dim() > i else 0 for i in (0, 2, 3)])
    return _Tensor(storage.data_ptr(), storage.nbytes(), t.storage_offset() * size, size, strides)


def _channels_last(weight: Tensor) -> Tensor:
    k, c, r, s = weight.shape
    return weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _images(shape: tuple[int, ...], like: Tensor) -> Tensor:
    n, c, h, w = shape
    return torch.empty(n, h, w, c, dtype=like.dtype).permute(0, 3, 1, 2)


__all__ = [
    "Gpu",
    "Launch",
    "Library",
    "Options",
    "Place",
    "Result",
    "SimulatorError",
    "dgrad",
    "fprop",
    "not_supported_reason",
    "wgrad",
]
