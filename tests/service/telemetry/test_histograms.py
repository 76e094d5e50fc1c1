"""A number that is observed through the short way is counted as the library counts it."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.telemetry.histograms import observer

BUCKETS = (0.5, 1, 2.5, 10)
NUMBERS = st.one_of(st.sampled_from([0, 0.5, 1, 2.5, 10, 10.0000001, float("inf")]), st.floats(-1, 20))


@given(st.lists(NUMBERS, max_size=30))
def test_counts_as_the_library_does(numbers: list[float]) -> None:
    texts = []
    for short in (True, False):
        registry = CollectorRegistry()
        of_label = Histogram("seconds", "Seconds.", ["stage"], buckets=BUCKETS, registry=registry).labels("search")
        observe = observer(of_label) if short else of_label.observe
        for number in numbers:
            observe(number)
        texts.append([line for line in generate_latest(registry).splitlines() if b"_created" not in line])
    assert texts[0] == texts[1]
