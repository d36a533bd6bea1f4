"""Exports to ONNX consist of standard operators, which any runtime knows."""

import io

import pytest
import torch
from fusible import block, own
from small_models import relative_error
from torch import nn

import resnext_kernels as rk

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Constant folding:UserWarning"
)


class Function(nn.Module):
    """Calls the function itself, as models written on `F.conv2d` do."""

    def forward(self, x):
        weight = torch.linspace(-1, 1, 8 * 4 * 3 * 3).view(8, 4, 3, 3)
        return rk.grouped_conv2d(x, weight, padding="same", groups=2)


def swapped():
    reflecting = nn.Conv2d(8, 8, 3, padding=2, groups=4, padding_mode="reflect")
    model = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=2), reflecting, nn.ReLU()).eval()
    rk.replace_grouped_convs(model)
    return model


def fused():
    def run(self, x):
        return self.relu(self.bn(self.conv(x)) + x)

    return rk.optimize_for_inference(own(run, **block()).float())


@pytest.mark.parametrize("make", [Function, swapped, fused])
def test_the_exported_model_runs_elsewhere(make):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = make().eval(), torch.randn(2, 8, 9, 11)
    exported = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), model(x)) < 1e-5


@pytest.mark.parametrize("make", [Function, swapped, fused])
def test_the_exporter_of_torchscript(make):
    pytest.importorskip("onnx")
    torch.onnx.export(make(), (torch.randn(2, 8, 9, 11),), io.BytesIO(), dynamo=False)
