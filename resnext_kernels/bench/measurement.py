"""What came of one implementation of one case, be it a layer or a whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .timing import Timing


class Labelled(Protocol):
    """An implementation, by whose ``label`` tables and progress name it."""

    @property
    def label(self) -> str: ...


AnyCase = TypeVar("AnyCase")
AnyImplementation = TypeVar("AnyImplementation", bound=Labelled)


@dataclass(frozen=True)
class Measurement(Generic[AnyCase, AnyImplementation]):
    """One implementation of one case: its relative error, and its times where parity held.

    ``failure`` is what it raised in place of a result or of times.
    """

    case: AnyCase
    implementation: AnyImplementation
    error: float
    timing: Timing | None
    failure: str = ""

    def __str__(self) -> str:
        missing = "FAILED" if self.failure else "PARITY RED"
        time = f"{self.timing.median:.3f} ms" if self.timing else missing
        return f"{self.implementation.label} {time}"
