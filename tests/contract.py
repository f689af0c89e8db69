"""The contract of a mapping of arrays, which every configuration of a chest keeps alike.

A class that inherits it gives the fixtures `chest` and `settle`: what `settle` returns is the
chest to look at next, which may be the same one, one whose values have all been spilled, or one
that was closed and opened again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import pytest

import arraychest
from tests.support import assert_identical

# One that is packed, and one that gets a file of its own.
SMALL, LARGE = 100, 20_000

Settle = Callable[[arraychest.Chest], arraychest.Chest]


def value(seed: int, size: int = SMALL) -> np.ndarray:
    return np.arange(seed, seed + size, dtype=np.float64)


class MappingContract:
    """One test per promise; each looks before and after `settle`."""

    def test_is_a_mutable_mapping_that_starts_empty(self, chest, settle):
        assert isinstance(chest, MutableMapping)
        chest = settle(chest)
        assert len(chest) == 0
        assert list(chest) == []
        assert not chest
        assert "x" not in chest
        assert chest.get("x") is None

    def test_what_was_put_comes_back_exactly(self, chest, settle):
        for size in (SMALL, LARGE):
            chest[size] = value(1, size)
            chest["f", size] = np.asfortranarray(value(2, size).reshape(2, -1))
        chest = settle(chest)
        for _ in range(2):
            for size in (SMALL, LARGE):
                assert_identical(chest[size], value(1, size))
                assert_identical(chest["f", size], np.asfortranarray(value(2, size).reshape(2, -1)))

    def test_an_absent_key_is_a_key_error(self, chest, settle):
        chest["there"] = value(0)
        chest = settle(chest)
        for get in (operator.getitem, operator.delitem, type(chest).pop):
            with pytest.raises(KeyError) as caught:
                get(chest, "absent")
            assert isinstance(caught.value, arraychest.AbsentKeyError)
            assert caught.value.args == ("absent",)
        assert "absent" not in chest
        assert chest.get("absent", 7) == 7
        assert chest.pop("absent", 7) == 7
        assert list(chest) == ["there"]

    def test_keys_come_in_the_order_of_insertion(self, chest, settle):
        keys = ["b", "a", 3, ("c", 1), b"d", None, 2.5]
        for at, key in enumerate(keys):
            chest[key] = value(at)
        chest = settle(chest)
        assert list(chest) == keys
        assert list(chest.keys()) == keys
        assert list(reversed(chest)) == keys[::-1]
        assert [key for key, _ in chest.items()] == keys
        assert [array[0] for array in chest.values()] == list(range(len(keys)))
        assert len(chest) == len(keys)

    def test_overwriting_keeps_the_place_and_deleting_gives_it_up(self, chest, settle):
        for key in "abcd":
            chest[key] = value(0)
        chest = settle(chest)
        chest["b"] = value(1)
        del chest["a"]
        chest["a"] = value(2, LARGE)
        assert list(chest) == ["b", "c", "d", "a"]
        chest = settle(chest)
        assert list(chest) == ["b", "c", "d", "a"]
        assert_identical(chest["b"], value(1))
        assert_identical(chest["a"], value(2, LARGE))

    @pytest.mark.parametrize("sizes", [(SMALL, LARGE), (LARGE, SMALL), (LARGE, LARGE)])
    def test_overwriting_replaces_the_value(self, chest, settle, sizes):
        chest["x"] = value(0, sizes[0])
        chest = settle(chest)
        chest["x"] = value(5, sizes[1])
        assert_identical(chest["x"], value(5, sizes[1]))
        assert len(chest) == 1
        chest = settle(chest)
        assert_identical(chest["x"], value(5, sizes[1]))
        assert len(chest) == 1

    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_a_deleted_key_is_gone_and_may_come_back(self, chest, settle, size):
        chest["x"] = value(0, size)
        chest["y"] = value(1, size)
        chest = settle(chest)
        del chest["x"]
        assert "x" not in chest
        assert len(chest) == 1
        chest = settle(chest)
        assert "x" not in chest
        assert list(chest) == ["y"]
        chest["x"] = value(2, size)
        chest = settle(chest)
        assert list(chest) == ["y", "x"]
        assert_identical(chest["x"], value(2, size))

    def test_pop_and_popitem_remove_and_return(self, chest, settle):
        for key in "abc":
            chest[key] = value(ord(key))
        chest["d"] = value(4, LARGE)
        chest = settle(chest)
        assert_identical(chest.pop("b"), value(ord("b")))
        key, array = chest.popitem()
        assert key == "d"
        assert_identical(array, value(4, LARGE))
        chest = settle(chest)
        assert chest.popitem()[0] == "c"
        assert chest.popitem()[0] == "a"
        with pytest.raises(KeyError):
            chest.popitem()
        assert_identical(array, value(4, LARGE))

    def test_setdefault_gets_or_puts(self, chest, settle):
        chest["x"] = value(0)
        chest = settle(chest)
        assert_identical(chest.setdefault("x", value(1)), value(0))
        assert_identical(chest.setdefault("y", value(2)), value(2))
        chest = settle(chest)
        assert_identical(chest["x"], value(0))
        assert_identical(chest["y"], value(2))

    def test_update_takes_what_a_dict_takes(self, chest, settle):
        chest.update({"a": value(1)}, b=value(2))
        chest.update([("c", value(3)), ("a", value(4))])
        chest.update(d=value(5))
        chest.update()
        has_keys = type(
            "HasKeys", (), {"keys": lambda _: ["e"], "__getitem__": lambda *_: value(6)}
        )
        chest.update(has_keys())
        chest = settle(chest)
        assert [(key, array[0]) for key, array in chest.items()] == [
            ("a", 4), ("b", 2), ("c", 3), ("d", 5), ("e", 6),
        ]  # fmt: skip

    def test_update_without_overwrite_keeps_what_is_there(self, chest, settle):
        chest["a"] = value(1)
        chest = settle(chest)
        chest.update({"a": value(2), "b": value(3)}, overwrite=False)
        chest = settle(chest)
        assert [(key, array[0]) for key, array in chest.items()] == [("a", 1), ("b", 3)]

    def test_clear_and_discard(self, chest, settle):
        for key in "abc":
            chest[key] = value(0)
        chest = settle(chest)
        chest.discard("a")
        chest.discard("a")
        assert list(chest) == ["b", "c"]
        chest.clear()
        assert list(chest) == []
        assert len(chest) == 0
        chest = settle(chest)
        assert list(chest) == []
        chest["a"] = value(1)
        assert_identical(chest["a"], value(1))

    def test_equal_keys_are_one_key_and_the_first_stays(self, chest, settle):
        chest[1] = value(0)
        chest[2.0] = value(1)
        chest = settle(chest)
        for same in (1, 1.0, True, np.int64(1), 1 + 0j, np.bool_(True)):
            assert same in chest
            assert_identical(chest[same], value(0))
            chest[same] = value(0)
        assert np.float16(2) in chest
        assert "1" not in chest
        assert (1,) not in chest
        chest = settle(chest)
        assert [(type(key), key) for key in chest] == [(int, 1), (float, 2.0)]
        del chest[True]
        assert list(chest) == [2.0]

    def test_views_of_the_mapping_are_live(self, chest, settle):
        keys, items, values = chest.keys(), chest.items(), chest.values()
        chest["x"] = value(1)
        chest.spill("x")
        chest["y"] = value(2)
        assert (len(keys), len(items), len(values)) == (2, 2, 2)
        assert "x" in keys
        assert keys == {"x", "y"}
        assert keys & {"x", "z"} == {"x"}
        assert [array[0] for array in values] == [1, 2]
        assert dict(items).keys() == {"x", "y"}

    def test_equality_is_that_of_keys_and_arrays(self, chest, settle):
        assert chest == {}
        chest["x"] = value(1)
        chest = settle(chest)
        assert chest == {"x": value(1)}
        assert chest != {"x": value(2)}
        assert chest != {"y": value(1)}
        assert chest != {"x": value(1), "y": value(1)}
        assert chest != {"x": value(1).astype(np.float32)}
        assert chest != 3
        with pytest.raises(TypeError):
            hash(chest)

    def test_iterating_while_deleting_and_putting(self, chest, settle):
        for at in range(50):
            chest[at] = value(at)
        chest = settle(chest)
        seen = []
        for key in chest:
            seen.append(key)
            assert_identical(chest[key], value(key))
            if key % 3 == 0:
                del chest[key]
            elif key % 3 == 1:
                chest[key] = value(key)
        assert seen == list(range(50))
        assert list(chest) == [at for at in range(50) if at % 3]

    def test_a_refused_key_or_value_changes_nothing(self, chest, settle):
        chest["x"] = value(1)
        for size in (SMALL, LARGE):
            mine = value(2, size)
            with pytest.raises(TypeError, match="object"):
                chest[object()] = mine
            mine[0] = 7  # it was not frozen
        for bad in (object(), [1, object()], {"a": (b"", {1: print})}, np.array([object()])):
            with pytest.raises(TypeError):
                chest["x"] = bad
            with pytest.raises(TypeError):
                chest["y"] = bad
        for _ in range(2):
            for get in (operator.getitem, operator.delitem, operator.contains):
                with pytest.raises(TypeError):
                    get(chest, [])
            # What could never be stored is not there.
            for key in (object(), float("nan"), ("x", object())):
                assert key not in chest
                assert chest.get(key) is None
                assert chest.pop(key, 3) == 3
                for get in (operator.getitem, operator.delitem):
                    with pytest.raises(KeyError):
                        get(chest, key)
            chest = settle(chest)
        assert list(chest) == ["x"]
        assert_identical(chest["x"], value(1))

    def test_writing_to_what_was_put_never_changes_the_value(self, chest, settle):
        if chest.contract_on_put == "share":
            pytest.skip("the caller promised not to write")
        for size in (SMALL, LARGE):
            mine = value(0, size)
            chest[size] = mine
            if chest.contract_on_put == "freeze":
                with pytest.raises(ValueError, match="read-only"):
                    mine[0] = 99
            else:
                mine[0] = 99
            viewed = value(0, size + 10)
            chest["view", size] = viewed[10:]
            viewed[:] = 99
        chest = settle(chest)
        for size in (SMALL, LARGE):
            assert_identical(chest[size], value(0, size))
            assert_identical(chest["view", size], value(10, size))

    def test_writing_to_what_was_got_never_changes_the_value(self, chest, settle):
        chest[0] = value(0, SMALL)
        chest[1] = value(0, LARGE)
        chest["view"] = value(0)[5:]
        for _ in range(2):
            for key in chest:
                got = chest[key]
                if chest.contract_mmap_mode == "c":
                    got[...] = 99
                    assert (got == 99).all()
                else:
                    with pytest.raises(ValueError, match="read-only"):
                        got[...] = 99
            assert_identical(chest[0], value(0, SMALL))
            assert_identical(chest[1], value(0, LARGE))
            assert_identical(chest["view"], value(5, SMALL - 5))
            chest = settle(chest)

    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_a_view_outlives_overwriting_deleting_and_closing(self, chest, settle, size):
        for key in "abc":
            chest[key] = value(1, size)
        chest = settle(chest)
        views = [chest[key] for key in "abc"]
        chest["a"] = value(2, size)
        del chest["b"]
        chest.pop("c")
        for at in range(4):  # a file that is used again must not be one that is still seen
            chest[at] = value(3, size)
            chest.spill(at)
        chest = settle(chest)
        chest.compact()
        for view in views:
            assert_identical(view, value(1, size))
        chest.close()
        for view in views:
            assert_identical(view, value(1, size))

    def test_scalars_come_back_as_scalars(self, chest, settle):
        scalars = [np.float32(1.5), np.int8(-3), np.str_("a\0"), np.bytes_(b"\0"), np.str_(""),
                   np.datetime64("2020-01-01"), np.bool_(True), np.longdouble(1) / 3,
                   np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])[0]]  # fmt: skip
        for at, scalar in enumerate(scalars):
            chest[at] = scalar
        for _ in range(2):
            for at, scalar in enumerate(scalars):
                assert_identical(chest[at], scalar)
            chest = settle(chest)

    def test_values_beyond_arrays_come_back_as_they_were(self, chest, settle):
        def values() -> dict[str, Any]:
            return {
                "none": None,
                "text": "a\0b",
                "numbers": [1, 2.5, True, 3j, 2**70],
                "nested": {"b": (1, [b"x", None]), "a": {2, 3}},
                "small": [value(1), {"again": value(2).reshape(4, -1)}],
                "large": {"a": value(3, LARGE), "b": np.asfortranarray(value(4, 6).reshape(2, -1))},
            }

        chest.update(values())
        for _ in range(3):
            for key, expected in values().items():
                found = chest[key]
                assert_identical(found, expected)
                assert_identical(chest.load(key), expected)
                if isinstance(found, list | dict):
                    found.clear()
                    assert_identical(chest[key], expected)
            assert chest == values()
            chest._engine.session.resident.check()
            chest = settle(chest)
        assert_identical(chest.pop("nested"), values()["nested"])
        assert chest.setdefault("none", 1) is None
        chest["text"] = value(0)
        chest["large"] = None
        chest = settle(chest)
        assert_identical(chest["text"], value(0))
        assert chest["large"] is None
        assert list(chest) == ["none", "text", "numbers", "small", "large"]

    def test_an_entry_says_what_is_there_whatever_the_tier(self, chest, settle):
        chest["x"] = value(0).reshape(4, 25)
        chest["y"] = np.str_("abc")
        for _ in range(2):
            entry = chest.entry("x")
            assert (entry.shape, entry.dtype, entry.nbytes) == ((4, 25), np.dtype("f8"), 800)
            entry = chest.entry("y")
            assert (entry.shape, entry.dtype, entry.nbytes) == ((), np.dtype("<U3"), 12)
            chest = settle(chest)
        with pytest.raises(KeyError):
            chest.entry("absent")

    def test_what_is_charged_is_what_is_resident_and_within_the_budget(self, chest, settle):
        for at in range(30):
            chest[at] = value(at)
            assert chest.memory_usage <= chest.available_memory + 8 * SMALL
        assert chest.stats().resident == len(chest.inmem)
        chest.flush()
        assert chest.memory_usage == 0
        assert dict(chest.inmem) == {}

    def test_a_closed_chest_refuses_everything_but_closing(self, chest, settle):
        chest["x"] = value(0)
        view = chest["x"]
        chest = settle(chest)
        chest.close()
        chest.close()
        assert chest.closed
        assert "closed" in repr(chest)
        calls: list[Callable[[], Any]] = [
            lambda: chest["x"],
            lambda: chest["absent"],
            lambda: chest.__setitem__("x", value(1)),
            lambda: chest.__delitem__("x"),
            lambda: "x" in chest,
            lambda: len(chest),
            lambda: list(chest),
            lambda: list(reversed(chest)),
            lambda: chest.pop("x"),
            lambda: chest.pop("x", None),
            lambda: chest.popitem(),
            lambda: chest.setdefault("x", value(1)),
            lambda: chest.update({"x": value(1)}),
            lambda: chest.clear(),
            lambda: chest.discard("x"),
            lambda: chest.flush(),
            lambda: chest.spill("x"),
            lambda: chest.prefetch(["x"]),
            lambda: chest.compact(),
            lambda: chest.entry("x"),
            lambda: chest.__enter__()["x"],
        ]
        for call in calls:
            with pytest.raises(arraychest.ClosedChestError):
                call()
        assert_identical(view, value(0))
