"""The options of `patchword inspect`; torch is imported only after the options are checked."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.commands.options import Parser, device
from patchword.errors import UserError

if TYPE_CHECKING:
    from patchword.data.batch import Sample
    from patchword.maps.alignment import Alignment
    from patchword.module import AlignmentModule

EPILOG = """\
The page works offline and needs no server. RUN is a checkpoint or the folder of a run; several runs are shown side by
side.

  patchword inspect --ckpt runs/demo --sample 5
  patchword inspect --ckpt runs/demo --image photo.jpg --text "a red apple next to a snail"
  patchword inspect --ckpt sparse=runs/compare/sparc/seed_0 dense=runs/compare/minmax/seed_0 --sample 5
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "inspect",
        description="Write a page that shows which image patches each word of a caption is aligned with.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("--ckpt", nargs="+", action="extend", required=True, metavar="[NAME=]RUN", help="the runs to show side by side")
    add("--image", type=Path, metavar="FILE", help="a photo of any size; it is preprocessed as in `predict`")
    add("--text", help="the caption of the photo")
    add(
        "--sample", type=_index, metavar="N", help="show scene N of the embedded test split, from 0, instead of a photo"
    )
    add(
        "--sources",
        nargs="+",
        metavar="SOURCE",
        help="the sources of maps, such as align value grad_eclip (default: those of each run; see docs/maps.md)",
    )
    add("--whole", action="store_true", help="show the models the complete photo, stretched to a square")
    add("--out", type=Path, default=Path("inspect.html"), metavar="FILE", help="the page (default: %(default)s)")
    add("--device", default="auto", help="cpu or cuda; auto uses a GPU if there is one")
    return made


def main(arguments: list[str]) -> None:
    """Compute the alignments, and write the page; `arguments` starts with `inspect`."""
    options = parser().parse_args(arguments[1:])
    _require_one_picture(options)
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder; give the path of a file")

    from patchword.data.pixels import read_image
    from patchword.maps.sources import require_sources
    from patchword.viewer import AlignmentViewer, runs

    image = None if options.image is None else read_image(options.image)
    modules = runs.load(options.ckpt, device(options.device))
    if options.sources is not None:
        for module in modules.values():
            require_sources(options.sources, module.encoder, "--sources")
    if image is None:
        panels = _inspect_sample(modules, options.sample, options.sources)
    else:
        panels = {
            name: module.inspect(image, options.text, None, options.whole, options.sources)
            for name, module in modules.items()
        }
    AlignmentViewer(panels).save(options.out)
    print(f"written: {options.out} (open it in a browser; it works offline)")


def _require_one_picture(options: argparse.Namespace) -> None:
    """Check that the options give either a photo with a text, or a scene."""
    if options.sample is not None and (options.image is not None or options.text is not None):
        raise UserError("--sample has its own image and text: omit either --sample, or --image and --text")
    if options.sample is None and options.image is None:
        raise UserError("no image is given: use --image and --text, or --sample 0 for an embedded scene")
    if options.sample is None and options.text is None:
        raise UserError('--image needs --text, such as --text "a red apple next to a snail"')
    if options.text is not None and not options.text.strip():
        raise UserError('--text is empty: describe the photo, such as --text "a red apple"')
    if options.text is not None:
        _require_utf8(options.text)


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--text is not valid UTF-8, starting at character {error.start + 1}") from error


def _inspect_sample(modules: dict[str, AlignmentModule], index: int, sources: list[Any] | None) -> dict[str, Alignment]:
    """Return each model's alignment of a scene, which is drawn at the largest image size of the models.

    The mask of a word is the mask of the phrase that contains it. The models see the complete image, as in training.
    """
    from PIL import Image

    from patchword.data.scenes import EmojiScenes

    size = max(module.encoder.image_size[0] for module in modules.values())
    scene = EmojiScenes("test", length=index + 1, image_size=size)[index]
    image = Image.fromarray(scene.image.permute(1, 2, 0).numpy())
    return {
        name: _with_masks(module.inspect(image, scene.captions[0], None, True, sources), scene)
        for name, module in modules.items()
    }


def _with_masks(alignment: Alignment, scene: Sample) -> Alignment:
    import torch
    from torch.nn.functional import interpolate

    masks = torch.zeros(len(alignment.spans), *scene.image.shape[1:])
    for number, (start, end) in enumerate(alignment.spans):
        for phrase in scene.phrases[0]:
            if phrase.start <= start and end <= phrase.end and phrase.mask is not None:
                masks[number] = phrase.mask
    return replace(alignment, masks=interpolate(masks[None], alignment.pixels.shape[1:])[0].bool())


def _index(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not '{value}'")
    return int(value)
