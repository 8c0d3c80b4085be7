"""Read XML files of published data sets, without document types."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from patchword.errors import UserError


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        UserError: If the file is not XML, or has a document type, which could define nested entities that fill the
            memory.
    """
    parser = ElementTree.XMLParser(target=_Plain())
    try:
        parser.feed(path.read_bytes())
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not valid XML ({error}): use the published file") from error
    return root


class _Plain(ElementTree.TreeBuilder):
    """Rejects document types."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it has a document type, which published files do not have")
