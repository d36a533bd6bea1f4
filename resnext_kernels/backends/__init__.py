"""The implementations behind the operators, best first.

A backend is a module with one interface:

- ``NAME``: its public name;
- ``not_supported_reasons(problem) -> list[str]``: empty where it serves the call;
- ``fprop(problem, input, weight, bias, residual, relu) -> output``,
  ``dgrad(problem, grad_output, weight) -> grad_input``,
  ``wgrad(problem, grad_output, input, memory_format) -> grad_weight``;
- ``LIBRARY``, but for ATen: whether what it runs on is there, and loaded;
- ``isa() -> str``, but for ATen: the kind of hardware it runs on, for which measurements hold;
- ``INTERPRETED``, where it has one: whether "auto" passes over it, because Python does its work.

A result may lie in any memory format: the operators bring it into that of ``problem``, a weight
gradient into the ``memory_format`` that `wgrad` is told, which spares a copy where it is followed.
"""

from types import ModuleType

from . import aten, cpu, cuda, triton

BACKENDS: dict[str, ModuleType] = {module.NAME: module for module in (cuda, triton, cpu, aten)}
