"""The CPU kernels' weight gradient of one channel a group, which reads its pixels in place."""

from __future__ import annotations

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error, run, truth

import resnext_kernels.backends.cpu as cpu

pytestmark = [
    pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message),
    pytest.mark.usefixtures("poisoned_memory"),
]
DTYPES = pytest.mark.parametrize("dtype", cpu.DTYPES, ids=lambda dtype: str(dtype)[6:])
CASES = [
    # Every number of taps a call can have, with the last channels in part of a vector.
    *(problem(1, groups=70, size=(9, 26), kernel=(2, taps)) for taps in range(1, 12)),
    *(
        problem(1, groups=groups, batch=3, size=size, kernel=kernel, stride=(stride, stride))
        for groups, size in ((40, (14, 14)), (67, (7, 7)), (9, (33, 61)), (128, (30, 5)))
        for kernel in ((3, 3), (5, 5), (7, 7))
        for stride in (1, 2)
    ),
    problem(1, groups=33, size=(5, 4), kernel=(7, 9)),  # no column for which all taps read one
    problem(1, groups=33, size=(12, 31), stride=(3, 4), padding=(2, 0), dilation=(2, 3)),
    problem(1, groups=16, size=(4, 30), stride=(5, 1), padding=(0, 4)),  # rows that no tap meets
    problem(1, groups=1100, batch=1, size=(40, 60)),  # several chunks
    problem(1, groups=50, batch=1, size=(1, 1), padding=(3, 3)),
]


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, dtype):
    operands = [randn(shape, dtype) for shape in operand_shapes(case, "wgrad")]
    result = run(case, "wgrad", "cpu", *operands)
    assert relative_error(result, truth(case, "wgrad", *operands)) < TOLERANCES[dtype]


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads(threads, dtype):
    """Splits with pixels of their own, and channels where these are too few."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size, batch in (((5, 5), 1), ((28, 28), 1), ((14, 14), 3), ((3, 3), 64)):
            case = problem(1, groups=72, batch=batch, size=size, kernel=(5, 5))
            operands = [randn(s, dtype, "channels_last") for s in operand_shapes(case, "wgrad")]
            result = run(case, "wgrad", "cpu", *operands)
            assert relative_error(result, truth(case, "wgrad", *operands)) < TOLERANCES[dtype]
            assert torch.equal(result, run(case, "wgrad", "cpu", *operands))
    finally:
        torch.set_num_threads(before)


@DTYPES
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pixel_without_a_finite_value_stays_with_its_taps(value, dtype):
    case = problem(1, groups=40, batch=2, size=(11, 12))
    grad_output, input = (randn(shape, dtype) for shape in operand_shapes(case, "wgrad"))
    input[1, 30, 0, 5] = value
    result = run(case, "wgrad", "cpu", grad_output, input)
    expected = torch.zeros(result.shape, dtype=torch.bool)
    expected[30, 0, :2] = True  # the last row of taps begins a row further down
    assert torch.equal(~torch.isfinite(result), expected)
