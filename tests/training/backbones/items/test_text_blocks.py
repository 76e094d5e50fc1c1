"""TF-IDF beside the vectors of an encoder, against scikit-learn's vectoriser with a vocabulary."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from training.backbones.items.text_blocks import TextBlocks
from training.errors import BackboneError

TEXTS = [
    "red wool scarf, Acme",
    "blue wool scarf, Acme",
    "red wool hat, Brix",
    None,
    "blue wool hat, Brix",
    "!!!",
    "red red silk hat, Acme",
]
NO_TEXT, NO_WORD = 3, 5
WORDS = [row for row in range(len(TEXTS)) if row not in {NO_TEXT, NO_WORD}]


@pytest.fixture
def vectors() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(len(TEXTS), 4)).astype(np.float32) + 3
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    made[NO_TEXT] = 0
    return made


@pytest.fixture
def blocks(vectors: np.ndarray) -> TextBlocks:
    made = TextBlocks.fit(TEXTS, vectors, 64, share=0.5)
    assert made is not None
    return made


def test_terms_have_the_cosines_of_tf_idf_with_a_vocabulary(vectors: np.ndarray, blocks: TextBlocks) -> None:
    """With as many directions as texts nothing is lost, so centring and scaling alone separate both."""
    joined = blocks.join(vectors, TEXTS)[WORDS, 4:]
    texts = [TEXTS[row] for row in WORDS]
    whole = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+")
    # The same document frequencies: two texts without any word count as documents.
    whole.fit([text or "" for text in TEXTS])
    expected = whole.transform(texts).toarray()
    expected -= expected.mean(axis=0)
    expected *= 0.5 / np.sqrt(np.square(expected).sum(axis=1).mean())
    np.testing.assert_allclose(joined @ joined.T, expected @ expected.T, atol=2e-3)


def test_each_block_is_centred_and_has_its_own_spread(vectors: np.ndarray, blocks: TextBlocks) -> None:
    joined = blocks.join(vectors, TEXTS)
    for block, rows, spread in ((joined[:, :4], [*WORDS, NO_WORD], 1.0), (joined[:, 4:], WORDS, 0.5)):
        np.testing.assert_allclose(block[rows].mean(axis=0), 0, atol=1e-6)
        assert np.sqrt(np.square(block[rows]).sum(axis=1).mean()) == pytest.approx(spread, rel=1e-3)
    assert blocks.dim == joined.shape[1]


def test_an_item_without_text_stays_absent_and_one_without_a_known_word_keeps_its_vector(
    vectors: np.ndarray, blocks: TextBlocks
) -> None:
    joined = blocks.join(vectors, TEXTS)
    assert not joined[NO_TEXT].any()
    assert joined[NO_WORD, :4].any()
    assert not joined[NO_WORD, 4:].any()
    stranger = blocks.join(vectors[:1], ["something entirely unheard"])
    np.testing.assert_array_equal(stranger[0, :4], joined[0, :4])
    assert not stranger[0, 4:].any()


def test_an_item_does_not_depend_on_the_others_of_a_call(vectors: np.ndarray, blocks: TextBlocks) -> None:
    whole = blocks.join(vectors, TEXTS)
    for row in range(len(TEXTS)):
        np.testing.assert_allclose(blocks.join(vectors[[row]], [TEXTS[row]])[0], whole[row], atol=1e-6)


def test_the_length_bounds_the_block(vectors: np.ndarray) -> None:
    short = TextBlocks.fit(TEXTS, vectors, 2, share=1.0)
    assert short is not None
    assert short.join(vectors, TEXTS).shape == (len(TEXTS), 6)


def test_texts_without_a_word_give_no_blocks(vectors: np.ndarray) -> None:
    assert TextBlocks.fit([None, "!!!"], vectors[:2], 8, share=1.0) is None


def test_texts_that_are_all_alike_stay_finite(vectors: np.ndarray) -> None:
    alike = TextBlocks.fit(["one thing"] * 3, np.ones((3, 2), dtype=np.float32), 8, share=1.0)
    assert alike is not None
    assert np.isfinite(alike.join(np.ones((3, 2), dtype=np.float32), ["one thing"] * 3)).all()


def test_they_are_read_back_unchanged(vectors: np.ndarray, blocks: TextBlocks, tmp_path: Path) -> None:
    path = tmp_path / "text_blocks.safetensors"
    assert TextBlocks.load(path) is None
    blocks.save(path)
    found = TextBlocks.load(path)
    assert found is not None
    np.testing.assert_array_equal(found.join(vectors, TEXTS), blocks.join(vectors, TEXTS))
    path.write_bytes(b"garbage")
    with pytest.raises(BackboneError, match="train the model again"):
        TextBlocks.load(path)
