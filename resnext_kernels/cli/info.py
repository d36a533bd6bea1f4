"""``info``: what is installed here, what it runs on, and why anything is missing."""

from __future__ import annotations

import argparse
import platform

import torch

from .. import dispatch, machine, user_table
from ..backends import BACKENDS, cpu, cuda, triton
from ..version import __version__
from .console import show


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("info", help="versions, devices, and which libraries are loaded")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts = describe()
    width = max(map(len, facts))
    show(*(f"{name:{width}}  {value}" for name, value in facts.items()))
    return 0


def describe() -> dict[str, str]:
    """The facts to show, by name, in their order."""
    here = machine.describe()
    commit = machine.commit()
    facts = {
        "resnext_kernels": __version__ + (f" (commit {commit})" if commit else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.installed_version() or "not installed",
        "system": str(here["system"]),
        "device cpu": f"{here['processor']}, {here['cores']} cores",
        "device cuda": _cuda(),
        "threads": f"{torch.get_num_threads()} for kernels (OMP_NUM_THREADS sets it)",
        "isa kernels": str(here["kernel_isa"] or "no library loaded"),
        "isa torch": str(here["torch_isa"]),
    }
    for name, module in BACKENDS.items():
        library = getattr(module, "LIBRARY", None)
        facts[f"backend {name}"] = library.message if library else "part of torch, always there"
    if cuda.LIBRARY.loaded:
        archs = torch.ops.resnext_kernels_cuda.archs()
        facts[f"backend {cuda.NAME}"] += f", compiled for {archs}"
    for name in dispatch.DISABLED:
        facts[f"backend {name}"] += f"; disabled by {dispatch.DISABLE}"
    return facts | _tables()


def _tables() -> dict[str, str]:
    """Where the user's own measurements are, and whether they are in use."""
    names = [cuda.NAME, triton.NAME] if torch.cuda.is_available() else []
    devices = {cpu.NAME: "cpu", **dict.fromkeys(names, "cuda")}
    return {f"tuned {name}": str(user_table.load(name, d)) for name, d in devices.items()}


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"none found by torch (CUDA {built})" if built else "none, torch is built for CPUs"
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(i) for i in range(count))
