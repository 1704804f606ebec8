"""Linear layers by oneDNN give what torch's own give up to rounding, and only where they may."""

from __future__ import annotations

import copy
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import uwm
from uwm.statistics import batches, products
from uwm.statistics.products import OneDnnLinear, quick_products


@pytest.fixture(params=["hugging_face", "open_clip"])
def model(request, tiny_hf, tiny_open_clip):
    return uwm.load(tiny_hf if request.param == "hugging_face" else tiny_open_clip)


@pytest.fixture
def slower(monkeypatch):
    """As on a processor on which MKL is slower."""
    monkeypatch.setattr(products, "mkl_is_slower", lambda: True)


def kinds(model):
    return {type(layer) for layer in model.module.modules() if isinstance(layer, nn.Linear)}


def images(number=40):
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def embedded(model, monkeypatch, slower, pixels):
    monkeypatch.setattr(products, "mkl_is_slower", lambda: slower)
    return batches.embed_inputs(model, pixels, None)


def test_embeddings_are_those_of_torch_up_to_rounding(model, monkeypatch):
    called = []
    forward = OneDnnLinear.forward
    monkeypatch.setattr(OneDnnLinear, "forward", lambda layer, x: called.append(1) or forward(layer, x))
    own, ours = (embedded(model, monkeypatch, slower, images()) for slower in (False, True))
    assert called
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)


def test_an_image_is_embedded_the_same_in_every_batch(model, monkeypatch):
    whole = embedded(model, monkeypatch, True, images())
    for size in (1, 3, 17):
        parts = [embedded(model, monkeypatch, True, part) for part in images().split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    assert embedded(model, monkeypatch, True, images()).equal(whole)


@torch.no_grad()
@pytest.mark.parametrize(("width", "out"), [(768, 3072), (4096, 1024)])
def test_a_layer_s_product_is_as_exact_as_float32_is(width, out):
    """Its error is twice that of torch's own product: it adds one product after another, and MKL in blocks."""
    torch.manual_seed(0)
    layer, x = nn.Linear(width, out), torch.randn(5, 50, width)
    exact = copy.deepcopy(layer).double()(x.double())
    own = (layer(x) - exact).std()
    layer.__class__ = OneDnnLinear
    assert layer(x).shape == (5, 50, out)
    assert (layer(x) - exact).std() < 4 * own
    assert (layer(x) - exact).std() < 2e-6 * exact.std()
    layer.bias = None
    torch.testing.assert_close(layer(x), x @ layer.weight.T)


def test_layers_are_torch_s_again_whatever_the_body_does(model, slower):
    before = kinds(model)

    def stop():
        with torch.no_grad(), quick_products(model):
            assert kinds(model) - before == {OneDnnLinear}
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert kinds(model) == before


def test_hooks_see_what_a_layer_takes(model, slower):
    weight = next(w for w in model.weights if w.slot == "fc2" and w.tower == "vision")
    seen = []
    handle = model.owner(weight).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        batches.embed_inputs(model, images(2), None)
    handle.remove()
    assert seen[0].shape[-1] == model.parameter(weight).shape[1]


def with_gradients(model):
    return torch.enable_grad()


def autocast(model):
    return torch.autocast("cpu", torch.bfloat16)


def without_onednn(model):
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.backends.mkldnn, "enabled", False)
    return closing(SimpleNamespace(close=patch.undo))


def with_less_precision(model):
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    return closing(SimpleNamespace(close=lambda: torch.set_float32_matmul_precision(precision)))


@pytest.mark.parametrize("around", [with_gradients, autocast, without_onednn, with_less_precision])
def test_nothing_changes_where_the_product_must_be_torch_s(model, slower, around):
    before = kinds(model)
    with torch.no_grad():
        with around(model), quick_products(model):
            assert kinds(model) == before
        with quick_products(model):
            assert kinds(model) != before


def test_other_precisions_and_gradients_inside_are_torch_s_own(slower):
    layer, x = nn.Linear(8, 4).bfloat16(), torch.randn(3, 8).bfloat16()
    expected = layer(x)
    layer.__class__ = OneDnnLinear
    with torch.no_grad():
        assert layer(x).equal(expected)
    layer.float()(x.float()).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_which_processors_are_meant(processor, capability, expected, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path, *args: f"vendor_id\t: {processor}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products.mkl_is_slower.__wrapped__() is expected


def test_a_system_without_the_processor_s_file_uses_torch_s_own(monkeypatch):
    def none(path, *args):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", none)
    assert products.mkl_is_slower.__wrapped__() is False


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_that_of_torch_up_to_rounding(dtype, slower, monkeypatch):
    used = []
    by_one_dnn = products._by_one_dnn
    monkeypatch.setattr(products, "_by_one_dnn", lambda *given: used.append(1) or by_one_dnn(*given))
    rows, weight = torch.randn(24, 300).to(dtype), torch.randn(70, 300).to(dtype)
    torch.testing.assert_close(products.product(rows, weight), rows @ weight.T, rtol=1e-5, atol=1e-4)
    assert bool(used) == (dtype == torch.float32)
