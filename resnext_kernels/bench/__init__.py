"""Kernel microbenchmarks: what `python -m resnext_kernels bench` runs.

- `suites`: the problems, one registry for benchmarks and tests;
- `implementations`: this package's backends and the peers, behind one interface;
- `timing`: interleaved repeats, median and quantiles;
- `runner`: parity first, then times, then records;
- `peaks` and `machine`: what this machine can do at best, and which machine it is;
- `report` and `plot`: tables and figures from records.
"""
