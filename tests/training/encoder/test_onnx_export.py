import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from index.items.slots import Slot, SlotLayout
from index.search.encoder import OnnxSequenceEncoder
from training.encoder.model import SequenceEncoder
from training.encoder.onnx_export import TOLERANCE, ExportParity, check_parity, export_encoder
from training.errors import ExportError

LAYOUT = SlotLayout((Slot("text", 5), Slot("behaviour", 3)))
LONGEST = 6


def stirred(seed: int = 0, layers: int = 2) -> SequenceEncoder:
    torch.manual_seed(seed)
    encoder = SequenceEncoder(LAYOUT.dim, LONGEST, width=8, layers=layers).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return encoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportParity]:
    path = tmp_path_factory.mktemp("export") / "encoder.onnx"
    return path, export_encoder(stirred(), LAYOUT, path)


def test_the_model_keeps_its_contract(exported: tuple[Path, ExportParity]) -> None:
    path, parity = exported
    model = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "layout": '[["text", 5], ["behaviour", 3]]',
        "max_history": "6",
        "format": "1",
    }
    shapes = {
        value.name: [dim.dim_value or "free" for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"histories": ["free", "free", 8], "lengths": ["free"], "queries": ["free", 8]}
    assert parity.cases == 4 * 4 + LONGEST
    assert parity.difference <= TOLERANCE
    assert [file.name for file in path.parent.iterdir()] == ["encoder.onnx"]


def test_a_published_model_tells_no_path_of_the_machine_that_made_it(exported: tuple[Path, ExportParity]) -> None:
    content = exported[0].read_bytes()
    assert b"sequence_encoder.py" not in content
    assert str(Path(__file__).parents[3]).encode() not in content


@pytest.mark.parametrize("batch", [1, 3, 130])
@pytest.mark.parametrize("length", [1, 2, LONGEST])
def test_onnx_runtime_answers_as_pytorch_does(exported: tuple[Path, ExportParity], batch: int, length: int) -> None:
    rng = np.random.default_rng(batch * 10 + length)
    histories = rng.standard_normal((batch, length, LAYOUT.dim)).astype(np.float32)
    with torch.inference_mode():
        expected = stirred()(torch.from_numpy(histories), torch.full((batch,), length)).numpy()
    got = OnnxSequenceEncoder(exported[0]).encode(list(histories))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_mixed_lengths_answer_as_alone(exported: tuple[Path, ExportParity]) -> None:
    rng = np.random.default_rng(0)
    served = OnnxSequenceEncoder(exported[0])
    histories = [rng.standard_normal((length, LAYOUT.dim)).astype(np.float32) for length in (4, 1, 6, 9, 2)]
    together = served.encode(histories)
    for query, history in zip(together, histories, strict=True):
        np.testing.assert_allclose(served.encode([history])[0], query, atol=1e-5)


def test_other_weights_do_not_pass_the_check(exported: tuple[Path, ExportParity]) -> None:
    with pytest.raises(ExportError, match="ONNX Runtime and PyTorch differ by"):
        check_parity(stirred(seed=1), LAYOUT, exported[0])


def test_weights_that_are_not_finite_do_not_pass(tmp_path: Path, exported: tuple[Path, ExportParity]) -> None:
    broken = stirred()
    with torch.no_grad():
        broken.leave.bias[0] = float("nan")
    with pytest.raises(ExportError, match="differ by nan"):
        check_parity(broken, LAYOUT, exported[0])
    assert not list(tmp_path.iterdir())


def test_other_metadata_do_not_pass_the_check(exported: tuple[Path, ExportParity]) -> None:
    turned = SlotLayout(LAYOUT.slots[::-1])
    with pytest.raises(ExportError, match="metadata differ from what was exported"):
        check_parity(stirred(), turned, exported[0])


def test_a_file_that_is_no_model_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="ONNX Runtime does not run"):
        check_parity(stirred(), LAYOUT, tmp_path / "encoder.onnx")


def test_a_layout_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=re.escape("the layout has 3 components, the encoder takes 8")):
        export_encoder(stirred(), SlotLayout((Slot("text", 3),)), tmp_path / "encoder.onnx")


def test_a_failed_export_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"old")

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("training.encoder.onnx_export.torch.onnx.export", fail)
    with pytest.raises(ExportError, match=r"cannot be exported \(no such operator\)"):
        export_encoder(stirred(), LAYOUT, path)
    monkeypatch.setattr("training.encoder.onnx_export.torch.onnx.export", lambda *_args, **_options: None)
    with pytest.raises(ExportError, match="gave no model"):
        export_encoder(stirred(), LAYOUT, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_history_of_one_item_only_can_be_exported(tmp_path: Path) -> None:
    encoder = SequenceEncoder(LAYOUT.dim, 1, width=8, layers=1).eval()
    assert export_encoder(encoder, LAYOUT, tmp_path / "encoder.onnx").difference <= TOLERANCE
    assert OnnxSequenceEncoder(tmp_path / "encoder.onnx").max_history == 1


def test_a_fitted_run_holds_a_checked_encoder(ring_run: tuple[Path, dict[str, Any]]) -> None:
    run, record = ring_run
    served = OnnxSequenceEncoder(run / "encoder" / "encoder.onnx")
    assert served.max_history == 5
    assert [[slot.name, slot.dim] for slot in served.layout.slots] == record["slots"]
    assert record["parity"]["difference"] <= TOLERANCE
    assert json.dumps(record["parity"])
