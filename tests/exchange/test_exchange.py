"""Chests to and from other formats: nothing is lost, other programs read it, nothing is trusted."""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
import os
import pathlib
import pickle
import uuid
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arraychest
from arraychest import (
    ArrayChestWarning,
    Chest,
    CorruptEntryError,
    PickleRefusedError,
    UnreadableValueError,
    ValueTypeError,
    exchange,
)
from arraychest.cli import exchange as commands
from arraychest.cli.errors import CommandError
from arraychest.exchange import arrays
from arraychest.exchange.names import Names
from tests.faults import RESERVING, Failing, injected
from tests.support import assert_identical, listing
from tests.values import test_keys
from tests.values.test_values import DTYPES, filled

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

ENDINGS = {"npz": ".npz", "npy": "", "hdf5": ".h5", "zarr": ".zarr"}
each_format = pytest.mark.parametrize("kind", ENDINGS)


@pytest.fixture(scope="module", autouse=True)
def zarrs_own_threads(tmp_path_factory):
    """Those that Zarr starts with its first array, and keeps until the end."""
    with zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1}):
        group = zarr.create_group(tmp_path_factory.mktemp("zarr") / "first.zarr")
        group.create_array("x", shape=(8,), chunks=(1,), dtype="i4")[...] = 1
        assert group["x"][...].sum() == 8
        yield


KEYS: list[Any] = [
    "x", "a/b", "a", "a/b/c", "a/0", "", ".", "..", "../../escape", "/etc/passwd", "a//b", "a/../b",
    "CON", "name.npy", "arraychest", "arraychest.json", "zarr.json", "zarr.json/x", "a\0b", "\ud800",
    "é中", "with space", "new\nline", "long" * 200, "long" * 200 + "!", "deep/" * 20 + "x", "-", "~",
    "a\\b", "a\\..\\b", "..\\x", "\\", ("a\\b", 1), pathlib.PureWindowsPath("C:\\a\\b"),
    pathlib.PureWindowsPath("..\\b"), np.datetime64("2020-01-01T12", "ns"), np.timedelta64(1, "ns"),
    "c", "c/0", "__x__", "x" * 120, "x" * 120 + "/y", 1, 2.0, True - 1.5, None, b"bytes", b"\xff/..",
    (1, "x"), ("x", 1, (2.5, None)), frozenset({1, "y"}), np.float32(0.1), np.int8(7),
    np.str_("text"), np.datetime64("2020-01-01"), dt.date(2020, 1, 1), dt.timedelta(1),
    dt.datetime(2020, 1, 1, 12), uuid.UUID(int=5), pathlib.PurePosixPath("/etc/passwd"), 3 + 4j,
]  # fmt: skip


def zoo() -> dict[Any, Any]:
    """Values of every kind and dtype, and keys of every type."""
    made: dict[Any, Any] = {}
    for number, dtype in enumerate(DTYPES[:-1]):
        for shape in [(), (0,), (3,), (2, 0, 3)]:
            made["dtype", number, shape] = filled(dtype, shape)
    made["many fields"] = filled([(f"field{at}", "f8") for at in range(400)], (2,))
    for name in ("U0", "S0", "V0"):
        made["no bytes", name] = np.ndarray((3,), name)
    made["f"] = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    made["f times"] = np.asfortranarray(np.arange(12).reshape(3, 4).astype("M8[s]"))
    made["f text"] = np.asfortranarray(np.array([["a", "bc"], ["", "d\0e"]]))
    made["many dimensions"] = np.ones((1,) * 64)
    made["zeros"] = np.array([-0.0, 0.0, -0.0])
    made["only -0.0"] = np.full(5, -0.0)
    made["nan"] = np.array([0x7FF8000000000001, 0xFFF0000000000001], "u8").view("f8")
    made["big endian nan"] = np.array([0x7FF8000000000001], ">u8").view(">f8")
    made["scalar"] = np.float32(1.5)
    for number, scalar in enumerate(
        [np.bool_(True), np.int64(-5), np.str_("é\0"), np.str_(""), np.bytes_(b"a\0"),
         np.datetime64("NaT"), np.timedelta64(3, "h"), np.complex64(1 - 2j), np.longdouble(1) / 3]
    ):  # fmt: skip
        made["scalar", number] = scalar
    shared = np.arange(5)
    made["tree"] = {"x": shared, "again": [shared, (shared, None)], 3: "text" * 5000, "d": b"z"}
    made["tree of nothing"] = {}
    made["text"] = "no array"
    made["strings"] = np.array(["a", "longer", ""], np.dtypes.StringDType())
    made |= {key: np.array([at]) for at, key in enumerate(KEYS)}
    return made


def target_of(folder: Any, kind: str) -> str:
    return str(folder / f"out{ENDINGS[kind]}")


def there_and_back(chest: Chest, target: str, **options: Any) -> Chest:
    chest.export(target, overwrite=True)
    back = Chest(**options)
    assert back.import_from(target) == len(chest)
    return back


@pytest.mark.slow
@each_format
def test_all_values_come_back_with_keys_types_and_order(kind, tmp_path, make_chest):
    chest = make_chest(zoo())
    target = target_of(tmp_path, kind)
    assert chest.export(target) == len(zoo())
    back = make_chest()
    back["before"] = 1
    back.import_from(target)
    expected = {"before": 1, **zoo()}
    assert list(back) == list(expected)
    assert list(map(type, back)) == list(map(type, expected))
    for key, value in expected.items():
        try:
            assert_identical(back[key], value)
        except AssertionError as error:
            raise AssertionError(f"{key!r}: {error}") from error
    tree = back["tree"]
    assert tree["x"] is tree["again"][0] is tree["again"][1][0]
    assert not [name for name in os.listdir(tmp_path) if ".part" in name]


@each_format
@pytest.mark.parametrize("order", ["C", "F"])
def test_compressed_arrays_are_written_chunk_by_chunk_and_come_back(
    kind, order, tmp_path, make_chest, monkeypatch
):
    monkeypatch.setattr(arrays, "PART_BYTES", 1 << 16)
    monkeypatch.setattr(exchange, "STREAM_ABOVE", 1 << 16)
    value = np.tile(np.arange(1000.0), 700).reshape(700, 1000).copy(order)
    times = value[:300].astype("i8").astype("M8[ms]").copy(order)
    chest = make_chest()
    for key, array in {"x": value, "times": times}.items():
        chest.put(key, array.copy(order), compression="zstd")
        chest.spill(key)
        assert type(chest[key]) is arraychest.CompressedArray
    chest["list"] = [value[:100].copy(order)]
    largest = 0
    read = arraychest.CompressedArray._read

    def measured(self, where):
        nonlocal largest
        part = read(self, where)
        largest = max(largest, part.nbytes)
        return part

    monkeypatch.setattr(arraychest.CompressedArray, "_read", measured)
    back = there_and_back(chest, target_of(tmp_path, kind))
    assert 0 < largest <= 2 << 20 < value.nbytes, "one chunk at a time"
    monkeypatch.undo()
    with back:
        for key, array in {"x": value, "times": times, "list": [value[:100].copy(order)]}.items():
            assert_identical(back[key], array)


@pytest.mark.parametrize("kind", ["npy", "hdf5", "zarr"])
def test_anything_with_chunks_is_written_in_its_chunks(kind, tmp_path):
    """As arrays that are made when they are read: these are larger than what is asked for."""

    class Lazy:
        shape, dtype, chunks = (500, 300), np.dtype("f4"), (100, 300)

        def __getitem__(self, where):
            part = np.arange(500 * 300, dtype="f4").reshape(500, 300)[where]
            assert part.nbytes <= 100 * 300 * 4
            return part

    made = str(tmp_path / "x")
    writer = exchange._WRITERS[kind](made)
    meter = arraychest.progress.SILENT
    kept = exchange._export_array(writer, "lazy", Lazy(), meter)
    writer.finish(exchange.encode([exchange.Record("lazy", "array", b"", (kept,))]))
    with Chest() as chest:
        chest.import_from(made)
        assert_identical(chest["lazy"], np.arange(500 * 300, dtype="f4").reshape(500, 300))


@pytest.mark.slow
@settings(max_examples=150)
@given(
    keys=st.lists(
        st.one_of(st.text(), st.sampled_from(KEYS), st.text("a/.-2\\", max_size=5)), unique=True
    )
)
def test_names_are_unique_stay_inside_and_are_no_groups(keys):
    made = Names()
    names = [made.name(key) for key in keys]
    assert len(set(names)) == len(names)
    for name in names:
        parts = name.split("/")
        assert not {"", ".", "..", "arraychest", "arraychest.json", "zarr.json"} & set(parts)
        assert os.path.normpath(name) == name
        assert not os.path.isabs(name)
        assert "\\" not in name
        assert name.isprintable()
        assert max(len(part.encode()) for part in parts) < 200
        assert not any(other.startswith(name + "/") for other in names)


@each_format
@settings(max_examples=6, deadline=None)
@given(
    many=st.lists(test_keys.keys | st.text("ab./\\ -", max_size=6), max_size=8)
    .filter(test_keys.is_transitive)
    .map(lambda many: [*many, "a/b", "a\\b", ("a\\b",), "..", "a\\..\\b"])
)
def test_every_key_that_a_chest_takes_comes_back(kind, many):
    folder = os.environ["TMPDIR"]
    target = os.path.join(folder, "keys", "all" + ENDINGS[kind])
    with warnings.catch_warnings(), Chest() as chest:
        warnings.simplefilter("ignore")
        for number, key in enumerate(many):
            chest[key] = np.arange(number + 1)
        expected = [(key, array.tolist()) for key, array in chest.items()]
        os.makedirs(os.path.dirname(target), exist_ok=True)
        chest.export(target, overwrite=True)
        assert os.listdir(os.path.dirname(target)) == [os.path.basename(target)]
        with Chest() as again:
            again.import_from(target)
            found = [(key, array.tolist()) for key, array in again.items()]
    assert [array for _, array in found] == [array for _, array in expected]
    for (one, _), (other, _) in zip(found, expected, strict=True):
        test_keys.assert_same_key(one, other)


def test_simple_keys_are_named_as_they_are(tmp_path, chest):
    for key in ("x", "a/b", ("y", 1), 7, "é 2"):
        chest[key] = np.arange(3)
    chest.export(tmp_path / "out")
    expected = {"x.npy", "a/b.npy", "a", "y", "y/1.npy", "7.npy", "é 2.npy", "arraychest.json"}
    assert set(listing(str(tmp_path / "out"))) == expected


# --- what other programs see ---------------------------------------------------------------------


def test_other_programs_read_plain_arrays(tmp_path, chest):
    x, y = np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, dtype=">i2"))
    chest.update({"x": x, "group/y": y, "tree": {"part": np.arange(4)}})
    for kind in ENDINGS:
        chest.export(target_of(tmp_path, kind))
    with np.load(tmp_path / "out.npz") as found:
        assert_identical(found["x"], x)
        assert_identical(found["group/y"], y)
        assert found["tree/0"].tolist() == [0, 1, 2, 3]
        assert sorted(found) == ["arraychest", "group/y", "tree/0", "x"]
    assert_identical(np.load(tmp_path / "out" / "group" / "y.npy"), y)
    with h5py.File(tmp_path / "out.h5") as found:
        assert np.array_equal(found["x"][...], x)
        assert np.array_equal(found["group/y"][...], y)
        assert found["tree/0"][...].tolist() == [0, 1, 2, 3]
    found = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert np.array_equal(found["x"][...], x)
    assert np.array_equal(found["group/y"][...], y)


def test_times_and_records_are_readable_where_the_format_has_them(tmp_path, chest):
    chest["times"] = np.array(["2020-01-01"], "M8[D]")
    chest["records"] = np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")])
    chest.export(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as found:
        assert found["times"][...].tolist() == [18262]
        assert found["records"]["b"].tolist() == [2.5]


# --- files of other programs -----------------------------------------------------------------------


def test_files_of_numpy_are_imported(tmp_path, chest):
    x = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez_compressed(tmp_path / "their.npz", x=x, y=np.array(["a", "b"]))
    assert chest.import_from(tmp_path / "their.npz") == 2
    assert_identical(chest["x"], x)
    assert_identical(chest["y"], np.array(["a", "b"]))
    os.makedirs(tmp_path / "their" / "inner")
    np.save(tmp_path / "their" / "inner" / "z.npy", x)
    with pytest.warns(UserWarning, match="3.0"):
        np.save(tmp_path / "their" / "é.npy", np.array([(1, 2)], [("é中", "i4"), ("b", "i2")]))
    (tmp_path / "their" / "README").write_text("not an array")
    assert chest.import_from(tmp_path / "their", prefix="p/") == 2
    assert_identical(chest["p/inner/z"], x)
    assert chest["p/é"].dtype.names == ("é中", "b")
    assert chest.import_from(tmp_path / "their" / "inner" / "z.npy") == 1
    assert_identical(chest["z"], x)


def test_a_chests_own_value_file_is_imported(tmp_path, chest, path):
    with arraychest.open(path, compression=None) as other:
        other["x"] = np.arange(100_000)
        other.flush()
        file = other.entry("x").file
    chest.import_from(file)
    (key,) = chest
    assert_identical(chest[key], np.arange(100_000))


def test_what_is_no_array_in_an_npz_is_bytes_as_for_numpy(tmp_path, chest):
    np.savez(tmp_path / "their.npz", x=np.arange(3))
    with zipfile.ZipFile(tmp_path / "their.npz", "a") as file:
        file.writestr("readme.txt", "hello")
    chest.import_from(tmp_path / "their.npz")
    assert chest["readme.txt"] == b"hello"


def test_hdf5_files_are_imported_with_groups_and_attributes(tmp_path, chest):
    with h5py.File(tmp_path / "their.h5", "w") as file:
        file.attrs["title"] = "theirs"
        group = file.create_group("a/b")
        group.attrs["numbers"] = np.arange(3, dtype="i2")
        data = group.create_dataset("x", data=np.arange(12.0).reshape(3, 4), chunks=(2, 2))
        data.attrs["units"] = "m"
        data.attrs["scale"] = np.float32(0.5)
        data.attrs["names"] = ["p", "q"]
        data.attrs["nothing"] = h5py.Empty("f4")
        file["flags"] = np.array([True, False])
        file["enum"] = np.array([1, 2], h5py.enum_dtype({"A": 1, "B": 2}, "i1"))
        file["fixed"] = np.array([b"ab", b"c"])
        file["utf8"] = np.array([b"ab"], h5py.string_dtype("utf-8", 4))
        file["strings"] = ["one", "zwei", "三"]
        file["string"] = "alone"
        file["empty"] = h5py.Empty("f8")
        file["record"] = np.array([(1, b"x")], [("n", "i4"), ("s", "S3")])
    count = chest.import_from(tmp_path / "their.h5")
    assert count == len(chest)
    assert_identical(chest["a/b/x"], np.arange(12.0).reshape(3, 4))
    attributes = {"units": "m", "scale": np.float32(0.5), "names": ["p", "q"], "nothing": None}
    assert chest["a/b/x", "attributes"].keys() == attributes.keys()
    for name, value in attributes.items():
        assert_identical(chest["a/b/x", "attributes"][name], value)
    assert_identical(chest["a/b", "attributes"], {"numbers": np.arange(3, dtype="i2")})
    assert chest["", "attributes"] == {"title": "theirs"}
    assert chest["flags"].dtype == bool
    assert_identical(chest["enum"], np.array([1, 2], "i1"))
    assert_identical(chest["fixed"], np.array([b"ab", b"c"]))
    assert_identical(chest["utf8"], np.array([b"ab"], "S4"))
    assert chest["strings"].tolist() == ["one", "zwei", "三"]
    assert chest["string"] == "alone"
    assert chest["empty"] is None
    assert_identical(chest["record"], np.array([(1, b"x")], [("n", "i4"), ("s", "S3")]))
    # And back: attributes are attributes again, and nothing is lost.
    chest.export(tmp_path / "ours.h5")
    with h5py.File(tmp_path / "ours.h5") as file:
        assert file["a/b/x"].attrs["units"] == "m"
        assert file["a/b/x"].attrs["names"].tolist() == ["p", "q"]
    with Chest() as again:
        again.import_from(tmp_path / "ours.h5")
        assert list(again) == list(chest)
        assert_identical(again["a/b/x", "attributes"], chest["a/b/x", "attributes"])


def test_what_leads_out_of_an_hdf5_file_is_not_followed(tmp_path, chest):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(3)
    with h5py.File(tmp_path / "their.h5", "w") as file:
        file["good"] = np.arange(4)
        file["external"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
        file["soft"] = h5py.SoftLink("/good")
        file["group/again"] = file["/"]
        file["good"].attrs["reference"] = file["good"].ref
    with pytest.warns(ArrayChestWarning) as caught:
        assert chest.import_from(tmp_path / "their.h5") == 1
    assert list(chest) == ["good"]
    told = " ".join(str(each.message) for each in caught)
    assert "external" in told
    assert "good:reference" in told
    (tmp_path / "raw").write_bytes(b"secret00")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("x", (8,), "u1", external=[(str(tmp_path / "raw"), 0, 8)])
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (3,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    for name in ("raw.h5", "virtual.h5"):
        with pytest.raises(CorruptEntryError, match="other files"):
            chest.import_from(tmp_path / name)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_groups_are_imported_with_attributes(tmp_path, chest, version):
    group = zarr.create_group(tmp_path / "their.zarr", zarr_format=version)
    group.attrs["title"] = "theirs"
    x = group.create_array("a/x", shape=(5, 4), chunks=(2, 3), dtype=">f4", fill_value=7)
    x[:3] = np.arange(12).reshape(3, 4)
    x.attrs["units"] = {"name": "m", "pickle": [1, None]}
    assert chest.import_from(tmp_path / "their.zarr") == 3
    assert np.array_equal(chest["a/x"], x[...])
    assert chest["a/x"][4, 3] == 7
    assert chest["a/x", "attributes"] == {"units": {"name": "m", "pickle": [1, None]}}
    assert chest["", "attributes"] == {"title": "theirs"}
    chest.export(tmp_path / "ours.zarr")
    found = zarr.open_group(tmp_path / "ours.zarr", mode="r")
    assert found["a/x"].attrs["units"]["name"] == "m"
    assert chest.import_from(tmp_path / "their.zarr" / "a" / "x") == 2
    assert np.array_equal(chest["x"], x[...])


# --- what is not trusted ---------------------------------------------------------------------------


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_python_objects_are_refused_and_not_looked_at(tmp_path, chest, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Harm()], object)
    np.savez(tmp_path / "their.npz", x=objects)
    np.save(tmp_path / "their.npy", objects)
    old = tmp_path / "old.zarr" / "x"
    old.mkdir(parents=True)
    (tmp_path / "old.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    for dtype, filters in (("|O", [{"id": "pickle"}]), ("<i8", [{"id": "pickle", "protocol": 5}])):
        (old / ".zarray").write_text(
            json.dumps({
                "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": dtype, "compressor": None,
                "fill_value": 0, "order": "C", "filters": filters,
            })
        )  # fmt: skip
        (old / "0").write_bytes(pickle.dumps(objects))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises((PickleRefusedError, CorruptEntryError)):
                chest.import_from(tmp_path / "old.zarr")
    for name in ("their.npz", "their.npy"):
        with pytest.raises(PickleRefusedError, match="Python objects"):
            chest.import_from(tmp_path / name)
    assert not os.path.exists("harm")
    assert not chest


def header(shape: Any, dtype: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": dtype}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        header((1 << 50,)) + bytes(80),
        header((10,)) + bytes(79),
        header((-1,)) + bytes(8),
        header((2,))[:40],
        b"\x93NUMPY\x09\x00" + bytes(200),
        b"\x93NUMPY\x03\x00\xff\xff\xff\x7f" + bytes(200),
        b"\x93NUMPY\x03\x00\x20\x00\x00\x00" + b"(" * 32 + bytes(20),
        b"",
    ],
    ids=["bomb", "short", "negative", "cut", "version", "long header", "nested", "nothing"],
)
def test_arrays_that_are_not_what_their_header_says_are_refused(tmp_path, chest, content):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", content)
    for source in (folder, tmp_path / "x.npz"):
        with pytest.raises(CorruptEntryError, match="x"):
            chest.import_from(source)
    assert not chest


def test_damage_in_a_zip_file_is_noticed_and_nothing_is_imported(tmp_path, chest):
    chest.update({"first": np.arange(5), "second": np.arange(50_000.0)})
    chest.export(tmp_path / "out.npz")
    data = bytearray((tmp_path / "out.npz").read_bytes())
    data[200_000] ^= 1
    (tmp_path / "out.npz").write_bytes(data)
    with Chest({"old": 1}) as other:
        with pytest.raises(CorruptEntryError, match="second"):
            other.import_from(tmp_path / "out.npz")
        assert list(other) == ["old"]


def test_links_in_a_folder_are_refused(tmp_path, chest):
    np.save(tmp_path / "secret.npy", np.arange(3))
    for name, ending in (("folder", "x.npy"), ("group.zarr", "x")):
        folder = tmp_path / name
        folder.mkdir()
        if name != "folder":
            zarr.create_group(folder)
        (folder / ending).symlink_to(tmp_path / "secret.npy")
        with pytest.raises(CorruptEntryError, match="link"):
            chest.import_from(folder)
    assert not chest


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(version=2),
        lambda index: index.update(entries=5),
        lambda index: index["entries"][0].update(key="zz"),
        lambda index: index["entries"][0].update(key="00"),
        lambda index: index["entries"].append(index["entries"][0]),
        lambda index: index["entries"][0].update(kind="tree"),
        lambda index: index["entries"][0].update(kind="scalar"),
        lambda index: index["entries"][0].update(arrays=[]),
        lambda index: index["entries"][0]["arrays"][0].update(name="../secret"),
        lambda index: index["entries"][0]["arrays"][0].update(name="absent"),
        lambda index: index["entries"][0]["arrays"][0].update(form="9 C <f8"),
        lambda index: index["entries"][0]["arrays"][0].update(form="3 C <f8 " + "(" * 500),
        lambda index: index["entries"][0]["arrays"][0].update(form="3 Cp |O"),
        lambda index: index["entries"][0]["arrays"][0].update(form="3 C <M8[s]"),
        lambda index: index["entries"][0]["arrays"][0].update(encoding="other"),
        lambda index: index["entries"][0]["arrays"][0].update(encoding="raw"),
        lambda index: index["entries"][1].update(structure="!"),
        lambda index: index["entries"][1].update(structure="YWFh"),
        lambda index: index["entries"][1]["arrays"].pop(),
    ],
)
def test_an_index_that_lies_is_refused_and_nothing_is_imported(tmp_path, chest, change):
    np.save(tmp_path / "secret.npy", np.arange(3.0))
    chest.update({"x": np.arange(3.0), "tree": [np.arange(2)]})
    chest.export(tmp_path / "out")
    file = tmp_path / "out" / "arraychest.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with Chest() as other:
        with pytest.raises(CorruptEntryError):
            other.import_from(tmp_path / "out")
        assert not other


@each_format
def test_files_that_are_damaged_anywhere_raise_only_our_errors(kind, tmp_path, chest):
    chest.update({"x": np.arange(300.0), "t": {"a": np.arange(3)}, "s": np.str_("é")})
    target = target_of(tmp_path, kind)
    chest.export(target)
    files = [target] if os.path.isfile(target) else [
        os.path.join(folder, name) for folder, _, names in os.walk(target) for name in names
    ]  # fmt: skip
    random = np.random.default_rng(5)
    for _ in range(40):
        file = files[random.integers(len(files))]
        good = pathlib.Path(file).read_bytes()
        bad = bytearray(good)
        for at in random.integers(0, len(good), 3):
            bad[at] = random.integers(256)
        pathlib.Path(file).write_bytes(
            bad[: random.integers(len(bad))] if random.integers(4) == 0 else bad
        )
        with Chest() as other, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                other.import_from(target, kind)
            except arraychest.ArrayChestError:
                assert not other
        pathlib.Path(file).write_bytes(good)


# --- pickles -----------------------------------------------------------------------------------------


def pickled_chests(folder: Any) -> dict[str, tuple[dict[str, Any], Any]]:
    return {
        "objects": ({"allow_pickle": True}, np.array([{1, 2}, None], object)),
        "tree": ({"allow_pickle": True}, {"a": [complex, np.arange(3)]}),
        "dump": ({"dump": json.dump, "load": json.load}, {"a": [1, 2.5]}),
    }


@each_format
@pytest.mark.parametrize("which", ["objects", "tree", "dump"])
def test_pickled_values_are_taken_along_only_if_asked(kind, which, tmp_path):
    options, value = pickled_chests(tmp_path)[which]
    target = target_of(tmp_path, kind)
    with Chest(**options) as chest:
        chest["fine"] = np.arange(3)
        chest["mine"] = value
        with pytest.raises(PickleRefusedError, match="mine"):
            chest.export(target)
        assert not os.listdir(tmp_path)
        assert chest.export(target, keys=["fine"]) == 1
        assert chest.export(target, overwrite=True, allow_pickle=True) == 2
    with Chest(**options) as chest:
        with pytest.raises(PickleRefusedError):
            chest.import_from(target)
        assert chest.import_from(target, allow_pickle=True) == 2
        assert_identical(chest["mine"], value)
    with Chest() as chest:
        with pytest.raises((PickleRefusedError, UnreadableValueError)):
            chest.import_from(target, allow_pickle=True)
        assert not chest


# --- whole or not at all -----------------------------------------------------------------------------


@each_format
def test_an_export_that_fails_leaves_what_was_there(kind, tmp_path, monkeypatch):
    target = target_of(tmp_path, kind)
    with Chest({"old": np.arange(3)}) as chest:
        chest.export(target)
    with arraychest.open(tmp_path / "c.chest", compression=None) as chest:
        chest.update({"a": np.arange(5), "b": np.arange(100_000), "c": np.arange(5)})
        chest.flush()
        file = chest.entry("b").file
    os.truncate(file, 1000)
    before = sorted(os.listdir(tmp_path))
    with arraychest.open(tmp_path / "c.chest", "r") as chest:
        with pytest.raises(CorruptEntryError):
            chest.export(target, overwrite=True)
        with pytest.raises(arraychest.AbsentKeyError):
            chest.export(target, keys=["a", "absent"], overwrite=True)
        assert sorted(os.listdir(tmp_path)) == before
        assert chest.export(target, keys=["c", "a", "c"], overwrite=True) == 2
    with Chest() as back:
        back.import_from(target)
        assert list(back) == ["c", "a"]
    assert sorted(os.listdir(tmp_path)) == before


@each_format
def test_what_is_there_is_replaced_only_if_asked(kind, tmp_path, chest):
    chest["x"] = np.arange(3)
    target = target_of(tmp_path, kind)
    chest.export(target)
    before = listing(str(tmp_path))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        chest.export(target)
    assert listing(str(tmp_path)) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter").write_text("dear")
    with pytest.raises(FileExistsError, match="another folder"):
        chest.export(mine, kind, overwrite=True)
    assert (mine / "letter").read_text() == "dear"
    (tmp_path / "link").symlink_to(mine)
    chest.export(tmp_path / "link", kind, overwrite=True)
    assert (mine / "letter").read_text() == "dear"
    assert not (tmp_path / "link").is_symlink()


def test_an_import_that_does_not_fit_leaves_the_chest_as_it_was(path, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "STREAM_ABOVE", 1000)
    with Chest({"a": np.arange(5), "b": np.arange(100_000), "x": 2}) as chest:
        chest.export(tmp_path / "out")
    with arraychest.open(path, compression=None) as chest:
        chest["x"] = np.arange(3)
        chest.flush()
        with pytest.raises(ValueTypeError, match=r"'x'.*overwrite"):
            chest.import_from(tmp_path / "out")
        with injected(Failing(28, RESERVING)), pytest.raises(arraychest.SpillError):
            chest.import_from(tmp_path / "out", overwrite=True)
        assert list(chest) == ["x"]
        assert_identical(chest["x"], np.arange(3))
        chest.import_from(tmp_path / "out", overwrite=True)
        assert list(chest) == ["x", "a", "b"]
        assert chest["x"] == 2
        assert chest.verify().ok


def test_a_prefix_keeps_what_is_imported_apart(tmp_path, chest):
    chest.update({"x": 1, 2: 3, ("x", "attributes"): {"units": "m"}})
    chest.export(tmp_path / "out.npz")
    chest.import_from(tmp_path / "out.npz", prefix="p/")
    assert list(chest)[3:] == ["p/x", ("p/", 2), ("p/x", "attributes")]


def test_a_chest_that_is_read_only_is_exported_and_not_imported_into(tmp_path, path):
    arraychest.Chest({"x": 1}, path).close()
    with arraychest.open(path, "r") as chest:
        chest.export(tmp_path / "out.npz")
        with pytest.raises(arraychest.ReadOnlyChestError):
            chest.import_from(tmp_path / "out.npz", prefix="p")


def test_formats_are_told_by_names_and_contents(tmp_path, chest):
    chest["x"] = np.arange(3)
    with pytest.raises(ValueError, match=r"out\.tiff"):
        chest.export(tmp_path / "out.tiff")
    with pytest.raises(ValueError, match="'tiff'"):
        chest.export(tmp_path / "out", "tiff")
    (tmp_path / "text").write_text("hello there")
    with pytest.raises(CorruptEntryError, match="hello"):
        chest.import_from(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        chest.import_from(tmp_path / "absent")
    for kind in ENDINGS:
        chest.export(tmp_path / kind, kind, keys=["x"])
        assert chest.import_from(tmp_path / kind, prefix=kind) == 1
        assert_identical(chest[kind + "x"], np.arange(3))


def test_without_the_packages_is_said_what_to_install(tmp_path, chest, monkeypatch):
    import sys

    for name, extra in (("h5py", "hdf5"), ("zarr", "zarr")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"arraychest\[{extra}\]"):
            chest.export(tmp_path / "out", extra)
    assert not os.listdir(tmp_path)


# --- the commands ------------------------------------------------------------------------------------


def run(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers())
    parsed = parser.parse_args([str(each) for each in arguments])
    return parsed.run(parsed)


def test_the_commands_write_and_read_chests(tmp_path, path, capsys):
    arraychest.Chest({"slope": np.arange(3), "aspect": 1, ("slope", 2): 5}, path).close()
    assert run("export", path, tmp_path / "all.npz") == 0
    assert run("export", path, tmp_path / "some", "--keys", "slope*", "--format", "npy") == 0
    assert run("import", tmp_path / "new.chest", tmp_path / "all.npz") == 0
    assert run("import", tmp_path / "new.chest", tmp_path / "some", "--prefix", "p/") == 0
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == ["3", "2", "3", "2"]
    assert not told.err
    with arraychest.open(tmp_path / "new.chest", "r") as chest:
        assert list(chest) == ["slope", "aspect", ("slope", 2), "p/slope", ("p/", ("slope", 2))]


def test_the_commands_raise_what_went_wrong_and_leave_nothing(tmp_path, path):
    arraychest.Chest({"x": np.arange(3)}, path).close()
    with pytest.raises(CommandError, match="nothing\\*, found none"):
        run("export", path, tmp_path / "x.npz", "--keys", "nothing*")
    with pytest.raises(CommandError, match="ends in"):
        run("export", path, tmp_path / "x.tiff")
    with pytest.raises(FileNotFoundError):
        run("export", tmp_path / "absent", tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError):
        run("import", tmp_path / "new.chest", tmp_path / "absent")
    (tmp_path / "bad.npz").write_bytes(b"PK" + bytes(100))
    with pytest.raises(CorruptEntryError):
        run("import", tmp_path / "new.chest", tmp_path / "bad.npz")
    assert sorted(os.listdir(tmp_path)) == ["bad.npz", "test.chest"]


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_other_programs_find_groups_attributes_and_compression(kind, tmp_path, make_chest):
    chest = make_chest()
    chest.update({
        ("run", 1): np.zeros(10), ("run", 2, "x"): np.ones(3), "a/b": np.ones(4),
        "meta": {"unit": "m", "scale": 2.0, "count": 3}, "title": "heights",
    })  # fmt: skip
    chest.put("packed", np.zeros((500, 500)), compression="lz4")
    chest.flush()
    target = tmp_path / f"all.{kind}"
    chest.export(target)
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(target) as file:
            assert file["run/1"].shape == (10,)
            assert file["run/2/x"].shape == (3,)
            assert file["a/b"].shape == (4,)
            attributes = dict(file["meta"].attrs)
            assert file["title"].attrs["value"] == "heights"
            assert (file["packed"].compression, file["packed"].shuffle) == ("lzf", True)
            assert file["run/1"].compression is None
    else:
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(target, mode="r")
        assert group["run/2/x"].shape == (3,)
        attributes = dict(group["meta"].attrs)
        assert group["title"].attrs["value"] == "heights"
        (codec,) = group["packed"].compressors
        assert getattr(codec.cname, "value", codec.cname) == "lz4"
    assert attributes == {"unit": "m", "scale": 2.0, "count": 3}
    again = make_chest()
    assert again.import_from(target) == 6
    assert again == chest
    assert list(again) == list(chest)
