"""`compressed`: large arrays that compress, and some that do not, to disk.

The arrays are measured data that packages ship (see `tests.real_data`), tiled.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np

import arraychest
from arraychest.formats import b2nd, blosc, frame
from bench.checks.harness import OURS, Bench, Contestant, Figures, Floor, Row, Samples, rows_against
from bench.peers.base import load
from bench.workload import MIB, expect

_NAME = "compressed"
_IN_MEMORY = "Blosc2 in memory, the same parameters"
_NPY = "npy spill"
_DURABLE_NPY = "npy spill, durable"

# Values of each field that one put and flush stores.
_VALUES = 2


def run(bench: Bench) -> list[Row]:
    return [*_spills(bench), *_noise(bench), *_parts(bench)]


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


# Of what a row is fastest in: two rows of a block, and whole rows of a chunk.
_IN_ROWS = "blocks of 2 × 2048"


def _parts(bench: Bench) -> list[Row]:
    """Windows, rows and columns of one array, in blocks as we choose them and in ones of rows.

    In processor time of one thread: a column in a block of two rows is a matter of 100 ms.
    """
    side = bench.pick(4096, 512)
    down, across = np.ogrid[:side, : 4 * side]
    heights = 400 + 90 * np.sin(down / 97) * np.cos(across / 61)
    noise = np.random.default_rng(3).normal(size=heights.shape)
    array = np.round(heights + noise, 2).astype(np.float32)
    choice = blosc.Choice(
        frame.CODECS["lz4"], 9, (frame.FILTERS["shuffle"], frame.FILTERS["bytedelta"]), (0, 4)
    )
    chosen = blosc.layout_of(array, choice)
    rows_in_chunk, most = min(32, side), min(2048, 4 * side)
    in_rows = dataclasses.replace(chosen, chunks=(rows_in_chunk, 4 * side), blocks=(2, most))

    def contestant(name: str, layout: frame.Layout) -> Contestant:
        return Contestant(name, functools.partial(_read_parts, array, layout))

    samples = bench.interleave([contestant(OURS, chosen), contestant(_IN_ROWS, in_rows)])
    # Writing by the codec alone is told, not judged: of a whole put it is a part.
    limits = {
        "window of 64 × 64": 0.4,
        "row": 6.5,
        "column": 0.2,
        "write": None,
        "size": 1.1,
    }
    rows = []
    for measure, limit in limits.items():
        unit = "B" if measure == "size" else "µs"
        floors = {_IN_ROWS: None if limit is None else Floor(limit)}
        rows += rows_against(_NAME, measure, unit, samples, floors, label=f"parts: {measure}")
    return rows


def _read_parts(array: np.ndarray, layout: frame.Layout, folder: Path) -> Figures:
    """Microseconds to compress and write an array and to read parts of it, and bytes it takes."""
    path = folder / "frame"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def put(at: int, buffers: Sequence[bytes]) -> None:
        os.pwritev(fd, buffers, at)

    try:
        start = thread_time()
        size = b2nd.write(array, layout, 1, put, 1)
        figures = {"write": (thread_time() - start) * 1e6, "size": float(size)}
    finally:
        os.close(fd)
    reader = b2nd.CheckedReader(np.fromfile(path, np.uint8), array.dtype, array.shape, 1, 1)
    height, width = array.shape
    random = np.random.default_rng(5)
    for measure, high, wide, count in (
        ("window of 64 × 64", 64, 64, 50), ("row", 1, width, 20), ("column", height, 1, 4)
    ):  # fmt: skip
        corners = random.integers(0, (height - high + 1, width - wide + 1), (count, 2)).tolist()
        places = [(slice(i, i + high), slice(j, j + wide)) for i, j in corners]
        start = thread_time()
        found = [reader.read(place) for place in places]
        figures[measure] = (thread_time() - start) / count * 1e6
        expect(np.array_equal(found[-1], array[places[-1]]), f"{measure} differs")
    return figures


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


def _open_tensorstore(library: Any, path: Path) -> Any:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return library.open(spec, open=True).result()


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
