"""What the kernels are held to: shared by the tests and by `python -m resnext_kernels verify`.

- `problems`: the one list of problems;
- `operands`: random operands of any strides;
- `numerics`: the truth, the measure of error and the tolerances;
- `checks`: every backend of this machine on every problem, and what came of it.
"""
