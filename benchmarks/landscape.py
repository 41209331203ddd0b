"""A plane of the loss against as many bare forward passes."""

from collections.abc import Iterator

from benchmarks.measure import Line, missing


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the ratio."""
    yield missing("loss plane / bare forward passes", "<= 1.05", "rnlib.landscape is not there")
