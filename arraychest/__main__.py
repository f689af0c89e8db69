"""``python -m arraychest``: the command line without an installed script."""

from __future__ import annotations

import sys

from arraychest.cli import main

sys.exit(main())
