"""`verify`: is all that lies on disk what was stored?"""

from __future__ import annotations

from arraychest.engine.engine import Engine
from arraychest.errors import ArrayChestError
from arraychest.integrity.inspection import Inspection
from arraychest.integrity.report import Report
from arraychest.progress import Asked, measured


def verify(engine: Engine, *, read_data: bool = True, progress: Asked = False) -> Report:
    """See `Chest.verify`."""
    with measured(progress, "verify", lambda: bytes_to_read(engine)) as meter:
        return Inspection(engine, read_data=read_data, meter=meter).report()


def bytes_to_read(engine: Engine) -> int:
    """How many bytes an inspection looks at; 0 where a damaged catalog does not say."""
    try:
        return engine.stored_bytes()
    except (ArrayChestError, OSError):
        return 0
