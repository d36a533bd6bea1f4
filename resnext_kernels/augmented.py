"""Augmented assignments in graphs of `torch.fx`: ``a += b`` as what it is, a write to ``a``.

`torch.fx` alone would record ``a + b``, which other names of ``a`` do not see. A call of
`operator.iadd` it would write out as a statement, after which whatever reads ``a`` reads the sum,
also where ``a`` is a number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

# All that `torch.Tensor` does in place: not ``@=``.
_NAMES = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow",
    "iand", "ior", "ixor", "ilshift", "irshift",
)  # fmt: skip


def _function(name: str) -> Callable[[Any, Any], Any]:
    operation = getattr(operator, name)

    def augmented(value: Any, other: Any) -> Any:
        return operation(value, other)

    augmented.__name__ = augmented.__qualname__ = name
    return augmented


AUGMENTED = {name: _function(name) for name in _NAMES}
globals().update(AUGMENTED)  # where graphs, written out or pickled, look them up


class Proxy(fx.Proxy):
    """Stands for a value while `torch.fx` records what is done with it."""


def _record(function: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy(
        "call_function", function, (proxy, other), {}
    )


for _name, _augmented in AUGMENTED.items():
    setattr(Proxy, f"__{_name}__", _record(_augmented))
