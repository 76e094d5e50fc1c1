"""Runs a fitted sequence encoder under PyTorch, from the weights that its ONNX file was exported from."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from training.config.encoder_config import EncoderConfig
from training.encoder.encoder_files import ENCODER_DIRECTORY, ENCODER_FILE, FIT_FILE, WEIGHTS_FILE, served_directory
from training.encoder.model import SequenceEncoder
from training.errors import ExportError


class TorchEncoder:
    """The encoder that serves, under PyTorch, called like :meth:`index.search.encoder.OnnxSequenceEncoder.encode`.

    Args:
        run: the run directory.

    Attributes:
        onnx_sha256: of the ``encoder.onnx`` exported from these weights.

    Raises:
        ExportError: nothing was fitted there, or a file cannot be read.
    """

    def __init__(self, run: Path) -> None:
        directory = run / ENCODER_DIRECTORY
        if not (directory / FIT_FILE).is_file():
            raise ExportError(f"{directory}: no fitted encoder here; run `vlm2rec fit-encoder` first")
        try:
            record = json.loads((directory / FIT_FILE).read_bytes())
            config = EncoderConfig.model_validate(record["config"])
            dim = sum(int(size) for _, size in record["slots"])
            self._encoder = SequenceEncoder(
                dim, config.max_history, width=config.width, layers=config.layers, heads=config.heads
            )
            served = served_directory(directory, record)
            self._encoder.load_state_dict(load_file(served / WEIGHTS_FILE))
            self.onnx_sha256 = hashlib.sha256((served / ENCODER_FILE).read_bytes()).hexdigest()
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
            RecursionError,
            ValidationError,
            SafetensorError,
        ) as error:
            raise ExportError(
                f"{directory}: the fitted encoder cannot be read ({error}); run `vlm2rec fit-encoder` again"
            ) from error
        self._encoder.eval()

    def encode(self, histories: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Queries of histories.

        Args:
            histories: B ≥ 1 arrays (L_i ≥ 1, Σd) float32 of stored vectors, oldest first; the newest are read.

        Returns:
            (B, Σd) float32.
        """
        newest = [torch.from_numpy(history[-self._encoder.max_history :]) for history in histories]
        lengths = torch.tensor([len(history) for history in newest])
        with torch.inference_mode():
            queries = self._encoder(nn.utils.rnn.pad_sequence(newest, batch_first=True), lengths)
        return np.asarray(queries.numpy(), dtype=np.float32)
