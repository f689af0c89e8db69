"""The engine ``"arraychest"`` of `xarray.open_dataset`, `open_datatree` and `open_mfdataset`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import xarray as xr
from xarray.backends import BackendEntrypoint

import arraychest
from arraychest.chest import Chest
from arraychest.xarray.encoding import Decoding
from arraychest.xarray.layout import node_at, nodes_in, saved
from arraychest.xarray.reading import dataset_in

T = TypeVar("T")


class ArrayChestBackend(BackendEntrypoint):
    """The engine ``"arraychest"``: variables are read where they are needed, views of maps.

    A dataset stays good when its chest is changed, and when another dataset takes its place; so it
    is in other processes, to which it was sent, for what they have read by then.  The chest is not
    kept open.
    """

    description = "Open a dataset that arraychest.xarray.save has stored"
    supports_groups = True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        allow_pickle: bool = False,
        mask_and_scale: bool | None = None,
        decode_times: Any = None,
        decode_timedelta: Any = None,
        use_cftime: bool | None = None,
        decode_coords: bool | str | None = None,
    ) -> xr.Dataset:
        """See `xarray.open_dataset`.

        Parameters
        ----------
        group
            The path of the group to open; None: the root.
        allow_pickle
            Whether Python objects are read that were stored by pickle: reading runs code.
        mask_and_scale, decode_times, decode_timedelta, use_cftime, decode_coords
            As `xarray.open_dataset` has them, except for None: what `save` packed is unpacked, and
            nothing else; coordinates are those that were saved.

        Raises
        ------
        ChestFormatError
            The chest holds no dataset, or one whose `save` was interrupted.
        PickleRefusedError
            It holds pickled objects, and `allow_pickle` is false.

        Notes
        -----
        It reads the descriptions, the coordinates with an index, and extension arrays of pandas.
        Everything else is read when it is asked for, in the chunks that hold it, from any thread.
        """
        decoding = Decoding(
            mask_and_scale, decode_times, decode_timedelta, use_cftime, decode_coords
        )
        dropped = _dropped(drop_variables)
        node = node_at(group)
        return _whole(
            filename_or_obj,
            allow_pickle,
            lambda chest: dataset_in(chest, node, dropped, decoding),
        )

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        **options: Any,
    ) -> dict[str, xr.Dataset]:
        """See `xarray.open_groups`: all datasets of a chest, or of a group, by their paths.

        `options` are those of `open_dataset`, which also says what is raised.
        """
        dropped, root = _dropped(drop_variables), node_at(group)
        allow_pickle = options.pop("allow_pickle", False)
        decoding = Decoding(**options)

        def read(chest: Chest) -> dict[str, xr.Dataset]:
            found = [node for node in nodes_in(chest) if node.is_within(root.path)]
            if root not in found:
                dataset_in(chest, root, dropped, decoding)  # says what is missing
            above = len(root.path.rstrip("/"))
            return {
                node.path[above:] or "/": dataset_in(chest, node, dropped, decoding)
                for node in found
            }

        return _whole(filename_or_obj, allow_pickle, read)

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """See `xarray.open_datatree`: as `open_groups_as_dict`, as one tree."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a chest's folder."""
        return isinstance(filename_or_obj, str | os.PathLike) and os.path.isfile(
            os.path.join(filename_or_obj, "catalog.sqlite")
        )


def _dropped(names: str | Iterable[str] | None) -> set[Any]:
    return {names} if isinstance(names, str) else set(names or ())


def _whole(path: Any, allow_pickle: bool, read: Callable[[Chest], T]) -> T:
    """What `read` gives of a chest as one save has left it."""
    with arraychest.open(path, "r", allow_pickle=allow_pickle) as chest:
        while True:
            before = saved(chest)
            try:
                found = read(chest)
            except (arraychest.ArrayChestError, OSError):
                if saved(chest) == before:
                    raise
                continue
            # Otherwise it may be one half of each of two.
            if saved(chest) == before:
                return found
