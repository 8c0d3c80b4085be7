"""patchword: fine-grained image-text alignment objectives, compared in one Lightning module."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from patchword.version import __version__ as __version__

if TYPE_CHECKING:
    from patchword.features import Images as Images
    from patchword.features import Texts as Texts
    from patchword.module import AlignmentModule as AlignmentModule
    from patchword.objective import Objective as Objective


_WHERE = {"Images": "features", "Texts": "features", "Objective": "objective", "AlignmentModule": "module"}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `patchword --help` does not wait for torch."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"patchword.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'patchword' has no attribute {name!r}")
