"""Sizes are read as people write them, and nothing else is."""

import pytest

from cli.capacity.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20000", 20_000),
        ("20,000", 20_000),
        ("20_000", 20_000),
        ("20k", 20_000),
        ("2.5M", 2_500_000),
        ("100m", 100_000_000),
        (" 1 G ", 10**9),
        ("1.5B", 1_500_000_000),
        (".5k", 500),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text, name="--items") == size


@pytest.mark.parametrize(
    "text", ["", "M", "1Q", "-5", "1e6", "0x10", "1,0000", "1.2.3k", "١٢", "nan", "1 000", "9" * 400]
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="--items must be a"):
        parse_size(text, name="--items")


@pytest.mark.parametrize("text", ["0", "1.5", "0.0001k", "1001G"])
def test_a_size_is_a_whole_number_within_bounds(text: str) -> None:
    with pytest.raises(ValueError, match="--users must be a whole number from 1 to 1,000G"):
        parse_size(text, name="--users")
