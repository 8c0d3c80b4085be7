"""The alignment viewer: an interactive page that shows each model's maps of the words of a caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchword.viewer.page import AlignmentViewer as AlignmentViewer


def __getattr__(name: str) -> Any:
    """Import the viewer when it is first used, so that `patchword inspect --help` does not wait for torch."""
    if name == "AlignmentViewer":
        from patchword.viewer.page import AlignmentViewer

        return AlignmentViewer
    raise AttributeError(f"module 'patchword.viewer' has no attribute {name!r}")
