"""The Blosc2 codec: chunks, blocks, and which codec is chosen."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import blosc2
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arraychest.formats import blosc, frame
from arraychest.formats.frame import CODECS, FILTERS
from arraychest.parallel import in_order
from tests.real_data import FIELDS

# Bytes a second of a device so slow that only the size counts: no test waits for a clock.
SLOW = 1e5


def framed(array: np.ndarray, choice: blosc.Choice, nthreads: int = 1) -> bytes:
    layout = blosc.layout_of(array, choice)
    frame.check(layout)
    codec = blosc.ChunkCodec(layout)
    chunks = list(in_order(lambda where: codec.compressed(array[where]), layout.slices(), nthreads))
    assert len(chunks) == layout.nchunks
    for chunk in filter(None, chunks):
        frame.block_limits(layout, memoryview(chunk))
    sizes = list(map(len, chunks))
    head = frame.header(layout, sizes)
    return head + b"".join(chunks) + frame.index(sizes) + frame.TRAILER


def smooth(shape: tuple[int, ...], dtype: str = "f4") -> np.ndarray:
    grid = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return sum(np.sin(axis * (at + 1)) for at, axis in enumerate(grid)).astype(dtype)


DTYPES = ["?", "u1", "<i2", ">i2", "<i4", ">u8", "<f2", "<f4", ">f8", "<c8", ">c16", "M8[ns]", "m8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (100_000,), (1, 7, 1), (301, 977), (40, 61, 83), (2,) * 8])
def test_an_array_comes_back_as_it_was(dtype, shape):
    numbers = np.random.default_rng(3).integers(0, 100, shape)
    array = numbers.astype(dtype)
    for name in ("lz4", "zstd"):
        data = framed(array, blosc.named(name))
        found = blosc2.ndarray_from_cframe(data)
        assert found.dtype == array.dtype
        assert found[...].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("nthreads", [1, 2])
def test_every_codec_loses_nothing(name, nthreads):
    array = smooth((700, 3001))
    array[0, :5] = [np.nan, -0.0, np.inf, -np.inf, np.float32(1e-45)]
    data = framed(array, blosc.named(name), nthreads)
    assert blosc2.ndarray_from_cframe(data)[...].tobytes() == array.tobytes()
    assert len(data) < array.nbytes


def test_chunks_of_zeros_take_no_place():
    array = np.zeros((3000, 3000), "f4")
    array[1500, 1500] = 1
    data = framed(array, blosc.named("lz4"))
    assert len(data) < array.nbytes // 100
    assert (blosc2.ndarray_from_cframe(data)[...] == array).all()


@given(
    shape=st.lists(st.integers(1, 5000), min_size=1, max_size=8).map(tuple),
    itemsize=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_chunks_and_blocks_fit_and_are_no_larger_than_they_should_be(shape, itemsize):
    chunks, blocks = blosc.geometry(shape, itemsize)
    # Dimensions are divided evenly, so that a block is not of exactly this size.
    assert math.prod(blocks) * itemsize <= 3 * blosc.BLOCK_BYTES
    assert math.prod(chunks) * itemsize <= blosc.CHUNK_BYTES
    assert all(1 <= b <= n for b, n in zip(blocks, shape, strict=True))
    assert all(b <= c < n + b for b, c, n in zip(blocks, chunks, shape, strict=True))
    if math.prod(shape) * itemsize >= 16 * blosc.BLOCK_BYTES:
        assert math.prod(blocks) * itemsize > blosc.BLOCK_BYTES // 4


def test_chunks_and_blocks_of_common_shapes():
    assert blosc.geometry((16384, 16384), 4) == ((80, 1280), (10, 160))
    # Rows that are shorter than that are taken whole.
    assert blosc.geometry((16384, 180), 4)[1] == (9, 180)
    assert blosc.geometry((1 << 28,), 8) == ((49664,), (776,))
    # A plane of a volume is read without those beside it.
    assert blosc.geometry((512, 512, 512), 4) == ((4, 36, 528), (1, 9, 176))
    # The colours of a pixel stay together.
    chunks, blocks = blosc.geometry((500, 427, 640, 3), 1)
    assert (chunks[-1], blocks[-1]) == (3, 3)


def test_noise_stays_as_it_is_and_smooth_fields_do_not():
    generator = np.random.default_rng(0)
    assert blosc.chosen(generator.random(4 << 20)) is None
    assert blosc.chosen(generator.integers(0, 2**63, 4 << 20)) is None
    for dtype in ("f4", "f8", "i2"):
        choice = blosc.chosen((1000 * smooth((2000, 2000))).astype(dtype), 1, SLOW)
        assert choice is not None
        assert choice.codec in (CODECS["lz4"], CODECS["zstd"])
    assert blosc.chosen(np.zeros((2000, 2000)), 1, SLOW) is not None


@pytest.mark.parametrize("field", FIELDS)
def test_measured_data_are_worth_it_on_a_slow_device_and_not_on_a_fast_one(field):
    array = FIELDS[field](3 << 20)
    choice = blosc.chosen(array, 1, SLOW)
    assert choice is not None
    assert len(framed(array, choice)) * 1.1 < array.nbytes
    assert blosc.chosen(array, 1, 1e13) is None


def test_counters_of_few_bits_are_found_by_bitshuffle():
    generator = np.random.default_rng(0)
    choice = blosc.chosen(generator.integers(0, 1 << 11, 8 << 20).astype("u2"), 1, SLOW)
    assert choice is not None
    assert choice.filters == (FILTERS["bitshuffle"],)


@settings(max_examples=50, deadline=None)
@given(array=npst.arrays(npst.integer_dtypes(), npst.array_shapes(max_dims=4, max_side=40)))
def test_any_array_of_numbers_comes_back(array):
    data = framed(array, blosc.named("lz4"))
    assert (blosc2.ndarray_from_cframe(data)[...] == array).all()


@given(st.data())
def test_the_chunks_and_blocks_of_a_part_are_found(data):
    shape = data.draw(npst.array_shapes(max_dims=3, max_side=30))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    blocks = tuple(data.draw(st.integers(1, n)) for n in chunks)
    layout = frame.Layout(np.dtype("u1"), shape, chunks, blocks, 1, 1, (), ())
    where = []
    for n in shape:
        start = data.draw(st.integers(0, n - 1))
        where.append(slice(start, data.draw(st.integers(start + 1, n))))
    wanted = np.zeros(shape, bool)
    wanted[tuple(where)] = True
    found = {each.number: each for each in blosc.touched(layout, where)}
    for number, part in enumerate(layout.slices()):
        assert layout.corner(number) == tuple(each.start for each in part)
        assert (number in found) == wanted[part].any()
        if number in found:
            inside = np.zeros(chunks, bool)
            inside[tuple(slice(0, n) for n in wanted[part].shape)] = wanted[part]
            assert inside[found[number].inside].all()
            assert inside[found[number].inside].sum() == inside.sum()
            per = [range(0, c, b) for c, b in zip(chunks, blocks, strict=True)]
            starts = itertools.product(*per)
            of_each = [
                inside[tuple(slice(at, at + b) for at, b in zip(start, blocks, strict=True))].any()
                for start in starts
            ]
            numbers = list(map(sum, itertools.product(*found[number].blocks)))
            assert sorted(numbers) == list(np.flatnonzero(of_each))
            assert found[number].nblocks == len(numbers)


@given(st.data())
def test_a_part_of_a_chunk_is_decompressed(data):
    shape = data.draw(npst.array_shapes(max_dims=3, max_side=30))
    blocks = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = np.arange(math.prod(shape), dtype="u2").reshape(shape)
    chunks = tuple(-(-n // b) * b for n, b in zip(shape, blocks, strict=True))
    codec = blosc.ChunkCodec(frame.Layout(array.dtype, shape, chunks, blocks, 1, 1, (1,), (0,)))
    chunk = codec.compressed(array)
    corner, ends = [], []
    for n in shape:
        corner.append(data.draw(st.integers(0, n - 1)))
        ends.append(data.draw(st.integers(corner[-1] + 1, n)))
    expected = array[tuple(slice(*pair) for pair in zip(corner, ends, strict=True))]
    out = np.zeros_like(expected)
    codec.decompress(memoryview(chunk), out, corner)
    assert (out == expected).all()


def test_no_setting_of_blosc2_is_changed():
    for released in (False, True):
        blosc2.set_releasegil(released)
        before = blosc2.nthreads, blosc2.cparams_dflts.copy()
        framed(smooth((700, 3001)), blosc.named("zstd"), 2)
        blosc.chosen(smooth((700, 3001)))
        assert (blosc2.nthreads, blosc2.cparams_dflts) == before
        assert blosc2.set_releasegil(False) is released


def test_blosc2_is_not_imported_before_it_is_needed():
    code = "import sys, arraychest.formats.blosc; assert 'blosc2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
