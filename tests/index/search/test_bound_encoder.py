"""Bound buffers, forced on the CPU: outputs equal those of the plain path. Their use on CUDA was not run on a GPU."""

import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from index.errors import EncoderError
from index.search.encoder import OnnxSequenceEncoder


@pytest.fixture
def bound(encoder_path):
    return OnnxSequenceEncoder(encoder_path, bound=True)


@pytest.fixture
def made(monkeypatch):
    """Shape and device of every buffer that is made."""
    seen = []
    make = ort.OrtValue.ortvalue_from_shape_and_type

    def spy(shape, element_type, device_type):
        seen.append((tuple(shape), device_type))
        return make(shape, element_type, "cpu")

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", spy)
    return seen


def random_histories(layout, batch, length, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, layout.dim)).astype(np.float16) for _ in range(batch)]


@pytest.mark.parametrize("batch", [1, 3, 64, 130])
@pytest.mark.parametrize("length", [1, 10, 11, 12, 30])
def test_the_same_output_bit_for_bit(encoder_path, bound, layout, batch, length):
    histories = random_histories(layout, batch, length)
    np.testing.assert_array_equal(bound.encode(histories), OnnxSequenceEncoder(encoder_path).encode(histories))


def test_the_previous_call_leaves_nothing_in_the_buffers(bound, layout):
    """Ten items of 5 and then one of 2 in the same buffer: the mean is 2, not one that still sees a 5."""
    ones = np.ones((1, layout.dim), np.float32)
    np.testing.assert_array_equal(bound.encode([np.repeat(5 * ones, 10, axis=0)] * 4), np.repeat(5 * ones, 4, axis=0))
    np.testing.assert_array_equal(bound.encode([2 * ones, 3 * ones, ones]), np.concatenate([2 * ones, 3 * ones, ones]))


def test_the_next_call_does_not_change_an_output(bound, layout):
    lengths = np.full(1, 10, np.int64)
    (first,) = bound._session.run(
        ["queries"], {"histories": np.full((1, 10, 12), 3, np.float32), "lengths": lengths}, None
    )
    bound.encode([np.ones((1, layout.dim), np.float32)])
    assert (first == 3).all()


def test_a_shape_gets_its_buffers_once(bound, layout, made):
    for seed in range(3):
        bound.encode(random_histories(layout, 2, 7, seed))
    assert [shape for shape, _ in made] == [(2, 10, layout.dim), (2,), (2, layout.dim)]
    bound.warm_up()
    assert len(made) == 3 * len(bound.buckets)
    bound.encode(random_histories(layout, 100, 12))
    assert len(made) == 3 * len(bound.buckets)


def test_threads_run_one_at_a_time(bound, layout):
    """Twelve threads run one shape; a buffer used by two at once would give one the output of the other."""
    wrong = []

    def ask(value):
        history = np.full((10, layout.dim), value, np.float32)
        wrong.extend(value for _ in range(100) if (bound.encode([history]) != value).any())

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_refuses_an_output_of_another_shape(tmp_path, layout, make_encoder):
    """The output buffer has the promised shape, so ONNX Runtime itself refuses."""
    path = make_encoder(tmp_path / "e.onnx")
    model = onnx.load(path)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["histories"], ["queries"])],
        "g",
        list(model.graph.input),
        [helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["B", "L", layout.dim])],
    )
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(other, {entry.key: entry.value for entry in model.metadata_props})
    onnx.save(other, path)
    with pytest.raises(EncoderError, match=r"failed on shape \(1, 10, 12\)"):
        OnnxSequenceEncoder(path, bound=True).encode([np.ones((2, layout.dim), np.float32)])


def test_bound_only_on_cuda_by_default(encoder_path, layout, made, monkeypatch):
    """Not run on a GPU: a session that says CUDA and runs on the CPU shows which buffers would be made there."""
    OnnxSequenceEncoder(encoder_path).encode(random_histories(layout, 1, 1))
    assert made == []

    class SaysCuda(ort.InferenceSession):
        def __init__(self, model, options, providers, enable_fallback):
            super().__init__(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", SaysCuda)
    history = random_histories(layout, 1, 4)
    got = OnnxSequenceEncoder(encoder_path, device="cuda").encode(history)
    assert made == [((1, 10, layout.dim), "cuda"), ((1,), "cuda"), ((1, layout.dim), "cuda")]
    np.testing.assert_allclose(got[0], history[0].astype(np.float64).mean(axis=0), atol=1e-6)
    made.clear()
    OnnxSequenceEncoder(encoder_path, device="cuda", bound=False).encode(history)
    assert made == []
