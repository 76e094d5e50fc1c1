"""Fits of many encoders of one shape."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.mean_encoder import export_each_shape_once


@pytest.fixture(scope="session")
def exported_once() -> Callable[..., Any]:
    return export_each_shape_once(torch.onnx.export)


@pytest.fixture
def shared_graphs(exported_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fits up to six encoders, and exporting each takes seconds; they share the graph, not the weights."""
    monkeypatch.setattr(torch.onnx, "export", exported_once)
