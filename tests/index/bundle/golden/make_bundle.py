"""Makes the golden bundle of a format with the code of the last revision that wrote it.

    python tests/index/bundle/golden/make_bundle.py 1 OUT            # OUT/<id>, with the code of REVISIONS[1]
    python tests/index/bundle/golden/make_bundle.py 3 OUT --revision HEAD

Run it before a new format replaces the present one, put the bundle into ``format-N`` with ``answers.json`` (see
``test_golden_bundles.py``), and never change it again. Formats 2 and 3 were made in the same way from other vectors.
"""

import argparse
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[4]
REVISIONS = {
    1: "b072fd4^",
    2: "e386cf5^",
    3: "8653eb9",
}
SLOTS = (("text", 6), ("image", 4), ("behaviour", 2))
ITEMS, MAX_HISTORY = 12, 4


def module(*names: str) -> Any:
    """The first of these modules that the revision has; they were renamed."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"no module {' or '.join(names)} in this revision")


def write_encoder(path: Path) -> None:
    """An encoder that says the mean of a history."""
    dim = sum(width for _, width in SLOTS)
    nodes = [
        helper.make_node("ReduceSum", ["histories", "axis"], ["total"], keepdims=0),
        helper.make_node("Cast", ["lengths"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["count", "axis"], ["column"]),
        helper.make_node("Div", ["total", "column"], ["queries"]),
    ]
    inputs = [
        helper.make_tensor_value_info("histories", TensorProto.FLOAT, ["B", "L", dim]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
    ]
    output = helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["B", dim])
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    graph = helper.make_graph(nodes, "mean", inputs, [output], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    about = {"layout": json.dumps([list(slot) for slot in SLOTS]), "max_history": str(MAX_HISTORY), "format": "1"}
    helper.set_model_props(model, about)
    onnx.save(model, path)


def build(number: int, out: Path) -> None:
    """Build the bundle with the code that is imported."""
    slots = module("index.items.slots", "index.slots")
    queries = module("index.items.eval_queries", "index.probes")
    made_of = getattr(queries, "EvaluationQueries", None) or queries.Probes
    item_table = module("index.items.item_table", "index.item_table")
    item_ids = module("index.items.item_ids", "index.item_ids")
    spec = module("index.bundle.index_spec", "index.index_spec").IndexSpec
    build_bundle = module("index.build.build", "index.build").build_bundle
    layout = slots.SlotLayout(tuple(slots.Slot(*slot) for slot in SLOTS))
    rng = np.random.default_rng(21)
    raw = {name: rng.normal(size=(ITEMS, width)).astype(np.float32) for name, width in SLOTS}
    raw["image"][::3] = 0
    table = item_table.ItemTable(
        layout=layout,
        ids=item_ids.ItemIds([*(f"i{row}" for row in range(ITEMS - 1)), "ein Tee/grün"]),
        vectors=layout.stack(raw).astype(np.float16),
        popularity=np.arange(ITEMS, 0, -1, dtype=np.int64),
        metadata=pa.table({"title": [f"Item {row}" for row in range(ITEMS)]}),
        model={"kind": "made"},
    )
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(Path(folder) / "encoder.onnx")
        arguments = (
            table,
            Path(folder) / "encoder.onnx",
            made_of(np.array([[0, 1, 2], [4, -1, -1]]), np.array([3, 5])),
        )
        moment = datetime(2026, 11, 29, tzinfo=UTC)
        if number == 3:
            lists = importlib.import_module("tests.support.listed_bundles")
            plain = build_bundle(*arguments, Path(folder), spec(kind="flat"), now=moment)
            made = lists.with_lists(plain, lists.random_lists(ITEMS, 5), out)
        else:
            made = build_bundle(*arguments, out, spec(kind="flat"), now=moment)
    written = json.loads((made / "manifest.json").read_text())["format"]
    if written != number:
        raise SystemExit(f"this revision writes format {written}, not {number}")
    sys.stdout.write(f"{made}\n")


def main() -> None:
    """Put the code of the revision into a temporary directory and build with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("number", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--revision")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        build(asked.number, asked.out)
        return
    revision = asked.revision or REVISIONS[asked.number]
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as code, tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(code, filter="data")
        command = [sys.executable, "-P", __file__, str(asked.number), str(asked.out.resolve()), "--here"]
        environment = {**os.environ, "PYTHONPATH": code}
        subprocess.run(command, cwd=code, check=True, env=environment)


if __name__ == "__main__":
    main()
