"""ONNX encoders written by hand, or traced once, for tests in which the fitted one is not what is tested."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from index.items.slots import SlotLayout

if TYPE_CHECKING:
    from training.encoder.model import SequenceEncoder
    from training.encoder.onnx_export import ExportParity


def mean_encoder(
    layout: SlotLayout, max_history: int, *, newest: bool = True, metadata: dict[str, str] | None = None
) -> onnx.ModelProto:
    """An encoder that says 1.5 × the mean of the history + its newest item.

    Args:
        layout: its slots.
        max_history: most items that it reads.
        newest: False: the mean alone.
        metadata: properties instead of those that name slots and length of histories.
    """
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    factor = numpy_helper.from_array(np.array([1.5], dtype=np.float32), "factor")
    nodes = [
        helper.make_node("ReduceSum", ["histories", "axis"], ["total"], keepdims=0),
        helper.make_node("Unsqueeze", ["lengths", "axis"], ["column"]),
        helper.make_node("Cast", ["column"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["total", "count"], ["mean" if newest else "queries"]),
    ]
    if newest:
        nodes += [
            helper.make_node("Mul", ["mean", "factor"], ["scaled"]),
            helper.make_node("Sub", ["column", "axis"], ["last"]),
            helper.make_node("GatherND", ["histories", "last"], ["newest"], batch_dims=1),
            helper.make_node("Add", ["scaled", "newest"], ["queries"]),
        ]
    graph = helper.make_graph(
        nodes,
        "mean and newest" if newest else "mean",
        [
            helper.make_tensor_value_info("histories", TensorProto.FLOAT, ["B", "L", layout.dim]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
        ],
        [helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["B", layout.dim])],
        [axis, factor] if newest else [axis],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is None:
        slots = json.dumps([[slot.name, slot.dim] for slot in layout.slots])
        metadata = {"layout": slots, "max_history": str(max_history), "format": "1"}
    helper.set_model_props(model, metadata)
    return model


def write_mean_encoder(layout: SlotLayout, max_history: int, path: Path) -> None:
    """Write an encoder that says 1.5 × the mean of the history + its newest item."""
    onnx.save(mean_encoder(layout, max_history), path)


def export_mean_encoder(encoder: "SequenceEncoder", layout: SlotLayout, path: Path, *, seed: int) -> "ExportParity":
    """In place of `export_encoder`, which takes five seconds: an encoder of the same shape."""
    from training.encoder.onnx_export import ExportParity

    write_mean_encoder(layout, encoder.max_history, path)
    return ExportParity(seed, 0.0)


def export_each_shape_once(export: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `torch.onnx.export`, which takes seconds: one graph for all encoders of a shape.

    An encoder gets the graph of the first one of its shape with its own weights. The graph is not optimised, since
    optimising folds weights into constants. `export_encoder` compares each with PyTorch, as always.
    """
    graphs: dict[tuple[tuple[str, tuple[int, ...]], ...], onnx.ModelProto] = {}

    def exported(encoder: "SequenceEncoder", *given: Any, **options: Any) -> SimpleNamespace:
        weights = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
        shape = tuple((name, tuple(value.shape)) for name, value in weights.items())
        if shape not in graphs:
            graphs[shape] = export(encoder, *given, **options, optimize=False).model_proto
        model = onnx.ModelProto()
        model.CopyFrom(graphs[shape])
        for initializer in model.graph.initializer:
            if initializer.name in weights:
                own = weights[initializer.name].detach().numpy()
                initializer.CopyFrom(numpy_helper.from_array(own, initializer.name))
        return SimpleNamespace(model_proto=model)

    return exported
