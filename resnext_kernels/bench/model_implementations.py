"""What runs a whole model: this package's forms of it and their peers, behind one interface."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..fuse import optimize_for_inference
from ..nn import GroupedConv2d
from .implementations import FORMATS, Layout

Forward = Callable[[], Any]  # what it returns, `torch.as_tensor` takes


class NotAvailable(Exception):
    """An implementation that cannot be measured here; the text says why."""


@dataclass(frozen=True)
class ModelImplementation:
    """A way to compute a model's logits.

    ``layout`` is the memory format of its images. ``bind(model, images)`` returns the call to be
    timed, for a model of this package in evaluation mode, which it leaves as it is, and images
    ``(N, 3, H, W)``; both have the same dtype and device.

    Raises:
        NotAvailable: from ``bind``.
    """

    name: str
    layout: Layout
    bind: Callable[[nn.Module, Tensor], Forward]

    @property
    def label(self) -> str:
        """Its name: no other one has another layout under the same."""
        return self.name


def on_torch(model: nn.Module) -> nn.Module:
    """A copy of a model on torch's own convolution throughout."""
    model = copy.deepcopy(model)
    ours: list[nn.Module] = [m for m in model.modules() if isinstance(m, GroupedConv2d)]
    for module in ours:
        # GroupedConv2d adds behaviour alone, so its base class is torch's layer, weights and all.
        module.__class__ = nn.Conv2d
    return model


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


def _bind_eager(
    model: nn.Module, images: Tensor, *, form: Callable[[nn.Module], nn.Module], layout: Layout
) -> Forward:
    images = images.contiguous(memory_format=FORMATS[layout])
    return _forward(form(_in_layout(model, layout)), images)


def _bind_inductor(
    model: nn.Module, images: Tensor, *, form: Callable[[nn.Module], nn.Module]
) -> Forward:
    """Frozen on a CPU: weights are constants, BatchNorm is folded. Tuned by measurement on a GPU.

    Without torch's CUDA graphs there, since `_forward` makes one as for every other form.
    """
    from torch._inductor import config

    model = form(_in_layout(model, "channels_last"))
    images = images.contiguous(memory_format=torch.channels_last)
    mode = "max-autotune-no-cudagraphs" if images.is_cuda else None
    compiled: nn.Module = torch.compile(model, mode=mode, dynamic=False)  # type: ignore[assignment]
    with config.patch(freezing=not images.is_cuda):
        compiled(images)
    return _forward(compiled, images)


def _in_layout(model: nn.Module, layout: Layout) -> nn.Module:
    """A copy of a model with its weights in a memory format."""
    return copy.deepcopy(model).to(memory_format=FORMATS[layout])  # type: ignore[call-overload]


def _forward(model: nn.Module, images: Tensor) -> Forward:
    """The call; on a GPU the replay of its CUDA graph, since eager launches would keep it idle."""
    call = partial(model, images)
    if not images.is_cuda:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a first call may allocate and measure, which no graph can
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = call()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def _bind_onnxruntime(model: nn.Module, images: Tensor) -> Forward:
    _require_cpu(images)
    if images.dtype != torch.float32:
        raise NotAvailable("float32 alone: its CPU kernels have no convolution in other dtypes")
    onnxruntime = _installed("onnxruntime")
    _installed("onnxscript")  # which torch's exporter is written in
    program = torch.onnx.export(on_torch(model), (images,), dynamo=True, verbose=False)
    assert program is not None  # it is where nothing was written to a file
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on turning for a while after a call, within the time of the next one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)[0]


def _bind_openvino(model: nn.Module, images: Tensor) -> Forward:
    """Weights and images are float32; the hint tells in what precision it computes."""
    _require_cpu(images)
    openvino = _installed("openvino")
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[images.dtype]
    core = openvino.Core()
    if images.dtype == torch.bfloat16 and "BF16" not in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        raise NotAvailable("float32 alone: it has no bfloat16 kernels for this processor")
    images = images.float()
    converted = openvino.convert_model(on_torch(model).float(), example_input=images)
    converted.reshape(list(images.shape))
    compiled = core.compile_model(
        converted,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    inputs = [images.numpy()]
    return lambda: compiled(inputs, share_inputs=True, share_outputs=True)[0]


def _require_cpu(images: Tensor) -> None:
    if images.device.type != "cpu":
        raise NotAvailable("measured on the CPU alone")


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotAvailable(f"{error}; pip install 'resnext-kernels[peers]'") from error


def _by_name(*implementations: ModelImplementation) -> dict[str, ModelImplementation]:
    return {implementation.name: implementation for implementation in implementations}


COMPILED, INDUCTOR = "auto:optimized+inductor", "torch:inductor"
OURS = _by_name(
    ModelImplementation(
        "auto",
        "channels_last",
        partial(_bind_eager, form=_as_it_is, layout="channels_last"),
    ),
    ModelImplementation(
        "auto:optimized",
        "channels_last",
        partial(_bind_eager, form=optimize_for_inference, layout="channels_last"),
    ),
    ModelImplementation(
        COMPILED,
        "channels_last",
        partial(_bind_inductor, form=optimize_for_inference),
    ),
)
PEERS = _by_name(
    ModelImplementation(
        "torch:channels_last",
        "channels_last",
        partial(_bind_eager, form=on_torch, layout="channels_last"),
    ),
    ModelImplementation(
        "torch:contiguous",
        "contiguous",
        partial(_bind_eager, form=on_torch, layout="contiguous"),
    ),
    ModelImplementation(INDUCTOR, "channels_last", partial(_bind_inductor, form=on_torch)),
    ModelImplementation("onnxruntime", "contiguous", _bind_onnxruntime),
    ModelImplementation("openvino", "contiguous", _bind_openvino),
)
