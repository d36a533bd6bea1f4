"""The plans that the short way keeps from call to call: for equal calls alone, and few."""

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from small_calls import WINDOW, assert_near, convolve, operands

import resnext_kernels as rk
from resnext_kernels import eager
from resnext_kernels.kept import Kept
from resnext_kernels.problem import ProblemError


@torch.no_grad()
def test_plans_are_not_mixed_up():
    """Calls that differ in one argument or in one operand's shape, dtype or strides."""
    x, w, b = torch.randn(2, 8, 9, 9), torch.randn(8, 4, 3, 3), torch.randn(8)
    last = torch.channels_last
    calls: list[tuple] = [
        (x, w, None, stride, padding, dilation, 2)
        for stride in (1, 2, (1, 2), [2, 1])
        for padding in (0, 1, (0, 1), [1, 0])
        for dilation in (1, (2, 1))
    ]
    calls += [(x, w[:, :1], None, 1, 1, 1, 8), (x, w, b), (x[:1], w, b), (x, w[:4], b[:4])]
    calls += [(x, w[:, :, :1], None), (x.to(memory_format=last), w, b), (x.mT, w, b)]
    calls += [(x.double(), w.double(), b.double()), (x, w.to(memory_format=last), b)]
    calls = [call if len(call) == 7 else (*call, 1, 1, 1, 2) for call in calls]
    for call in 2 * calls:
        out, expected = rk.grouped_conv2d(*call), F.conv2d(*call)
        assert_near(out, expected)
        assert out.stride() == expected.stride()


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("value", [1.0, True, "1", (1.0, 1), (True, 1), torch.tensor(1.0)])
def test_what_only_looks_like_1_is_refused(name, value):
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    rk.grouped_conv2d(x, w, **{name: 1})
    with pytest.raises(ProblemError, match=f"{name}="):
        rk.grouped_conv2d(x, w, **{name: value})


def test_an_index_is_read_in_each_call():
    class Pad:
        now = 1

        def __index__(self) -> int:
            return self.now

        def __repr__(self) -> str:
            return "Pad"

    x, w, _ = operands()
    pad = Pad()
    shapes = []
    for pad.now in (1, 0):
        shapes.append(tuple(rk.grouped_conv2d(x, w, padding=pad, groups=2).shape))
    assert shapes == [(2, 8, 6, 7), (2, 8, 4, 5)]


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 3},
        {"stride": 0},
        {"padding": (1, -1)},
        {"dilation": 9},
        {"backend": "gpu"},
        {"bias": torch.zeros(3)},
        {"weight": torch.zeros(8, 3, 3, 3)},
        {"weight": torch.zeros(8, 4, 3, 3, dtype=torch.float64)},
        {"input": torch.zeros(2, 8, 6, 7, dtype=torch.int64)},
    ],
    ids=str,
)
def test_errors_are_alike(change, monkeypatch):
    x, w, b = operands()
    call = {"input": x, "weight": w, "bias": b, "padding": 1, "groups": 2, **change}
    with pytest.raises(ProblemError) as short:
        rk.grouped_conv2d(**call)
    monkeypatch.setattr(eager, "direct", lambda *args: None)
    with pytest.raises(ProblemError) as dispatched:
        rk.grouped_conv2d(**call)
    assert str(short.value) == str(dispatched.value)


@pytest.fixture
def few_plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    plans: Kept = Kept()
    plans.most = 3
    monkeypatch.setattr(eager, "_PLANS", plans)
    yield plans
    assert 0 < len(plans) <= 3


@torch.no_grad()
def test_plans_are_bounded(few_plans):
    w = torch.randn(8, 4, 3, 3)
    for size in range(3, 13):
        x = torch.randn(1, 8, size, size)
        assert_near(convolve(x, w), F.conv2d(x, w, None, *WINDOW))


def test_threads_share_plans(few_plans):
    """Each thread has its own shapes, and the plans are dropped all the time."""
    weight = torch.randn(8, 4, 3, 3)
    errors: list[BaseException] = []

    def work(size: int) -> None:
        try:
            with torch.inference_mode(size % 2 == 0):
                for repeat in range(40):
                    x = torch.randn(1 + repeat % 2, 8, size, size)
                    assert_near(convolve(x, weight), F.conv2d(x, weight, None, *WINDOW))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(size,)) for size in range(3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    few_plans.clear()
    convolve(torch.randn(1, 8, 4, 4), weight)
