"""The kernels and what launches them; everything here needs Triton.

``fprop``, ``dgrad`` and ``wgrad`` hold the three directions. A direction's plan (`conv`, `wgrad`)
cuts the channels into `cells`, takes a configuration from `configs` and makes a `launch` of one of
the kernels: `conv_rows`, `conv_taps`, `wgrad_rows`.
"""
