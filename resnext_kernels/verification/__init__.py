"""What the kernels are held to: shared by the tests and by `python -m resnext_kernels verify`.

- `problems`: the one list of problems;
- `operands`: random operands of any strides;
- `numerics`: the truth, the measure of error and the tolerances;
- `checks`: what is checked, every backend of this machine on every problem;
- `trials`: one check made.
"""
