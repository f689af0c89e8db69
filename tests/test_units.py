"""Sizes as people write and read them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraychest.units import format_bytes, parse_bytes


class TestParseBytes:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            (0, 0),
            (4096, 4096),
            (2**70, 2**70),
            (1.9, 1),
            (1e9, 10**9),
            (np.float64(5), 5),
            ("0", 0),
            ("4096", 4096),
            ("1k", 1000),
            ("1K", 1000),
            ("1kb", 1000),
            ("1KiB", 1024),
            ("1.5 KiB", 1536),
            (".5k", 500),
            ("2.k", 2000),
            ("3 MB", 3 * 10**6),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("2GB", 2 * 10**9),
            ("1.5 Mi", 3 << 19),
            ("1t", 10**12),
            ("2 PiB", 2 << 50),
            ("7 B", 7),
            ("  8  ", 8),
        ],
    )
    def test_reads_what_people_write(self, size, expected):
        found = parse_bytes(size)
        assert type(found) is int
        assert found == expected

    @pytest.mark.parametrize(
        "size",
        ["", " ", "GiB", "-1", "-1 GiB", "1 XiB", "1e9", "0x10", "1,000", "1 2", "50%", "inf", "nan",
         "1 GiBB", "1.2.3", "٣x", -1, -0.5, math.inf, -math.inf, math.nan],
    )  # fmt: skip
    def test_refuses_what_is_no_size_and_says_what_it_found(self, size):
        with pytest.raises(ValueError, match="expected") as caught:
            parse_bytes(size)
        assert repr(size) in str(caught.value)


class TestFormatBytes:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            (0, "0 B"),
            (1, "1 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (2**20, "1 MiB"),
            (123_456_789, "118 MiB"),
            (2**31, "2 GiB"),
            (2**40, "1 TiB"),
            (2**50, "1 PiB"),
        ],
    )
    def test_gives_three_figures_and_a_binary_unit(self, size, expected):
        assert format_bytes(size) == expected

    @given(st.integers(0, 2**59))
    def test_can_be_read_back_to_three_figures(self, size):
        text = format_bytes(size)
        assert "e" not in text
        assert len(text) <= 9
        assert abs(parse_bytes(text) - size) <= max(1, size * 0.006)
