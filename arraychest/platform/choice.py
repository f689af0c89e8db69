"""Which system this is, and whether its own calls are used.

With ``ARRAYCHEST_PLATFORM=posix`` in the environment each mechanism takes the way that every POSIX
system has, so that it can be tested anywhere.
"""

from __future__ import annotations

import os
import sys

_asked = os.environ.get("ARRAYCHEST_PLATFORM", "")
if _asked not in ("", "posix"):
    raise ImportError(
        f'expected ARRAYCHEST_PLATFORM to be "posix" or not to be set, found {_asked!r}'
    )

# Whether only what every POSIX system has is used.
PORTABLE = _asked == "posix"
IS_LINUX = sys.platform == "linux" and not PORTABLE
IS_MACOS = sys.platform == "darwin" and not PORTABLE
