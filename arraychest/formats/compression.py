"""Which values are compressed when they are stored, and how: the options of a chest and of a put.

Nothing here, or below before a large array is met, imports Blosc2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from arraychest.formats import blosc, frame
from arraychest.formats.blosc import Choice
from arraychest.formats.form import Kind
from arraychest.formats.frame import CODECS, FILTERS

if TYPE_CHECKING:
    from blosc2 import CParams

# What a user may ask for.
Asked: TypeAlias = "str | CParams | None"

# As it was understood.
How = Choice | Literal["auto", "never"]

# Milliseconds to put and flush / to the first window / to read whole, in the page cache: 4 MiB as
# they are 1.1 / 0.3 / 0.3, compressed 5.1 / 0.4 / 4.2; 32 MiB 4.7 / 0.7 / 2.0 and 22 / 1.1 / 23.
# So compression pays where there is more than the page cache takes, which is a matter of large
# arrays; and from here on sampling, half a millisecond, is 2 % of the write.
COMPRESS_ABOVE: Final = 32 << 20


class Compression(NamedTuple):
    """What a chest compresses.

    Attributes
    ----------
    how
        With which codec; ``"auto"``: as sampling tells.
    above
        Smaller arrays are not sampled, in bytes.
    nthreads
        How many threads compress one array, or decompress one.
    """

    how: How
    above: int
    nthreads: int

    def choice(self, array: np.ndarray, kind: Kind, asked: How | None) -> Choice | None:
        """How to compress a value; None: it is stored as it is.

        Parameters
        ----------
        asked
            What the put asked for; None: nothing.
        """
        how = self.how if asked is None else asked
        if how == "never" or kind != "array" or not blosc.may_be_framed(array):
            return None
        if how != "auto":
            return blosc.fitting(how, array.dtype)
        if array.nbytes < self.above:
            return None
        return blosc.chosen(array if array.flags.c_contiguous else array.T, self.nthreads)


def parse_compression(asked: Any) -> How:
    """What a user asked for, checked.

    Raises
    ------
    ValueError
        There is no such codec, or none that a file of ours may have.
    TypeError
        It is nothing of the kind.
    """
    if asked is None:
        return "never"
    if isinstance(asked, str):
        return "auto" if asked == "auto" else blosc.named(asked)
    # Not `isinstance`: that would import Blosc2 for every chest.
    if type(asked).__name__ != "CParams" or not type(asked).__module__.startswith("blosc2"):
        raise TypeError(
            f'expected compression to be "auto", None, one of the codecs {", ".join(CODECS)}, or '
            f"blosc2.CParams, found {type(asked).__name__}"
        )
    codec = int(getattr(asked.codec, "value", asked.codec))
    # In the order in which they are applied; what comes to nothing is left out.
    pairs = [
        (int(getattr(number, "value", number)), int(meta) & 0xFF)
        for number, meta in zip(asked.filters, asked.filters_meta, strict=True)
    ]
    pairs = [pair for pair in pairs if pair[0] != FILTERS["nofilter"]]
    choice = Choice(
        codec, int(asked.clevel), tuple(each[0] for each in pairs), tuple(each[1] for each in pairs)
    )
    frame.check_choice(*choice)
    return choice
