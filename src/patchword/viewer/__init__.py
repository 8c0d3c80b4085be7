"""The alignment viewer: words of a text on one side, where each model sees them in the image on the other."""

from patchword.viewer.page import AlignmentViewer

__all__ = ["AlignmentViewer"]
