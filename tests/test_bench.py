"""`python -m bench` runs, compares what peers read, judges fairly, and leaves nothing behind."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import start_program

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "bench").is_dir(), reason="bench/ is part of the checkout only"
)


def command(*arguments: object) -> list[str]:
    pytest.importorskip("rich")
    return [sys.executable, "-m", "bench", *map(str, arguments)]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def outcome(seconds, **others):
    known = {
        "durability": "process crash",
        "setup": "",
        "version": "1",
        "share": 1,
        "anon": [0],
        "disk": [1000],
    }
    return {**known, "steps": {"put": list(seconds)}, **others}


def step(**others):
    known = {"name": "put", "unit": "s", "nbytes": None, "judged": True, "limit": True}
    return {**known, "stores": False, "at_most": None, **others}


def document(peers, *, steps=None, scale="full", **workload):
    known = {"name": "w", "title": "W", "seconds": 1.0, "durable": False, "sized": False}
    race = {**known, "steps": steps or [step()], "peers": peers, "skipped": {}, "failed": {}}
    return {
        "date": "2020-01-01T00:00:00+00:00",
        "command": "python -m bench",
        "scale": scale,
        "machine": {"CPU": "2 × fast", "memory": "8 GiB", "files": "ext4"},
        "versions": {"arraychest": "1"},
        "workloads": [{**race, **workload}],
        "checks": [],
    }


# --- judging -------------------------------------------------------------------------------------


def verdict(*arguments, **options):
    from bench import report

    (found,) = report.verdicts(document(*arguments, **options))
    return found


def test_the_best_peer_and_the_limit_are_what_arraychest_is_measured_by():
    found = verdict(
        {
            "arraychest": outcome([2.0, 2.1, 9.0]),
            "limit": outcome([1.0]),
            "zict": outcome([4.2]),
            "lmdb": outcome([2.1]),
        }
    )
    assert (found.best, found.ratio, found.limit_ratio) == ("lmdb", 1.0, 2.1)
    assert found.met is False  # the limit's 1.3


@pytest.mark.parametrize(("ours", "met"), [(1.05, True), (1.06, False)])
def test_first_or_within_five_percent_of_it_is_asked(ours, met):
    assert verdict({"arraychest": outcome([ours]), "zict": outcome([1.0])}).met is met


def test_a_limit_that_is_more_than_system_calls_is_shown_and_not_judged():
    peers = {"arraychest": outcome([9.0]), "limit": outcome([1.0])}
    found = verdict(peers, steps=[step(limit=False)])
    assert (found.limit_ratio, found.met) == (9.0, None)


def test_a_peer_that_promises_less_is_compared_only_where_values_need_not_survive():
    peers = {"arraychest": outcome([2.0]), "zict": outcome([1.0], durability="none")}
    assert verdict(peers, durable=True).best is None
    assert verdict(peers, durable=False).best == "zict"
    peers["zict"]["durability"] = "power loss"
    assert verdict(peers, durable=True).best == "zict"


def test_a_peer_that_stores_more_is_not_compared_where_size_counts():
    peers = {"arraychest": outcome([2.0]), "np.save": outcome([1.0], disk=[1500])}
    assert verdict(peers, sized=True).best is None
    assert verdict(peers, sized=False).best == "np.save"


def test_what_is_synced_is_compared_with_what_is_synced():
    from bench import report

    synced = {"durability": "power loss"}
    peers = {
        "arraychest": outcome([1.0]),
        "arraychest, durable": outcome([4.0], **synced),
        "limit": outcome([1.0], durability="none"),
        "lmdb": outcome([2.0]),
        "lmdb, synced": outcome([8.0], **synced),
    }
    steps = [step(stores=True)]
    usual, durable = report.verdicts(document(peers, steps=steps, durable=True))
    assert (usual.label, usual.best, usual.ratio, usual.limit_ratio) == ("put", "lmdb", 0.5, 1.0)
    assert (durable.label, durable.best, durable.ratio) == ("put, durable", "lmdb, synced", 0.5)
    assert durable.limit_ratio is None
    # A read is the same.
    (only,) = report.verdicts(document(peers, durable=True))
    assert only.label == "put"


@pytest.mark.parametrize(("growth", "met"), [(1.4, True), (1.6, False)])
def test_growth_is_bounded_whatever_peers_do(growth, met):
    peers = {"arraychest": outcome([growth]), "lmdb": outcome([1.0])}
    steps = [step(unit="×", judged=False, at_most=1.5)]
    found = verdict(peers, steps=steps)
    assert (found.best, found.met) == (None, met)


def test_the_small_scale_judges_nothing():
    peers = {"arraychest": outcome([9.0]), "zict": outcome([1.0])}
    assert verdict(peers, scale="small").met is None


# --- answers -------------------------------------------------------------------------------------


def turn(**others):
    known = {"seconds": {"array": [1.0, 3.0, 2.0]}, "answers": {"sum": 7}, "anon": 1, "disk": 2}
    known["turn_seconds"] = 0.5
    return {**known, **others}


def test_a_peer_that_answers_otherwise_fails_and_has_no_figures():
    from bench import race, report
    from bench.workloads.spill_write import SpillWrite

    played, answers = race.Race(SpillWrite()), {}
    race._take(played, "limit", turn(), answers)
    race._take(played, "arraychest", turn(), answers)
    race._take(played, "arraychest", turn(answers={"sum": 8}), answers)
    assert played.outcomes["limit"].steps == {"array": [2.0]}
    assert list(played.outcomes) == ["limit"]
    found = {"workloads": [report.document_of(played, small=True)]}
    assert [words[:2] for words in report.failures(found)] == [("spill-write", "arraychest")]


def test_who_is_far_behind_in_every_step_plays_one_round():
    from bench import race
    from bench.workloads.reload import Reload

    played, steps = race.Race(Reload()), ("first element", "all elements")
    times = {"arraychest": (1, 1), "limit": (9, 9), "np.save": (4, 4), "shelve": (9, 1)}
    for name, seconds in times.items():
        turn = {"answers": {}, "anon": 0, "disk": 0, "turn_seconds": 1}
        turn["seconds"] = {step: [s] for step, s in zip(steps, seconds, strict=False)}
        race._take(played, name, turn, {})
    assert {name for name in (*times, "lmdb") if race._far_behind(played, name)} == {"np.save"}


def test_what_a_peer_cannot_do_is_said():
    from bench import race
    from bench.peers import PEERS
    from bench.peers.base import Peer
    from bench.workloads import RACES

    class Missing(Peer):
        name = "missing"
        package = "no-such-package"
        bound = ("put", "get")

    assert race._why_not(PEERS["arraychest"], RACES["small"]()) is None
    assert "memory" in race._why_not(PEERS["np.save"], RACES["hits"]())
    assert race._why_not(PEERS["shelve"], RACES["opening"]()) == PEERS["shelve"].cannot["opening"]
    assert "arraychest[bench]" in race._why_not(Missing, RACES["scan"]())


def test_every_workload_and_adapter_is_known_by_the_name_that_others_use_for_it():
    from bench.peers import PEERS
    from bench.peers.base import DURABILITIES
    from bench.workloads import RACES

    for peer in PEERS.values():
        assert {*peer.shares, *peer.cannot, *(peer.only or ())} <= RACES.keys()
        assert peer.durability in DURABILITIES
        assert peer.setup
    for race in RACES.values():
        assert race.peers is None or {*race.peers} <= PEERS.keys()
        assert len({step.name for step in race.steps}) == len(race.steps)


# --- the program ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_prints_tables_and_writes_figures_and_a_picture_and_leaves_no_files(tmp_path):
    figures, picture, files = tmp_path / "f.json", tmp_path / "p.svg", tmp_path / "files"
    pytest.importorskip("matplotlib")
    done = bench(
        "--only=hits,scan", "--peers=arraychest,limit,np.save", "--scale=small", "--rounds=1",
        "--json", figures, "--plot", picture, "--dir", files,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "np.save: is no mapping in memory" in done.stdout
    found = json.loads(figures.read_text(encoding="utf-8"))
    hits, scan = found["workloads"]
    assert {"get", "overwrite"} == hits["peers"]["arraychest"]["steps"].keys()
    assert {"arraychest", "limit", "np.save"} == scan["peers"].keys()
    # Half of what the scan reads is to stay in memory, and all of it is put.
    (anon,) = scan["peers"]["arraychest"]["anon"]
    assert 1 << 20 < anon < 64 << 20
    assert scan["peers"]["limit"]["disk"][0] >= 8 << 20
    assert not hits["failed"]
    assert not scan["failed"]
    assert "<svg" in picture.read_text(encoding="utf-8")
    assert not list(files.iterdir())


@pytest.mark.slow
def test_ctrl_c_ends_the_processes_and_removes_the_files(tmp_path):
    started = start_program(
        command("churn", "--peers=arraychest", "--rounds=50", "--scale=small", "--dir", tmp_path),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        children = []
        give_up = time.monotonic() + 30
        # Until it plays: its chest lies below the run's folder and the turn's.
        while not list(tmp_path.glob("*/*/chest")):
            assert time.monotonic() < give_up
            assert started.poll() is None
            time.sleep(0.02)
        children = psutil.Process(started.pid).children(recursive=True)
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 130
        assert not list(tmp_path.iterdir())
        assert children
        assert not psutil.wait_procs(children, timeout=10)[1]
    finally:
        started.kill()
        started.wait()
        for child in children:
            if child.is_running():
                child.kill()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["no-such"], "spill-write"), (["--peers=no-such"], "lmdb"), (["--rounds=0"], "one round")],
)
def test_what_is_not_known_is_refused_with_what_is(arguments, named, capsys):
    pytest.importorskip("rich")
    from bench.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert named in capsys.readouterr().err


# --- the documentation ---------------------------------------------------------------------------


def test_the_table_for_readme_is_made_of_the_figures_alone(tmp_path, capsys):
    from bench.__main__ import main

    peers = {
        "arraychest": outcome([0.001, 0.002, 0.003]),
        "limit": outcome([0.0016]),
        "lmdb": outcome([0.004]),
    }
    found = document(peers, steps=[step(nbytes=4_000_000)])
    path = tmp_path / "run.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    assert main(["--markdown", str(path)]) == 0
    table = capsys.readouterr().out
    line = "| **w**: W | put | 2 ms (2 GB/s) | lmdb 4 ms (1 GB/s) | 0.50 | 1.6 ms (2.5 GB/s) | 1.25 | met |"
    assert line in table
    changed = copy.deepcopy(found)
    changed["workloads"][0]["peers"]["lmdb"]["steps"]["put"] = [0.005]
    path.write_text(json.dumps(changed), encoding="utf-8")
    main(["--markdown", str(path)])
    assert capsys.readouterr().out != table


@pytest.mark.parametrize("page", ["README.md", "arraychest/guide/benchmarks.md"])
def test_the_documentation_carries_the_figures_of_the_newest_run(page):
    pytest.importorskip("rich")
    from bench import report

    text = (ROOT / page).read_text(encoding="utf-8")
    runs = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (ROOT / "bench" / "results").glob("*.json")
    ]
    newest = max(runs, key=lambda run: run["date"])
    assert newest["scale"] == "full"
    whole = (report.BEGIN, report.END, report.markdown(newest))
    short = (report.SHORT_BEGIN, report.SHORT_END, report.short(newest))
    begin, end, table = short if page == "README.md" else whole
    start, behind = text.index(begin), text.index(end) + len(end)
    assert text[start:behind] == table.rstrip("\n")
