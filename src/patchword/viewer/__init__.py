"""The alignment viewer: an interactive page that shows each model's maps of the words of a caption."""

from patchword.viewer.page import AlignmentViewer

__all__ = ["AlignmentViewer"]
