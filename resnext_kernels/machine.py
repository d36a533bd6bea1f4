"""Which machine this is, and which commit of this package runs on it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from .backends import cpu, cuda


def describe(device: str = "cpu") -> dict[str, str | int | None]:
    """The machine as far as it decides the speed of a kernel on ``device``, ready for JSON."""
    facts: dict[str, str | int | None] = {
        "device": device,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "kernel_isa": cpu.isa() if cpu.LIBRARY.loaded else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return facts | _describe_gpu() if device == "cuda" else facts


def _describe_gpu() -> dict[str, str | int | None]:
    """What takes the place of the processor, and what else counts, on the current GPU."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "processor": gpu.name,
        "host_processor": processor(),
        "multiprocessors": gpu.multi_processor_count,
        "memory_mib": gpu.total_memory >> 20,
        "l2_mib": gpu.L2_cache_size >> 20,
        "kernel_isa": cuda.isa(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that this package lies in; None where it lies in none.

    "-dirty" is appended where tracked files differ from that commit.
    """
    package = Path(__file__).parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or not (Path(top) / package.name / "version.py").is_file():
        return None
    head = _git(package, "rev-parse", "HEAD")
    changes = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if head and changes else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
