"""The options of `patchword inspect`; torch waits until there is something to look at."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.commands import Parser, device
from patchword.errors import InputError

if TYPE_CHECKING:
    from patchword.alignment import Alignment
    from patchword.data.batch import Sample
    from patchword.module import AlignmentModule

EPILOG = """\
The page needs neither a server nor a network. RUN is a checkpoint or a run's folder; several stand side by side.

  patchword inspect --ckpt runs/demo --sample 5
  patchword inspect --ckpt runs/demo --image photo.jpg --text "a red apple next to a snail"
  patchword inspect --ckpt sparse=runs/compare/sparc/seed_0 dense=runs/compare/minmax/seed_0 --sample 5
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "inspect",
        description="A page that shows which patches of an image each word of a text aligned to.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("--ckpt", nargs="+", action="extend", required=True, metavar="[NAME=]RUN", help="what to look at, side by side")
    add("--image", type=Path, metavar="FILE", help="a photo of any size; the model sees its central square")
    add("--text", help="what stands in the photo")
    add("--sample", type=_index, metavar="N", help="instead: scene N of the embedded test split, from 0")
    add("--whole", action="store_true", help="let the model see the whole photo, stretched to a square")
    add("--out", type=Path, default=Path("inspect.html"), metavar="FILE", help="the page (default: %(default)s)")
    add("--device", default="auto", help="cpu or cuda; auto takes a GPU where there is one")
    return made


def main(arguments: list[str]) -> None:
    """Look, and write the page.

    Args:
        arguments: The command line from `inspect` on.
    """
    options = parser().parse_args(arguments[1:])
    _require_one_picture(options)
    if options.out.is_dir():
        raise InputError(f"--out {options.out}: is a folder; name a file")

    from patchword.data.pixels import read_image
    from patchword.viewer import AlignmentViewer, runs

    image = None if options.image is None else read_image(options.image)
    modules = runs.load(options.ckpt, device(options.device))
    if image is None:
        panels = _look_at_sample(modules, options.sample, options.whole)
    else:
        panels = {name: module.look(image, options.text, whole=options.whole) for name, module in modules.items()}
    AlignmentViewer(panels).save(options.out)
    print(f"written: {options.out} (open it in a browser; it needs no network)")


def _require_one_picture(options: argparse.Namespace) -> None:
    """Either a photo and a text, or a scene."""
    if options.sample is not None and (options.image is not None or options.text is not None):
        raise InputError("--sample has a picture and a text of its own: leave out --image and --text, or --sample")
    if options.sample is None and options.image is None:
        raise InputError("there is nothing to look at: give --image and --text, or --sample 0 for a scene of ours")
    if options.sample is None and options.text is None:
        raise InputError('--image needs --text, such as --text "a red apple next to a snail"')
    if options.text is not None:
        _require_utf8(options.text)


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"--text is not UTF-8 from character {error.start + 1} on") from error


def _look_at_sample(modules: dict[str, AlignmentModule], index: int, whole: bool) -> dict[str, Alignment]:
    """A scene, drawn for the model with the largest images; a word's object is that of the phrase it stands in."""
    from PIL import Image

    from patchword.data.scenes import EmojiScenes

    size = max(module.encoder.image_size[0] for module in modules.values())
    scene = EmojiScenes("test", length=index + 1, image_size=size)[index]
    image = Image.fromarray(scene.image.permute(1, 2, 0).numpy())
    return {
        name: _with_masks(module.look(image, scene.captions[0], whole=whole), scene) for name, module in modules.items()
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
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not '{value}'")
    return int(value)
