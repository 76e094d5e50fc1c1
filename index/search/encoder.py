"""Runs the sequence encoder under ONNX Runtime: histories of stored vectors in, queries out.

No other module imports onnxruntime. Inputs are padded to a few fixed shapes, because the allocator of the CUDA provider
grows with every new shape (onnxruntime #22899), and the CPU provider re-uses its memory plan for a known shape.
"""

import contextlib
import json
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from index.errors import EncoderError, ItemTableError
from index.items.slots import Slot, SlotLayout

ENCODER_FORMAT = "1"
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_SHORTEST_BUCKET = 10
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDA_FAILURE = re.compile(r"CUDA failure \d+: [^;\n]+")
_FOREIGN = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
    TypeError,
)


def _not_started(device: str, provider: str, detail: str = "") -> EncoderError:
    """The error for a provider that this ONNX Runtime has and that does not start."""
    found = _CUDA_FAILURE.search(detail)
    reason = "" if found is None else f" ({found[0].strip()})"
    return EncoderError(
        f"device {device!r} cannot be used: {provider} failed to start{reason}; check the driver, and the libraries of "
        "CUDA 12 and cuDNN 9, which the extra 'cuda' brings"
    )


def _load_cuda() -> None:
    """Load the CUDA libraries of the extra ``cuda``, which no search path names, or else those of the system."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
        ort.preload_dlls(directory="")


def has_cuda_provider() -> bool:
    """Whether this ONNX Runtime is built for CUDA, with or without a GPU here."""
    return _PROVIDERS["cuda"] in ort.get_available_providers()


class OnnxSequenceEncoder:
    """A loaded ``encoder.onnx``.

    The model has inputs ``histories`` (B, L, Σd) float32, right-padded stored vectors, and ``lengths`` (B,) int64;
    output ``queries`` (B, Σd) float32; and the metadata ``layout`` (JSON of [[name, dim] …]), ``max_history`` and
    ``format``. Its output must not depend on padding or batch (docs/method.md, "From VLM vectors to an online
    encoder"); padding to fixed shapes relies on this.

    On the CPU any number of threads may call :meth:`encode` at the same time; on CUDA only one thread may. Calls with
    bound buffers run one at a time.

    Args:
        path: the model file, read whole; weights in external files are not loaded.
        device: ``cpu`` or ``cuda``.
        threads: intra-op threads, at least 1; they sleep, not spin, between calls.
        bound: keep input and output buffers of every shape on the device, so that a call allocates nothing there.
            None does so on CUDA only; on the CPU it saves nothing and serialises the calls.

    Attributes:
        layout: slots of the vectors and the queries.
        max_history: number of newest items of a history that the model reads.

    Raises:
        EncoderError: the device is not available, or the file is missing, unreadable, or breaks the contract above.
    """

    layout: SlotLayout
    max_history: int

    def __init__(self, path: Path, *, device: str = "cpu", threads: int = 1, bound: bool | None = None) -> None:
        if device not in _PROVIDERS:
            raise EncoderError(f"device must be one of {', '.join(_PROVIDERS)}, got {device!r}")
        if threads < 1:
            raise EncoderError(f"threads must be at least 1, got {threads}")
        provider = _PROVIDERS[device]
        if provider not in ort.get_available_providers():
            raise EncoderError(
                f"device {device!r} needs {provider}, this onnxruntime has {', '.join(ort.get_available_providers())}; "
                "install the extra 'gpu' or use device 'cpu'"
            )
        self._path = path
        self._on_cpu = device == "cpu"
        if not self._on_cpu:
            _load_cuda()
        try:
            # Without its fallback, which says that the CPU takes over.
            self._session = ort.InferenceSession(
                path.read_bytes(), _options(threads), providers=[_spec(provider)], enable_fallback=0
            )
            metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        except (OSError, *_FOREIGN) as error:
            if (
                isinstance(error, RuntimeError) and not self._on_cpu
            ):  # as CUDA raises; a bad model has a class of its own
                raise _not_started(device, provider, str(error)) from error
            raise EncoderError(f"{path}: not a readable ONNX model ({error}); export the encoder again") from error
        if self._session.get_providers()[0] != provider:
            raise _not_started(device, provider)
        self._check_signature()
        self.layout, self.max_history = _contract(path, metadata)
        self._lengths = _length_buckets(self.max_history)
        self._check_width()
        if bound or (bound is None and not self._on_cpu):
            self._session = _BoundSession(self._session, device, self.layout.dim)

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Every (batch, length) shape that the model is run with."""
        return tuple((batch, length) for batch in BATCH_BUCKETS for length in self._lengths)

    def encode(self, histories: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
        """Encode histories as queries.

        Args:
            histories: B arrays (L_i, Σd) of stored vectors, oldest first, L_i ≥ 1; only the newest ``max_history``
                vectors of each are used.

        Returns:
            (B, Σd) float32 queries, not normalised, finite.

        Raises:
            EncoderError: an empty history, a wrong width, or a query that is not finite.
        """
        for number, history in enumerate(histories):
            if history.ndim != 2 or history.shape[0] < 1 or history.shape[1] != self.layout.dim:
                raise EncoderError(
                    f"history {number} must be (L, {self.layout.dim}) with L at least 1, got {history.shape}"
                )
        queries = np.empty((len(histories), self.layout.dim), dtype=np.float32)
        for start in range(0, len(histories), BATCH_BUCKETS[-1]):
            chunk = [history[-self.max_history :] for history in histories[start : start + BATCH_BUCKETS[-1]]]
            queries[start : start + len(chunk)] = self._run(*self._pad(chunk))[: len(chunk)]
        if not np.isfinite(queries).all():
            number = int(np.argmax(~np.isfinite(queries).all(axis=1)))
            raise EncoderError(f"{self._path}: query {number} is not finite; check the vectors and the training run")
        return queries

    def warm_up(self) -> None:
        """Run every shape of :attr:`buckets` once, so that no request waits for the first run of a shape.

        On the CPU the memory of the largest shapes is released afterwards, because most traffic does not need it.

        Raises:
            EncoderError: the model fails on a shape or gives non-finite queries.
        """
        for batch, length in self.buckets:
            self.encode([np.zeros((length, self.layout.dim), dtype=np.float32)] * batch)
        if self._on_cpu:
            options = ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            smallest = np.zeros((1, self._lengths[0], self.layout.dim), dtype=np.float32)
            self._run(smallest, np.ones(1, dtype=np.int64), options)

    def _pad(self, chunk: Sequence[NDArray[np.floating]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Right-pad histories to the smallest bucket that fits; further rows of the batch are one zero vector each."""
        batch = next(size for size in BATCH_BUCKETS if size >= len(chunk))
        longest = max(history.shape[0] for history in chunk)
        length = next(size for size in self._lengths if size >= longest)
        padded = np.zeros((batch, length, self.layout.dim), dtype=np.float32)
        lengths = np.ones(batch, dtype=np.int64)
        for number, history in enumerate(chunk):
            padded[number, : history.shape[0]] = history
            lengths[number] = history.shape[0]
        return padded, lengths

    def _run(
        self, histories: NDArray[np.float32], lengths: NDArray[np.int64], options: ort.RunOptions | None = None
    ) -> NDArray[np.float32]:
        try:
            (queries,) = self._session.run(["queries"], {"histories": histories, "lengths": lengths}, options)
        except _FOREIGN as error:
            raise EncoderError(f"{self._path}: the encoder failed on shape {histories.shape} ({error})") from error
        if queries.shape != (histories.shape[0], self.layout.dim):
            raise EncoderError(
                f"{self._path}: queries must be {(histories.shape[0], self.layout.dim)}, got {queries.shape}; "
                "export the encoder again"
            )
        checked: NDArray[np.float32] = queries
        return checked

    def _check_signature(self) -> None:
        inputs = {node.name: node.type for node in self._session.get_inputs()}
        outputs = {node.name: node.type for node in self._session.get_outputs()}
        wanted = {"histories": "tensor(float)", "lengths": "tensor(int64)"}
        if inputs != wanted or outputs.get("queries") != "tensor(float)":
            raise EncoderError(
                f"{self._path}: the encoder needs inputs {wanted} and a float output 'queries', got {inputs} and "
                f"{outputs}; export the encoder again"
            )

    def _check_width(self) -> None:
        shape = next(node.shape for node in self._session.get_inputs() if node.name == "histories")
        width = shape[-1] if shape else None
        if len(shape) != 3 or (isinstance(width, int) and width != self.layout.dim):
            raise EncoderError(
                f"{self._path}: input 'histories' must be (B, L, {self.layout.dim}) for the slots "
                f"{', '.join(self.layout.names)}, got {shape}; export the encoder again"
            )


class OnnxModel:
    """Any ONNX model on the CPU, for checks of an export.

    Args:
        path: the model file; weights in files beside it are read too.
        threads: intra-op threads, at least 1.

    Attributes:
        inputs: names of the inputs.

    Raises:
        EncoderError: the file is missing or unreadable.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._path = path
        try:
            self._session = ort.InferenceSession(path, _options(threads), providers=[_PROVIDERS["cpu"]])
        except (OSError, *_FOREIGN) as error:
            raise EncoderError(f"{path}: not a readable ONNX model ({error}); export it again") from error
        self.inputs = [node.name for node in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Its outputs in their order.

        Args:
            inputs: name → value, in the dtype and shape that the model states.

        Raises:
            EncoderError: the inputs do not fit, or the model fails on them.
        """
        try:
            made: list[NDArray[Any]] = self._session.run(None, dict(inputs))
        except _FOREIGN as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in inputs.items())
            raise EncoderError(f"{self._path}: the model failed on {shapes} ({error})") from error
        return made


class _BoundSession:
    """A session that keeps device buffers for every shape, allocated at the first run of the shape.

    It has the ``run`` method of the session, so callers need not distinguish the two. Memory is bounded because the
    encoder uses only the few shapes of its buckets.
    """

    def __init__(self, session: ort.InferenceSession, device: str, dim: int) -> None:
        self._session, self._device, self._dim = session, device, dim
        self._buffers: dict[tuple[int, int], _Buffers] = {}
        self._lock = threading.Lock()

    def run(
        self, _names: Sequence[str], inputs: Mapping[str, NDArray[Any]], options: ort.RunOptions | None
    ) -> list[NDArray[np.float32]]:
        """As :meth:`onnxruntime.InferenceSession.run`; the outputs are copied to the host."""
        batch, length, _ = inputs["histories"].shape
        with self._lock:
            buffers = self._buffers.get((batch, length))
            if buffers is None:
                buffers = _Buffers(self._session, self._device, batch, length, self._dim)
                self._buffers[batch, length] = buffers
            return [buffers.run(inputs["histories"], inputs["lengths"], options)]


class _Buffers:
    """Input and output buffers of one shape, bound to a session."""

    def __init__(self, session: ort.InferenceSession, device: str, batch: int, length: int, dim: int) -> None:
        allocate = ort.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._histories = allocate([batch, length, dim], np.float32, device)
        self._lengths = allocate([batch], np.int64, device)
        self._queries = allocate([batch, dim], np.float32, device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("histories", self._histories)
        self._binding.bind_ortvalue_input("lengths", self._lengths)
        self._binding.bind_ortvalue_output("queries", self._queries)

    def run(
        self, histories: NDArray[np.float32], lengths: NDArray[np.int64], options: ort.RunOptions | None
    ) -> NDArray[np.float32]:
        """Copy the inputs into the buffers, run, and copy the output to the host."""
        self._histories.update_inplace(histories)
        self._lengths.update_inplace(lengths)
        self._session.run_with_iobinding(self._binding, options)
        self._binding.synchronize_outputs()
        # On the CPU `numpy` returns a view of the buffer, which the next call overwrites.
        return np.array(self._queries.numpy())


def _options(threads: int) -> ort.SessionOptions:
    """Session options: explicit threads, no spinning (it starves the web server), deterministic results."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # failures are raised as exceptions; do not print them as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _spec(provider: str) -> str | tuple[str, dict[str, str]]:
    """Provider with its options; CUDA's arena grows by the requested size instead of doubling."""
    if provider == _PROVIDERS["cuda"]:
        return provider, {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    return provider


def _contract(path: Path, metadata: Mapping[str, Any]) -> tuple[SlotLayout, int]:
    """Read layout and longest history from the metadata of a model."""
    if metadata.get("format") != ENCODER_FORMAT:
        raise EncoderError(
            f"{path}: encoder format {metadata.get('format')!r}, this version reads {ENCODER_FORMAT!r}; "
            "export the encoder again"
        )
    try:
        slots = json.loads(metadata["layout"])
        layout = SlotLayout(tuple(Slot(str(name), int(dim)) for name, dim in slots))
        max_history = int(metadata["max_history"])
    except (KeyError, TypeError, ValueError, ItemTableError) as error:
        raise EncoderError(
            f"{path}: the metadata needs 'layout' and 'max_history' ({error}); export the encoder again"
        ) from error
    if max_history < 1:
        raise EncoderError(f"{path}: max_history must be at least 1, got {max_history}; export the encoder again")
    return layout, max_history


def _length_buckets(max_history: int) -> tuple[int, ...]:
    """10, 20, 40 … and at last ``max_history``."""
    lengths = []
    length = _SHORTEST_BUCKET
    while length < max_history:
        lengths.append(length)
        length *= 2
    return (*lengths, max_history)
