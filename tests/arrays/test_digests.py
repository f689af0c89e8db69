"""Digests of arrays: by content alone, and remembered only of what cannot change."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
import threading
import timeit
import warnings
import weakref

import hypothesis.extra.numpy as npst
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arraychest.arrays import digests
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.digests import LEAF_BYTES, array_digest, digest_of, known, remember
from arraychest.errors import ValueTypeError
from tests.arrays.test_compressed import Counting
from tests.support import run_python

# The fixtures hold for all examples.
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["xxhash", "sha256"], autouse=True)
def back_end(request, monkeypatch):
    if request.param == "sha256":
        monkeypatch.setitem(sys.modules, "xxhash", None)
    digests._algorithm.cache_clear()
    yield request.param
    digests._algorithm.cache_clear()


@pytest.fixture
def small_leaves(monkeypatch):
    """Arrays of a few elements take the way of large ones."""
    monkeypatch.setattr(digests, "LEAF_BYTES", 64)
    monkeypatch.setattr(digests, "_TILE_BYTES", 64)
    monkeypatch.setattr(digests, "_COMPRESSED_BYTES", 256)


DTYPES = [
    "?", "u1", "<i4", ">i4", "f2", "f8", ">f8", "c16", "g", "G", "M8[ns]", "M8[D]", "m8[s]", "U3",
    ">U2", "S5", "V7",
    np.dtype([("a", "i1"), ("b", "<f8")]),
    np.dtype([("a", "i1"), ("b", "<f8")], align=True),
    np.dtype([("a", "g", (2,)), ("b", [("c", "U1"), ("d", ">i2")])]),
    np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2]}),
    np.dtype((np.record, [("a", "i4")])),
    np.dtype(ml_dtypes.bfloat16),
]  # fmt: skip


def filled(shape, dtype, seed: int = 0) -> np.ndarray:
    """Random bytes, also where they mean nothing."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if dtype.kind == "U":
        letters = rng.integers(1, 0xD000, (count, dtype.itemsize // 4)).astype(
            dtype.byteorder + "u4"
        )
        return letters.view(dtype).reshape(shape)
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()


def other_orders(array: np.ndarray):
    """The same array, its elements elsewhere in memory."""
    raw = array.view(f"V{array.dtype.itemsize}")
    yield np.asfortranarray(raw).view(array.dtype) if array.ndim else array
    wide = np.zeros([2 * n for n in array.shape], raw.dtype)
    every = wide[(*[slice(None, None, 2)] * array.ndim, ...)]
    every[...] = raw
    yield every.view(array.dtype)
    turned = (*[slice(None, None, -1)] * array.ndim, ...)
    yield raw[turned].copy().view(array.dtype)[turned]
    if array.ndim > 1:
        yield raw.swapaxes(0, -1).copy().view(array.dtype).swapaxes(0, -1)


@pytest.mark.parametrize("leaves", [64, LEAF_BYTES])
@relaxed
@given(data=st.data())
def test_the_order_in_memory_does_not_count(data, leaves):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    seed = data.draw(st.integers(0, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "LEAF_BYTES", leaves)
        patch.setattr(digests, "_TILE_BYTES", leaves)
        in_any_order(filled(shape, dtype, seed))


def in_any_order(array: np.ndarray) -> None:
    expected = array_digest(array)
    assert len(expected) == 17
    assert array_digest(array.copy()) == expected
    for other in other_orders(array):
        assert array_digest(other) == expected


@relaxed
@given(data=st.data())
def test_a_compressed_array_has_the_digest_of_the_plain_one(data, small_leaves):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=4, max_side=9))
    array = filled(shape, data.draw(st.sampled_from(["u1", "f8", DTYPES[-5]])))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    compressed = CompressedArray(Counting(array), array.dtype, shape, chunks)
    assert array_digest(compressed) == array_digest(array)
    reversed_ = Counting(np.ascontiguousarray(array.T))
    compressed = CompressedArray(reversed_, array.dtype, shape, chunks, transposed=True)
    assert array_digest(compressed) == array_digest(array)


def test_a_compressed_array_is_read_once_and_piece_by_piece(small_leaves):
    array = filled((64, 96), "f8")
    compressed = CompressedArray(Counting(array), array.dtype, array.shape, (8, 8))
    most = []
    read = compressed.reader.read
    compressed.reader.read = lambda where: most.append(read(where)) or most[-1]
    assert array_digest(compressed) == array_digest(array)
    assert compressed.reader.elements == array.size
    assert max(each.nbytes for each in most) <= 256


@relaxed
@given(data=st.data())
def test_every_byte_that_means_something_counts(data, small_leaves):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=9))
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "f8", "c16", "M8[us]", "V7", DTYPES[17]])))
    array = filled(shape, dtype)
    before = array_digest(array)
    flat = array.reshape(-1).view("u1")
    at = data.draw(st.integers(0, len(flat) - 1))
    flat[at] ^= 1 << data.draw(st.integers(0, 7))
    assert array_digest(array) != before


def test_dtype_and_shape_count():
    made = {}
    variants = [np.zeros(n, dtype) for dtype in DTYPES for n in (0, 2)]
    variants += [
        np.zeros(shape) for shape in ((), (1,), (1, 1), (0, 3), (3, 0), (2, 3), (3, 2), (6,))
    ]
    variants += [np.zeros(4, "i8"), np.zeros(4, "u8"), np.zeros(4, "q"), np.zeros(4, ">i8")]
    variants += [
        np.zeros(1, [("b", "i4")]),
        np.zeros(1, [("c", "i4")]),
        np.zeros(1, [(("t", "b"), "i4")]),
    ]
    for array in variants:
        assert made.setdefault(array_digest(array), array) is array


def test_bits_count_that_compare_equal():
    nans = np.array([0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000000], "u8").view("f8")
    found = {array_digest(nans[at : at + 1]) for at in range(3)}
    found |= {array_digest(np.array([zero])) for zero in (0.0, -0.0)}
    assert len(found) == 5
    assert array_digest(np.array(["a"])) != array_digest(np.array(["a"], "U2"))


@pytest.mark.parametrize(
    "dtype", ["g", ">g" if sys.byteorder == "little" else "<g", "G", DTYPES[18]]
)
@pytest.mark.parametrize("n", [3, 50_000])
def test_bytes_that_mean_nothing_do_not_count(dtype, n):
    if np.finfo(np.longdouble).nmant != 63:
        pytest.skip("long doubles have no such bytes here")
    dtype = np.dtype(dtype)
    mask = digests._mask(dtype)
    assert mask is not None
    array = np.zeros(n, dtype)
    expected = array_digest(array)
    raw = array.view("u1").reshape(n, -1)
    raw[:, mask == 0] = 7
    assert array_digest(array) == expected
    raw[-1, np.flatnonzero(mask)[-1]] ^= 1
    assert array_digest(array) != expected
    numbers = np.arange(n).astype("g")
    expected = array_digest(numbers)
    assert array_digest(pickle.loads(pickle.dumps(numbers))) == expected
    assert array_digest(np.array(numbers.tolist(), "g")) == expected


@pytest.mark.parametrize(
    "shape", [(3_000_001,), (1500, 2000), (7, 500_000), (30, 40, 50, 60), (2, 3, 600_000)]
)
def test_large_arrays_of_any_order_on_any_number_of_threads(shape, monkeypatch, tmp_path):
    array = np.random.default_rng(0).random(shape)
    expected = array_digest(array)
    assert array_digest(np.asfortranarray(array)) == expected
    for axis in range(array.ndim):
        assert array_digest(np.moveaxis(np.moveaxis(array, axis, 0).copy(), 0, axis)) == expected
    np.save(tmp_path / "a.npy", array)
    assert array_digest(np.load(tmp_path / "a.npy", mmap_mode="r")) == expected
    for nthreads in (1, 4):
        monkeypatch.setattr(digests, "default_threads", lambda n=nthreads: n)
        assert array_digest(array) == expected
    array[(-1,) * array.ndim] += 1
    assert array_digest(array) != expected


def test_the_same_in_every_process(back_end):
    arrays = [np.arange(10.0), np.arange(200_000), np.array("x"), np.zeros(3, DTYPES[18])]
    found = run_python(
        """
        import sys
        import numpy as np
        if sys.argv[1] == "sha256":
            sys.modules["xxhash"] = None
        from arraychest.arrays.digests import array_digest
        dtype = np.dtype([("a", "i1"), ("b", "<f8")], align=True)
        for each in (np.arange(10.0), np.arange(200_000), np.array("x"), np.zeros(3, dtype)):
            print(array_digest(each).hex())
        """,
        back_end,
    ).stdout.split()
    assert found == [array_digest(each).hex() for each in arrays]


def test_the_format_stays():
    """Written down once: a change of it makes everything that is cached unfindable."""
    found = array_digest(np.arange(5, dtype="<i4")).hex()
    large = array_digest(np.arange(300_000, dtype="<i4")).hex()
    assert (found, large) == FORMAT[found[:2]]


FORMAT = {
    "73": ("73bd07f9b3ff33c192834f52f49e46bd3a", "73a850ce0e6e793f2e4500016fcce5fa1b"),
    "78": ("7848dc8f2b071d320fe4954abec5ffff17", "7805173cd83ffb7cbe3d8e5939bb71ed04"),
}


def test_objects_are_not_for_it():
    for array in (np.array([{}]), np.zeros(1, [("a", "O")]), np.array(["a"], "T")):
        with pytest.raises(TypeError, match="without Python objects"):
            array_digest(array)
    for array in (np.ma.masked_array([1]), np.rec.array([(1,)]), [1]):
        with pytest.raises(TypeError, match="plain array"):
            array_digest(array)
    with pytest.raises(ValueTypeError, match="metadata"):
        array_digest(np.zeros(1, np.dtype("i4", metadata={"a": 1})))


# --- the memory ---------------------------------------------------------------------------------


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def test_what_cannot_change_is_remembered(monkeypatch, make_chest, path):
    array = frozen(np.arange(10.0))
    view = array[2:].reshape(2, 4)
    constant = np.frombuffer(bytes(80), "f8")
    through = np.frombuffer(memoryview(bytes(80)).toreadonly(), "f8")
    chest = make_chest(path=path)
    chest["a"] = np.arange(100_000.0)
    chest.flush()
    mapped = chest["a"]
    chest.close()
    reopened = make_chest(path=path)["a"]
    compressed = CompressedArray(Counting(np.arange(8.0)), np.dtype("f8"), (8,), (4,))
    for each in (array, view, constant, through, mapped, reopened, compressed):
        assert known(each) is None
        assert digest_of(each) == array_digest(each)
        assert known(each) == array_digest(each)
    monkeypatch.setattr(digests, "array_digest", None)
    assert len(digest_of(array)) == 17


def test_compressed_values_of_a_chest(make_chest, path):
    array = np.add.outer(np.arange(3000.0), np.arange(400.0))
    chest = make_chest(path=path, compression="lz4", compress_above=1)
    chest["a"] = array
    chest["b"] = np.asfortranarray(array)
    chest.flush()
    chest.close()
    for value in make_chest(path=path).values():
        assert type(value) is CompressedArray
        assert digest_of(value) == known(value) == array_digest(array)


def test_what_may_change_is_not(tmp_path):
    array = np.arange(10.0)
    view = array[:]
    view.flags.writeable = False
    np.save(tmp_path / "a.npy", array)
    theirs = np.load(tmp_path / "a.npy", mmap_mode="r")
    buffer = bytearray(80)
    borrowed = np.frombuffer(memoryview(buffer).toreadonly(), "f8")
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    for each in (array, view, theirs, np.asarray(theirs), borrowed, private):
        digest_of(each)
        assert known(each) is None
        remember(each, b"x" * 17)
        assert known(each) is None


def test_what_was_changed_is_not_trusted():
    array = frozen(np.arange(10.0))
    before = digest_of(array)
    array.flags.writeable = True
    assert known(array) is None
    array[0] = 5
    assert digest_of(array) != before
    frozen(array)
    assert digest_of(array) == array_digest(array) != before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from NumPy 2.5 on
        array.shape = (2, 5)
        assert digest_of(array) == array_digest(np.array(array))
        array.dtype = "i8"
    assert digest_of(array) == array_digest(np.array(array))
    whole = np.arange(10.0)
    view = frozen(whole[:])
    frozen(whole)
    digest_of(view)
    whole.flags.writeable = True
    assert known(view) is None


def test_a_digest_goes_with_its_array():
    before = len(digests._remembered)
    arrays = [frozen(np.arange(float(n))) for n in range(100)]
    for each in arrays:
        digest_of(each)
    assert len(digests._remembered) == before + 100
    gone = weakref.ref(arrays[0])
    del each, arrays
    gc.collect()
    assert gone() is None
    assert len(digests._remembered) <= before


def test_an_array_in_the_place_of_another_has_its_own_digest():
    for n in range(2000):
        array = frozen(np.full(3, float(n)))
        assert digest_of(array) == array_digest(array)


def test_many_threads():
    arrays = [frozen(np.full(100, float(n))) for n in range(50)]
    expected = [array_digest(each) for each in arrays]
    wrong = []

    def work():
        for _ in range(50):
            for each, digest in zip(arrays, expected, strict=True):
                mine = frozen(each.copy())
                if digest_of(each) != digest or digest_of(mine) != digest:
                    wrong.append(each)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_a_hit_is_cheap():
    array = frozen(np.arange(10.0))
    view = array[1:]
    for each in (array, view):
        digest_of(each)
        seconds = min(timeit.repeat(lambda a=each: digest_of(a), number=1000, repeat=20)) / 1000
        assert seconds < 5e-6, seconds  # 0.6 us on an idle machine


def test_after_a_fork(resource_tracker):
    array = np.arange(3_000_000.0)
    expected = array_digest(array)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(array_digest(array)))
    child.start()
    try:
        assert ours.poll(60)
        assert ours.recv() == expected
    finally:
        child.join(10)
        child.close()
        ours.close()
        theirs.close()
    assert array.nbytes > 2 * LEAF_BYTES
