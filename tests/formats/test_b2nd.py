"""The file of a compressed array: what was written comes back, or an error; nothing else."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest

from arraychest.arrays.compressed import CompressedArray
from arraychest.formats import b2nd, blosc, frame
from arraychest.formats.b2nd import CheckedReader
from arraychest.formats.frame import Layout
from tests.faults import Say, in_child

STAMP = 12345


def written(array: np.ndarray, layout: Layout | None = None, nthreads: int = 1) -> bytes:
    if layout is None:
        layout = blosc.layout_of(array, blosc.named("lz4"))
    data = bytearray()

    def put(at: int, buffers: Sequence[bytes]) -> None:
        joined = b"".join(buffers)
        data.extend(bytes(max(0, at + len(joined) - len(data))))
        data[at : at + len(joined)] = joined

    size = b2nd.write(array, layout, nthreads, put, STAMP)
    assert size == len(data)
    return bytes(data)


def opened(data: bytes, array: np.ndarray) -> CompressedArray:
    reader = CheckedReader(np.frombuffer(data, np.uint8), array.dtype, array.shape, STAMP, 2)
    return CompressedArray(reader, array.dtype, array.shape, reader.layout.chunks)


def terrain(shape: tuple[int, ...] = (150, 250), dtype: str = "f4") -> np.ndarray:
    numbers = np.add.outer(np.sin(np.arange(shape[0]) / 30), np.cos(np.arange(shape[1]) / 20))
    noise = np.random.default_rng(0).integers(0, 8, shape)
    return (1000 * numbers + noise).astype(dtype)


LZ4 = blosc.named("lz4")
SMALL = Layout(np.dtype("f4"), (150, 250), (64, 128), (16, 32), 1, 1, (1,), (0,))


@pytest.mark.parametrize("shape", [(3,), (5000,), (1, 7, 1), (301, 977), (40, 61, 83), (2,) * 8])
@pytest.mark.parametrize("kind", ["numbers", "zeros", "half"])
def test_an_array_comes_back(tmp_path, shape, kind):
    array = np.random.default_rng(1).integers(0, 99, shape).astype("f4")
    if kind != "numbers":
        array.reshape(-1)[: array.size if kind == "zeros" else array.size // 2] = 0
    data = written(array)
    assert np.asarray(opened(data, array)).tobytes() == array.tobytes()
    file = tmp_path / "a.b2nd"
    file.write_bytes(data)
    assert blosc2.open(str(file))[...].tobytes() == array.tobytes()


def test_the_sums_cover_every_byte_of_the_chunks():
    for shape, layout in (((150, 250), SMALL), ((8, 8), None), ((1000, 3000), None)):
        array = terrain(shape)
        for each in (array, np.random.default_rng(1).integers(0, 1 << 32, shape, "u4").view("f4")):
            mine = layout or blosc.layout_of(each, LZ4)
            codec = blosc.ChunkCodec(mine)
            for chunk in (codec.compressed(each[where]) for where in mine.slices()):
                limits = frame.block_limits(mine, memoryview(chunk))
                assert 0 < limits[0] < limits[-1] == len(chunk)
                assert limits == sorted(limits)
                assert len(b2nd.sums_of(mine, chunk)) == 1 + mine.nblocks


def test_another_array_is_refused():
    array = terrain()
    data = np.frombuffer(written(array, SMALL), np.uint8)
    for dtype, shape in (
        ("f4", (250, 150)), ("f4", (150, 251)), ("f4", (150,)), ("f4", (150, 250, 1)),
        ("f8", (150, 250)), (">f4", (150, 250)), ("i4", (150, 250)), ("f4", (1 << 40, 1 << 20)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            CheckedReader(data, np.dtype(dtype), shape, STAMP, 1)


def test_a_whole_frame_with_the_record_of_another_file_is_refused():
    array = terrain()
    data = np.frombuffer(written(array, SMALL), np.uint8)
    with pytest.raises(ValueError, match="another's"):
        CheckedReader(data, array.dtype, array.shape, STAMP + 1, 1)


def reads(data: bytes, array: np.ndarray) -> str:
    """What comes of reading damaged bytes: never other values."""
    try:
        found = np.asarray(opened(data, array))
    except ValueError as error:
        assert "expected" in str(error)
        return "refused"
    assert found.tobytes() == array.tobytes(), "other values"
    return "read"


def test_every_flipped_bit_is_found():
    """Also where the header is, the sizes, and the checksums themselves."""
    array = terrain()
    data = written(array, SMALL)
    generator = random.Random(7)
    fared = []
    sampled = [generator.randrange(len(data)) for _ in range(800)]
    for at in [*range(300), *range(len(data) - 300, len(data)), *sampled]:
        bad = bytearray(data)
        bad[at] ^= 1 << generator.randrange(8)
        fared.append(reads(bytes(bad), array))
    # But where a chunk at the edge is filled up, which nobody reads.
    assert fared.count("read") < len(fared) // 4
    assert set(fared[:300]) == {"refused"}


def test_truncated_and_spliced_files_are_refused():
    array = terrain()
    data = written(array, SMALL)
    other = written(terrain() + 1, SMALL)
    generator = random.Random(8)
    for _ in range(500):
        at = generator.randrange(len(data))
        assert reads(data[:at], array) == "refused"
        upto = generator.randrange(at, len(data))
        spliced = data[:at] + other[at:upto] + data[upto:]
        expected = "read" if spliced == data else "refused"
        assert reads(spliced, array) == expected
        assert reads(data[:at] + data[upto + 1 :], array) == "refused"


def summed_again(data: bytes, array: np.ndarray, layout: Layout) -> bytes:
    """What a stranger does who changes a byte: the checksums fit."""
    record = b2nd.decoded(memoryview(written(array, layout)), array.dtype, array.shape)
    nbytes = b2nd.frame_size(layout, record.sizes)
    sums: list[int] = []
    at = len(frame.header(layout, record.sizes))
    each = 1 + layout.nblocks
    for number, size in enumerate(record.sizes):
        try:
            sums += b2nd.sums_of(layout, data[at : at + size])
        except (ValueError, IndexError):
            sums += record.sums[number * each : (number + 1) * each].tolist()
        at += size
    return data[:nbytes] + b2nd.encoded(record._replace(sums=np.array(sums, "<u4")))


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["lz4", "zstd", "blosclz", "zlib"])
def test_what_a_stranger_made_never_ends_the_process(codec):
    array = terrain()
    choice = blosc.named(codec)
    layout = replace(SMALL, codec=choice.codec, clevel=choice.clevel)

    def child(say: Say) -> dict[str, int]:
        data = written(array, layout)
        generator = random.Random(codec)
        fared = {"refused": 0, "failed": 0, "read": 0}
        for _ in range(600):
            bad = bytearray(data)
            for _ in range(generator.choice([1, 1, 2, 8])):
                bad[generator.randrange(len(data))] = generator.randrange(256)
            try:
                compressed = opened(summed_again(bytes(bad), array, layout), array)
                found = np.asarray(compressed)
            except ValueError:
                fared["refused"] += 1
            except RuntimeError:
                fared["failed"] += 1
            else:
                assert found.shape == array.shape
                fared["read"] += 1
        return fared

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    assert outcome.result["refused"]
    assert outcome.result["refused"] + outcome.result["failed"] + outcome.result["read"] == 600


def test_a_child_reads_on_where_its_parent_has_compressed_and_read(tmp_path: Path):
    array = terrain((600, 800))
    compressed = opened(written(array, nthreads=2), array)
    assert (np.asarray(compressed) == array).all()

    def child(say: Say) -> bool:
        again = opened(written(array, nthreads=2), array)
        return bool((np.asarray(compressed) == array).all() and (np.asarray(again) == array).all())

    outcome = in_child(child, seconds=20)
    assert outcome.error is None, outcome.error
    assert outcome.result


def test_many_threads_read_one_array():
    array = np.add.outer(np.arange(700.0), np.arange(900.0)).astype("f4")
    layout = Layout(array.dtype, array.shape, (128, 256), (32, 64), *LZ4)
    compressed = opened(written(array, layout, nthreads=2), array)
    failed = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(200):
            i, j = generator.integers(0, 600, 2)
            if not (compressed[i : i + 70, j : j + 90] == array[i : i + 70, j : j + 90]).all():
                failed.append((i, j))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (np.asarray(compressed) == array).all()
    assert compressed.sum() == pytest.approx(array.sum(dtype=float), rel=1e-5)
