"""What notebooks show: everything escaped, nothing read, and a browser draws it."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest

import arraychest
from arraychest.arrays import chunk_grid
from arraychest.arrays.card import array_html
from arraychest.engine.listing import listed
from arraychest.memoize import card
from arraychest.show import cards

HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "gpj\u202eexe.\x1b[31m\u2066\n\r\x00",
    b"</table></style><b>",
    ("<i>", ("&lt;", frozenset(["<u>"]))),
]


class Page(html.parser.HTMLParser):
    """Which elements there are, each of which is closed, and the text between."""

    VOID = {"rect", "polygon", "path", "meta", "br", "img"}

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.texts = []
        self.ids = []
        self._open = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def rows(page):
    """The cells of the entries' table, as texts."""
    body = re.search('class="ac-list">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    return [
        [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall("<td.*?</td>", row)]
        for row in re.findall("<tr>.*?</tr>", body)
    ]


# --- a chest ---------------------------------------------------------------------------------


def test_a_chest_shows_where_each_value_is(path, make_chest):
    chest = make_chest(path=path, available_memory="8 MiB")
    chest["own"] = np.zeros((300, 1000))
    chest["packed"] = np.arange(5)
    chest.put("compressed", np.zeros((400, 1000)), compression="zstd")
    chest.flush()
    chest["scalar"] = np.float32(2)
    chest["tree"] = {"a": [1, 2]}
    chest["packed"] = np.arange(6)  # anew: its row on disk is an old one
    assert chest["own"].shape == (300, 1000)
    assert chest.load("compressed").shape == (400, 1000)
    found = {row[0]: row[1:] for row in rows(chest._repr_html_())}
    assert list(found) == ["'own'", "'packed'", "'compressed'", "'scalar'", "'tree'"]
    assert found["'own'"][:4] == ["disk, mapped", "float64", "300 × 1000", "2.29 MiB"]
    assert found["'own'"][5] == "npy"
    assert found["'packed'"] == ["RAM", "int64", "6", "48 B", "–", "–"]
    assert found["'compressed'"][0] == "disk, copy in RAM"
    assert found["'compressed'"][5] == "zstd"
    assert found["'scalar'"][:3] == ["RAM", "float32", "scalar"]
    assert found["'tree'"][:3] == ["RAM", "tree", "–"]


def test_what_a_chest_shows_reads_nothing_and_counts_as_no_use(path):
    with arraychest.open(path) as chest:
        for number in range(50):
            chest[number] = np.arange(number)
        chest["large"] = np.zeros(100_000)
    missed = []
    with arraychest.open(path, on_miss=missed.append) as chest:
        chest["fresh"] = np.arange(3)
        engine = chest._engine
        before = chest.stats()
        chest._repr_html_()
        assert chest.stats() == before
        assert not missed
        # Nothing that is stored was taken note of.
        assert not engine.session.index.slots
        assert set(engine.session.index.rows) <= {"fresh"}
        assert chest.inmem["fresh"].tolist() == [0, 1, 2]


def test_a_chest_names_the_codec_of_each_compressed_value(path):
    codecs = ["lz4", "zstd", "blosclz", "zlib"]
    with arraychest.open(path) as chest:
        for codec in codecs:
            chest.put(codec, np.zeros((400, 100)), compression=codec)
        chest.flush()
        file = chest.key_to_filename("zlib")
    Path(file).unlink()
    with arraychest.open(path, "r") as chest:
        page = chest._repr_html_()
        assert chest.stats().misses == 0
    # What the file cannot say any more is told as the catalog knows it.
    assert [row[6] for row in rows(page)] == ["lz4", "zstd", "blosclz", "blosc2"]


def test_one_of_anything_is_told_in_the_singular(path):
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(3)
    with arraychest.open(path) as chest:
        chest["x"], chest["x"]
        assert "1 value," in repr(chest)
        page = chest._repr_html_()
        assert "1 hit · 1 miss · 0 absent" in page
        chest["y"] = np.zeros(3)
        chest["x"], chest["y"]
        assert "2 values," in repr(chest)
        assert "3 hits · 1 miss" in chest._repr_html_()
        assert "of 4 gets" in chest.stats()._repr_html_()
        report = chest.verify()
        assert str(report).startswith("1 value, ")
        assert str(report).endswith(" 0 findings")


def test_a_chest_of_many_entries_shows_the_first_ones_without_reading_the_others(path, monkeypatch):
    with arraychest.open(path) as chest:
        chest.update({number: np.arange(2) for number in range(3000)})
    with arraychest.open(path) as chest:
        for number in range(20):
            del chest[number]  # not committed yet
        chest[5000] = np.arange(2)
        catalog = chest._engine.session.open_store().catalog
        asked = []
        rows_after = catalog.rows_after
        monkeypatch.setattr(
            catalog, "rows_after", lambda at, n: asked.append(n) or rows_after(at, n)
        )
        page = chest._repr_html_()
        assert [row[0] for row in rows(page)] == [str(number) for number in range(20, 220)]
        assert "The first 200 of 2,981 entries" in page
        assert sum(asked) <= 2 * cards.MOST_ENTRIES


def test_a_listing_tells_of_each_entry_once_whatever_its_tier(path):
    expected = {}
    with arraychest.open(path) as chest:
        for number in range(3000):
            chest[number] = np.arange(number % 7)
            expected[number] = number % 7
    with arraychest.open(path) as chest:
        for number in range(0, 3000, 5):
            chest[number] = np.arange(8)  # over what is stored
            expected[number] = 8
        for number in range(1, 3000, 50):
            del chest[number]
            del expected[number]
        chest[1] = np.arange(9)  # again, at the end
        expected[1] = 9
        for number in range(3000, 3100):
            chest[number] = np.arange(10)
            expected[number] = 10
        found = {each.key: each.entry.shape[0] for each in listed(chest._engine)}
        assert len(list(listed(chest._engine))) == len(expected)
        assert found == expected
        assert list(found) == list(chest)
        assert list(found) == [each.key for each in listed(chest._engine)]


@pytest.mark.parametrize("key", HOSTILE, ids=range(len(HOSTILE)))
def test_a_key_from_a_stranger_is_text_and_nothing_else(key, path, make_chest):
    plain = make_chest(path=f"{path}.plain")
    plain["x"] = np.zeros(2)
    chest = make_chest(path=path)
    chest[key] = np.zeros(2, [("<script>", "f4"), ("\u202e", "f4")])
    page = chest._repr_html_()
    found = Page(page)
    assert found.tags == Page(plain._repr_html_()).tags
    assert all(each.isprintable() or each.isspace() for text in found.texts for each in text)
    shown = rows(page)[0][0]
    assert shown.isprintable()
    assert shown == repr(key)


def test_a_key_of_megabytes_is_cut(make_chest):
    chest = make_chest()
    for key in ("x" * 5_000_000, b"x" * 5_000_000, 10**5000, ("y" * 10**6,) * 3, -(2**70)):
        chest[key] = np.zeros(2)
    page = chest._repr_html_()
    assert len(page) < 20_000
    assert rows(page)[4][0] == str(-(2**70))


def test_the_paths_and_messages_of_a_chest_are_escaped(tmp_path, make_chest):
    chest = make_chest(path=str(tmp_path / "<b>\u202e\x1b&amp;"))
    chest["x"] = np.zeros(2)
    chest.flush()
    page = chest._repr_html_()
    assert "&lt;b&gt;\\u202e\\x1b&amp;amp;" in page
    chest.close()
    assert "&lt;b&gt;\\u202e\\x1b&amp;amp;</bdi>, closed" in chest._repr_html_()


def test_a_damaged_row_is_said_to_be_damaged(path):
    with arraychest.open(path) as chest:
        chest.update({"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(4)})
    database = sqlite3.connect(f"{path}/catalog.sqlite")
    with database:
        database.execute("UPDATE entry SET form = '<b>' WHERE key = ?", (b"sa",))
        database.execute("UPDATE entry SET key = ? WHERE key = ?", (b"\xff<", b"sb"))
    database.close()
    with arraychest.open(path, "r") as chest:
        page = chest._repr_html_()
        Page(page)
        found = rows(page)
    assert [row[0] for row in found] == ["'a'", "b'\\xff<'", "'c'"]
    assert [row[2] for row in found] == ["damaged", "damaged", "float64"]
    assert "<b>" not in page.partition('class="ac-list"')[2]


def test_a_catalog_that_cannot_be_read_is_told(path, monkeypatch):
    with arraychest.open(path) as chest:
        chest["a"] = np.zeros(2)
    with arraychest.open(path) as chest:

        def fail(*_):
            raise OSError("<disk> is gone")

        monkeypatch.setattr(chest._engine.session.open_store().catalog, "rows_after", fail)
        page = chest._repr_html_()
        assert "&lt;disk&gt; is gone" in page
        assert "table" not in Page(page).tags


def test_an_empty_chest_and_a_temporary_one_are_shown(make_chest):
    chest = make_chest()
    page = Page(chest._repr_html_())
    assert "Chest of 0 entries" in page.text
    assert "nothing on disk yet · temporary" in page.text
    assert page.tags.count("table") == 1


def test_in_a_transaction_what_is_committed_is_shown(path, make_chest):
    chest = make_chest(path=path)
    chest["a"] = np.zeros(2)
    chest.flush()
    with chest.transaction():
        chest["b"] = np.zeros(2)
        page = chest._repr_html_()
    assert "not shown" in page
    assert [row[0] for row in rows(page)] == ["'a'"]


def test_two_pages_have_ids_of_their_own(make_chest):
    chest = make_chest({"x": np.zeros(2)})
    first, second = chest._repr_html_(), chest._repr_html_()
    assert set(Page(first).ids).isdisjoint(Page(second).ids)
    (name,) = Page(first).ids
    assert f'getElementById("{name}")' in first


# --- arrays ----------------------------------------------------------------------------------


def lines(svg):
    """How many lines there are between chunks, of each path, and how many faces."""
    return [path.count("M") for path in re.findall(' d="([^"]*)"', svg)], svg.count("<polygon")


@pytest.mark.parametrize(
    ("shape", "chunks", "cuts", "faces"),
    [
        ((100,), (30,), [3], 1),
        ((100,), ((10, 60, 30),), [2], 1),
        ((10**12,), (1,), [40], 1),
        ((100, 100), (50, 25), [3, 1], 1),
        ((100, 100), (100, 100), [], 1),
        ((90, 90, 90), (30, 45, 90), [2, 2, 1, 1], 3),
        ((2, 90, 90, 90), (1, 90, 90, 90), [1], 4),
        ((2,) * 12, (2,) * 12, [], 9),
        ((0, 5), (3, 5), [], 1),
    ],
)
def test_chunks_are_drawn_axis_by_axis(shape, chunks, cuts, faces):
    svg = chunk_grid.chunks_svg(shape, chunks)
    assert Page(svg).tags[0] == "svg"
    found, polygons = lines(svg)
    assert sorted(found) == sorted(cuts)
    assert polygons == faces
    assert ("ac-many" in svg) == (40 in cuts)
    assert ("ac-none" in svg) == (0 in shape)


def test_lines_lie_where_chunks_end():
    svg = chunk_grid.chunks_svg((100, 100), ((100,), (10, 60, 30)))
    (left, right) = re.search('points="([0-9.]+),[0-9.]+ ([0-9.]+),', svg).groups()
    cuts = [float(each) for each in re.findall(r"M([0-9.]+) ", svg)]
    width = float(right) - float(left)
    assert np.allclose([(cut - float(left)) / width for cut in cuts], [0.1, 0.7], atol=0.01)


def test_an_array_of_no_axis_is_one_element():
    page = Page(array_html("x", (), (), np.dtype("f4")))
    assert "rect" in page.tags
    assert "1 chunk" in page.text


def test_a_compressed_array_shows_its_chunks_and_codec(make_chest):
    chest = make_chest()
    chest.put("x", np.zeros((2000, 1000)), compression="zstd")
    chest.put("f", np.zeros((1000, 2000), order="F"), compression="lz4")
    for key, codec in (("x", "zstd-"), ("f", "lz4-")):
        chest.spill(key)
        array = chest[key]
        page = array._repr_html_()
        text = Page(page).text
        assert "15.3 MiB" in text
        assert str(array.shape) in text
        assert str(tuple(np.minimum(array.chunks, array.shape).tolist())) in text
        assert codec in text
        assert sum(lines(page)[0]) == sum(
            -(-n // c) - 1 for n, c in zip(array.shape, array.chunks, strict=True)
        )


def test_a_blocked_array_shows_its_blocks_of_different_sizes(path, make_chest):
    chest = make_chest(path=path)
    for rows_ in (10, 300, 50):
        chest.append("x", np.zeros((rows_, 4000)))
    array = chest["x"]
    page = array._repr_html_()
    text = Page(page).text
    assert "Blocked array" in text
    assert f"{np.prod(array.numblocks)} blocks" in text
    assert str(array.largest_chunk) in text
    assert [row[2:4] for row in rows(chest._repr_html_())] == [["float64", "360 × 4000"]]


# --- cached functions ------------------------------------------------------------------------


def test_a_cached_function_shows_hits_misses_and_the_time_saved(make_chest):
    chest = make_chest()

    @chest.cache(ignore=["verbose"])
    def f(x, verbose=False):
        return x

    assert "none yet" in f._repr_html_()
    for x in (1, 2, 1, 1):
        f(x)
    text = Page(f._repr_html_()).text
    assert "2 hits of 4 (50%)" in text
    assert "saved" in text
    assert "ignore=('verbose',)" in text
    assert "<locals>" in text


def test_seconds_are_told_to_three_figures():
    told = [card._seconds(each) for each in (0, 2.5e-6, 0.0125, 1, 59.9996, 90, 7200, 1e6)]
    assert told == ["0 µs", "2.5 µs", "12.5 ms", "1 s", "1 min", "1.5 min", "2 h", "11.6 d"]


# --- in a browser ----------------------------------------------------------------------------

PROBE = """
<script>
function cells(box, at){return Array.from(box.querySelectorAll(".ac-list tbody tr"))
  .map(function(r){return r.cells[at].textContent})}
var box=document.querySelector("#light .arraychest"), heads=box.querySelectorAll("th[data-sorts]");
var found={};
found.put=cells(box,0);
heads[4].click(); found.largest=cells(box,4);
heads[4].click(); found.smallest=cells(box,4);
heads[0].dispatchEvent(new KeyboardEvent("keydown",{key:"Enter"})); found.keys=cells(box,0);
function tone(id){return getComputedStyle(document.querySelector("#"+id+" .arraychest"))
  .backgroundColor}
found.light=tone("light"); found.dark=tone("dark"); found.asked=tone("asked");
found.asks=matchMedia("(prefers-color-scheme:dark)").matches;
found.hacked=typeof window.hacked;
found.widths=Array.from(box.querySelectorAll(".ac-track i"))
  .map(function(i){return i.getBoundingClientRect().width>0});
found.drawn=Array.from(document.querySelectorAll("svg"))
  .every(function(s){var b=s.getBoundingClientRect(),t=s.querySelector("text").getBBox();
  return b.width>20&&b.height>20&&t.x>=0&&t.x+t.width<=b.width+1});
found.fits=document.documentElement.scrollWidth<=document.documentElement.clientWidth;
document.body.textContent="FOUND"+JSON.stringify(found)+"END";
</script>
"""


def test_a_browser_draws_and_sorts_it_in_light_and_dark(path, tmp_path, make_chest):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium here")
    chest = make_chest(path=path, available_memory="8 MiB")
    for key, size in (("b", 300), ("a10", 20), ("a9", 90_000)):
        chest[key] = np.zeros(size)
    for key in HOSTILE:
        chest[key] = np.zeros(1)
    chest.flush()
    chest["new"] = np.zeros(50)
    shown = chest._repr_html_()
    arrays = [
        array_html("x", (365, 721, 1440), (30, 100, 144), np.dtype("f8")),
        array_html("x", (10**9, 3), ((10**8,) * 10, (3,)), np.dtype("f4")),
    ]
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta charset=utf-8><body>"
        f'<div id=light data-jp-theme-light="true">{shown}</div>'
        f'<div id=dark data-jp-theme-light="false">{chest._repr_html_()}{"".join(arrays)}</div>'
        f"<div id=asked>{arrays[0]}</div>" + PROBE
    )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", Path(page).as_uri()]
    # As on a system whose user wants it dark.
    command.insert(1, "--blink-settings=preferredColorScheme=0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = html.unescape(re.search("FOUND(.*)END", done.stdout)[1])
    found = json.loads(told)
    keys = ["b", "a10", "a9", *HOSTILE, "new"]
    assert found["put"] == [repr(key) for key in keys]
    assert found["largest"][:3] == ["703 KiB", "2.34 KiB", "400 B"]
    assert found["smallest"][-3:] == ["400 B", "2.34 KiB", "703 KiB"]
    assert found["keys"].index("'a9'") < found["keys"].index("'a10'") < found["keys"].index("'b'")
    assert found["hacked"] == "undefined"
    assert found["light"] == "rgb(255, 255, 255)"
    assert found["dark"] == "rgb(28, 33, 40)"
    # Where this Chromium takes that setting; what the notebook says goes first in any case.
    assert not found["asks"] or found["asked"] == found["dark"]
    assert found["widths"] == [True, True]  # RAM, disk
    assert found["drawn"]
    assert found["fits"]


# --- what is known of values, chests and their state -----------------------------------------------


def _text(card: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", card[card.index("</style>") :]))


def test_an_entry_stats_and_a_report_have_cards(path):
    with arraychest.open(path) as chest:
        chest.put("x", np.zeros((1000, 1000)), compression="zstd")
        chest["<script>"] = np.arange(3)
        chest.flush()
        entry = _text(chest.entry("x")._repr_html_())
        assert "Stored" in entry
        assert " : 1)" in entry
        assert "zstd" in entry
        assert "Answered from memory" in _text(chest.stats()._repr_html_())
        report = chest.verify()
        assert "All is well" in _text(report._repr_html_())
        bad = report._replace(
            findings=(
                arraychest.Finding("damaged", "<script>", None, 0, 0, "<b>changed</b>", None, None),
            )
        )
        card = bad._repr_html_()
        assert "1 finding" in card
        assert "<b>changed</b>" not in card
        assert "&lt;script&gt;" in card


def test_a_compressed_arrays_card_tells_what_it_takes_and_by_which_codec(path):
    with arraychest.open(path) as chest:
        chest.put("x", np.zeros((1000, 1000)), compression="zstd")
    with arraychest.open(path, "r") as chest:
        card = _text(chest["x"]._repr_html_())
        assert "Stored" in card
        assert " : 1)" in card
        assert "zstd" in card


def test_the_disk_bar_says_of_what(path):
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(100_000)
        chest.flush()
        assert "on this disk" in _text(chest._repr_html_())
    with arraychest.open(path, max_disk="10 MiB") as chest:
        assert "of 10 MiB (max_disk)" in _text(chest._repr_html_())
