"""The mapping contract, kept by every configuration of a chest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

import arraychest
from tests.contract import MappingContract, Settle

BUDGETS = {"tiny": 4000, "none": 0, "large": 256 << 20}

CONFIGURATIONS = [
    pytest.param(
        place, budget, on_put, mmap_mode, "auto", id="-".join((place, budget, on_put, mmap_mode))
    )
    for place, budget, on_put, mmap_mode in itertools.product(
        ("temporary", "spilled", "reopened"), BUDGETS, ("freeze", "copy", "share"), ("r", "c")
    )
    # With no budget at all, every value goes straight to disk whatever else is chosen.
    if budget != "none" or (on_put == "freeze" and place != "spilled")
] + [
    # Every value of a file of its own is compressed.
    pytest.param(place, budget, "freeze", mmap_mode, "lz4", id=f"{place}-{budget}-{mmap_mode}-lz4")
    for place, budget, mmap_mode in itertools.product(
        ("temporary", "spilled", "reopened"), ("tiny", "large"), ("r", "c")
    )
]


class _Configured(arraychest.Chest):
    """A chest that tells the contract how it was opened."""

    contract_on_put = "freeze"
    contract_mmap_mode = "r"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("place", "budget", "on_put", "mmap_mode", "compression"), CONFIGURATIONS)
class TestEveryConfiguration(MappingContract):
    """Temporary, named with everything spilled, and closed and reopened between the steps."""

    @pytest.fixture
    def made(self) -> Iterator[list[arraychest.Chest]]:
        made: list[arraychest.Chest] = []
        yield made
        for chest in made:
            chest.close()

    @pytest.fixture
    def make(self, made, path, place, budget, on_put, mmap_mode, compression):
        def make() -> arraychest.Chest:
            chest = _Configured(
                path=None if place == "temporary" else path,
                available_memory=BUDGETS[budget],
                on_put=on_put,
                mmap_mode=mmap_mode,
                compression=compression,
            )
            chest.contract_on_put = on_put
            chest.contract_mmap_mode = mmap_mode
            made.append(chest)
            return chest

        return make

    @pytest.fixture
    def chest(self, make) -> arraychest.Chest:
        return make()

    @pytest.fixture
    def settle(self, make, place) -> Settle:
        def settle(chest: arraychest.Chest) -> arraychest.Chest:
            if place == "spilled":
                chest.flush()
                assert chest.memory_usage == 0
            elif place == "reopened":
                chest.close()
                return make()
            return chest

        return settle
