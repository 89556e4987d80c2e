"""Masked passes by ONNX Runtime and OpenVINO give the maps that PyTorch gives."""

import pytest
import torch

from captum_unioncam import LayerScoreCam, demo, scorers

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "demo.onnx"
    model, images = demo.load_model().eval(), demo.generate(2, seed=1)[0]
    rows = torch.export.Dim("rows", min=1, max=1024)
    torch.onnx.export(model, (images,), str(path), dynamic_shapes=({0: rows},), dynamo=True, verbose=False)
    return path


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_maps_of_the_demo(exported, name):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    model, images = demo.load_model(), demo.generate(2, seed=1)[0]
    score_func = getattr(scorers, name)(exported)
    calls = []

    def counted(inputs):
        calls.append(len(inputs))
        return score_func(inputs)

    expected = LayerScoreCam(model, demo.EXPLAINED_LAYER).attribute(images, 1)
    attr = LayerScoreCam(model, demo.EXPLAINED_LAYER, score_func=counted).attribute(images, 1)
    assert sum(calls) > 10
    assert expected.abs().max() > 0
    assert torch.allclose(attr, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
