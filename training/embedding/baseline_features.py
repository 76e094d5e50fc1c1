"""Embeds a catalogue without a vision-language model: the ``--no-vlm`` baseline.

Texts become TF-IDF of words and word pairs, reduced by a truncated singular value decomposition (latent semantic
analysis, Deerwester et al., 1990). Pictures become colours, layout and edges (`training.embedding.picture_features`),
reduced by principal components. The baseline takes seconds and needs no model; a vision-language model must beat it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from index.items.slots import IMAGE, TEXT
from training.data.stored.stored_pictures import PictureFile
from training.embedding.picture_features import picture_features, read_picture
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError, PictureError

MAX_TERMS = 200_000
TEXT_DIM = 256
IMAGE_DIM = 128
_CONSTANT = 0.3
_WORD = r"(?u)\w+"
_SETTINGS: Mapping[str, Any] = {
    "version": 2,
    "terms": MAX_TERMS,
    "ngrams": [1, 2],
    "picture_side": 64,
    "constant": _CONSTANT,
}


class EmbeddableCatalogue(Protocol):
    """The used part of a data set; `training.data.dataset.Dataset` implements it."""

    def item_ids(self) -> list[str]:
        """Item ids in row order."""
        ...

    def texts(self) -> Sequence[str | None]:
        """The text of each item; None if it has none."""
        ...

    def image_path(self, row: int) -> PictureFile | None:
        """The picture of an item; None if it has none."""
        ...


def embed_without_vlm(
    dataset: EmbeddableCatalogue,
    *,
    text_dim: int = TEXT_DIM,
    image_dim: int = IMAGE_DIM,
    seed: int = 0,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed a catalogue with TF-IDF + SVD and simple picture features.

    Args:
        dataset: the catalogue.
        text_dim: length of the text vectors; fewer if the texts have fewer terms.
        image_dim: length of the picture vectors; fewer if there are fewer pictures.
        seed: of the randomised decompositions.
        progress: a running progress display to add a bar to.

    Returns:
        Slots ``text`` and ``image``; a row of zeros where the item has no text with a word in it, or no readable
        picture.

    Raises:
        EmbeddingsError: no item has a text with a letter or digit, or a readable picture.
    """
    ids = dataset.item_ids()
    advance = _bar(progress, "texts and pictures", len(ids) + 1)
    vectors = {TEXT: embed_texts(dataset.texts(), text_dim, seed=seed)}
    advance()
    paths = [dataset.image_path(row) for row in range(len(ids))]
    vectors[IMAGE], reasons = embed_pictures(paths, image_dim, seed, advance)
    unreadable = {ids[row]: reason for row, reason in reasons.items()}
    if not any(block.any() for block in vectors.values()):
        raise EmbeddingsError(
            f"none of the {len(ids)} items has a text with a letter or digit in it, or a readable picture; fill the "
            "columns 'title', 'text' or 'image'"
        )
    settings = {**_SETTINGS, "text_dim": text_dim, "image_dim": image_dim, "seed": seed}
    model = {"kind": "no-vlm", "id": "tfidf-svd+colour-layout-edges", "settings": settings, "hash": _digest(settings)}
    return Embeddings(ids, vectors, model, unreadable)


def settings_hash() -> str:
    """The ``hash`` in the provenance of features with the default lengths and seed."""
    return _digest({**_SETTINGS, "text_dim": TEXT_DIM, "image_dim": IMAGE_DIM, "seed": 0})


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def embed_texts(texts: Sequence[str | None], dim: int, *, seed: int) -> NDArray[np.float32]:
    """TF-IDF of words and word pairs, then a truncated SVD.

    Args:
        texts: text per item; None for none.
        dim: largest vector length.
        seed: of the randomised SVD.

    Returns:
        (n, D) float32 with D ≤ dim, rows of length 1, or zero without a known word.
    """
    terms, rows = term_weights(texts)
    if not rows:
        return np.zeros((len(texts), 1), dtype=np.float32)
    if terms.shape[1] <= 2:
        reduced = terms.toarray()
    else:
        size = min(dim, terms.shape[1] - 1)
        reduced = _principal(terms, size, seed)
    return _place(reduced, rows, len(texts))


def term_weights(texts: Sequence[str | None]) -> tuple[Any, list[int]]:
    """TF-IDF of words and word pairs, sublinear in the count.

    Args:
        texts: text per item; None for none.

    Returns:
        A sparse (m, terms) float64 matrix of scipy with rows of length 1, and the m rows of the catalogue whose text
        has a word.
    """
    rows = [row for row, text in enumerate(texts) if text is not None and any(char.isalnum() for char in text)]
    if not rows:
        return csr_matrix((0, 1), dtype=np.float64), rows
    vectoriser = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_TERMS, token_pattern=_WORD, dtype=np.float64
    )
    return vectoriser.fit_transform(texts[row] for row in rows), rows


def embed_pictures(
    paths: Sequence[PictureFile | None], dim: int, seed: int, advance: Callable[[], None]
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Colours, layout and edges, centred, each part of equal weight, then principal components.

    An extra coordinate with a small constant keeps a readable picture from becoming a row of zeros, even if all
    pictures are the same.

    Args:
        paths: picture per item; None for none.
        dim: largest vector length.
        seed: of the randomised decomposition.
        advance: called once per path.

    Returns:
        (n, D) float32 with D ≤ dim, rows of length 1, or zero without a readable picture; and row → reason, for the
        pictures that could not be read.
    """
    rows: list[int] = []
    unreadable: dict[int, str] = {}
    parts: list[list[NDArray[np.float32]]] = []
    for row, path in enumerate(paths):
        try:
            features = [] if path is None else picture_features(read_picture(path))
        except PictureError as error:
            features, unreadable[row] = [], str(error)
        if features:
            rows.append(row)
            parts.append([part.astype(np.float32) for part in features])
        advance()
    if not rows:
        return np.zeros((len(paths), 1), dtype=np.float32), unreadable
    blocks = [_equal_weight(np.stack(block)) for block in zip(*parts, strict=True)]
    blocks.append(np.full((len(rows), 1), _CONSTANT, dtype=np.float32))
    joined: NDArray[np.floating] = np.concatenate(blocks, axis=1)
    size = min(dim, *joined.shape)
    if size < min(joined.shape):
        joined = _principal(joined, size, seed)
    return _place(joined, rows, len(paths)), unreadable


def _principal(matrix: object, size: int, seed: int) -> NDArray[np.floating]:
    """(rows, size): rows in the coordinates of the largest singular directions."""
    left, values, _ = randomized_svd(matrix, size, n_iter=4, random_state=seed)
    return np.asarray(left * values)


def _equal_weight(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centre the columns and scale the whole block to a mean squared row length of 1."""
    centred = block - block.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = float(np.sqrt(np.mean(np.sum(np.square(centred, dtype=np.float64), axis=1))))
    return np.asarray(centred / spread if spread > 1e-6 else np.zeros_like(centred), dtype=np.float32)


def _place(vectors: NDArray[np.floating], rows: Sequence[int], total: int) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    placed = np.zeros((total, vectors.shape[1]), dtype=np.float32)
    placed[np.asarray(rows)] = vectors / np.where(norms > 1e-9, norms, np.inf)[:, None]
    return placed


def _bar(progress: Progress | None, description: str, total: int) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    task = progress.add_task(description, total=total)
    return lambda: progress.advance(task)
