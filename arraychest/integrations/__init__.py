"""The types of other packages that a chest takes apart by itself, without pickle.

There is one module for each package.  `arraychest.values.registry` imports it when a type of its
package is met, in a value that is put or in one that is read, and the module registers its types
when it is imported.
"""

from __future__ import annotations

import importlib
from typing import Any


def dask_part(name: str) -> Any:
    """One of the modules for dask, imported where it is used.

    Raises
    ------
    ImportError
        dask is missing.
    """
    try:
        return importlib.import_module(f"arraychest.integrations.dask_{name}")
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'arraychest[dask]'") from error
