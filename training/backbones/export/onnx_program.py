"""Traces a module to an ONNX program and writes it without the paths of this machine."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from training.errors import ExportError

_OPSET = 18
_MOST_BYTES = 1_500_000_000
"""Weights in one file; protobuf has no messages of more than 2 GiB."""


def trace(
    module: nn.Module, example: tuple[Any, ...], *, inputs: Sequence[str], output: str, dynamic_shapes: Any  # noqa: ANN401 - a tree of the exporter
) -> torch.onnx.ONNXProgram:  # fmt: skip
    """The ONNX program of a module; the exporter's messages are suppressed.

    Args:
        module: set to evaluation.
        example: arguments of its forward pass.
        inputs: name of each input tensor, in the order of the arguments.
        output: name of its only output.
        dynamic_shapes: argument → dimension → ``torch.export.Dim``, as in ``torch.onnx.export``.

    Raises:
        ExportError: the exporter gives no program.
        torch.onnx.OnnxExporterError: the module cannot be traced.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (*example, {}),  # without it, a dictionary at the end would be taken for keyword arguments
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise ExportError("the exporter gave no model")
    return program


def remove_debug_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's debug metadata: it has paths of this machine, which must not be published."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]


def write(program: torch.onnx.ONNXProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write a program that the checker of ONNX accepts.

    Args:
        program: of :func:`trace`.
        path: of the file; weights of more than 1.5 GB are written beside it as ``NAME.data``.
        metadata: of the model.

    Raises:
        OSError: a file cannot be written.
        onnx.checker.ValidationError: the program is not valid.
    """
    tensors = (value.const_value for value in program.model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    program.save(path, external_data=size > _MOST_BYTES)
    model = onnx.load(path, load_external_data=False)
    remove_debug_metadata(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
