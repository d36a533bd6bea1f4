"""What a call costs beside its arithmetic."""

import torch

from resnext_kernels.backends import cpu
from resnext_kernels.bench import overhead


def test_calls_are_timed():
    threads = torch.get_num_threads()
    times = overhead.call_microseconds(seconds=0.05)
    assert torch.get_num_threads() == threads
    assert list(times)[0] == overhead.TORCH and "aten" in times
    assert ("cpu" in times) == cpu.LIBRARY.loaded
    assert all(0.1 < time < 10_000 for time in times.values())
