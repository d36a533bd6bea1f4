"""``demo``: one line swaps the kernels into ResNeXt-50; outputs and times before and after."""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import models
from ..bench import runner
from ..bench.model_implementations import on_torch
from ..bench.report import aligned
from ..bench.runner import relative_error
from ..bench.suites import Case, cases_of
from ..bench.timing import Timing, interleaved
from ..swap import replace_grouped_convs
from . import photographs
from .bench import deliver, require_matplotlib
from .console import Progress, UserError, note, require, show

TOLERANCE = 1e-3  # of the logits: float32 through the whole depth of the model
_SUITE = "resnext50"
_SECONDS_PER_MODEL_BATCH = 4.0
_SECONDS_PER_CASE = 0.3
_BEFORE = ("torch contiguous", "torch channels_last")
_AFTER = "resnext_kernels"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="ResNeXt-50 on photographs, before and after the swap",
        description="Runs ResNeXt-50 32x4d on photographs with torch's convolution and with these "
        "kernels, compares outputs and times, then measures the kernels layer by layer.",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help="a .pth or .safetensors file in torchvision's or timm's format, or IMAGENET1K_V2 to "
        "download; without it, seeded weights",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for bench.json and bench.png"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    require("skimage", "scikit-image", "demo", "demo")
    require_matplotlib("demo")
    _make_folder(args.out)
    note("1/4 building ResNeXt-50 32x4d")
    images = photographs.load()
    before = build(args.weights, images)
    show(f"ResNeXt-50 32x4d with {_origin(args.weights)}")
    show(f"photographs: {', '.join(photographs.NAMES)}, 224x224\n")
    note("2/4 one line swaps the kernels in: rk.replace_grouped_convs(model)")
    after = copy.deepcopy(before)
    show(f"rk.replace_grouped_convs(model): {replace_grouped_convs(after)!r}\n")
    note("3/4 running the model before and after")
    error = compare_outputs(before, after, images)
    compare_times(before, after, images)
    note("4/4 measuring the model's grouped layers")
    cases = microbenchmark_cases()
    result = runner.run(cases, seconds=_SECONDS_PER_CASE, progress=Progress(len(cases)))
    code = deliver(result, args.out / "bench.json", args.out / "bench.png")
    if not error <= TOLERANCE:
        show(f"logits differ: relative error {error:.1e}, expected at most {TOLERANCE:.0e}")
        return 1
    return code


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}") from error


def build(weights: str | None, images: Tensor) -> nn.Module:
    """ResNeXt-50 32x4d in evaluation mode on torch's own convolution throughout.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    if weights is None:
        model = models.calibrated(models.resnext50_32x4d, images)
    else:
        try:
            model = models.resnext50_32x4d(weights=weights).eval()
        except (ValueError, OSError, ImportError) as error:
            raise UserError(f"--weights {weights}: {' '.join(str(error).split())}") from error
    return on_torch(model)


def _origin(weights: str | None) -> str:
    if weights is not None:
        return f"weights from {weights}"
    return (
        "seeded random weights, BatchNorm calibrated on the photographs (no --weights given):\n"
        "differences and times mean what they would with trained ones, predictions do not"
    )


@torch.inference_mode()
def compare_outputs(before: nn.Module, after: nn.Module, images: Tensor) -> float:
    """Print both models' top-5 classes side by side; return the relative error of the logits."""
    expected, logits = before(images), after(_channels_last(images))
    largest = (logits - expected).abs().amax(1).tolist()
    top, top_after = (x.topk(5).indices.tolist() for x in (expected, logits))
    rows = [
        (name, _joined(a), _joined(b), "yes" if a == b else "NO", f"{difference:.1e}")
        for name, a, b, difference in zip(photographs.NAMES, top, top_after, largest, strict=True)
    ]
    show(aligned(("photograph", "top-5, torch", "top-5, kernels", "agree", "difference"), rows))
    error = relative_error(logits, expected.double())
    show(
        f"largest logit difference {max(largest):.1e} among logits from {expected.min():.2f} "
        f"to {expected.max():.2f}, relative error {error:.1e}\n"
    )
    return error


def _joined(classes: list[int]) -> str:
    return " ".join(map(str, classes))


@torch.inference_mode()
def compare_times(before: nn.Module, after: nn.Module, images: Tensor) -> None:
    """Print the model's times, interleaved, on torch in both layouts and on the kernels."""
    before_last = copy.deepcopy(before)
    for model in (before_last, after):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = []
    for batch in (1, len(images)):
        some = images[:batch]
        some_last = _channels_last(some)
        calls = {
            _BEFORE[0]: [partial(before, some)],
            _BEFORE[1]: [partial(before_last, some_last)],
            _AFTER: [partial(after, some_last)],
        }
        rows.append(_times_row(batch, interleaved(calls, _SECONDS_PER_MODEL_BATCH)))
    headers = ("batch", *(f"{name} ms" for name in (*_BEFORE, _AFTER)), "speed-up over the faster")
    show(aligned(headers, rows))
    show("medians of interleaved runs, float32\n")


def _times_row(batch: int, times: dict[str, Timing]) -> tuple[str, ...]:
    speedup = min(times[name].median for name in _BEFORE) / times[_AFTER].median
    medians = (f"{times[name].median:.1f}" for name in (*_BEFORE, _AFTER))
    return (str(batch), *medians, f"{speedup:.2f}x")


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def microbenchmark_cases() -> list[Case]:
    """The model's layers in float32: inference at two batch sizes, gradients at one."""
    forward = cases_of(_SUITE, ["fprop"], [torch.float32], [1, 8])
    return forward + cases_of(_SUITE, ["dgrad", "wgrad"], [torch.float32], [1])
