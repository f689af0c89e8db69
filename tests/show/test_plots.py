"""Pictures: what lies where, drawn by Matplotlib, of hostile keys too."""

from __future__ import annotations

import itertools
import os
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.patches import Rectangle

import arraychest
from arraychest.cli import main
from arraychest.monitor import samples as history
from arraychest.monitor.samples import History
from arraychest.show import plots
from tests.support import listing


@pytest.fixture(scope="module", autouse=True)
def fonts():
    """Matplotlib keeps the files of fonts open once it has used them."""
    with arraychest.Chest({"x": np.zeros(2)}) as chest:
        chest.plot()._repr_png_()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def areas(ax):
    """The area of each colour in the map, as a share of all."""
    found = {}
    for patch in ax.patches:
        if isinstance(patch, Rectangle):
            colour = patch.get_facecolor()[:3]
            found[colour] = found.get(colour, 0) + patch.get_width() * patch.get_height()
    total = sum(found.values())
    return {colour: area / total for colour, area in found.items()}


def colour_of(place):
    return tuple(int(plots._COLOURS[place][at : at + 2], 16) / 255 for at in (1, 3, 5))


# --- the map -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[1], [5, 5, 5], [6, 6, 4, 3, 2, 2, 1], [10**12, 1, 1], [1] * 100]
)
def test_a_map_fills_its_rectangle_with_areas_as_the_sizes(sizes):
    found = plots.squarified(sizes, 300.0, 200.0)
    for size, (x, y, w, h) in zip(sizes, found, strict=True):
        assert w * h == pytest.approx(size / sum(sizes) * 60_000)
        assert -1e-6 <= x <= x + w <= 300 + 1e-6
        assert -1e-6 <= y <= y + h <= 200 + 1e-6
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(found[:20], 2):
        assert (
            x + w <= x2 + 1e-6 or x2 + w2 <= x + 1e-6 or y + h <= y2 + 1e-6 or y2 + h2 <= y + 1e-6
        )


def test_equal_sizes_are_drawn_as_squares():
    assert {(w, h) for _, _, w, h in plots.squarified([1] * 4, 100.0, 100.0)} == {(50.0, 50.0)}


def test_a_picture_says_what_lies_where_by_key_and_size(path, make_chest):
    chest = make_chest(path=path, available_memory="64 MiB")
    chest["own"] = np.zeros(300_000)
    for number in range(100):
        chest["small", number] = np.arange(200)
    chest.put("compressed", np.zeros((500, 1000)), compression="zstd")
    chest.flush()
    chest["new"] = np.zeros(300_000)
    figure = chest.plot()
    where, over_time, sizes = figure.axes
    shares = areas(where)
    assert shares[colour_of("RAM")] == pytest.approx(shares[colour_of("npy")], rel=0.01)
    assert {"own", "new", "2.29 MiB"} <= set(texts(where))
    legend = [text.get_text() for text in where.get_legend().get_texts()]
    assert "in RAM, not stored yet: 2.29 MiB (1)" in legend
    assert "small values in packs: 156 KiB (100)" in legend
    assert sum(label.startswith("compressed files") for label in legend) == 1
    assert any("103 entries" in text.get_text() for text in figure.texts)
    assert sum(bar.get_height() for bar in sizes.patches) == 103
    (charged, *_) = over_time.get_lines()
    assert charged.get_ydata()[-1] == chest.memory_usage
    # Nothing was read.
    assert chest.stats().faults == 0


def test_labels_stay_within_their_rectangles_whatever_the_keys(make_chest):
    chest = make_chest()
    rng = np.random.default_rng(3)
    keys = [
        "$x^{$",
        "日本語",
        "W" * 300,
        "\x1b[31m\u202e",
        "<b>",
        "",
        " ",
        ("a", 1),
        b"\xff",
        10**5000,
    ]
    for number, key in enumerate([*keys, *range(90)]):
        least = 2000 if number < len(keys) else 1
        chest[key] = np.zeros(int(rng.integers(least, 3000)))
    figure = chest.plot()
    FigureCanvasAgg(
        figure
    ).draw()  # a glyph that is missing would be a warning, and mathematics an error
    where = figure.axes[0]
    assert len(where.texts) > 20
    boxes = [patch.get_window_extent() for patch in where.patches]
    for text in where.texts:
        assert text.get_text().isprintable()
        extent = text.get_window_extent()
        inside = [
            box.x0 - 1 <= extent.x0 and extent.x1 <= box.x1 + 1
            and box.y0 - 1 <= extent.y0 and extent.y1 <= box.y1 + 1
            for box in boxes
        ]  # fmt: skip
        assert sum(inside) == 1, text.get_text()


def test_an_empty_chest_is_a_picture_too(make_chest):
    chest = make_chest()
    figure = chest.plot()
    assert texts(figure.axes[0]) == ["nothing yet"]
    assert chest.plot(times=True)._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(make_chest, monkeypatch):
    chest = make_chest()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'arraychest\[plot\]'"):
        chest.plot()


@pytest.mark.parametrize("prefix", ["run", ("run", 7), "run/"], ids=str)
def test_a_group_draws_its_own_entries(prefix, path, make_chest):
    chest = make_chest(path=path)
    group = chest.group(prefix)
    group["mine"] = np.zeros(1000)
    chest["theirs"] = np.zeros(5000)
    chest.flush()
    for options in ({}, {"times": True}):
        figure = group.plot(**options)
        told = [text.get_text() for text in figure.texts]
        assert any(text.startswith("1 entry · 7.81 KiB") for text in told)
        assert any(text.endswith(f", {prefix!r}") for text in told)
        where, upper, _ = figure.axes
        assert "mine" in texts(where)
        assert "theirs" not in texts(where)
        assert (upper.get_title(loc="left") == "The whole chest over time") == (not options)


def test_a_closed_chest_cannot_be_plotted(make_chest):
    chest = make_chest()
    chest.close()
    with pytest.raises(arraychest.ClosedChestError):
        chest.plot()


# --- over time ---------------------------------------------------------------------------------


def test_samples_are_taken_while_a_chest_spills(make_chest, monkeypatch):
    monkeypatch.setattr(history, "SECONDS", 0.0)
    chest = make_chest(available_memory="1 MiB")
    for number in range(40):
        chest[number] = np.zeros(20_000)
    chest.flush()
    samples = chest._engine.session.history.samples
    assert len(samples) > 3
    spilled = [sample.spilled for sample in samples]
    assert spilled == sorted(spilled)
    assert 0 < max(sample.charged for sample in samples) <= 2**20
    assert {sample.budget for sample in samples} == {2**20}


def test_samples_of_a_long_life_are_fewer_and_of_all_of_it(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(history, "monotonic", lambda: float(next(clock)))
    samples = History()
    for number in range(5000):
        samples.add(number, 1, number)
    assert len(samples.samples) <= history.MOST_SAMPLES
    seconds = [sample.seconds for sample in samples.samples]
    assert seconds == sorted(seconds)
    assert seconds[0] < 100
    assert seconds[-1] > 4900
    assert samples.due - 5000 > 1.0


# --- the command -------------------------------------------------------------------------------


def test_the_command_draws_a_chest_that_lies_on_disk(path, tmp_path, capsys):
    with arraychest.open(path) as chest:
        for number in range(20):
            chest[f"slope/{number}"] = np.zeros(20_000 + number)
        chest.append("log", np.zeros((1000, 30)))
        chest.flush()
        files = [chest.entry(key).file for key in chest]
    for number, file in enumerate(files):
        os.utime(file, (1.7e9 + 86_400 * number,) * 2)
    before = listing(f"{path}/data")
    output = tmp_path / "out.png"
    assert main(["plot", path, "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"Picture: {output}\n"
    picture = imread(output)
    assert picture.shape == (1050, 1950, 4)
    # The map is there, in the colour of files of their own.
    assert np.all(np.abs(picture[500, 400, :3] - colour_of("npy")) < 0.01)
    assert listing(f"{path}/data") == before
    assert sorted(os.listdir(tmp_path)) == ["out.png", "test.chest"]


def test_files_are_drawn_at_the_time_that_they_were_written(path):
    with arraychest.open(path) as chest:
        for number in range(10):
            chest[number] = np.zeros(20_000)
        chest.flush()
        for number in range(10):
            os.utime(chest.entry(number).file, (1.7e9 + 86_400 * (number >= 7),) * 2)
        ax = chest.plot(times=True).axes[1]
        stored = chest.entry(0).stored_bytes
    bars = [(bar.get_x(), bar.get_height()) for bar in ax.patches if bar.get_height()]
    assert [height for _, height in bars] == [7 * stored, 3 * stored]
    assert bars[1][0] - bars[0][0] == pytest.approx(1, abs=0.05)


def test_the_command_refuses_what_it_cannot_write(path, tmp_path, capsys):
    arraychest.open(path).close()
    taken = tmp_path / "taken.svg"
    taken.write_text("mine")
    assert main(["plot", path, "-o", str(taken)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert taken.read_text() == "mine"
    assert main(["plot", path, "-o", "picture.jpeg"]) == 1
    assert "expected a name that ends in .png, .svg or .pdf" in capsys.readouterr().err
    assert main(["plot", path, "-o", str(tmp_path / "no" / "folder.png")]) == 1
    assert main(["plot", str(tmp_path / "nothing"), "-o", str(tmp_path / "x.png")]) == 1
    assert main(["plot", path, "-o", str(taken), "--overwrite"]) == 0
    assert "<svg" in taken.read_text()
