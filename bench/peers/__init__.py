"""The peers, each behind a small adapter.

An adapter imports its package when it is made, so that this module can be read by the program
that only starts processes.  A workload asks a peer for methods; what it has not, it cannot do.
"""

from __future__ import annotations

from bench.peers.arrays import (
    Blosc2Dict,
    Blosc2NDArray,
    Blosc2Tree,
    H5py,
    Tensorstore,
    TensorstoreCached,
    Zarr,
    ZarrSharded,
    ZarrUncompressed,
)
from bench.peers.base import Peer
from bench.peers.databases import Diskcache, Lmdb, LmdbSynced, Shelve, Sqlitedict
from bench.peers.files import Joblib, NumpySave, Safetensors
from bench.peers.limit import Limit
from bench.peers.mappings import Cachetools, Chest023, DaskSpillBuffer, Zict, ZictMemmap
from bench.peers.netcdf import H5netcdf, NetCDF4
from bench.peers.ours import Arraychest, ArraychestDurable

OURS = Arraychest.name
OURS_DURABLE = ArraychestDurable.name
LIMIT = Limit.name

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Arraychest,
        ArraychestDurable,
        Limit,
        Chest023,
        Zict,
        ZictMemmap,
        DaskSpillBuffer,
        Cachetools,
        NumpySave,
        Joblib,
        Safetensors,
        Diskcache,
        Lmdb,
        LmdbSynced,
        Shelve,
        Sqlitedict,
        H5py,
        Zarr,
        ZarrUncompressed,
        ZarrSharded,
        Tensorstore,
        TensorstoreCached,
        Blosc2Dict,
        Blosc2Tree,
        Blosc2NDArray,
        NetCDF4,
        H5netcdf,
    )
}
