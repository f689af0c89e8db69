"""The Blosc2 frame: our bytes are Blosc2's own, and no chunk is believed."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import blosc2
import numpy as np
import pytest

from arraychest.formats import frame
from arraychest.formats.frame import Layout

Codec, Filter = blosc2.Codec, blosc2.Filter

CASES = {
    "float32 lz4": ("<f4", (100, 130), (64, 64), (16, 16), Codec.LZ4, 1, [Filter.SHUFFLE]),
    "big-endian zstd": (">i2", (100,), (64,), (16,), Codec.ZSTD, 3, [Filter.BITSHUFFLE]),
    "bytes blosclz": ("|u1", (9, 9, 9), (4, 8, 8), (2, 4, 4), Codec.BLOSCLZ, 5, []),
    "two filters": (
        "<c16",
        (100,),
        (64,),
        (16,),
        Codec.ZSTD,
        9,
        [Filter.SHUFFLE, Filter.BYTEDELTA],
    ),
    "datetime": ("<M8[ns]", (100,), (64,), (16,), Codec.LZ4HC, 9, [Filter.SHUFFLE]),
    "odd sizes": ("<f8", (7, 50, 3), (3, 17, 3), (2, 5, 2), Codec.LZ4, 1, [Filter.SHUFFLE]),
    "bool zlib": ("|b1", (1000,), (512,), (128,), Codec.ZLIB, 6, [Filter.SHUFFLE]),
}
case = pytest.mark.parametrize("name", CASES)


def made(name: str, kind: str = "mixed") -> tuple[Layout, blosc2.NDArray, np.ndarray]:
    dtype, shape, chunks, blocks, codec, level, filters = CASES[name]
    numbers = np.random.default_rng(1).integers(0, 60, shape)
    if kind == "zeros":
        numbers[...] = 0
    elif kind == "mixed":
        numbers[tuple(slice(0, c) for c in chunks)] = 0  # a chunk that Blosc2 makes nothing of
    array = numbers.astype(dtype)
    meta = tuple(array.itemsize if each is Filter.BYTEDELTA else 0 for each in filters)
    cparams = blosc2.CParams(
        codec=codec,
        clevel=level,
        filters=filters,
        filters_meta=meta,
        typesize=array.dtype.itemsize,
        nthreads=1,
    )
    theirs = blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=cparams, contiguous=True)
    numbers_of_filters = tuple(int(each.value) for each in filters)
    layout = Layout(
        array.dtype, shape, chunks, blocks, codec.value, level, numbers_of_filters, meta
    )
    frame.check(layout)
    return layout, theirs, array


def ours(layout: Layout, chunks: list[bytes]) -> bytes:
    sizes = [len(chunk) for chunk in chunks]
    return frame.header(layout, sizes) + b"".join(chunks) + frame.index(sizes) + frame.TRAILER


def chunks_of(theirs: blosc2.NDArray) -> list[bytes]:
    found = [theirs.schunk.get_chunk(number) for number in range(theirs.schunk.nchunks)]
    return [b"" if frame.is_zeros(chunk) else chunk for chunk in found]


@case
@pytest.mark.parametrize("kind", ["full", "mixed", "zeros"])
def test_a_frame_of_ours_is_read_by_blosc2(tmp_path, name, kind):
    layout, theirs, array = made(name, kind)
    data = ours(layout, chunks_of(theirs))
    assert struct.unpack(">Q", data[16:24]) == (len(data),)
    file = tmp_path / "a.b2nd"
    file.write_bytes(data + b"what stands behind a frame is ignored")
    for found in (
        blosc2.open(str(file)),
        blosc2.open(str(file), mmap_mode="r"),
        blosc2.ndarray_from_cframe(data),
        blosc2.ndarray_from_cframe(memoryview(data), copy=False),
    ):
        assert (found.shape, found.chunks, found.blocks) == (
            layout.shape,
            layout.chunks,
            layout.blocks,
        )
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found[...], array)


@case
def test_a_header_of_ours_is_blosc2s_own(name):
    layout, theirs, _ = made(name, "full")
    data = theirs.to_cframe()
    (length,) = struct.unpack(">i", data[11:15])
    mine = frame.header(layout, [len(chunk) for chunk in chunks_of(theirs)])
    # The frame's size depends on how the index is compressed.
    assert mine[:16] == data[:16]
    # Theirs has how many threads this machine would read it with.
    assert mine[24:66] == data[24:66]
    assert mine[68:] == data[68:length]
    assert data.endswith(frame.TRAILER)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 5000])
def test_an_index_of_ours_is_blosc2s_own(count):
    sizes = list(range(100, 100 + count))
    offsets = np.cumsum([0, *sizes[:-1]], dtype="<i8")
    found = frame.index(sizes)
    assert blosc2.decompress2(found) == offsets.tobytes()


@case
@pytest.mark.parametrize("kind", ["full", "mixed", "zeros"])
def test_chunks_of_blosc2_are_taken(name, kind):
    layout, theirs, _ = made(name, kind)
    for chunk in filter(None, chunks_of(theirs)):
        frame.block_limits(layout, memoryview(chunk))


@case
def test_what_a_chunk_says_of_itself_cannot_be_changed_into_anything_dangerous(name):
    layout, theirs, _ = made(name, "full")
    chunk = chunks_of(theirs)[0]
    end = frame.CHUNK_HEADER_BYTES + 4 * layout.nblocks
    # All but: the version of the codec's streams, which nothing reads, and a reserved byte.
    for at in [*range(16), *range(30, 32)]:
        if at in (1, 2, 30):
            continue
        for bit in range(8):
            bad = bytearray(chunk)
            bad[at] ^= 1 << bit
            with pytest.raises(ValueError, match="expected"):
                frame.block_limits(layout, memoryview(bad))
    for size in {0, 1, 16, 31, 32, end - 1, end, len(chunk) - 1} - {len(chunk)}:
        with pytest.raises(ValueError, match="expected"):
            frame.block_limits(layout, memoryview(chunk)[:size])
    if not chunk[2] & 2:
        for value in (-1, 0, 31, end - 1, len(chunk) - 3, len(chunk), 2**31 - 1):
            bad = bytearray(chunk)
            struct.pack_into("<i", bad, frame.CHUNK_HEADER_BYTES, value)
            with pytest.raises(ValueError, match="expected"):
                frame.block_limits(layout, memoryview(bad))


def test_a_chunk_of_the_wrong_frame_is_refused():
    chunks = {name: chunks_of(made(name, "full")[1])[0] for name in CASES}
    for name in CASES:
        layout, _, _ = made(name, "full")
        for other in set(CASES) - {name}:
            with pytest.raises(ValueError, match="expected"):
                frame.block_limits(layout, memoryview(chunks[other]))


def test_random_bytes_are_no_chunk():
    layout, _, _ = made("float32 lz4", "full")
    generator = random.Random(4)
    for _ in range(2000):
        data = generator.randbytes(generator.randrange(200))
        with pytest.raises(ValueError, match="expected"):
            frame.block_limits(layout, memoryview(data))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ()},
        {"shape": (1,) * 9},
        {"shape": (0, 5)},
        {"chunks": (64,)},
        {"blocks": (0, 16)},
        {"blocks": (65, 16)},
        {"chunks": (1 << 20, 1 << 20)},
        {"codec": 3},
        {"codec": 99},
        {"clevel": 10},
        {"filters": (1,) * 7},
        {"filters_meta": ()},
        {"dtype": np.dtype("V256")},
        {"dtype": np.dtype("O")},
    ],
)
def test_a_layout_that_blosc2_could_not_have_is_refused(change):
    layout, _, _ = made("float32 lz4")
    with pytest.raises(ValueError, match="expected"):
        frame.check(replace(layout, **change))
