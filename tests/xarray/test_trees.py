"""Trees of datasets, and datasets in groups."""

from __future__ import annotations

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
if not hasattr(xr, "DataTree"):
    pytest.skip("this xarray has no DataTree", allow_module_level=True)
pytest.importorskip("dask.array")

from arraychest.xarray import save  # noqa: E402
from tests.xarray.support import check_same, opened  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pool")


def dataset(n):
    return xr.Dataset(
        {"v": ("x", np.arange(3.0) * n), "s": ("x", np.array(["a", "b", "c"], object))},
        {"x": [10, 20, 30]},
        {"n": n},
    )


@pytest.fixture
def tree():
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"top": 5}, {"z": [1, 2]}, {"title": "all"}),
            "/model/run": dataset(1),
            "/model/run/step": xr.Dataset({"w": ("y", np.arange(4))}),
            "/model/other run": dataset(2),
            "/empty": xr.Dataset(),
        }
    )


def tree_in(path, **options):
    return xr.open_datatree(path, engine="arraychest", **options)


def keys(path):
    with arraychest.open(path, "r") as chest:
        assert chest.verify().ok
        return set(chest)


def test_a_tree_comes_back_as_it_was(path, tree):
    save(tree, path)
    found = tree_in(path)
    assert not found["/model/run/v"].variable._in_memory
    xr.testing.assert_identical(found.load(), tree)
    assert [node.path for node in found.subtree] == [node.path for node in tree.subtree]
    groups = xr.open_groups(path, engine="arraychest")
    assert set(groups) == set(tree.groups)
    check_same(groups["/model/run"], tree["/model/run"].to_dataset(inherit=False))
    save(tree_in(path, chunks={}), path, mode="w")
    xr.testing.assert_identical(tree_in(path).load(), tree)


@pytest.mark.parametrize("group", ["model/run", "/model/run", "/model/run/"])
def test_a_group_is_opened_by_its_path(path, tree, group):
    save(tree, path)
    check_same(opened(path, group=group), tree["/model/run"].to_dataset(inherit=False))
    part = tree_in(path, group=group).load()
    xr.testing.assert_identical(part.to_dataset(inherit=False), dataset(1))
    assert part["step/w"].values.tolist() == [0, 1, 2, 3]
    check_same(opened(path), tree.to_dataset())


def test_a_group_that_is_not_there_is_named(path, tree):
    save(tree, path)
    for read in (opened, tree_in):
        with pytest.raises(arraychest.ChestFormatError, match=r"/model/runs of .*found none"):
            read(path, group="model/runs")


def test_a_part_of_a_tree_is_saved_with_what_it_inherits(path, tree):
    save(tree["/model"], path)
    found = tree_in(path).load()
    assert "z" in found.coords
    xr.testing.assert_identical(found["/run"].to_dataset(inherit=False), dataset(1))
    assert set(found.groups) == {"/", "/run", "/run/step", "/other run"}


def test_a_dataset_is_saved_into_a_group_and_the_rest_stays(path, tree):
    save(tree, path)
    save(dataset(7), path, group="/model/run", mode="w")
    found = tree_in(path).load()
    xr.testing.assert_identical(found["/model/run"].to_dataset(inherit=False), dataset(7))
    # The groups below it went, and no others.
    assert set(found.groups) == set(tree.groups) - {"/model/run/step"}
    save(dataset(8), path, group="/model/new", mode="a")
    assert tree_in(path)["/model/new"].attrs == {"n": 8}
    assert not [key for key in keys(path) if "step" in str(key)]


def test_a_group_is_the_first_thing_in_a_chest(path):
    save(dataset(1), path, group="a/b")
    check_same(opened(path, group="a/b"), dataset(1))
    check_same(opened(path), xr.Dataset())
    assert set(tree_in(path).groups) == {"/", "/a", "/a/b"}


def test_variables_are_added_to_the_datasets_of_a_tree(path, tree):
    save(tree, path)
    more = xr.DataTree.from_dict(
        {"/model/run": dataset(3)[["v"]].drop_attrs(), "/more": dataset(4)}
    )
    save(more, path, mode="a")
    found = tree_in(path).load()
    xr.testing.assert_identical(found["/more"].to_dataset(inherit=False), dataset(4))
    xr.testing.assert_identical(
        found["/model/run"].to_dataset(inherit=False), dataset(1).assign(v=dataset(3).v)
    )
    assert found["/model/run/step/w"].size == 4
    assert found["top"].item() == 5


def test_rows_are_appended_and_overwritten_in_a_group(path, tree):
    save(tree, path)
    save(dataset(1).assign_coords(x=[40, 50, 60]), path, group="model/other run", append_dim="x")
    region = dataset(5)[["v"]].isel(x=[1])
    save(region, path, group="model/other run", region="auto")
    found = tree_in(path).load()
    assert found["model/other run/v"].values.tolist() == [0, 5, 4, 0, 1, 2]
    assert found["model/other run/s"].values.tolist() == list("abcabc")
    xr.testing.assert_identical(found["/model/run"].to_dataset(inherit=False), dataset(1))
    assert "dataset" in keys(path)


def test_an_encoding_is_told_by_path(path, tree):
    save(tree, path, encoding={"/model/run": {"v": {"dtype": "f4"}}})
    with arraychest.open(path, "r") as chest:
        assert chest["group", "/model/run", "variable", "v"].dtype == np.float32
        assert chest["group", "/model/other run", "variable", "v"].dtype == np.float64
    xr.testing.assert_equal(tree_in(path).load(), tree)
    with pytest.raises(ValueError, match="'/nowhere'"):
        save(tree, path, mode="w", encoding={"/nowhere": {}})


@pytest.mark.parametrize("options", [{"append_dim": "x"}, {"region": "auto"}])
def test_a_tree_is_not_appended(path, tree, options):
    save(tree, path)
    with pytest.raises(arraychest.ValueTypeError, match="group='/child'"):
        save(tree, path, **options)
    xr.testing.assert_identical(tree_in(path).load(), tree)
