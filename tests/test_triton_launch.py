"""Launches of Triton's kernels: what is looked up once and kept, for which tensors and devices."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from resnext_kernels.backends import triton

if not triton.LIBRARY.loaded:
    pytest.skip(triton.LIBRARY.message, allow_module_level=True)
from resnext_kernels.backends.triton.kernels import launch
from resnext_kernels.backends.triton.kernels.launch import Launch


class Kernel:
    """Stands for a kernel of Triton: counts what is compiled, and what is launched again."""

    arg_names = ("left", "right", "size", "BLOCK")

    def __init__(self) -> None:
        self.compiled, self.launched = [], []

    def __getitem__(self, grid):
        def compile_and_launch(*arguments, **options):
            self.compiled.append((grid, arguments, options))
            return {grid: lambda *arguments: self.launched.append(arguments)}

        return compile_and_launch


def test_a_kernel_is_looked_up_once_for_each_alignment():
    kernel = Kernel()
    launched = Launch(kernel, 7, {"BLOCK": 16, "size": 5}, warps=2, stages=3)
    tensor = torch.empty(64)
    for _ in range(3):
        launched(tensor, None)
        launched(tensor[1:], None)
        launched(tensor[4:], None)
    assert len(kernel.compiled) == 2 and len(kernel.launched) == 7
    grid, arguments, options = kernel.compiled[0]
    assert grid == (7, 1, 1) and arguments[1:] == (None, 5, 16)
    assert (options["num_warps"], options["num_stages"]) == (2, 3)
    assert options["sanitize_overflow"] is False, "TRITON_DEBUG would stop right calls"
    assert all(arguments[1:] == (None, 5, 16) for arguments in kernel.launched)


def test_first_launches_do_not_overlap():
    """Of two plans too: they may share a binary, which Triton makes ready without protection."""
    running, most = [], []

    class Slow(Kernel):
        def __getitem__(self, grid):
            inner = super().__getitem__(grid)

            def compile_and_launch(*arguments, **options):
                running.append(1)
                most.append(len(running))
                time.sleep(0.01)
                running.pop()
                return inner(*arguments, **options)

            return compile_and_launch

    kernel, tensor = Slow(), torch.empty(64)
    launches = [Launch(kernel, 7, {"BLOCK": 16, "size": n}, warps=2, stages=3) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda launch: launch(tensor, None), launches))
    assert most == [1] * 8 and not kernel.launched


def test_plans_are_kept_and_run_on_the_device_of_the_tensors(monkeypatch):
    made, ran, devices = [], [], []

    def make(*arguments):
        made.append(arguments)
        return lambda *tensors: ran.append((tensors, list(devices)))

    class Guard:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            devices.append(self.index)

        def __exit__(self, *error):
            devices.pop()

    def tensor(device, stride):
        return SimpleNamespace(get_device=lambda: device, stride=lambda: stride)

    current = SimpleNamespace(active=SimpleNamespace(get_current_device=lambda: 0))
    monkeypatch.setattr(launch, "driver", current)
    monkeypatch.setattr(torch.accelerator, "device_index", Guard)
    plans = launch.Plans(make)
    for device in (0, 1, 0):
        plans.run(("facts", 3), tensor(device, (8, 1)), None)
    plans.run(("facts", 3), tensor(0, (9, 1)), None)
    assert [on for _, on in ran] == [[], [1], [], []]
    assert len(made) == 3 and made[0][:2] == ("facts", 3) and made[0][3] is None
