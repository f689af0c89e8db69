"""`arraychest demo`: the numbers, the memory, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import arraychest
from arraychest.cli import demo, main, sampling, terrain
from tests.support import start_program

pytest.importorskip("matplotlib")

MIB = 1 << 20


def run(*arguments, temp, **options):
    """The command as a person runs it, with its temporary files under `temp`."""
    return subprocess.run(
        [sys.executable, "-m", "arraychest", *map(str, arguments)],
        env=environment(temp),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def environment(temp):
    # The checkout's own package, also where another one is installed.
    root = str(Path(arraychest.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "TMPDIR": str(temp)}


@pytest.fixture
def temp(tmp_path):
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


# --- the numbers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dem():
    return demo._measured()


@pytest.fixture(scope="module")
def grid(dem):
    """Small, with tiles that are cut off at the south and the east."""
    return terrain.Grid.over(dem, 336, tile=64)


@pytest.fixture(scope="module")
def layers(dem, grid):
    """Every layer, computed in tiles through a chest of a tenth of their size, as whole arrays."""
    plan = terrain.stages(dem, grid)
    with arraychest.Chest(available_memory=demo._bytes_of(plan) // 10) as chest:
        compute(plan, chest)
        assert chest.stats().bytes_spilled > demo._bytes_of(plan) // 2
        return whole(plan, chest)


def compute(plan, tiles):
    for stage in plan:
        for row, col in stage.grid.tiles():
            for layer, tile in zip(stage.layers, stage.compute(tiles, row, col), strict=True):
                assert tile.flags.owndata, "a chest takes it without a copy"
                tiles[layer, row, col] = tile


def whole(plan, tiles):
    return {
        layer: terrain.window(tiles, layer, stage.grid, 0, stage.grid.rows, 0, stage.grid.cols)
        for stage in plan
        for layer in stage.layers
    }


def test_tiles_through_a_chest_have_the_bits_of_one_tile_in_a_dict(dem, grid, layers):
    plan = terrain.stages(dem, grid._replace(tile=max(grid.rows, grid.cols)))
    tiles = {}
    compute(plan, tiles)
    expected = whole(plan, tiles)
    assert expected.keys() == layers.keys()
    for layer, array in expected.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(layers[layer], array, err_msg=layer)


def test_elevation_is_the_natural_cubic_spline(dem, grid, layers):
    def matrix(refined, measured):
        # Row i: the natural spline through each unit vector, at the middle of refined cell i.
        bands = np.eye(measured) * 4 + np.eye(measured, k=1) + np.eye(measured, k=-1)
        bands[[0, -1]] = np.eye(measured)[[0, -1]] * 6
        extend = np.zeros((measured + 4, measured))
        extend[2:-2] = np.eye(measured)
        for beyond in (1, 2):
            extend[2 - beyond, [0, beyond]] = 2, -1
            extend[-3 + beyond, [-1, -1 - beyond]] = 2, -1
        at = (np.arange(refined) + 0.5) * measured / refined - 0.5
        distance = np.abs(at[:, None] - np.arange(-2, measured + 2))
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = (2 - distance).clip(0) ** 3 / 6
        return np.where(distance < 1, near, far) @ extend @ np.linalg.inv(bands / 6)

    rows, cols = dem.heights.shape
    expected = matrix(grid.rows, rows) @ dem.heights @ matrix(grid.cols, cols).T
    # Computed in float64, stored as float32: one rounding, and what the solver's differs by.
    np.testing.assert_allclose(layers["elevation"], expected, rtol=2**-23)


def test_a_spline_goes_through_what_was_measured(dem):
    rows, cols = dem.heights.shape
    same = terrain.Grid(rows, cols, 1.0, 1.0, terrain.TILE)
    coefficients = terrain.spline_coefficients(dem.heights)
    refined = terrain.refine(coefficients, same, 0, rows, 0, cols)
    np.testing.assert_allclose(refined, dem.heights, rtol=2**-23)


def test_every_layer_is_what_plain_numpy_computes_on_whole_arrays(grid, layers):
    # In float64, from the layers as they were stored: what is left is the rounding of some ten
    # float32 operations on numbers of about one.
    tolerance = 32 * 2**-23
    z = np.pad(layers["elevation"].astype(np.float64), 1, mode="edge")
    north, middle, south = z[:-2], z[1:-1], z[2:]
    east_slope = (
        (north[:, 2:] + 2 * middle[:, 2:] + south[:, 2:])
        - (north[:, :-2] + 2 * middle[:, :-2] + south[:, :-2])
    ) / (8 * grid.dx)
    north_slope = (
        (north[:, :-2] + 2 * north[:, 1:-1] + north[:, 2:])
        - (south[:, :-2] + 2 * south[:, 1:-1] + south[:, 2:])
    ) / (8 * grid.dy)
    steepness = np.hypot(east_slope, north_slope)
    # Heights are float32 of some 1,000 m: sums of four of them differ by their last bits.
    height_error = 8 * 2**-23 * 4 * 1100 / (8 * grid.dx)
    np.testing.assert_allclose(layers["slope"], np.arctan(steepness), rtol=0, atol=height_error)
    # On level ground there is no aspect, and on gentle slopes an uncertain one.
    turn = layers["aspect"] - np.arctan2(-east_slope, -north_slope)
    off = np.abs((turn + np.pi) % (2 * np.pi) - np.pi) * steepness
    assert off.max() < height_error + tolerance
    assert layers["aspect"].min() >= 0
    assert layers["aspect"].max() <= np.float32(2 * np.pi)

    slope, aspect = layers["slope"].astype(np.float64), layers["aspect"].astype(np.float64)
    blended = np.zeros_like(slope)
    for azimuth in terrain.SUN_AZIMUTHS:
        # The angle between the sun and the normal of the exaggerated ground.
        sun = np.deg2rad([azimuth, terrain.SUN_ALTITUDE])
        rise = terrain.EXAGGERATION * np.tan(slope)
        towards = rise * np.cos(aspect - sun[0])
        light = (towards * np.cos(sun[1]) + np.sin(sun[1])) / np.hypot(1, rise)
        light = light.clip(0)
        np.testing.assert_allclose(layers[f"sun {azimuth}"], light, rtol=0, atol=tolerance)
        blended += np.sin(aspect - sun[0]) ** 2 * light / 2
    np.testing.assert_allclose(layers["shade"], blended, rtol=0, atol=tolerance)

    for radius in (terrain.relief_radius(grid), 3, 4):
        padded = np.pad(layers["elevation"], radius, mode="edge")
        side = 2 * radius + 1
        squares = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
        expected = squares.max(axis=(2, 3)) - squares.min(axis=(2, 3))
        np.testing.assert_array_equal(terrain.local_relief(padded, radius), expected)
        if radius == terrain.relief_radius(grid):
            np.testing.assert_array_equal(layers["relief"], expected)

    for layer in terrain.PYRAMID_LAYERS:
        for level in range(1, terrain.LEVELS + 1):
            finer = layers[terrain.level_name(layer, level - 1)].astype(np.float64)
            rows, cols = (side // 2 for side in finer.shape)
            expected = finer.reshape(rows, 2, cols, 2).mean(axis=(1, 3))
            np.testing.assert_allclose(
                layers[terrain.level_name(layer, level)], expected, rtol=4 * 2**-23
            )


def test_a_window_beyond_the_edge_repeats_it(grid, layers):
    chest = {
        ("x", row, col): layers["elevation"][t:b, l:r]
        for row, col in grid.tiles()
        for t, b, l, r in [grid.bounds(row, col)]  # noqa: E741
    }
    expected = np.pad(layers["elevation"], 70, mode="edge")
    found = terrain.window(chest, "x", grid, -70, grid.rows + 70, -70, grid.cols + 70)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        terrain.window(chest, "x", grid, 60, 70, 30, 200), layers["elevation"][60:70, 30:200]
    )


# --- the whole command -------------------------------------------------------------------------


@pytest.mark.slow
def test_it_draws_a_picture_and_keeps_the_chest_where_it_is_told(temp, tmp_path):
    path, output = tmp_path / "kept" / "terrain.chest", tmp_path / "map.png"
    done = run(
        "demo", "--size", 700, "--budget", "8 MiB", "--path", path, "--output", output, temp=temp
    )
    assert (done.returncode, done.stderr) == (0, "")
    for said in (
        "refined to 704 x 752",
        "times the budget of 8 MiB",
        "spilled",
        "Charged to the chest: ",
        "Anonymous memory: ",
        "By codec, the chest now holds",
        "arrays of",
        "% saved",
        "Opened again by a fresh process: ",
        "shape (256, 256), float32",
        f"Picture: {output}",
        f"The chest stays in {path}",
    ):
        assert said in done.stdout
    assert output.read_bytes().startswith(b"\x89PNG\r\n")
    with arraychest.open(path, mode="r") as chest:
        entries = {key: chest.entry(key) for key in chest}
        # Tiles, each layer's in a tuple of its place; twelve stages, the journal and the picture,
        # and three sheets.
        assert sum(type(key) is tuple for key in entries) == 4 * 9 + 3 * 4
        assert [entry.kind for entry in entries.values()].count("tree") == 12 + 2
        sheets = [key for key in entries if "._sheet(" in key]
        assert len(sheets) == 3
        assert {entries[key].shape for key in sheets} == {(376, 352)}
        assert entries[sheets[1]].codec in ("lz4", "zstd")
        assert chest["slope", 1, 1].shape == (240, 192)
        assert chest.stats().budget
    assert list(temp.iterdir()) == []


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_says_the_same(temp, tmp_path):
    path, first, second = tmp_path / "terrain.chest", tmp_path / "a.png", tmp_path / "b.png"
    arguments = ["demo", "--size", 256, "--budget", "8 MiB", "--path", path, "--output"]
    done = run(*arguments, first, temp=temp)
    assert done.returncode == 0, done.stderr
    with arraychest.open(path, mode="r") as chest:
        before = {key: chest.entry(key).generation for key in chest}
    again = run(*arguments, second, temp=temp)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("   kept\n") == 13
    assert "spilled" not in again.stdout
    start = done.stdout.index("Through the chest")
    assert again.stdout[again.stdout.index("Through the chest") :].startswith(
        done.stdout[start : done.stdout.index("Opened again")]
    )
    assert first.read_bytes() == second.read_bytes()
    with arraychest.open(path) as chest:
        assert {key: chest.entry(key).generation for key in chest} == before
        del chest["slope", 0, 0]
    third = run(*arguments, second, temp=temp)
    assert third.returncode == 0, third.stderr
    # What follows from the layer that had to be made again is the same, and kept.
    assert third.stdout.count("   kept\n") == 11
    with arraychest.open(path, mode="r") as chest:
        assert chest["slope", 0, 0].shape == (272, 256)


@pytest.mark.slow
def test_nothing_is_left_of_a_temporary_chest(temp):
    done = run("demo", "--size", 256, "--budget", "8 MiB", "--no-picture", temp=temp)
    assert done.returncode == 0, done.stderr
    assert "Picture" not in done.stdout
    assert list(temp.iterdir()) == []


@pytest.mark.slow
def test_a_temporary_chest_can_be_kept(temp):
    done = run("demo", "--size", 256, "--budget", "8 MiB", "--no-picture", "--keep", temp=temp)
    assert done.returncode == 0, done.stderr
    path = done.stdout.split("The chest stays in ")[1].strip()
    with arraychest.open(path, mode="r") as chest:
        assert chest["elevation", 0, 0].shape == (272, 256)


@pytest.mark.slow
def test_without_rss_anon_it_says_so(temp, tmp_path):
    # In a process of its own: Matplotlib keeps the files of its fonts open.
    program = (
        "import sys; from arraychest.cli import main, reopening, sampling; "
        "reopening.anonymous_bytes = sampling.anonymous_bytes = lambda: None; "
        "sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "map.png"
    arguments = ["demo", "--size", "256", "--budget", "8 MiB", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(temp),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Anonymous memory: this system does not say how much there is." in done.stdout
    assert output.exists()


# What a run may take beyond its budget: the tiles being computed (some 15 arrays of 512 x 512
# cells, half of them float64), a thread's stack and buffers for each writer, the catalog's cache,
# and what the C library's allocator keeps of freed tiles between those in use.
WORKING_ALLOWANCE = 32 * MIB

_MEASURED_RUN = """
import json, sys, threading
import matplotlib.cbook, psutil, rich.progress, arraychest.cli.demo  # what is imported counts before, not after
from arraychest.cli import main
from arraychest.cli.sampling import anonymous_bytes
stop, peak, start = threading.Event(), [0], anonymous_bytes()
def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], anonymous_bytes())
thread = threading.Thread(target=watch)
thread.start()
code = main(sys.argv[1:])
stop.set()
thread.join()
print(json.dumps([code, start, peak[0]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sampling.anonymous_bytes() is None, reason="this system has no RssAnon")
def test_it_stays_within_its_budget(temp):
    budget = 64 * MIB
    arguments = ["demo", "--size", "3072", "--budget", str(budget), "--no-picture"]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED_RUN, *arguments],
        env=environment(temp),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, start, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert "6.0 times the budget" in done.stdout
    # It was really used, and not passed by more than the allowance.
    assert budget / 2 < peak - start < budget + WORKING_ALLOWANCE


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "huge"], "expected a number of cells from 256 to 65536, found 'huge'"),
        (["--size", "7"], "expected a number of cells from 256 to 65536, found '7'"),
        (["--budget", "lots"], "expected a size such as"),
        (["--budget", "-1"], "expected"),
        (["--budget", "1 MiB"], "expected a budget of 8 MiB or more, found '1 MiB'"),
        (["--output", "/nowhere/map.png"], "cannot write '/nowhere/map.png': No such file"),
        (["--output", "map.jpg"], "expected a name that ends in .png, found 'map.jpg'"),
        (
            ["--path", "full"],
            "expected a folder that is not there yet, or an earlier demo's, found 'full'",
        ),
        (["--frob"], "unrecognized arguments: --frob"),
    ],
)
def test_a_wrong_argument_is_one_line_and_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"]


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert "usage: arraychest" in out
    assert "put" in out
    assert not err


def test_without_matplotlib_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ('arraychest demo: Matplotlib is missing: pip install "arraychest[demo]"\n')


def test_too_little_space_is_found_out_at_the_start(monkeypatch, capsys, temp):
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda _: type("", (), {"free": MIB}))
    assert main(["demo", "--no-picture"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "GiB are needed in" in err
    assert list(temp.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line(temp):
    import resource

    # No file may grow beyond half a tile: the first spill fails, as on a full disk.
    limit = (MIB // 2, MIB // 2)
    done = run(
        "demo", "--size", 2048, "--budget", "8 MiB", "--no-picture",
        temp=temp, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("arraychest demo: ")
    assert done.stderr.count("\n") == 1
    assert list(temp.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "arraychest demo: interrupted\n"),
        (signal.SIGTERM, 128 + signal.SIGTERM, ""),
        (signal.SIGHUP, 128 + signal.SIGHUP, ""),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_run_that_is_ended_leaves_nothing(named, number, code, said, temp, tmp_path):
    path = tmp_path / "terrain.chest"
    child = start_program(
        [
            sys.executable, "-m", "arraychest", "demo", "--size", "8192", "--budget", "32 MiB",
            "--no-picture", *(["--path", str(path)] if named else []),
        ],
        env=environment(temp), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killer = threading.Timer(60, child.kill)
    killer.start()
    try:
        for line in child.stdout:
            if "elevation" in line:
                break
        child.send_signal(number)
        _, err = child.communicate()
    finally:
        killer.cancel()
    assert (child.returncode, err) == (code, said)
    assert list(temp.iterdir()) == []
    assert not path.exists()
