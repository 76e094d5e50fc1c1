"""OnnxSequenceEncoder on a model whose output is the mean of the history."""

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from index.errors import EncoderError
from index.search.encoder import BATCH_BUCKETS, OnnxSequenceEncoder


@pytest.fixture(scope="module")
def encoder(encoder_path):
    return OnnxSequenceEncoder(encoder_path)


def test_reads_the_contract(encoder, layout):
    assert encoder.layout == layout
    assert encoder.max_history == 12
    assert {length for _, length in encoder.buckets} == {10, 12}


@pytest.mark.parametrize("batch", [1, 3, 64, 65, 130])
def test_mean_of_each_history(encoder, layout, batch):
    rng = np.random.default_rng(batch)
    histories = [rng.normal(size=(rng.integers(1, 13), layout.dim)).astype(np.float16) for _ in range(batch)]
    want = np.stack([history.astype(np.float64).mean(axis=0) for history in histories])
    queries = encoder.encode(histories)
    assert queries.dtype == np.float32
    np.testing.assert_allclose(queries, want, atol=1e-6)


def test_the_newest_items_of_a_long_history(encoder, layout):
    history = np.arange(30, dtype=np.float32)[:, None] * np.ones(layout.dim, np.float32)
    np.testing.assert_allclose(encoder.encode([history]), np.full((1, layout.dim), np.arange(18, 30).mean()))


def test_only_bucket_shapes_reach_the_model(encoder, layout, monkeypatch):
    shapes = []
    run = OnnxSequenceEncoder._run

    def spy(self, histories, lengths, *options):
        shapes.append(histories.shape[:2])
        return run(self, histories, lengths, *options)

    monkeypatch.setattr(OnnxSequenceEncoder, "_run", spy)
    for batch in (1, 5, 66):
        for length in (1, 10, 11, 12):
            encoder.encode([np.ones((length, layout.dim), np.float32)] * batch)
    assert set(shapes) <= set(encoder.buckets)
    assert {batch for batch, _ in shapes} == {1, 8, 64, 2}
    shapes.clear()
    encoder.warm_up()
    assert set(shapes) == set(encoder.buckets)


def test_no_history_at_all(encoder, layout):
    assert encoder.encode([]).shape == (0, layout.dim)


def test_length_buckets_grow(tmp_path, make_encoder, layout):
    long = OnnxSequenceEncoder(make_encoder(tmp_path / "e.onnx", max_history=50))
    assert sorted({length for _, length in long.buckets}) == [10, 20, 40, 50]
    short = OnnxSequenceEncoder(make_encoder(tmp_path / "s.onnx", max_history=3))
    assert short.buckets == tuple((batch, 3) for batch in BATCH_BUCKETS)


@pytest.mark.parametrize("shape", [(0, 12), (3, 11), (12,)])
def test_refuses_histories(encoder, shape):
    with pytest.raises(EncoderError, match=r"history 0 must be \(L, 12\) with L at least 1"):
        encoder.encode([np.zeros(shape, np.float32)])


def test_non_finite_query_is_refused(encoder, layout):
    good = np.ones((2, layout.dim), np.float32)
    with pytest.raises(EncoderError, match="query 1 is not finite"):
        encoder.encode([good, good * np.nan])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"format": "2"}, "encoder format '2', this version reads '1'"),
        ({"format": None}, "encoder format None"),
        ({"layout": None}, "needs 'layout'"),
        ({"layout": "[["}, "needs 'layout'"),
        ({"layout": '[["text", 0]]'}, "dim must be at least 1"),
        ({"layout": '[["text", 5]]'}, r"must be \(B, L, 5\)"),
        ({"max_history": "ten"}, "invalid literal"),
        ({"max_history": "0"}, "max_history must be at least 1, got 0"),
    ],
)
def test_refuses_metadata(tmp_path, make_encoder, layout, change, rule):
    metadata = {
        "layout": json.dumps([[slot.name, slot.dim] for slot in layout.slots]),
        "max_history": "12",
        "format": "1",
    }
    metadata = {name: value for name, value in (metadata | change).items() if value is not None}
    with pytest.raises(EncoderError, match=rule):
        OnnxSequenceEncoder(make_encoder(tmp_path / "e.onnx", metadata=metadata))


def test_refuses_files(tmp_path, encoder_path):
    with pytest.raises(EncoderError, match="not a readable ONNX model"):
        OnnxSequenceEncoder(tmp_path / "none.onnx")
    whole = encoder_path.read_bytes()
    for name, content in {"empty": b"", "cut": whole[: len(whole) // 2], "noise": bytes(range(256))}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(EncoderError, match=f"{name}.onnx"):
            OnnxSequenceEncoder(path)


def _save(path, nodes, output_shape, layout, lengths="lengths", width=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("histories", TensorProto.FLOAT, ["B", "L", width or layout.dim]),
            helper.make_tensor_value_info(lengths, TensorProto.INT64, ["B"]),
        ],
        [helper.make_tensor_value_info("queries", TensorProto.FLOAT, output_shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    slots = json.dumps([[slot.name, slot.dim] for slot in layout.slots])
    helper.set_model_props(model, {"layout": slots, "max_history": "12", "format": "1"})
    onnx.save(model, path)
    return path


def test_refuses_another_signature(tmp_path, layout):
    nodes = [helper.make_node("Identity", ["histories"], ["queries"])]
    with pytest.raises(EncoderError, match="the encoder needs inputs"):
        OnnxSequenceEncoder(_save(tmp_path / "e.onnx", nodes, ["B", "L", 12], layout, lengths="length"))


def test_refuses_another_output_shape(tmp_path, layout):
    nodes = [helper.make_node("Identity", ["histories"], ["queries"])]
    encoder = OnnxSequenceEncoder(_save(tmp_path / "e.onnx", nodes, ["B", "L", 12], layout))
    with pytest.raises(EncoderError, match=r"queries must be \(1, 12\), got \(1, 10, 12\)"):
        encoder.encode([np.ones((2, layout.dim), np.float32)])


def test_failure_inside_the_model_is_translated(tmp_path, layout):
    # 10 · 12 or 12 · 12 values never fit (B, 7).
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[-1, 7])
    nodes = [shape, helper.make_node("Reshape", ["histories", "shape"], ["queries"])]
    encoder = OnnxSequenceEncoder(_save(tmp_path / "e.onnx", nodes, ["B", 7], layout))
    with pytest.raises(EncoderError, match="failed on shape"):
        encoder.encode([np.ones((2, layout.dim), np.float32)])


def test_devices(encoder_path, monkeypatch):
    with pytest.raises(EncoderError, match="device must be one of cpu, cuda, got 'tpu'"):
        OnnxSequenceEncoder(encoder_path, device="tpu")
    with pytest.raises(EncoderError, match="threads must be at least 1, got 0"):
        OnnxSequenceEncoder(encoder_path, threads=0)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EncoderError, match=r"device 'cuda' needs CUDAExecutionProvider.*extra 'gpu'"):
        OnnxSequenceEncoder(encoder_path, device="cuda")


def test_a_provider_that_silently_falls_back_is_refused(encoder_path, monkeypatch, capsys):
    class OnCpu(ort.InferenceSession):
        def __init__(self, model, options, providers, enable_fallback):
            assert (providers[0][0], enable_fallback) == ("CUDAExecutionProvider", 0)
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    loaded = []

    def preload(directory):
        loaded.append(directory)
        sys.stdout.write("not found\n")

    monkeypatch.setattr(ort, "preload_dlls", preload)
    OnnxSequenceEncoder(encoder_path)
    assert loaded == []
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", OnCpu)
    with pytest.raises(EncoderError, match=r"CUDAExecutionProvider failed to start.*extra 'cuda'"):
        OnnxSequenceEncoder(encoder_path, device="cuda")
    assert loaded == [""]  # the wheels' libraries before the system's
    assert capsys.readouterr().out == ""


def test_the_reason_of_cuda_is_given(encoder_path, monkeypatch):
    def fails(*_args, **_options):
        raise RuntimeError("a.cc:1 X Call() CUDA failure 35: CUDA driver version is insufficient ; GPU=0 ; file=a.cc")

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", fails)
    with pytest.raises(EncoderError, match=r"failed to start \(CUDA failure 35: CUDA driver version is insufficient"):
        OnnxSequenceEncoder(encoder_path, device="cuda")
