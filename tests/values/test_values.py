"""Values: every array that npy holds comes back exactly from every tier; all else is refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import arraychest
from arraychest.errors import PickleRefusedError, ValueTypeError
from tests.support import assert_identical

LONG = arraychest.PACK_THRESHOLD // 8 + 8


def engine(value: Any, **options: Any) -> Iterator[tuple[str, Any]]:
    """The value as it comes out of RAM, of a file or pack, and of a chest opened anew."""
    folder = os.path.join(os.environ["TMPDIR"], "tiers.chest")
    with arraychest.Chest(path=folder, mode="w", available_memory="1 GiB", **options) as chest:
        chest["x"] = value
        assert "x" in chest.inmem
        yield "resident", chest["x"]
        chest.spill("x")
        assert "x" not in chest.inmem
        yield "stored", chest["x"]
        yield "mapped", chest["x"]
    options.pop("on_put", None)
    with arraychest.open(folder, "r", **options) as chest:
        yield "reopened", chest["x"]
    with arraychest.Chest(path=folder, mode="w", available_memory=0, **options) as chest:
        chest["x"] = value
        yield "put directly", chest["x"]


def check(value: Any, **options: Any) -> None:
    expected = value
    if isinstance(value, np.ndarray) and value.dtype.itemsize:
        # Not those of no bytes: NumPy makes strings of one character of them.
        expected = value.copy(order="K")
    for tier, found in engine(value, **options):
        note = f"{tier}: "
        try:
            assert_identical(found, expected)
        except AssertionError as error:
            raise AssertionError(note + str(error)) from error
        if isinstance(found, np.ndarray) and options.get("mmap_mode") != "c":
            assert not found.flags.writeable, note
            assert found.flags.aligned, note


DTYPES = [
    "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "G",
    ">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c8", ">c16", ">g", "q", "Q", "l", "L", "p",
    "M8[D]", "M8[ns]", "m8[s]", "M8[25s]", "M8", "m8", ">M8[us]", ">m8[D]", "M8[Y]", "m8[M]",
    "S1", "S7", "U1", "U5", ">U3", "V1", "V5",
    [("a", "i4"), ("b", "f8")],
    [("a", "i4", (2, 3)), ("b", "U3")],
    [("a", ">i2"), ("b", [("c", "f8"), ("d", "S3", 2)])],
    [(("a title", "a"), "i4"), (("another", "b"), "M8[s]")],
    [("with space", "i1"), ("\u00e9\u4e2d", "f4"), ("quote'\"", "i2")],
    {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 24},
    {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [3, 5], "itemsize": 16},
    np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True),
    np.dtype([(("t", "a"), "i1"), ("b", "f8")], align=True),
    [(f"field{at}", "f8") for at in range(3000)],
]  # fmt: skip


def filled(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(dtype)
    array = np.zeros(shape, dtype)
    if dtype.names is not None:
        for name in dtype.names:
            array[name] = filled(array[name].dtype, array[name].shape)
        return array
    numbers = np.arange(array.size).reshape(shape)
    if dtype.kind == "V":
        return np.frombuffer(np.random.default_rng(0).bytes(array.nbytes), dtype).reshape(shape)
    if dtype.kind in "SU":
        return numbers.astype(dtype.kind + "9").astype(dtype)
    if dtype.kind in "mM":
        return numbers.astype("i8").view("i8").astype(dtype.str.replace(">", "<")).astype(dtype)
    return (numbers / 3 + 1j).astype(dtype) if dtype.kind == "c" else (numbers / 3).astype(dtype)


class TestArrays:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[:30])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (3, 0, 2)], ids=str)
    def test_of_every_dtype_come_back_the_same(self, dtype, shape):
        try:
            np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(np.dtype(dtype)))
        except ValueError:
            pytest.skip("npy cannot hold it")
        if np.dtype(dtype).char in "qQ" and np.dtype(dtype).byteorder == ">":
            pytest.skip("npy cannot hold it")
        check(filled(dtype, shape))

    @pytest.mark.parametrize(
        "dtype",
        ["f8", ">f4", "M8[s]", "U5", "V5", "?", "g", [("a", "i1"), ("b", "f8", 3)]],
        ids=str,
    )
    def test_above_the_threshold_get_a_file_that_numpy_reads(self, dtype):
        array = filled(dtype, (LONG // 4, 32))
        check(array)
        folder = os.path.join(os.environ["TMPDIR"], "file.chest")
        for order in "CF":
            with arraychest.Chest(path=folder, mode="w") as chest:
                chest["x"] = array.copy(order=order)
                chest.spill("x")
                entry = chest.entry("x")
                assert entry.codec == "npy"
                assert_identical(np.load(entry.file), array.copy(order=order))
                assert_identical(np.load(chest.key_to_filename("x")), array.copy(order=order))

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize(
        "array",
        [
            np.asfortranarray(np.arange(12.0).reshape(3, 4)),
            np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0),
            np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
            np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2).copy(order="K"),
            np.arange(24.0).reshape(2, 3, 4).swapaxes(0, 1)[:, ::-1],
            np.arange(20)[::2],
            np.arange(20)[::-1],
            np.arange(20)[::-3],
            np.arange(20.0).reshape(4, 5)[:, 1:3],
            np.arange(20.0).reshape(4, 5)[::-1, ::-1],
            np.arange(20).reshape(4, 5).T[1:],
            np.broadcast_to(np.arange(3), (4, 3)),
            np.lib.stride_tricks.sliding_window_view(np.arange(10), 3),
            np.arange(10).reshape(1, 10, 1),
            np.asfortranarray(np.zeros((1, 5))),
            np.asfortranarray(np.zeros((0, 5))),
            np.zeros((3, 1, 1), order="F"),
            np.array(7),
            np.array("text"),
            np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])["b"],
            np.arange(10, dtype="i4").view("i2")[1::2],
            np.arange(8, dtype="u1")[1:5].view("i4"),
            np.frombuffer(bytes(17), "f8", offset=1),
            np.array([np.nan, -0.0, np.inf]),
            np.array([np.nan], "f4") * -1,
            np.array(["a\0b", "\0", "", "\ud800"]),
            np.array([b"a\0b", b"\0", b""]),
            np.array(["NaT", "2020-01-01"], "M8[s]"),
            np.ones((1,) * 64),
        ],
        ids=lambda array: f"{array.dtype}-{array.shape[:4]}-{array.strides[:4]}",
    )
    @pytest.mark.parametrize("mmap_mode", ["r", "c"])
    @pytest.mark.parametrize("on_put", ["freeze", "copy"])
    def test_of_any_layout_come_back_the_same_from_every_tier(self, array, mmap_mode, on_put):
        expected = array.copy(order="K")
        layouts = set()
        for tier, found in engine(array, mmap_mode=mmap_mode, on_put=on_put):
            assert_identical(found, expected, order=False)
            assert found.flags.aligned, tier
            assert found.flags.writeable == (mmap_mode == "c"), tier
            layouts.add((found.flags.c_contiguous, found.flags.f_contiguous))
        # Memory pressure does not show in the layout either, and it is a plain one.
        assert len(layouts) == 1
        assert any(layouts.pop())
        if array.flags.c_contiguous or array.flags.f_contiguous:
            assert_identical(found, expected)

    def test_owned_and_laid_out_in_neither_order_are_the_same_in_every_tier(self, chest):
        for at, make in enumerate(
            [
                lambda: np.ones((2, 3, 4)).transpose(1, 0, 2).copy(order="K"),
                lambda: np.arange(24)[::-1],
                lambda: np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
            ]
        ):
            chest[at] = make()
            resident = chest[at].strides
            chest.spill(at)
            assert chest[at].strides == resident
            assert_identical(chest[at], make(), order=False)

    @pytest.mark.parametrize("dtype", ["U", "S", "V", "U0", "S0", "V0"])
    @pytest.mark.parametrize("shape", [(), (3,), (2, 0)], ids=str)
    def test_with_elements_of_no_bytes_come_back_the_same(self, dtype, shape):
        array = np.ndarray(shape, np.dtype(dtype))
        if not array.dtype.itemsize:
            assert array.nbytes == 0
        check(array)

    def test_of_a_structured_dtype_keep_titles_and_padding(self, chest):
        dtype = np.dtype(
            {
                "names": ["a", "b"],
                "formats": ["i1", ("f4", (2,))],
                "offsets": [1, 8],
                "titles": ["first", None],
                "itemsize": 32,
            }
        )
        chest["x"] = np.zeros(4, dtype)
        chest.spill("x")
        found = chest["x"].dtype
        assert found.fields["first"] == dtype.fields["first"]
        assert found.itemsize == 32
        assert found == dtype

    def test_from_a_memmap_come_back_as_plain_arrays(self, tmp_path):
        file = tmp_path / "mapped.npy"
        np.save(file, np.arange(20.0).reshape(4, 5))
        for mode in ("r", "c", "r+"):
            mapped = np.load(file, mmap_mode=mode)
            assert isinstance(mapped, np.memmap)
            for _, found in engine(mapped):
                assert_identical(found, np.arange(20.0).reshape(4, 5))
        mapped[0] = 9  # a copy was stored, and the memmap is the user's
        assert mapped.flags.writeable

    @given(
        hnp.arrays(
            st.one_of(
                hnp.scalar_dtypes(),
                hnp.array_dtypes(allow_subarrays=True),
                hnp.nested_dtypes(max_leaves=6, max_itemsize=200),
            ).filter(lambda dtype: not dtype.hasobject and dtype.subdtype is None),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        ),
        st.sampled_from(["C", "F", "T", "reversed", "strided", "swapped", "view"]),
        st.sampled_from(["freeze", "copy", "share"]),
        st.sampled_from(["r", "c"]),
    )
    @example(np.zeros((2, 0), "S0"), "C", "freeze", "r")
    def test_that_hypothesis_makes_come_back_the_same(self, array, layout, on_put, mmap_mode):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if layout in "CF":
                array = array.copy(order=layout)
            elif layout == "T":
                array = array.T
            elif layout == "reversed":
                array = array[(slice(None, None, -1),) * array.ndim]
            elif layout == "strided" and array.ndim:
                array = array[..., ::2]
            elif layout == "swapped" and array.ndim > 2:
                array = array.swapaxes(0, 1)
            elif layout == "view":
                array = array[...]
            array = np.asarray(array)  # indexing a 0-d array gives a scalar
            expected = array.copy(order="K") if array.dtype.itemsize else array
            layouts = set()
            try:
                for _, found in engine(array, on_put=on_put, mmap_mode=mmap_mode):
                    assert_identical(found, expected, order=False)
                    layouts.add((found.flags.c_contiguous, found.flags.f_contiguous))
            except ValueTypeError as error:
                # Only what NumPy's own format would change, too.
                descr = np.lib.format.dtype_to_descr(array.dtype)
                assert repr(np.lib.format.descr_to_dtype(descr)) != repr(array.dtype), error
                return
            if on_put != "share":
                assert len(layouts) == 1


class Sub(np.ndarray):
    pass


class MappedSub(np.memmap):
    pass


SCALARS = [
    np.bool_(True), np.int8(-1), np.uint64(2**64 - 1), np.longlong(5), np.float16(0.1),
    np.float32("nan"), np.float64(-0.0), np.longdouble(1) / 3, np.complex64(1j),
    np.clongdouble(1 + 2j) / 3, np.str_(""), np.str_("a"), np.str_("a\0"), np.str_("\0\0"),
    np.str_("\ud800x"), np.str_("\U0001f600" * 50_000), np.bytes_(b""), np.bytes_(b"a\0"),
    np.bytes_(b"\0\0"), np.bytes_(b"x" * 100_000), np.datetime64("2020-01-01T00", "ns"),
    np.datetime64("NaT"), np.datetime64("NaT", "s"), np.timedelta64(5, "25s"), np.timedelta64(5),
    np.array([1.5], ">f8")[0], np.array(["ab", "c"], ">U2")[1], np.array(["ab", "c"], "U2")[1],
    np.array([b"ab", b"c"])[1], np.void(b"ab\0"), np.void(b""), np.void(b"z" * 100_000),
    np.zeros(1, [("a", "i4"), ("b", "f8", 2)])[0], np.array([(1, 2)], "i4,i4")[0],
    np.zeros(1, [(("title", "a"), ">U4")])[0],
    np.zeros(1, np.dtype([("a", "i1"), ("b", "f8")], align=True))[0],
]  # fmt: skip


class TestScalars:
    @pytest.mark.parametrize("scalar", SCALARS, ids=lambda each: f"{each.dtype}"[:20])
    @pytest.mark.parametrize("mmap_mode", ["r", "c"])
    def test_come_back_as_scalars_of_the_same_type(self, scalar, mmap_mode):
        for _, found in engine(scalar, mmap_mode=mmap_mode):
            assert_identical(found, scalar)

    def test_that_are_structured_can_be_written_to_without_any_effect(self, chest):
        scalar = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])[0]
        chest["x"] = scalar
        scalar["a"] = 99
        for _ in range(2):
            found = chest["x"]
            assert found["a"] == 1
            found["a"] = 77
            assert chest["x"]["a"] == 1
            chest.spill("x")

    def test_and_arrays_without_dimensions_are_told_apart(self, chest):
        chest["scalar"], chest["array"] = np.float64(1), np.array(1.0)
        for _ in range(2):
            assert type(chest["scalar"]) is np.float64
            assert type(chest["array"]) is np.ndarray
            chest.flush()


def with_metadata() -> np.ndarray:
    return np.zeros(3, np.dtype("f8", metadata={"unit": "m"}))


def with_metadata_inside() -> np.ndarray:
    return np.zeros(3, [("a", np.dtype("f8", metadata={"unit": "m"}))])


def with_metadata_deep_inside() -> np.ndarray:
    return np.zeros(3, [("a", [("b", np.dtype("f8", metadata={"unit": "m"}), 2)])])


REFUSED = {
    "object itself": (object, "register"),
    "object in a list": (lambda: [1, {"a": (object(),)}], "register.*allow_pickle"),
    "subclass of list": (lambda: type("Mine", (list,), {})([1]), "Mine"),
    "subclass of int": (lambda: type("Mine", (int,), {})(1), "Mine"),
    "function": (lambda: print, "builtin_function"),
    "generator": (lambda: (each for each in ()), "generator"),
    "bytearray": (lambda: bytearray(3), "bytearray"),
    "memoryview": (lambda: memoryview(b"abc"), "memoryview"),
    "record dtype": (lambda: np.asarray(np.rec.array([(1, 2)])).view(np.ndarray), "record"),
    "chararray": (lambda: np.zeros(2, "S3").view(np.char.chararray), "chararray"),
    "subclass": (lambda: np.zeros(3).view(Sub), "Sub"),
    "subclass of memmap": (
        lambda: np.memmap(os.path.join(os.environ["TMPDIR"], "m"), "u1", "w+", shape=3).view(
            MappedSub
        ),
        "MappedSub",
    ),
    "scalar of a subclass": (lambda: type("Mine", (np.float64,), {})(1), "Mine"),
    "object": (lambda: np.array([1, "a", None], object), "allow_pickle"),
    "object inside": (lambda: np.zeros(2, [("a", "i4"), ("b", "O")]), "allow_pickle"),
    "metadata": (with_metadata, "metadata"),
    "metadata inside": (with_metadata_inside, "metadata"),
    "metadata deep inside": (with_metadata_deep_inside, "metadata"),
    "overlapping fields": (
        lambda: np.zeros(
            2, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 0], "itemsize": 4}
        ),
        "come back",
    ),
    "fields out of order": (
        lambda: np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]}),
        "come back",
    ),
}


class TestRefused:
    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("name", REFUSED)
    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_what_would_come_back_as_something_else_with_a_word_on_what_to_do(
        self, name, budget, make_chest
    ):
        make, hint = REFUSED[name]
        value = make()
        with make_chest(available_memory=budget) as chest:
            chest["x"] = np.arange(3)
            before = chest.stats()._replace(absent=0)
            for put in (
                chest.__setitem__,
                lambda key, value: chest.update({key: value}),
                lambda key, value: chest.setdefault("new", value),
            ):
                with pytest.raises(ValueTypeError, match=hint) as caught:
                    put("x", value)
                assert isinstance(caught.value, TypeError)
            assert list(chest) == ["x"]
            assert chest.stats()._replace(absent=0) == before
            assert_identical(chest["x"], np.arange(3))
            if isinstance(value, np.ndarray):
                assert value.flags.writeable

    def test_a_dtype_is_remembered_by_all_that_tells_it_apart(self, chest):
        # Equal in NumPy's eyes, and good once: no reason to take the next.
        chest["x"] = np.zeros(3)
        with pytest.raises(ValueTypeError, match="metadata"):
            chest["x"] = with_metadata()
        chest["y"] = np.zeros(3, [("a", "i4")])
        with pytest.raises(ValueTypeError, match="record"):
            chest["y"] = np.asarray(np.rec.array([(1,)], dtype=[("a", "i4")])).view(np.ndarray)
        chest["z"] = np.zeros(3, np.dtype([("a", "i4")], align=True))
        chest.flush()
        assert chest["z"].dtype.isalignedstruct
        assert not chest["y"].dtype.isalignedstruct


class TestObjects:
    ARRAYS = [
        np.array([1, "a", None, (2, 3)], object),
        np.array([[1, 2], [3, 4]], object),
        np.asfortranarray(np.array([[1, "x"], [3, None]], object)),
        np.array([], object),
        np.array({"a": 1}, object),
        np.array([(1, "x")], [("a", "i4"), ("b", "O")]),
    ]

    @pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
    def test_are_stored_when_pickle_is_allowed(self, array):
        check(array.copy(order="K"), allow_pickle=True)

    def test_are_never_unpickled_by_a_chest_that_does_not_allow_it(self, path):
        with arraychest.Chest(path=path, allow_pickle=True) as chest:
            chest["x"] = np.array([Bomb()], object)
            chest["y"] = np.arange(3)
        for mode in ("r", "a"):
            with arraychest.open(path, mode) as chest:
                with pytest.raises(PickleRefusedError, match="allow_pickle=True"):
                    chest["x"]
                assert chest.entry("x").dtype == object
                assert_identical(chest["y"], np.arange(3))
                assert list(chest) == ["x", "y"]
        with (
            arraychest.open(path, "r", allow_pickle=True) as chest,
            pytest.raises(ZeroDivisionError),
        ):
            chest["x"]

    def test_are_not_smuggled_in_by_update(self, path, make_chest):
        theirs = make_chest(allow_pickle=True)
        theirs["x"] = np.array([{"a": 1}], object)
        theirs.flush()
        mine = make_chest(path=path)
        with pytest.raises((PickleRefusedError, ValueTypeError)):
            mine.update(theirs)
        assert list(mine) == []

    def test_that_cannot_be_pickled_are_an_error_and_not_a_hang(self, make_chest):
        chest = make_chest(allow_pickle=True)
        with pytest.raises((arraychest.ArrayChestError, AttributeError)) as caught:
            chest["x"] = np.array([lambda: 1], object)
            chest.flush()
        assert "pickle" in repr(caught.value) + repr(caught.value.__cause__)
        chest.discard("x")
        chest["y"] = np.arange(3)
        chest.flush()


class Bomb:
    """What a stranger may put into a pickle."""

    def __reduce__(self) -> Any:
        return (divmod, (1, 0))


@pytest.mark.parametrize("code", ["f8", "i2", "c16", "M8[s]"])
def test_a_dtype_that_names_this_machines_byte_order_is_that_dtype(path, code):
    order = "<" if np.little_endian else ">"
    array = np.arange(3).astype(code).astype(np.dtype(code).newbyteorder(order))
    with arraychest.Chest(path=path) as chest:
        chest["x"] = array
        chest.spill("x")
        assert chest.entry("x").dtype == np.dtype(code)
    with arraychest.open(path) as chest:
        assert chest["x"].dtype == np.dtype(code)
        assert chest["x"].tolist() == array.tolist()
