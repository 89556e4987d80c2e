"""Masked passes by ONNX Runtime and OpenVINO give the maps that PyTorch gives, int8 nearly so."""

import sys

import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam, demo, scorers

pytest.importorskip("onnxscript")
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


def write_onnx(model, images, path, names=None):
    """Of a dynamic number of rows."""
    shapes = ({0: torch.export.Dim("rows", min=1, max=1024)},)
    torch.onnx.export(model.eval(), (images,), str(path), dynamic_shapes=shapes, output_names=names, verbose=False)


def explained(method, score_func=None, model=None, **options):
    model = demo.load_model() if model is None else model
    options["max_channels"] = 16
    return method(model, demo.EXPLAINED_LAYER, score_func=score_func).attribute(
        demo.generate(2, seed=1)[0], 1, **options
    )


@pytest.fixture(scope="module")
def images():
    return demo.generate(2, seed=1)[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("exported") / "demo.onnx"
    write_onnx(demo.load_model(), images, path)
    return path


@pytest.fixture(scope="module")
def quantised(exported):
    """The same in int8, calibrated on other images."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = exported.with_name("int8.onnx")
    waiting = [{"images": demo.generate(4, seed=2)[0].numpy()}]

    class Pictures(quantization.CalibrationDataReader):
        def get_next(self):
            return waiting.pop() if waiting else None

    quantization.quantize_static(str(exported), str(path), Pictures(), per_channel=True)
    return path


@pytest.fixture(scope="module")
def expected():
    return explained(LayerScoreCam)


@pytest.mark.parametrize("name", PACKAGES)
def test_maps_of_the_demo(exported, expected, name):
    pytest.importorskip(PACKAGES[name])
    score_func = getattr(scorers, name)(exported)
    calls = []

    def counted(inputs):
        calls.append(len(inputs))
        return score_func(inputs)

    attr = explained(LayerScoreCam, counted)
    assert sum(calls) >= 32
    assert expected.abs().max() > 0
    assert torch.allclose(attr, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", PACKAGES)
def test_int8_is_another_model_with_nearly_the_same_maps(quantised, images, expected, name):
    pytest.importorskip(PACKAGES[name])
    score_func = getattr(scorers, name)(quantised, threads=1)
    with torch.no_grad():
        assert (score_func(images) - demo.load_model()(images)).abs().max() > 1e-3
    for one, other in zip(explained(LayerScoreCam, score_func).flatten(1), expected.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99


def test_scores_and_gradients_of_two_files_of_one_network(exported, tmp_path):
    """The gradient half from a file of weights, and the passes from a file of ONNX."""
    pytest.importorskip("onnxruntime")
    torch.save(demo.load_model().state_dict(), tmp_path / "weights.pt")
    model = demo.DemoNet().eval()
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    attr, of_both = explained(LayerUnionCam, scorers.onnx(exported), model, return_details=True)
    expected, of_one = explained(LayerUnionCam, None, model, return_details=True)
    assert torch.allclose(attr, expected, rtol=0, atol=1e-3)
    assert torch.equal(of_both.denoised_map, of_one.denoised_map)
    # The other half is of the scores, and changes with them.
    _, untrained = explained(LayerUnionCam, demo.DemoNet().eval(), model, return_details=True)
    assert torch.equal(untrained.denoised_map, of_one.denoised_map)
    assert not torch.allclose(untrained.region_map, of_one.region_map, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ImportError, match=rf"^{PACKAGES[name]} is missing; .* pip install 'captum-unioncam\[{name}\]'"):
        getattr(scorers, name)("model.onnx")


@pytest.mark.parametrize("name", PACKAGES)
def test_scores_of_integers_are_no_integers(exported, images, name):
    pytest.importorskip(PACKAGES[name])
    pixels = (255 * images).to(torch.uint8)
    with torch.no_grad():
        expected = demo.load_model()(pixels.float())
    assert torch.allclose(getattr(scorers, name)(exported)(pixels), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", PACKAGES)
def test_several_outputs_have_their_names(images, tmp_path, name):
    pytest.importorskip(PACKAGES[name])

    class Several(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x.amax((2, 3))

    path = tmp_path / "several.onnx"
    write_onnx(Several(), images, path, ["mean", "top"])
    made = getattr(scorers, name)(path)(images)
    assert sorted(made) == ["mean", "top"]
    assert torch.allclose(made["top"], images.amax((2, 3)))
    assert torch.allclose(made["mean"], images.mean((2, 3)), rtol=0, atol=1e-6)
