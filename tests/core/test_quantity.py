"""Amounts that people type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.core.errors import UsageError
from vesalius.core.quantity import parse_bytes, parse_seconds, show_bytes, show_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8G", 8 * 1024**3),
        ("512MB", 512 * 1024**2),
        ("1.5 GiB", 3 * 512 * 1024**2),
        ("10k", 10240),
        ("7", 7),
        (7, 7),
        ("2T", 2 * 1024**4),
        (" 3g ", 3 * 1024**3),
    ],
)
def test_bytes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "8 X", "8GG", "0", "1e3", "lots", "8,5G"])
def test_wrong_bytes_are_one_line(text):
    with pytest.raises(UsageError, match="8G or 512M"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d", 172800),
        ("45", 45),
        (45, 45),
        (0.5, 0.5),
        ("10M", 600),
    ],
)
def test_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "10x", "-5m", "0", "0s", "1:30", "m", "ten minutes"])
def test_wrong_seconds_are_one_line(text):
    with pytest.raises(UsageError) as caught:
        parse_seconds(text)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 200), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_and_seconds_add_up(hours, minutes, seconds):
    assert parse_seconds(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (42.2, "42 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (3599.6, "1 h 00 min"),
    ],
)
def test_seconds_are_shown_as_people_write_them(seconds, text):
    assert show_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 B"),
        (2048, "2 kB"),
        (1.5 * 1024**2, "1.5 MB"),
        (8 * 1024**3, "8.0 GB"),
        (3 * 1024**4, "3.0 TB"),
        (0, "0 B"),
    ],
)
def test_bytes_are_shown(count, text):
    assert show_bytes(count) == text
