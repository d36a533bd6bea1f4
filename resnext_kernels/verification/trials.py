"""One check made: operands drawn, backends called on them, their results judged."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from .. import dispatch, ops
from ..backends import BACKENDS
from ..formats import dense_strides, format_of
from ..functional import grouped_conv2d
from ..problem import ConvProblem
from . import numerics
from .checks import ROUNDS, Check, Outcome
from .numerics import TOLERANCES
from .operands import operand_shapes, randn
from .operands import seed as seed_operands

EPILOGUES = tuple(itertools.product((False, True), repeat=3))  # bias, residual, ReLU: or not
_PUBLIC = 0.5  # of the checks of fprop: through the function that users call
_BIAS_GRADIENT = "gradient by the bias"
# Of the gradients of outputs: 224x224 equal ones, as expanding makes them, could leave float16.
_SCALE = 2**-6


def run(check: Check, device: str, backends: Sequence[str], seed: int) -> dict[str, Outcome]:
    """Check backends on the same operands on one type of device; equal seeds give equal ones.

    In the kernels' own layout they run on all threads, otherwise on one: every region of several
    threads costs milliseconds where others compute on the machine too. So do they in float16, which
    ATen alone serves on a CPU: with a region for every group.
    """
    alone = check.number % ROUNDS != 0 or check.dtype == torch.float16
    threads = 1 if alone else torch.get_num_threads()
    with _threads(1):
        try:
            trial = Trial(check, device, seed)
        except RuntimeError as error:  # a GPU that an earlier kernel has left in ruins
            return dict.fromkeys(backends, Outcome(missed=_one_line(error), error=math.inf))
        return {backend: trial.run(backend, threads) for backend in backends}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trial:
    """A check with operands, and with what is expected of them.

    ``bias``, ``residual`` and ``relu`` are those of the epilogue, where it has them. ``grad`` is
    that of the output, by which the bias's gradient is checked, where users' function is called.
    """

    def __init__(self, check: Check, device: str, seed: int) -> None:
        draw = random.Random(f"{seed} {device} {check.name}")
        seed_operands(draw.randrange(2**32))
        self._check = check
        self._layouts = check.layouts(draw)
        problem, dtype = check.problem, check.dtype
        shapes = operand_shapes(problem, check.direction)
        self.first, self.second = (
            randn(shape, dtype, layout, device)
            for shape, layout in zip(shapes, self._layouts, strict=False)
        )
        has_bias = has_residual = self.relu = has_grad = False
        if check.kind == "fused":
            has_bias, has_residual, self.relu = draw.choice(EPILOGUES)
        elif check.kind == "fprop":
            has_bias = has_grad = draw.random() < _PUBLIC
        every_second, output = (problem.out_channels, 1, 1, 2), problem.output_shape
        self.bias = self.residual = self.grad = None
        if has_bias:
            self.bias = randn(every_second, dtype, device=device)[:, 0, 0, 0]
        if has_residual:
            self.residual = randn(output, dtype, self._layouts[2], device)
        if has_grad:
            self.grad = randn(output, dtype, self._layouts[2], device)
            _memory_of(self.grad).mul_(_SCALE)
        operands = (self.first, self.second, self.bias, self.residual, self.grad)
        self._memory = [_memory_of(operand) for operand in operands if operand is not None]
        self._copies = [memory.clone() for memory in self._memory]

    @functools.cached_property
    def _expected(self) -> dict[str, Tensor]:
        """The truth of every result, by the names of `_call`."""
        problem, direction = self._check.problem, self._check.direction
        if direction != "fprop":
            return {direction: numerics.truth(problem, direction, self.first, self.second)}
        parts = (self.bias, self.residual, self.relu)
        expected: dict[str, Tensor]
        expected = {direction: numerics.fused_truth(problem, self.first, self.second, *parts)}
        if self.grad is not None:
            expected[_BIAS_GRADIENT] = self.grad.cpu().double().sum((0, 2, 3))
        return expected

    def run(self, backend: str, threads: int) -> Outcome:
        """What comes of one backend on so many threads."""
        try:
            called, memory_format = self._called()
            if reasons := dispatch.not_supported_reasons(BACKENDS[backend], called):
                return Outcome(refused="; ".join(reasons))
            expected = self._expected  # before a kernel may write to the operands
            with _threads(threads):
                results = self._call(backend)
            written = self._restore()
            outcomes = [
                self._judge(name, results[name], expected[name], memory_format) for name in results
            ]
        except Exception as raised:  # a wrong kernel may raise anything
            with suppress(RuntimeError):  # where a GPU is in ruins
                self._restore()
            return self._miss(_one_line(raised))
        if written:
            outcomes.append(self._miss("it writes to its operands or beside them"))
        return max(outcomes, key=lambda outcome: outcome.error)

    def _called(self) -> tuple[ConvProblem, torch.memory_format]:
        """The problem that a backend is told, and the memory format of the result."""
        problem, direction = self._check.problem, self._check.direction
        input, weight = numerics.input_and_weight(problem, direction, self.first, self.second)
        called = ConvProblem.of(input, weight, *problem.convolution)
        return called, format_of(weight) if direction == "wgrad" else called.memory_format

    def _call(self, backend: str) -> dict[str, Tensor]:
        """The results by their names."""
        problem, direction = self._check.problem, self._check.direction
        first, second, conv = self.first, self.second, problem.convolution
        if self._check.kind == "fused":
            activation = "relu" if self.relu else "none"
            out = ops.grouped_conv2d_fused(
                first, second, self.bias, self.residual, *conv, activation, backend
            )
        elif self.bias is not None and self.grad is not None:
            bias = self.bias.detach().requires_grad_()
            out = grouped_conv2d(first, second, bias, *conv, backend=backend)
            results: dict[str, Tensor] = {direction: out.detach()}
            if (out.dtype, out.shape) == (self.grad.dtype, self.grad.shape):  # or autograd raises
                (results[_BIAS_GRADIENT],) = torch.autograd.grad(out, bias, self.grad)
            return results
        else:
            out = numerics.call(problem, direction, backend, first, second)
        return {direction: out}

    def _judge(
        self, name: str, out: Tensor, expected: Tensor, memory_format: torch.memory_format
    ) -> Outcome:
        wanted = {
            "dtype": (out.dtype, self._check.dtype),
            "device": (out.device.type, self.first.device.type),
            "shape": (tuple(out.shape), tuple(expected.shape)),
        }
        if out.dim() == 4 and out.numel():  # empty ones have strides by no rule
            wanted["strides"] = (out.stride(), dense_strides(tuple(out.shape), memory_format))
        for kind, (found, right) in wanted.items():
            if found != right:
                return self._miss(f"{name}: {kind} {found}, expected {right}")
        if bad := out.numel() - int(out.isfinite().sum()):
            text = f"{bad} of {out.numel()} elements are NaN, infinite or left unwritten"
            return self._miss(f"{name}: {text}")
        error, tolerance = self._error(name, out, expected), TOLERANCES[self._check.dtype]
        if error <= tolerance:
            return Outcome(error=error)
        text = f"relative error {error:.1e}, expected at most {tolerance:.0e}"
        return self._miss(f"{name}: {text}", error)

    def _error(self, name: str, out: Tensor, expected: Tensor) -> float:
        """Against the least norm only where that may decide: it takes as long as the truth."""
        error = numerics.relative_error(out, expected)
        if error <= TOLERANCES[self._check.dtype]:
            return error
        if name == _BIAS_GRADIENT:
            assert self.grad is not None
            return numerics.relative_error(out, expected, float(self.grad.double().norm()))
        # ReLU leaves half of the sums.
        share = math.sqrt(0.5) if self.relu else 1.0
        operands = self._check.problem, self._check.direction, self.first, self.second
        return numerics.relative_error(out, expected, share * numerics.least_norm(*operands))

    def _restore(self) -> bool:
        """Give the operands the values again that they had; whether any had another."""
        changed = False
        for memory, copy in zip(self._memory, self._copies, strict=True):
            if not torch.equal(memory, copy):
                memory.copy_(copy)
                changed = True
        return changed

    def _miss(self, found: str, error: float = math.inf) -> Outcome:
        parts = {
            "bias": self.bias is not None,
            f"{self._layouts[2]} residual": self.residual is not None,
            "ReLU": self.relu,
            f"{self._layouts[2]} gradient": self.grad is not None,
        }
        operands = ", ".join(
            [*self._layouts[:2], *(part for part, there in parts.items() if there)]
        )
        return Outcome(missed=f"{self._check.problem}, operands {operands}: {found}", error=error)


def _memory_of(tensor: Tensor) -> Tensor:
    """All elements of the memory that ``tensor`` is a view of, also those beside its own."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
