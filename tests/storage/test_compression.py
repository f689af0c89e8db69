"""Compressed values of a chest: which are, how they are asked for, and what a get of one gives."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

import arraychest
from arraychest import Chest, CompressedArray, LazyArray
from arraychest.formats import b2nd
from tests.faults import RESERVING, Say, in_child, injected
from tests.real_data import FIELDS
from tests.support import IMPORT_ROOT, audit, run_python

MIB = 1 << 20


def smooth(shape: tuple[int, ...] = (600, 700), dtype: str = "f4") -> np.ndarray:
    axes = [np.sin(np.arange(n) / 40) for n in shape]
    return (100 * sum(np.meshgrid(*axes, indexing="ij"))).astype(dtype)  # type: ignore[no-any-return]


def noise(nbytes: int = 2 * MIB) -> np.ndarray:
    return np.random.default_rng(0).random(nbytes // 8)


def stored(chest: Chest, key: object, array: np.ndarray, **options: object) -> arraychest.Entry:
    """Put a copy, so that a get gives what is stored and not what was put."""
    chest.put(key, array.copy(order="A"), **options)
    chest.spill(key)
    gc.collect()
    return chest.entry(key)


# --- which are, and with what --------------------------------------------------------------------


@pytest.mark.slow
def test_large_arrays_that_compress_are_compressed_and_others_are_not(tmp_path):
    with Chest(path=tmp_path / "c", compress_above=MIB) as chest:
        assert stored(chest, "smooth", smooth()).codec in ("lz4", "zstd")
        assert stored(chest, "noise", noise()).codec == "npy"
        assert stored(chest, "less", smooth((500, 500))).codec == "npy"
        assert stored(chest, "small", smooth((50, 50))).codec == "pack"
        assert type(chest["smooth"]) is CompressedArray
        assert type(chest["noise"]) is np.ndarray
        for key in ("smooth", "noise", "less"):
            assert chest.key_to_filename(key).endswith(".b2nd" if key == "smooth" else ".npy")
        assert chest.verify().ok


@pytest.mark.slow
def test_by_default_arrays_of_tens_of_mebibytes_are_sampled(tmp_path):
    assert 10 * MIB <= arraychest.COMPRESS_ABOVE <= 100 * MIB
    side = int((arraychest.COMPRESS_ABOVE / 4) ** 0.5) + 1
    with Chest(path=tmp_path / "c") as chest:
        assert stored(chest, "large", smooth((side, side))).codec in ("lz4", "zstd")
        assert stored(chest, "less", smooth((side - 1, side - 2))).codec == "npy"


@pytest.mark.parametrize("name", ["blosclz", "lz4", "lz4hc", "zlib", "zstd"])
def test_a_codec_can_be_named(tmp_path, name):
    array = smooth()
    with Chest(path=tmp_path / "c", compression=name) as chest:
        entry = stored(chest, "x", array)
        assert entry.codec == name
        assert entry.filters == ("shuffle",)
        assert np.asarray(chest["x"]).tobytes() == array.tobytes()


def test_cparams_are_taken_with_their_filters(tmp_path):
    array = smooth()
    cparams = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=3,
        filters=[blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
        filters_meta=[0, 0],
    )
    with Chest(path=tmp_path / "c", compression=cparams) as chest:
        entry = stored(chest, "x", array)
        assert (entry.codec, entry.clevel) == ("zstd", 3)
        assert entry.filters == ("shuffle", "bytedelta")
        assert np.asarray(chest["x"]).tobytes() == array.tobytes()
        # Of one byte each: there is nothing to take differences between.
        assert stored(chest, "bytes", array.astype("u1")).filters == ("shuffle",)


def test_what_loses_digits_does_so_only_where_it_was_asked_to(tmp_path):
    array = np.random.default_rng(0).random((600, 700))
    lossy = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        filters=[blosc2.Filter.TRUNC_PREC, blosc2.Filter.BITSHUFFLE],
        filters_meta=[20, 0],
    )
    with Chest(path=tmp_path / "c", compress_above=MIB) as chest:
        entry = stored(chest, "x", array, compression=lossy)
        assert entry.filters == ("trunc_prec", "bitshuffle")
        found = np.asarray(chest["x"])
        assert 0 < np.abs(found - array).max() < 1e-5
        # It has no meaning for integers: they stay as they are.
        numbers = np.arange(100_000)
        assert stored(chest, "n", numbers, compression=lossy).codec == "npy"
        assert (chest["n"] == numbers).all()


@pytest.mark.slow
def test_a_put_may_ask_for_another_codec_than_the_chests(tmp_path):
    with Chest(path=tmp_path / "c", compression=None, compress_above=MIB) as chest:
        assert stored(chest, "as the chest", smooth()).codec == "npy"
        assert stored(chest, "named", smooth(), compression="zstd").codec == "zstd"
        assert stored(chest, "sampled", smooth(), compression="auto").codec in ("lz4", "zstd")
        # The next put of the key asks for nothing.
        assert stored(chest, "named", smooth()).codec == "npy"
    with Chest(path=tmp_path / "d", compression="lz4") as chest:
        assert stored(chest, "never", smooth(), compression=None).codec == "npy"
        with chest.transaction():
            chest.put("x", smooth(), compression="zlib")
            chest["y"] = smooth()
            assert chest.entry("x").codec == "zlib"
        assert chest.entry("y").codec == "lz4"
        chest.available_memory = MIB
        chest.put("beyond the budget", smooth(), compression="zlib")
        assert chest.entry("beyond the budget").codec == "zlib"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("zstd5", "expected one of the codecs blosclz, lz4"),
        (5, 'expected compression to be "auto", None, one of the codecs'),
        (
            blosc2.CParams(filters=[blosc2.Filter.DELTA], filters_meta=[0]),
            "expected up to 6 filters",
        ),
        (blosc2.CParams(codec=blosc2.Codec.NDLZ), "expected one of the codecs"),
    ],
)
def test_what_is_no_compression_is_refused_at_once(asked, error):
    chest = Chest({"x": np.zeros(3)})
    with pytest.raises((ValueError, TypeError), match=error):
        chest.put("x", smooth(), compression=asked)
    assert chest["x"].shape == (3,)
    with pytest.raises((ValueError, TypeError), match=error):
        Chest(compression=asked)


def test_other_options_are_checked():
    with pytest.raises(ValueError, match="compression_threads to be 1 or more, found 0"):
        Chest(compression_threads=0)
    with pytest.raises(ValueError, match="expected"):
        Chest(compress_above="a lot")


def test_an_entry_tells_how_it_is_compressed_without_reading_it(tmp_path):
    array = smooth((512, 1024))
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        chest["x"] = array
        before = chest.entry("x")
        assert (before.codec, before.ratio, before.chunks) == (None, None, None)
        chest.spill("x")
        entry = chest.entry("x")
        assert (entry.codec, entry.clevel, entry.filters) == ("lz4", 1, ("shuffle",))
        assert entry.chunks == (88, 1064)
        assert entry.blocks == (11, 152)
        assert entry.stored_bytes == os.path.getsize(entry.file)
        assert entry.ratio == array.nbytes / entry.stored_bytes > 1
        assert chest.stats().faults == 0
        stored(chest, "turned", np.asfortranarray(array))
        assert chest.entry("turned").blocks == (176, 9)
        assert stored(chest, "n", smooth((10, 10))).ratio == 1


# --- every array comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
def test_measured_data_come_back(tmp_path, field):
    array = FIELDS[field](3 * MIB)
    with Chest(path=tmp_path / "c", compression="zstd") as chest:
        entry = stored(chest, "x", array)
        assert entry.stored_bytes < array.nbytes / 1.2
        compressed = chest["x"]
        assert type(compressed) is CompressedArray
        assert np.asarray(compressed).tobytes() == array.tobytes()
        assert compressed[3:5].tobytes() == array[3:5].tobytes()
        assert compressed.sum() == pytest.approx(array.sum(dtype="f8"), rel=1e-6)
        assert compressed.max() == array.max()
        # Anybody can read it.
        assert blosc2.open(entry.file)[...].tobytes() == array.tobytes()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize(
    "array",
    [
        smooth(dtype=">f4"),
        smooth(dtype=">i2"),
        smooth((80, 90, 100)),
        np.asfortranarray(smooth((80, 90, 100))),
        smooth((80, 90, 100)).transpose(1, 0, 2),
        smooth((300, 500)).astype("c16"),
        smooth((300, 500)) > 0,
        np.arange(200_000).astype("M8[s]"),
        np.arange(200_000).astype("m8[ms]"),
        smooth((2,) * 17),
        smooth((3, 100_000, 1)),
        np.float16(smooth()),
        np.zeros((500, 500)),
        np.full((500, 500), 7.5),
        np.full((500, 500), np.nan),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_arrays_of_many_kinds_come_back_as_they_went_in(tmp_path, array, compression):
    with Chest(path=tmp_path / "c", compression=compression, on_put="copy") as chest:
        kept = chest["kept"] = array
        stored(chest, "x", array)
        for key in ("x", "kept"):
            chest.spill(key)
            found = chest[key]
            assert found.dtype == array.dtype
            assert found.dtype.str == array.dtype.str
            assert found.shape == array.shape
            whole = np.asarray(found)
            np.testing.assert_array_equal(whole, array)
            assert whole.flags.f_contiguous == array.copy(order="A").flags.f_contiguous
        assert chest.verify().ok
        assert kept is array


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5_000, [("a", "i4"), ("b", "f8", 3)]),
        np.array(3.5),
        np.zeros((0, 5)),
        np.zeros((5, 0), ">i4", order="F"),
        np.full(100_000, "text"),
        np.full(100_000, b"text"),
        np.zeros(40_000, "V7"),
    ],
    ids=lambda array: f"{array.dtype.kind} {array.shape}",
)
def test_what_blosc2_knows_nothing_of_is_stored_as_it_is(tmp_path, array):
    with Chest(path=tmp_path / "c", compression="zstd") as chest:
        assert stored(chest, "x", array).codec in ("npy", "pack")
        assert chest["x"].dtype == array.dtype
        assert chest["x"].tobytes() == array.tobytes()


def test_a_compressed_array_can_be_put_again(tmp_path):
    array = np.asfortranarray(smooth())
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        stored(chest, "x", array)
        chest["y"] = chest["x"]
        chest["z"] = chest["x"][5]
        assert type(chest["y"]) is np.ndarray
        chest.flush()
        for key in "xy":
            found = np.asarray(chest[key])
            assert found.flags.f_contiguous
            assert (found == array).all()
        assert (chest["z"] == array[5]).all()
        assert chest == {key: np.asarray(chest[key]) for key in chest}
        with Chest(path=tmp_path / "d") as other:
            other.update(chest)
            assert other == chest


# --- what a get gives ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_get_decompresses_nothing_but_what_is_asked_for(tmp_path, monkeypatch):
    array = smooth((4000, 2000))
    seen = []
    check = b2nd.CheckedReader._check

    def spied(self: b2nd.CheckedReader, number: int, blocks: tuple[range, ...]) -> None:
        seen.append(number)
        check(self, number, blocks)

    monkeypatch.setattr(b2nd.CheckedReader, "_check", spied)
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        entry = stored(chest, "x", array)
        assert entry.chunks is not None
        compressed = chest["x"]
        assert (compressed.shape, compressed.dtype) == (array.shape, array.dtype)
        assert (compressed.nbytes, compressed.size) == (array.nbytes, array.size)
        assert not seen
        row = entry.chunks[0] * 3 + 1
        assert (compressed[row, 7:9] == array[row, 7:9]).all()
        across = -(-array.shape[1] // entry.chunks[1])
        assert set(seen) == {3 * across}
        assert chest["x"] is compressed


def test_mmap_mode_decides_what_a_compressed_value_comes_back_as(tmp_path):
    array = np.asfortranarray(smooth())
    path = tmp_path / "c"
    with Chest(path=path, compression="lz4") as chest:
        stored(chest, "x", array)
    with arraychest.open(path, mmap_mode="c") as chest:
        mine = chest["x"]
        mine[0, 0] = -1
        assert mine.flags.f_contiguous
        assert chest["x"][0, 0] == array[0, 0]
        assert chest.entry("x").codec == "lz4"
    with arraychest.open(path) as chest:
        with chest.edit("x", in_place=True) as shared:
            assert type(shared) is np.ndarray
            assert shared.flags.f_contiguous
            shared[0, 0] = -1
        assert chest.entry("x").codec == "npy"
    with arraychest.open(path, "r") as chest:
        assert chest["x"][0, 0] == -1
        assert (chest["x"][1:] == array[1:]).all()


def test_a_compressed_array_outlives_its_key_and_its_chest(tmp_path):
    array = smooth()
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        file = stored(chest, "x", array).file
        compressed = chest["x"]
        handle = pickle.loads(pickle.dumps(chest.handle("x")))
        other = handle.array()
        assert type(other) is CompressedArray
        assert type(handle.array("c")) is np.ndarray
        chest["x"] = np.zeros(3)
        chest.flush()
        del chest["x"]
    # A file goes a moment after the commit.
    assert not os.path.exists(file)
    with pytest.raises(arraychest.AbsentKeyError):
        handle.array()
    chest = None
    gc.collect()
    for each in (compressed, other):
        assert (np.asarray(each) == array).all()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compression", ["lz4", None])
def test_a_stored_array_is_pickled_and_copied_alike_compressed_or_not(tmp_path, order, compression):
    array = np.asarray(smooth(), order=order)
    with Chest(path=tmp_path / "c", compression=compression) as chest:
        stored(chest, "x", array)
        found = chest["x"]
        assert type(found) is (np.ndarray if compression is None else CompressedArray)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(found, protocol))
            np.testing.assert_array_equal(again, array, strict=True)
            assert again.flags.f_contiguous == array.flags.f_contiguous
            # Protocol 5 keeps a read-only array so, and those before do not.
            assert again.flags.writeable == (protocol < 5)
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps({"a": [found]}, 5, buffer_callback=buffers.append)
        again = pickle.loads(data, buffers=[bytearray(each) for each in buffers])["a"][0]
        np.testing.assert_array_equal(again, array, strict=True)
        copies = [copy.copy(found), copy.deepcopy(found), copy.deepcopy([found])[0]]
        chest["tree"] = {"x": found, "y": 1}
        chest.flush()
        copies.append(copy.deepcopy(chest["tree"])["x"])
        twice = copy.deepcopy([found, found])
        assert twice[0] is twice[1]
        del chest["x"]
        chest.flush()
        again = pickle.loads(pickle.dumps(found))
        np.testing.assert_array_equal(again, array, strict=True)
    for each in copies:
        assert type(each) is np.ndarray
        assert each.dtype == array.dtype
        assert each.flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(each, array)
        each[0, 0] = -1
    np.testing.assert_array_equal(np.asarray(found), array)


def test_an_edit_of_a_compressed_value(tmp_path):
    array = np.asfortranarray(smooth())
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        stored(chest, "x", array)
        with chest.edit("x") as edited:
            assert edited.flags.f_contiguous
            assert (edited == array).all()
            edited[3, 4] = 1e9
        assert chest["x"][3, 4] == 1e9
        stored(chest, "y", array)
        with pytest.raises(ZeroDivisionError), chest.edit("y") as edited:
            edited[...] = 0
            raise ZeroDivisionError
        assert (np.asarray(chest["y"]) == array).all()
        assert chest.verify().ok


@pytest.mark.slow
def test_work_on_an_array_larger_than_the_budget_needs_memory_for_chunks(tmp_path):
    out = run_python(f"""
        import resource
        import numpy as np, blosc2
        import arraychest
        row = np.sin(np.arange(8192) / 100).astype("f4")
        with arraychest.Chest(path={str(tmp_path / "c")!r}, available_memory="32 MiB") as chest:
            array = np.empty((6144, 8192), "f4")
            array[:] = row
            array += np.arange(6144, dtype="f4")[:, None]
            expected = array.sum(dtype="f8")
            chest["x"] = array
            assert chest.entry("x").codec in ("lz4", "zstd"), chest.entry("x")
        del array
        print(int(expected))
    """)
    expected = int(out.stdout)
    out = run_python(f"""
        import resource
        import numpy as np, blosc2
        import arraychest
        chest = arraychest.open({str(tmp_path / "c")!r}, "r")
        compressed = chest["x"]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        total = compressed.sum(dtype="f8")
        least, mean = compressed.min(axis=0), np.mean(compressed, axis=1)
        print(int(total))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)
    total, grown = map(int, out.stdout.split())
    assert abs(total - expected) <= abs(expected) * 1e-6
    # Mebibytes; the array has 192, of which those on disk are mapped.
    assert grown < 96


@pytest.mark.slow
def test_compressing_takes_no_more_memory_than_is_charged_for_it(tmp_path):
    out = run_python(f"""
        import resource
        import numpy as np, blosc2
        import arraychest
        from arraychest.formats import b2nd, blosc
        array = np.add.outer(np.sin(np.arange(8192.0)), np.arange(6144.0)).astype("f4")
        blosc.chosen(array)
        options = dict(compression_threads=2, available_memory="1 GiB")
        with arraychest.Chest(path={str(tmp_path / "c")!r}, **options) as chest:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            chest["x"] = array
            chest.flush()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert chest.entry("x").codec in ("lz4", "zstd")
        print(grown * 1024, 2 * b2nd.WORKING_BYTES)
    """)
    grown, charged = map(int, out.stdout.split())
    # Threads and SQLite take some, too; the array has 192 MiB.
    assert grown < charged + 16 * MIB


# --- in RAM ----------------------------------------------------------------------------------------


def test_load_gives_a_plain_array_wherever_the_value_is(tmp_path):
    array = smooth()
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        stored(chest, "compressed", array)
        stored(chest, "mapped", array, compression=None)
        stored(chest, "packed", array[:10, :10])
        chest["resident"] = array.copy()
        chest["scalar"] = np.float64(5)
        for key in ("compressed", "mapped", "resident"):
            found = chest.load(key)
            assert type(found) is np.ndarray
            assert (found == array).all()
            assert not found.flags.writeable
            assert found.base is None or found.base.base is None
        assert chest.load("packed").base is None
        assert chest.load("scalar") == 5
        with pytest.raises(arraychest.AbsentKeyError):
            chest.load("absent")
        with chest.transaction():
            chest.put("new", array)
            assert (chest.load("new") == array).all()
    with arraychest.open(tmp_path / "c", mmap_mode="c") as chest:
        for key in ("compressed", "mapped"):
            mine = chest.load(key)
            mine[0, 0] = -1
            assert chest[key][0, 0] == array[0, 0]


@pytest.mark.slow
def test_a_decompressed_copy_is_charged_and_dropped_first(tmp_path):
    array = smooth((500, 1000))
    with Chest(path=tmp_path / "c", compression="lz4", available_memory=8 * MIB) as chest:
        for key in range(4):
            stored(chest, key, array + key)
        assert chest.memory_usage == 0
        copies = [chest.load(key) for key in range(3)]
        assert chest.memory_usage == 3 * array.nbytes
        assert chest.load(1) is copies[1]
        assert type(chest[1]) is CompressedArray
        chest._engine.session.resident.check()
        # A fourth has no room below the high watermark: what was used least recently goes.
        chest.load(3)
        assert chest.memory_usage <= 8 * MIB
        assert chest.load(1) is copies[1]
        assert chest.load(0) is not copies[0]
        chest.load(1)
        # Values that are not stored come first.
        spills = chest.stats().spills
        chest["dirty"] = noise(5 * MIB)
        assert chest.stats().spills == spills, "a value was spilled where a copy could go"
        assert chest.memory_usage <= 8 * MIB
        assert "dirty" in chest.inmem
        chest._engine.session.resident.check()


def test_a_copy_goes_with_its_value(tmp_path):
    array = smooth()
    with Chest(path=tmp_path / "c", compression="lz4", available_memory=64 * MIB) as chest:
        for change in ("put", "delete", "update"):
            stored(chest, "x", array)
            chest.load("x")
            assert chest.memory_usage == array.nbytes
            if change == "delete":
                del chest["x"]
                assert "x" not in chest
            elif change == "put":
                chest["x"] = np.zeros(10)
                assert chest.load("x").shape == (10,)
            else:
                with chest.transaction():
                    chest["x"] = np.ones(10)
                assert (chest.load("x") == 1).all()
            chest.flush()
            assert chest.memory_usage == 0
            chest._engine.session.resident.check()


@pytest.mark.slow
def test_another_process_s_overwrite_is_not_hidden_by_a_copy(tmp_path):
    array = smooth()
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        stored(chest, "x", array)
        chest.load("x")
        run_python(f"""
            import numpy as np, arraychest
            with arraychest.open({str(tmp_path / "c")!r}, compression="lz4") as chest:
                chest["x"] = np.full((600, 700), 5, "f4")
        """)
        assert (chest.load("x") == 5).all()
        assert (np.asarray(chest["x"]) == 5).all()


def test_what_a_writer_works_in_is_charged(tmp_path, monkeypatch):
    array = smooth((2000, 2000))
    seen: list[int] = []
    write = b2nd.write

    def spied(*args: object) -> int:
        seen.append(chest.memory_usage)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(b2nd, "write", spied)
    with Chest(path=tmp_path / "c", compression="lz4", compression_threads=2) as chest:
        stored(chest, "x", array)
        assert seen == [array.nbytes + 2 * b2nd.WORKING_BYTES]
        assert chest.memory_usage == 0

        def failing(*args: object) -> int:
            raise OSError(5, "no")

        monkeypatch.setattr(b2nd, "write", failing)
        chest["y"] = array.copy()
        with pytest.raises(arraychest.SpillError):
            chest.spill("y")
        assert chest.memory_usage == array.nbytes
        chest._engine.session.resident.check()
        monkeypatch.setattr(b2nd, "write", write)
        chest.flush()
        assert chest.memory_usage == 0


def test_threads_read_and_write_one_chest(tmp_path):
    arrays = [smooth((800, 900)) + number for number in range(6)]
    wrong: list[object] = []
    with Chest(
        path=tmp_path / "c", compression="lz4", available_memory=8 * MIB, on_put="copy"
    ) as chest:
        for number, array in enumerate(arrays):
            chest[number] = array
        chest.flush()

        def read(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(60):
                number = int(random.integers(len(arrays)))
                i, j = random.integers(0, 700, 2)
                found = chest[number][i : i + 70, j : j + 90]
                if not (found == arrays[number][i : i + 70, j : j + 90]).all():
                    wrong.append((number, i, j))
                if seed == 0 and not (chest.load(number) == arrays[number]).all():
                    wrong.append(number)

        def write() -> None:
            for turn in range(20):
                chest[turn % len(arrays)] = arrays[turn % len(arrays)]

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        threads.append(threading.Thread(target=write))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        chest.flush()
        chest._engine.session.resident.check()
        assert chest.verify().ok


# --- Blosc2 ----------------------------------------------------------------------------------------


def test_who_meets_no_large_array_never_imports_blosc2(tmp_path):
    run_python(f"""
        import sys
        import numpy as np
        import arraychest
        with arraychest.Chest(path={str(tmp_path / "c")!r}, available_memory="8 MiB") as chest:
            for number in range(20):
                chest[number] = np.full((1 << 18,), number)
                chest[str(number)] = np.full(10, number)
            chest.flush()
            assert chest[3][7] == 3 and chest["5"][0] == 5
            assert chest.verify().ok
            chest.compact()
            assert "blosc2" not in sys.modules
        with arraychest.open({str(tmp_path / "c")!r}, "r") as chest:
            assert chest[3].sum() == 3 << 18
            assert "blosc2" not in sys.modules
            chest.load(4)
        assert "blosc2" not in sys.modules
    """)


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "expected"), [(1, {0}), (3, {1, 2, 3})])
def test_threads_can_be_set_and_blosc2s_own_are_left_alone(tmp_path, asked, expected):
    before = blosc2.nthreads
    names: set[str] = set()
    with Chest(path=tmp_path / "c", compression="lz4", compression_threads=asked) as chest:
        start = threading.Thread.start

        def spied(thread: threading.Thread) -> None:
            names.add(thread.name)
            start(thread)

        threading.Thread.start = spied  # type: ignore[method-assign]
        try:
            stored(chest, "x", smooth((4000, 4000)))
        finally:
            threading.Thread.start = start  # type: ignore[method-assign]
    # One that is idle again takes the next chunk: not all have to be started.
    assert len([name for name in names if name.startswith("arraychest-chunk")]) in expected
    assert blosc2.nthreads == before


def test_a_reopened_chest_reads_what_was_compressed(tmp_path: Path):
    array = smooth()
    with Chest(path=tmp_path / "c", compression="lz4", durable=True) as chest:
        chest["x"] = array.copy()
    with arraychest.open(tmp_path / "c", "r") as chest:
        assert type(chest["x"]) is CompressedArray
        assert (chest["x"] + 1 == array + 1).all()
        assert (chest["x"] @ array.T == array @ array.T).all()
        assert chest.verify().ok
    again = pickle.loads(pickle.dumps(arraychest.open(tmp_path / "c", compression="zstd")))
    with again:
        assert stored(again, "y", array).codec == "zstd"


# --- processes, descriptors, full disks ------------------------------------------------------------


_WORKERS = """
import gc, multiprocessing, os, sys
import numpy as np
import arraychest

def sum_of(handle, folder):
    # Reads by a handle, and compresses and reads on its own.
    array = np.asarray(handle.array())
    with arraychest.Chest(path=f"{folder}/{os.getpid()}", compression="zstd") as chest:
        chest["mine"] = array.copy()
        chest.flush()
        gc.collect()
        assert type(chest["mine"]) is arraychest.CompressedArray
        assert (np.asarray(chest["mine"]) == array).all()
    return float(array.sum(dtype="f8"))

if __name__ == "__main__":
    method, folder = sys.argv[1:]
    array = np.add.outer(np.arange(1500.0), np.sin(np.arange(2000.0))).astype("f4")
    with arraychest.Chest(path=f"{folder}/c", compression="lz4") as chest:
        chest["x"] = array.copy()
        chest.flush()
        gc.collect()
        assert (np.asarray(chest["x"]) == array).all()
        with multiprocessing.get_context(method).Pool(2) as pool:
            work = pool.starmap_async(sum_of, [(chest.handle("x"), folder)] * 4)
            assert work.get(timeout=60) == [float(array.sum(dtype="f8"))] * 4
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_and_compress_after_their_parent_has(tmp_path, method):
    # A program of its own, as the start methods want one, and leave helpers behind.
    program = tmp_path / "workers.py"
    program.write_text(_WORKERS)
    environment = {**os.environ, "PYTHONPATH": IMPORT_ROOT}
    command = [sys.executable, str(program), method, str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_reads_what_its_parent_had_open(tmp_path):
    array = smooth((1500, 2000))
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        stored(chest, "x", array)
        compressed = chest["x"]
        assert compressed[3, 4] == array[3, 4]
        assert (np.asarray(compressed) == array).all()

        def child(say: Say) -> bool:
            right = (np.asarray(compressed) == array).all() and compressed[7, 8] == array[7, 8]
            return bool(right and (chest["x"][5] == array[5]).all())

        outcome = in_child(child, seconds=30)
        assert outcome.error is None, outcome.error
        assert outcome.result


@pytest.mark.slow
def test_a_child_forked_while_others_compress_does_not_hang(tmp_path):
    array = smooth((1500, 2000))
    with Chest(path=tmp_path / "c", compression="zstd", on_put="copy") as chest:
        done = threading.Event()

        def compress() -> None:
            number = 0
            while not done.is_set():
                number += 1
                chest[number % 3] = array
                chest.flush()

        thread = threading.Thread(target=compress)
        thread.start()
        try:
            for number in range(5):

                def child(say: Say, number: int = number) -> bool:
                    with Chest(path=tmp_path / f"{number}", compression="lz4") as mine:
                        mine["x"] = array.copy()
                        mine.flush()
                        gc.collect()
                        return bool((np.asarray(mine["x"]) == array).all())

                outcome = in_child(child, seconds=30)
                assert outcome.error is None, outcome.error
                assert outcome.result
        finally:
            done.set()
            thread.join()


@pytest.mark.slow
def test_compressed_arrays_hold_no_descriptors(tmp_path):
    run_python(
        f"""
        import numpy as np, arraychest
        with arraychest.Chest(path={str(tmp_path / "c")!r}, compression="lz4") as chest:
            array = np.arange(50_000.0)
            for number in range(300):
                chest[number] = array + number
            chest.flush()
        chest = arraychest.open({str(tmp_path / "c")!r}, "r")
        values = [chest[number] for number in range(300)]
        assert all(type(value) is arraychest.CompressedArray for value in values)
        assert [value[7] for value in values] == [7.0 + number for number in range(300)]
        """,
        prefix="ulimit -n 64",
    )


@pytest.mark.slow
def test_few_compressed_arrays_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr("arraychest.memory.views.MAX_KEPT_FRAMES", 3)
    with Chest(path=tmp_path / "c", compression="lz4") as chest:
        for number in range(10):
            stored(chest, number, np.arange(20_000) + number)
        held = chest[0]
        for number in range(10):
            assert chest[number][5] == 5 + number
        slots = chest._engine.session.index.slots.values()
        assert sum(slot.value is not None for slot in slots) <= 3
        # One that a user holds is the same one, all the same.
        assert chest[0] is held


def test_a_full_disk_loses_nothing_and_is_no_signal(tiny_disk):
    def child(say: Say) -> None:
        random = np.random.default_rng(0)
        expected = {}
        chest = Chest(path=tiny_disk / "c", compression="lz4", available_memory=2 * MIB)
        failed = 0
        for number in range(30):
            array = random.random(60_000)
            try:
                chest[number] = array.copy()
            except arraychest.SpillError as error:
                assert isinstance(error.__cause__, OSError)
                failed += 1
            else:
                expected[number] = array
        assert failed
        assert len(expected) > 3
        for number in list(expected)[::2]:
            del chest[number], expected[number]
        for _ in range(5):
            try:
                chest.flush()
                break
            except arraychest.SpillError:
                continue
        for number, array in expected.items():
            assert (np.asarray(chest[number]) == array).all()
        chest.close()
        with arraychest.open(tiny_disk / "c", "r") as chest:
            assert set(chest) == set(expected)
            assert chest.verify().ok
            assert all(chest.entry(number).codec == "lz4" for number in chest)

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    audit(str(tiny_disk / "c"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("operation", ["open", RESERVING, "pwritev", "ftruncate"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT])
def test_a_failure_while_a_value_is_streamed_leaves_it_in_ram(tmp_path, operation, number):
    array = smooth((1500, 2000))
    path = tmp_path / "c"
    with Chest(path=path, compression="lz4") as chest:
        stored(chest, "old", smooth())

        def fail(name: str, args: Any, call: Callable[[], Any]) -> Any:
            if name == operation:
                raise OSError(number, os.strerror(number))
            return call()

        with injected(fail):
            chest["x"] = array.copy()
            with pytest.raises(arraychest.SpillError) as caught:
                chest.spill("x")
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == number
            assert chest.entry("x").resident
        assert (chest["x"] == array).all()
        assert len(list(path.rglob("*.b2nd"))) == 1
        chest.flush()
        assert (np.asarray(chest["x"]) == array).all()
        assert chest.verify().ok
    audit(str(path))


@pytest.mark.slow
def test_a_chest_that_nobody_closed_is_flushed_when_the_interpreter_exits(tmp_path):
    """When no thread can be started any more."""
    run_python(f"""
        import numpy as np, arraychest
        chest = arraychest.open({str(tmp_path / "c")!r}, compression="lz4")
        chest["x"] = np.add.outer(np.sin(np.arange(2000.0)), np.arange(1000.0))
    """)
    with arraychest.open(tmp_path / "c", "r") as chest:
        expected = np.add.outer(np.sin(np.arange(2000.0)), np.arange(1000.0))
        assert (np.asarray(chest["x"]) == expected).all()
        assert chest.verify().ok


@pytest.mark.parametrize("kind", ["compressed", "turned", "blocked"])
def test_what_needs_the_whole_array_reads_it_once_and_the_copy_is_charged(tmp_path, kind):
    array = smooth((300, 500))
    if kind == "turned":
        array = np.asfortranarray(array)
    options = {"compression": "lz4", "available_memory": 4 * MIB, "on_put": "copy"}
    with Chest(path=tmp_path / "c", **options) as chest:
        if kind == "blocked":
            chest.append("x", array[:100])
            chest.append("x", array[100:])
            chest.flush()
        else:
            stored(chest, "x", array)
        assert chest.memory_usage == 0
        found = chest["x"]
        turned = found.T
        assert isinstance(found, LazyArray)
        assert np.array_equal(turned, array.T)
        assert chest.memory_usage == array.nbytes
        place = turned.__array_interface__["data"]
        del turned
        # Nobody but the chest holds it now.
        assert found.T.__array_interface__["data"] == place
        assert chest["x"].reshape(-1).size == array.size
        assert chest.memory_usage == array.nbytes
        if kind != "blocked":
            assert np.shares_memory(chest.load("x"), found.T)
        chest._engine.session.resident.check()
        # It makes room for a value that is not stored.
        kept = weakref.ref(found.T.base)
        spills = chest.stats().spills
        chest["dirty"] = noise(11 * MIB // 4)
        assert chest.stats().spills == spills
        assert "dirty" in chest.inmem
        assert kept() is None
        assert chest.memory_usage <= 4 * MIB
        assert np.array_equal(found.ravel(), array.ravel())
        del found, chest["x"]
        chest._engine.session.resident.check()


def test_a_whole_array_that_has_no_room_is_read_and_not_kept(tmp_path):
    array = smooth((300, 500))
    with Chest(path=tmp_path / "c", compression="lz4", available_memory=MIB // 2) as chest:
        stored(chest, "x", array)
        found = chest["x"]
        assert np.array_equal(found.ravel(), array.ravel())
        assert chest.memory_usage == 0
    assert np.array_equal(found.T, array.T), "it outlives the chest"
