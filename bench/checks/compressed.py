"""`compressed`: large arrays that compress, and some that do not, to disk and back.

The arrays are measured data that packages ship (see `tests.real_data`), tiled.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import arraychest
from arraychest.codecs import blosc, frame
from bench.harness import OURS, Bench, Contestant, Figures, Floor, Row, Samples, rows_against
from bench.peers.base import load
from bench.workload import MIB, disk_bytes, expect

_NAME = "compressed"
_IN_MEMORY = "Blosc2 in memory, the same parameters"
_BARE = "blosc2.open(...)[...]"
_NPY = "npy spill"
_DURABLE_NPY = "npy spill, durable"

# Values of each field that one put and flush stores.
_VALUES = 2

_READS = 200
_WINDOW = 64


def run(bench: Bench) -> list[Row]:
    return [*_spills(bench), *_noise(bench), *_reads(bench)]


# --- to disk -------------------------------------------------------------------------------------


def _fields(bench: Bench) -> dict[str, np.ndarray]:
    try:
        from tests.real_data import FIELDS
    except ImportError:
        bench.skipped["real data"] = "tests/ is not beside bench/"
        return {}
    nbytes = bench.pick(64 * MIB, 2 * MIB)
    fields = {}
    for name, make in FIELDS.items():
        # Its own way of saying so is to skip a test.
        try:
            fields[name] = make(nbytes)
        except BaseException as error:
            if type(error).__name__ != "Skipped":
                raise
            bench.skipped[name] = str(error)
    return fields


def _put_and_flush(
    arrays: Sequence[np.ndarray], folder: Path, above: int, **options: Any
) -> tuple[float, int, arraychest.Entry]:
    """GB/s, bytes stored, and what is known of the first value."""
    nbytes = sum(array.nbytes for array in arrays)
    chest = arraychest.Chest(
        path=folder / "chest",
        available_memory=4 * nbytes + 256 * MIB,
        compress_above=above,
        **options,
    )
    with chest:
        start = perf_counter()
        for number, array in enumerate(arrays):
            chest[number] = array
        chest.flush()
        took = perf_counter() - start
        entries = [chest.entry(number) for number in range(len(arrays))]
        for number, array in enumerate(arrays):
            expect(np.array_equal(np.asarray(chest[number]), array), f"value {number} differs")
    return nbytes / took / 1e9, sum(entry.stored_bytes for entry in entries), entries[0]


def _spills(bench: Bench) -> list[Row]:
    return [row for name, array in _fields(bench).items() for row in _spill(bench, name, array)]


def _spill(bench: Bench, name: str, array: np.ndarray) -> list[Row]:
    import blosc2

    arrays = [array, *(array.copy() for _ in range(_VALUES - 1))]
    nbytes = _VALUES * array.nbytes
    above = bench.pick(32 * MIB, MIB)
    found: list[arraychest.Entry] = []

    def ours(folder: Path, **options: Any) -> Figures:
        speed, stored, entry = _put_and_flush(arrays, folder, above, **options)
        if not options:
            found.append(entry)
        return {"put+flush": speed, "stored": nbytes / stored}

    def in_memory(_: Path) -> Figures:
        entry = found[-1] if found else None
        if entry is None or entry.chunks is None:
            return {}
        cparams = blosc2.CParams(
            codec=blosc2.Codec(frame.CODECS[entry.codec or ""]),
            clevel=entry.clevel,
            filters=[blosc2.Filter(frame.FILTERS[each]) for each in entry.filters],
            filters_meta=[0] * len(entry.filters),
        )
        start = perf_counter()
        for each in arrays:
            blosc2.asarray(each, chunks=entry.chunks, blocks=entry.blocks, cparams=cparams)
        return {"put+flush": nbytes / (perf_counter() - start) / 1e9}

    def zarr(folder: Path) -> Figures:
        library = load("zarr")
        start = perf_counter()
        for number, each in enumerate(arrays):
            store = str(folder / f"{number}.zarr")
            library.create_array(store, shape=each.shape, dtype=each.dtype)[...] = each
        return {"put+flush": nbytes / (perf_counter() - start) / 1e9}

    def tensorstore(folder: Path) -> Figures:
        library, files = load("tensorstore"), load("zarr")
        for number, each in enumerate(arrays):
            files.create_array(str(folder / f"{number}.zarr"), shape=each.shape, dtype=each.dtype)
        start = perf_counter()
        for number, each in enumerate(arrays):
            _open_tensorstore(library, folder / f"{number}.zarr")[...] = each
        return {"put+flush": nbytes / (perf_counter() - start) / 1e9}

    samples = bench.interleave(
        [
            Contestant(OURS, ours),
            Contestant(_IN_MEMORY, in_memory),
            Contestant(_NPY, functools.partial(ours, compression=None)),
            Contestant("durable", functools.partial(ours, durable=True)),
            Contestant(_DURABLE_NPY, functools.partial(ours, durable=True, compression=None)),
            Contestant("tensorstore, zarr3", tensorstore),
            Contestant("zarr 3", zarr, once=True),
        ],
        disk=nbytes,
    )
    chosen = f"{found[-1].codec}-{found[-1].clevel} {'+'.join(found[-1].filters)}"
    label = f"{name}, {chosen}: put+flush"
    floors: dict[str, Floor | None] = {
        _IN_MEMORY: Floor(0.9, at_least=True),
        "tensorstore, zarr3": Floor(1.5, at_least=True),
        "zarr 3": Floor(5, at_least=True),
        _NPY: None,
    }
    rows = _rates("put+flush", samples, floors, label=label)
    rows.append(_sampling(bench, f"{name}: sampling", array, samples[OURS, "put+flush"]))
    durable = {_DURABLE_NPY: Floor(1.2, at_least=True)}
    rows += _rates("put+flush", samples, durable, ours="durable", label=f"{name}, durable")
    rows.append(
        Row(
            _NAME,
            f"{name}: bytes for each that is stored",
            "",
            samples[OURS, "stored"],
            "the best of lz4-1 and zstd-1",
            [_best_ratio(array)],
            Floor(1 / 1.1, at_least=True),
            more_is_better=True,
        )
    )
    return rows


def _best_ratio(array: np.ndarray) -> float:
    """What the best of lz4-1 and zstd-1, with shuffle and bitshuffle, makes of the same blocks."""
    best = array.nbytes
    for codec in ("lz4", "zstd"):
        for name in ("shuffle", "bitshuffle"):
            choice = blosc.Choice(frame.CODECS[codec], 1, (frame.FILTERS[name],), (0,))
            layout = blosc.layout_of(array, choice)
            chunks = blosc.ChunkCodec(layout)
            best = min(best, sum(len(chunks.compressed(array[at])) for at in layout.slices()))
    return array.nbytes / best


def _noise(bench: Bench) -> list[Row]:
    shape = bench.pick(8 * MIB, MIB // 4)
    arrays = [np.random.default_rng(seed).random(shape) for seed in range(_VALUES)]
    above = bench.pick(32 * MIB, MIB)

    def contestant(name: str, **options: Any) -> Contestant:
        def run(folder: Path) -> Figures:
            speed, _, entry = _put_and_flush(arrays, folder, above, **options)
            expect(entry.codec == "npy", "noise was compressed")
            return {"put+flush": speed}

        return Contestant(name, run)

    samples = bench.interleave(
        [contestant(OURS), contestant(_NPY, compression=None)],
        # The difference is small: more turns tell it from chance.
        rounds=3 * bench.rounds,
        disk=sum(array.nbytes for array in arrays),
    )
    floors: dict[str, Floor | None] = {_NPY: Floor(0.97, at_least=True)}
    rows = _rates("put+flush", samples, floors, label="incompressible: put+flush")
    speeds = samples[_NPY, "put+flush"]
    rows.append(_sampling(bench, "incompressible: sampling", arrays[0], speeds))
    return rows


def _sampling(bench: Bench, measure: str, array: np.ndarray, speeds: Sequence[float]) -> Row:
    """What sampling an array takes of the time in which it is stored."""
    times = []
    for _ in range(5 * bench.rounds):
        start = perf_counter()
        blosc.chosen(array)
        times.append(perf_counter() - start)
    writing = array.nbytes / statistics.median(speeds) / 1e9
    shares = [100 * each / writing for each in times]
    return Row(_NAME, measure, "%", shares, floor=Floor(2, of_ratio=False))


# --- and back ------------------------------------------------------------------------------------


def _field(bench: Bench) -> np.ndarray:
    """1 GiB of heights in metres, between the measured ones as a resampled model has them."""
    side = bench.pick(16384, 1024)
    from tests.real_data import terrain

    heights = terrain(4 * MIB)[: side // 8 + 1, : side // 8 + 1].astype(np.float32)
    at = np.arange(side) * np.float32((min(heights.shape) - 1) / side)
    low = at.astype(int)
    part = (at - low).astype(np.float32)
    down = heights[low] + (heights[low + 1] - heights[low]) * part[:, None]
    found = np.empty((side, side), np.float32)
    for start in range(0, side, 512):
        rows = down[start : start + 512]
        found[start : start + 512] = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part
    # To the centimetre, as such models are sold.
    return np.round(found, 2, out=found)


def _reads(bench: Bench) -> list[Row]:
    try:
        array = _field(bench)
    except BaseException as error:
        if type(error).__name__ != "Skipped":
            raise
        bench.skipped["reads"] = str(error)
        return []
    with bench.fresh_folder() as folder:
        bench.say("writing the stores to read from")
        path = folder / "chest"
        with arraychest.Chest(path=path, compress_above=MIB, available_memory="4 GiB") as chest:
            chest.put("x", array, compression="zstd")
            chest.flush()
            entry = chest.entry("x")
        assert entry.chunks is not None
        assert entry.file is not None
        stores = _Stores(array, folder, path, entry.file, entry.chunks)
        return _windows_and_rows(bench, array, stores)


class _Stores:
    """The same array in several stores, all in the same chunks; each is opened by one function."""

    def __init__(
        self, array: np.ndarray, folder: Path, chest: Path, file: str, chunks: tuple[int, ...]
    ) -> None:
        self._array = array
        self._folder = folder
        self._chest = chest
        self._file = file
        # Of a chunk that reaches beyond the array only what is in it.
        self._chunks = tuple(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
        self._written: set[str] = set()

    def ours(self) -> Any:
        with arraychest.open(self._chest, "r") as chest:
            return chest["x"]

    def bare(self) -> Any:
        return load("blosc2").open(self._file, mode="r")

    def zarr(self) -> Any:
        return load("zarr").open_array(self._zarr_path(), mode="r")

    def tensorstore(self) -> Any:
        return _Tensorstore(_open_tensorstore(load("tensorstore"), Path(self._zarr_path())))

    def h5py(self, compression: str) -> Any:
        library = load("h5py")
        path = self._folder / f"{compression}.h5"
        if not path.exists():
            with library.File(path, "w") as file:
                file.create_dataset(
                    "x", data=self._array, chunks=self._chunks, compression=compression
                )
        return library.File(path, "r")["x"]

    def _zarr_path(self) -> str:
        path = str(self._folder / "x.zarr")
        if path not in self._written:
            array = self._array
            made = load("zarr").create_array(
                path, shape=array.shape, dtype=array.dtype, chunks=self._chunks
            )
            made[...] = array
            self._written.add(path)
        return path

    def stored(self, name: str) -> int:
        """Bytes that a store takes on disk."""
        if name.startswith("h5py"):
            return (self._folder / f"{name.split()[1]}.h5").stat().st_size
        if name == OURS:
            return Path(self._file).stat().st_size
        return disk_bytes(self._folder / "x.zarr")


class _Tensorstore:
    """Reads as the others do."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getitem__(self, key: Any) -> np.ndarray:
        found: np.ndarray = self._store[key].read().result()
        return found


def _open_tensorstore(library: Any, path: Path) -> Any:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return library.open(spec, open=True).result()


def _windows_and_rows(bench: Bench, array: np.ndarray, stores: _Stores) -> list[Row]:
    random = np.random.default_rng(5)
    count = bench.pick(_READS, 5)
    corners = random.integers(0, np.array(array.shape) - _WINDOW, (count, 2)).tolist()
    windows = [(slice(i, i + _WINDOW), slice(j, j + _WINDOW)) for i, j in corners]
    rows_at = random.integers(0, array.shape[0], count).tolist()

    def contestant(
        name: str, opened: Callable[[], Any], *, full: bool = False, once: bool = False
    ) -> Contestant:
        def run(_: Path) -> Figures:
            opened()  # what is written at first is not what is measured
            figures = {}
            start = perf_counter()
            source = opened()
            found = [source[window] for window in windows]
            figures["windows"] = (perf_counter() - start) / count * 1e6
            for window, part in zip(windows, found, strict=True):
                expect(np.array_equal(part, array[window]), f"{name}: a window differs")
            start = perf_counter()
            source = opened()
            found = [source[at] for at in rows_at]
            figures["rows"] = (perf_counter() - start) / count * 1e6
            for at, part in zip(rows_at, found, strict=True):
                expect(np.array_equal(part, array[at]), f"{name}: row {at} differs")
            if full:
                start = perf_counter()
                whole = opened()[...]
                figures["full"] = array.nbytes / (perf_counter() - start) / 1e9
                expect(np.array_equal(whole, array), f"{name}: it differs")
            return figures

        return Contestant(name, run, once)

    peers = {
        "zarr 3": contestant("zarr 3", stores.zarr, once=True),
        "tensorstore, zarr3": contestant("tensorstore, zarr3", stores.tensorstore),
        "h5py gzip": contestant("h5py gzip", lambda: stores.h5py("gzip"), once=True),
        "h5py lzf": contestant("h5py lzf", lambda: stores.h5py("lzf"), once=True),
    }
    samples = bench.interleave(
        [
            contestant(OURS, stores.ours, full=True),
            contestant(_BARE, stores.bare, full=True),
            *peers.values(),
        ]
    )
    bare: dict[str, Floor | None] = {_BARE: Floor(1 / 0.9)}
    faster: dict[str, Floor | None] = dict.fromkeys(peers, Floor(1))
    rows = []
    for measure, label in (("windows", "64 x 64 windows"), ("rows", "rows")):
        title = f"{label} of {math.prod(array.shape) * 4 / MIB:,.0f} MiB float32"
        rows += rows_against(_NAME, measure, "us", samples, {**bare, **faster}, label=title)
    floors: dict[str, Floor | None] = {_BARE: Floor(0.9, at_least=True)}
    rows += _rates("full", samples, floors, label="full read")
    ours = [stores.stored(OURS) / MIB]
    for name in peers:
        if (name, "windows") in samples:
            theirs = [stores.stored(name) / MIB]
            rows.append(Row(_NAME, "stored size of it", "MiB", ours, name, theirs, Floor(1)))
    return rows


def _rates(
    measure: str,
    samples: Samples,
    others: dict[str, Floor | None],
    *,
    label: str,
    ours: str = OURS,
) -> list[Row]:
    return rows_against(
        _NAME, measure, "GB/s", samples, others, ours=ours, label=label, more_is_better=True
    )
