"""Draw `docs/scenes.png`, a sheet of emoji scenes with their captions and boxes.

Run as `python docs/make_scenes_picture.py`. Graphics: OpenMoji (https://openmoji.org), CC BY-SA 4.0.
"""

import re
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image

from patchword.data.batch import Sample
from patchword.data.scenes import EmojiScenes

ROWS, COLUMNS, PIXELS = 3, 4, 160
COLORS = ("#d1344b", "#1f6fd1", "#1d8a4c", "#b35c00")


def draw(axis: plt.Axes, scene: Sample) -> None:
    """One scene; each phrase of the caption below has the color of its box."""
    axis.imshow(scene.image.permute(1, 2, 0))
    axis.axis("off")
    for phrase, color in zip(scene.phrases[0], COLORS, strict=False):
        left, top, right, bottom = phrase.box
        outline = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec=color, lw=1)
        axis.add_patch(outline)
    write(axis, scene)


def write(axis: plt.Axes, scene: Sample) -> None:
    """The caption under the image, word by word, with line breaks."""
    caption, phrases = scene.captions[0], scene.phrases[0]
    renderer = axis.figure.canvas.get_renderer()
    to_data = axis.transData.inverted()
    x, y, position = 0.0, PIXELS + 6.0, 0
    for word in re.findall(r" |[^ ,]+|,", caption):
        inside = [i for i, phrase in enumerate(phrases) if phrase.start <= position < phrase.end]
        position += len(word)
        if word == " ":
            x += 3.2
            continue
        style = {"color": COLORS[inside[0]], "weight": "bold"} if inside else {"color": "#333333"}
        text = axis.text(x, y, word, fontsize=8.5, va="top", **style)
        right = to_data.transform(text.get_window_extent(renderer))[1, 0]
        if right > PIXELS and word != ",":
            y += 13
            right -= x
            text.set_position((0, y))
        x = right


def main() -> None:
    """Draw the sheet."""
    scenes = EmojiScenes("train", ROWS * COLUMNS, PIXELS, seed=11)
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(9.6, 8.7), dpi=100)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.985, bottom=0.072, wspace=0.08, hspace=0.3)
    figure.canvas.draw()
    for i, axis in enumerate(axes.flat):
        draw(axis, scenes[i])
    file = BytesIO()
    figure.savefig(file)
    sheet = Image.open(file).convert("RGB")
    palette = sheet.quantize(256, Image.Quantize.MAXCOVERAGE)
    sheet = sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    sheet.save(Path(__file__).with_name("scenes.png"), optimize=True)


if __name__ == "__main__":
    main()
