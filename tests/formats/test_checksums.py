"""What checksums detect: each kind of damage, many times."""

from __future__ import annotations

import os
import random
import zlib

import numpy as np
import pytest

from arraychest.formats import checksums
from arraychest.formats.checksums import PIECE_BYTES, checksum

PAGE = 4096


def contents() -> dict[str, np.ndarray]:
    """Bytes of two pieces, of kinds that a sum could be blind to."""
    random_bytes = np.random.default_rng(0).integers(0, 256, 2 * PIECE_BYTES, np.uint8)
    count = len(random_bytes) // 8
    return {
        "random": random_bytes,
        "zeros": np.zeros(2 * PIECE_BYTES, np.uint8),
        # Only the highest bits of its words are set: sums of many lose them.
        "twos": np.full(count, 2.0).view(np.uint8),
        "minus zeros": np.full(count, -0.0).view(np.uint8),
        "ones": np.ones(count).view(np.uint8),
        "float32": np.full(2 * count, 2.0, np.float32).view(np.uint8),
        "ramp": np.arange(float(count)).view(np.uint8),
        "period of a page": np.resize(np.arange(512.0), count).view(np.uint8),
    }


CONTENTS = contents()


def flipped(data: np.ndarray, draw: random.Random) -> None:
    data[draw.randrange(data.size)] ^= 1 << draw.randrange(8)


def burst(data: np.ndarray, draw: random.Random) -> None:
    start, size = draw.randrange(data.size), draw.randrange(1, PAGE)
    data[start : start + size] ^= np.uint8(draw.randrange(1, 256))


def zeroed(data: np.ndarray, draw: random.Random) -> None:
    for _ in range(draw.randrange(1, 9)):
        page = draw.randrange(data.size // PAGE) * PAGE
        data[page : page + PAGE] = 0


def torn(data: np.ndarray, draw: random.Random) -> None:
    # A tail is left out where all 509 sums lose equally many words (see `checksums`).
    sectors = [at for at in range(0, data.size, 512) if (data.size - at) % (4 * 509 * 8)]
    data[draw.choice(sectors) :] = 0


def swapped(data: np.ndarray, draw: random.Random) -> None:
    one, other = (draw.randrange(data.size // PAGE) * PAGE for _ in range(2))
    kept = data[one : one + PAGE].copy()
    data[one : one + PAGE] = data[other : other + PAGE]
    data[other : other + PAGE] = kept


def shifted(data: np.ndarray, draw: random.Random) -> None:
    by = draw.choice([1, 4, 8, 64, 512, PAGE]) * draw.randrange(1, 5)
    data[by:] = data[:-by].copy()


def times(draw_count: int) -> list[object]:
    """A few of each in the quick tests, all in the stress run."""
    return [
        pytest.param(40),
        pytest.param(draw_count, marks=pytest.mark.stress),
    ]


@pytest.mark.parametrize("count", times(100_000 // len(CONTENTS)))
@pytest.mark.parametrize("damage", [flipped, burst, zeroed, torn, swapped, shifted])
@pytest.mark.parametrize("kind", CONTENTS)
def test_damage_of_each_kind_is_detected(kind, damage, count):
    whole = CONTENTS[kind][:PIECE_BYTES]
    right = checksum(whole)
    draw = random.Random(f"{kind} {damage.__name__}")
    data = whole.copy()
    changed = 0
    for _ in range(count):
        damage(data, draw)
        if not np.array_equal(data, whole):
            changed += 1
            assert checksum(data) != right
            data[:] = whole
    # Contents that repeat themselves stay as they are where pages are swapped, say.
    assert changed or kind not in {"random", "ramp"}


def test_each_single_bit_of_a_small_piece_counts():
    data = np.random.default_rng(1).integers(0, 256, 5000, np.uint8)
    right = checksum(data)
    for bit in range(8 * data.size):
        data[bit // 8] ^= 1 << bit % 8
        assert checksum(data) != right
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 9, 4071, 4072, 4073, 4096, 100_001])
def test_the_last_bytes_count_and_their_place(nbytes):
    data = np.arange(1, nbytes + 1).astype(np.uint8)
    found = {checksum(data)}
    for at in range(max(0, nbytes - 20), nbytes):
        changed = data.copy()
        changed[at] ^= 0xFF
        found.add(checksum(changed))
    assert len(found) == 1 + min(nbytes, 20)


def test_it_is_the_same_however_the_bytes_are_cut(tmp_path):
    data = CONTENTS["random"][: 2 * PIECE_BYTES - 12_345]
    right = checksums.of_buffers([data.data])
    assert len(right) == 8
    assert checksums.unpacked(right) == [checksum(data[:PIECE_BYTES]), checksum(data[PIECE_BYTES:])]
    draw = random.Random(3)
    for _ in range(20):
        cuts = sorted(draw.randrange(data.size) for _ in range(5))
        parts = [data[a:b].data for a, b in zip([0, *cuts], [*cuts, data.size], strict=True)]
        assert checksums.of_buffers(parts) == right
    file = tmp_path / "file"
    file.write_bytes(b"head" + data.tobytes() + b"tail")
    fd = os.open(file, os.O_RDONLY)
    try:
        assert checksums.of_file(fd, 4, data.size) == right
        assert len(checksums.of_file(fd, 4, 10 * PIECE_BYTES)) == 8
    finally:
        os.close(fd)


def test_it_is_what_its_description_says():
    data = CONTENTS["random"][:10_003].tobytes()
    sums = [0] * 509
    for number, at in enumerate(range(0, len(data), 8)):
        sums[number % 509] += int.from_bytes(data[at : at + 8], "little")
    folded = b"".join((each % 2**64).to_bytes(8, "little") for each in sums)
    assert checksum(data) == zlib.crc32(folded)
