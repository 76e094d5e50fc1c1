"""The bench of lists: what its recall counts, and its made catalogues."""

import numpy as np

from bench.index.list_building import exact_looks, exact_words, made_features, made_texts, recall
from tests.support.listed_bundles import compressed


def test_recall_by_hand() -> None:
    exact = np.array([[1, 0.5, 0.25, 0.25], [0.5, 1, 0, 0]], np.float32)
    near = (np.array([1, 3], np.int32), np.array([0.5, 0.25], np.float16))
    worse = (np.array([2], np.int32), np.array([0.25], np.float16))
    chosen = np.array([0, 1])
    assert recall(compressed("words", [near, (near[0][:0], near[1][:0])]), chosen, exact, 2) == 2 / 3
    assert recall(compressed("words", [worse, (near[0][:0], near[1][:0])]), chosen, exact, 2) == 1 / 3


def test_made_catalogues_are_the_same_each_time() -> None:
    texts, features = made_texts(300), made_features(300)
    assert texts == made_texts(300)
    assert {len(text.split()) for text in texts} == {38}
    np.testing.assert_array_equal(features, made_features(300))
    assert not features[::20].any()
    chosen = np.array([1, 299])
    for cosines in (exact_looks(features, chosen), exact_words(texts, chosen)):
        assert cosines.shape == (2, 300)
        np.testing.assert_allclose(cosines[[0, 1], chosen], 1, rtol=1e-5)
