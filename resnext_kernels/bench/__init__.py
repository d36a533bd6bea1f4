"""Kernel microbenchmarks: what `python -m resnext_kernels bench` runs.

- `suites`: the problems, one registry for benchmarks and tests;
- `custom` and `recorded`: problems of the user's own, from a file or from a model;
- `implementations`: this package's backends and the peers, behind one interface;
- `timing`: interleaved repeats, median and quantiles;
- `runner`: parity first, then times, then records;
- `peaks` and `machine`: what this machine can do at best, and which machine it is;
- `report` and `plot`: tables and figures from records;
- `compare`: a run beside an earlier one.
"""
