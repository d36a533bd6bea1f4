"""What a call costs beside its arithmetic: the time of one that has next to none."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from ..backends import aten
from ..dispatch import AUTO
from .failures import kept
from .implementations import OURS, PEERS, Call, Operands, reasons_against
from .suites import Layer
from .timing import interleaved

TORCH = "torch"
_LAYER = Layer(channels=32, size=4, stride=1, groups=8, count=1)
_CALLS = 100  # a round: one call is as short as the clock is coarse


@torch.no_grad()
def call_microseconds(
    device: str, seconds: float, names: Iterable[str], skipped: dict[str, str]
) -> dict[str, float]:
    """Microseconds of one eager call without gradient, medians of interleaved rounds.

    Of `F.conv2d` ("torch"), and of `grouped_conv2d` on ATen and on each backend among ``names``
    that serves, on one thread and on the same channels_last operands: one image of 32x4x4 in 8
    groups. On a GPU the host's time. ``seconds`` is the aimed duration of all rounds. Why a backend
    raised, which is then left out, goes into ``skipped``.
    """
    problem = _LAYER.problem(1, torch.float32, device=device)
    peer = PEERS["torch:channels_last"]
    operands = peer.copy_operands(Operands.random(problem))
    calls = {TORCH: peer.bind(problem, "fprop", operands)}
    for name in dict.fromkeys([*names, aten.NAME]):
        if name != AUTO and not reasons_against(name, problem, "fprop"):
            call = OURS[name].bind(problem, "fprop", operands)
            with kept(f"call_us of {name}", skipped):
                call()
                calls[name] = call
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # starting others would cost more than the call itself
    try:
        times = interleaved({name: [partial(_repeat, f)] for name, f in calls.items()}, seconds)
    finally:
        torch.set_num_threads(threads)
    return {name: round(time.median * 1e3 / _CALLS, 2) for name, time in times.items()}


def _repeat(call: Call) -> None:
    for _ in range(_CALLS):
        call()
