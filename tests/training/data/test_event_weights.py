"""The rules in a data set's events.toml: which events are positive, and what each weighs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.bundle.event_types import EventTypes
from training.data.dataset import Dataset, load_dataset
from training.data.event_weights import EventRules
from training.data.sequences import Sequences, leave_one_out, popularity
from training.errors import DatasetError

Write = Callable[..., Path]
ROWS = [
    ("u1", "a", "view", "1", "5"),
    ("u1", "b", "purchase", "5", "3.5"),
    ("u1", "b", "return", "-2", "1"),
    ("u1", "c", "", "0.5", "4"),
    ("u2", "c", "impression", "0", "2"),
    ("u2", "a", "cart", "3", "4.5"),
    ("u2", "c", "rent", "2", "5"),
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A data set of three items with the rows above; the last one may be replaced."""

    def write_files(rules: str | None, last: tuple[str, ...] = ROWS[-1], columns: str = "type,weight,rating") -> Path:
        (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\n")
        lines = [
            f"{user},{item},{time},{','.join(more[: columns.count(',') + 1])}"
            for time, (user, item, *more) in enumerate([*ROWS[:-1], last])
        ]
        (tmp_path / "interactions.csv").write_text("\n".join([f"user_id,item_id,timestamp,{columns}", *lines]) + "\n")
        if rules is not None:
            (tmp_path / "events.toml").write_text(rules)
        return tmp_path

    return write_files


def rows(dataset: Dataset) -> list[tuple[str, str, float]]:
    found = dataset.interactions.select("user_id", "item_id", "weight")
    return [(user, item, weight) for user, item, weight in found.iter_rows()]


def test_without_the_file_the_columns_are_not_read(write: Write) -> None:
    dataset = load_dataset(write(None))
    assert dataset.interactions.columns == ["user_id", "item_id", "timestamp"]
    assert (dataset.interactions.height, dataset.left_out, dataset.event_types) == (7, {}, None)


def test_types_give_weights_and_leave_out_what_is_not_positive(write: Write) -> None:
    dataset = load_dataset(write('weight_by = "type"\n[events]\ndefault_type = "cart"\n[events.types]\nrent = 4\n'))
    assert rows(dataset) == [("u1", "a", 1), ("u1", "b", 5), ("u1", "c", 3), ("u2", "a", 3), ("u2", "c", 4)]
    assert dataset.left_out == {"negative": 1, "impression": 1}
    assert dataset.event_types is not None
    assert dataset.event_types.weight("rent") == 4
    with_outcome = load_dataset(
        write('weight_by = "type"\n[events.types]\nrent = 4\n[events.outcomes]\nrent = "conversion"\n')
    )
    assert with_outcome.event_types == EventTypes.of({"rent": 4}, None, {"rent": "conversion"})


def test_weights_are_read_and_those_not_above_0_left_out(write: Write) -> None:
    dataset = load_dataset(write('weight_by = "weight"'))
    assert rows(dataset) == [("u1", "a", 1), ("u1", "b", 5), ("u1", "c", 0.5), ("u2", "a", 3), ("u2", "c", 2)]
    assert (dataset.left_out, dataset.event_types) == ({"negative": 2}, None)


def test_ratings_from_the_threshold_on_are_positive_and_weigh_the_same(write: Write) -> None:
    dataset = load_dataset(write('weight_by = "rating"\nrating_threshold = 4'))
    assert dataset.interactions["item_id"].to_list() == ["a", "c", "a", "c"]
    assert dataset.interactions.columns == ["user_id", "item_id", "timestamp"]
    assert dataset.left_out == {"below_threshold": 3}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "much", ""])
@pytest.mark.parametrize("column", ["weight", "rating"])
def test_a_value_that_is_not_finite_is_refused_with_its_row(write: Write, column: str, value: str) -> None:
    last = ("u2", "c", "view", *(value if column == name else "1" for name in ("weight", "rating")))
    threshold = "rating_threshold = 1" if column == "rating" else ""
    with pytest.raises(DatasetError, match=f"column '{column}' must be a finite number, got .* in row 7"):
        load_dataset(write(f'weight_by = "{column}"\n{threshold}', last))


@pytest.mark.parametrize("value", ["1e300", "1.1e9", "9e-10", "1e-320"])
def test_weights_that_the_loss_cannot_hold_are_refused_with_their_row(write: Write, value: str) -> None:
    """With one weight of 1e300 every other is 0 in float32, and the loss of a batch is not a number."""
    with pytest.raises(DatasetError, match=r"'weight' must be 0 or less, or from 1e-09 to 1e\+09, got .* in row 7"):
        load_dataset(write('weight_by = "weight"', ("u2", "c", "view", value, "1")))


@pytest.mark.parametrize("value", ["1e9", "1e-9", "-1e300", "0"])
def test_weights_at_the_bounds_are_read(write: Write, value: str) -> None:
    dataset = load_dataset(write('weight_by = "weight"', ("u2", "c", "view", value, "1")))
    assert dataset.interactions["weight"].max() == max(5.0, float(value))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("weight_by = ", "cannot be read"),
        ("weight_by = " + "[" * 5_000, "cannot be read"),
        ("", "weight_by must be one of type, weight, rating, got None"),
        ('weight_by = "kind"', "got 'kind'"),
        ('weight_by = "type"\nrating_threshold = 3', "rating_threshold must be"),
        ('weight_by = "rating"', "rating_threshold must be a finite number"),
        ('weight_by = "rating"\nrating_threshold = nan', "got nan"),
        ('weight_by = "rating"\nrating_threshold = true', "got True"),
        ('weight_by = "rating"\nrating_threshold = 1' + "0" * 400, "rating_threshold must be a finite number"),
        ('weight_by = "type"\nby = 1', "by is not a known key"),
        ('weight_by = "type"\n[events]\ntype = 1', "events.type is not a known key"),
        ('weight_by = "type"\nevents = 3', "must be a table"),
        ('weight_by = "type"\n[events.types]\nview = inf', "view must be a weight"),
        ('weight_by = "type"\n[events]\ndefault_type = "what"', "default_type must be one of"),
    ],
)
def test_rules_that_make_no_sense_are_refused(write: Write, rules: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        load_dataset(write(rules))
    assert "events.toml" in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_rules(write: Write) -> None:
    assert load_dataset(write('\ufeffweight_by = "weight"')).left_out == {"negative": 2}


def test_a_missing_column_and_a_file_without_a_positive_event_are_refused(write: Write) -> None:
    with pytest.raises(DatasetError, match="column 'rating' is missing, which weight_by"):
        load_dataset(write('weight_by = "rating"\nrating_threshold = 1', columns="type,weight"))
    with pytest.raises(DatasetError, match="got none, 7 below_threshold"):
        load_dataset(write('weight_by = "rating"\nrating_threshold = 6'))


def test_histories_carry_weights_of_mean_1_through_every_split(write: Write) -> None:
    dataset = load_dataset(write('weight_by = "weight"'))
    sequences = Sequences.from_interactions(dataset.interactions, dataset.item_ids())
    assert sequences.weights is not None
    np.testing.assert_allclose(sequences.weights, np.array([1, 5, 0.5, 3, 2]) / 2.3, rtol=1e-6)
    train = leave_one_out(sequences).train  # u1 loses its last two events, u2 is too short
    assert train.rows.tolist() == [0, 0, 2]
    assert train.weights is not None
    np.testing.assert_allclose(train.weights, np.array([1, 3, 2]) / 2.3, rtol=1e-6)


def test_popularity_sums_weights_and_is_at_least_1_for_an_item_with_an_event() -> None:
    sequences = Sequences(["u"], np.array([0, 4]), np.array([0, 1, 1, 2]), np.array([0.1, 1.4, 2.2, 0.3], np.float32))
    assert popularity(sequences, 4).tolist() == [1, 4, 1, 0]


def test_exported_events_are_weighed_by_the_default_types_without_the_file(write: Write) -> None:
    directory = write(None)
    rules = EventRules.of_exported_events(directory)
    assert (rules.weight_by, rules.types) == ("type", EventTypes.of(None, None))
    dataset = load_dataset(directory, rules=rules)
    assert dataset.left_out == {"impression": 1, "negative": 1}
    assert dataset.event_types == rules.types


def test_exported_events_are_weighed_as_the_file_says_but_by_no_column_that_they_lack(write: Write) -> None:
    own = EventRules.of_exported_events(write('weight_by = "type"\n[events.types]\nrent = 4\n'))
    assert own.types.weight("rent") == 4
    with pytest.raises(DatasetError, match="weight_by must be type for exported events, which have no weight"):
        EventRules.of_exported_events(write('weight_by = "weight"\n'))


def test_types_that_the_table_lacks_are_counted_most_frequent_first(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,text\na,x\nb,y\n")
    kinds = ["Hide", "view", "", "hide", "hide", "dislike", "zoom", "Hide", "hide"]
    rows = [f"u{number},a,{number + 1},{kind}" for number, kind in enumerate(kinds)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    dataset = load_dataset(tmp_path, rules=EventRules.of_exported_events(tmp_path))
    assert list(dataset.unknown_types.items()) == [("hide", 3), ("Hide", 2), ("zoom", 1)]
    assert dataset.interactions.height == 8, "they count as the default type"
    known = EventRules("type", EventTypes.of({"hide": -5, "Hide": -5, "zoom": "ignore"}, None))
    assert load_dataset(tmp_path, rules=known).unknown_types == {}
    many = Dataset(tmp_path, dataset.items, dataset.interactions, unknown_types={f"t{n:03}": 1 for n in range(100)})
    assert list(many.most_frequent_unknown_types()) == [f"t{number:03}" for number in range(20)]


def test_no_type_is_unknown_where_another_column_decides(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,text\na,x\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp,type,weight\nu,a,1,hide,2\n")
    (tmp_path / "events.toml").write_text('weight_by = "weight"\n')
    assert load_dataset(tmp_path).unknown_types == {}
