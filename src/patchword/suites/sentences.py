"""Lists of sentences of long captions, as FLAIR (Xiao et al., CVPR 2025, arXiv 2412.03561) publishes them."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile


def sentences(path: Path, images: Path) -> list[Captioned]:
    """Return the images of a file such as FLAIR's `test_annotations.json`, each with all its sentences.

    Args:
        path: The file: `{"annotations": [{"image_id": 0, "image": "test_00731.jpg", "caption": "A toilet."}, ...]}`.
        images: The folder of the images.

    Raises:
        UserError: If the file is not as published.
    """
    texts: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for number, one in enumerate(field(read_json(path), "annotations", list, str(path))):
        place = f"{path}, annotations[{number}]"
        name = field(one, "image", str, place)
        places.setdefault(name, place)
        texts.setdefault(name, []).append(field(one, "caption", str, place))
    if not texts:
        raise UserError(f"{path} has no annotations: use the published file")
    pictures = [PictureFile(named_inside(images, name, place), place) for name, place in places.items()]
    pairs = zip(pictures, texts.values(), strict=True)
    return [Captioned(number, (picture,), tuple(own)) for number, (picture, own) in enumerate(pairs)]
