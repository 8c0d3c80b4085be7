"""Draw `docs/maps.png`: one scene, its phrases, and where CLIP and SPARC see them.

Run as `python docs/make_maps_picture.py CLIP_CHECKPOINT SPARC_CHECKPOINT` with the checkpoints that
`configs/clip.yaml` and `configs/sparc.yaml` leave. Graphics: OpenMoji (https://openmoji.org), CC BY-SA 4.0.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from patchword import AlignmentModule
from patchword.data.scenes import EmojiScenes
from patchword.plots import overlay, save

SCENE = 3

scene = EmojiScenes("test", length=1024)[SCENE]
image, caption = Image.fromarray(scene.image.permute(1, 2, 0).numpy()), scene.captions[0]
phrases = [caption[phrase.start : phrase.end] for phrase in scene.phrases[0]]
drawn = {}
for name, path in zip(("CLIP", "SPARC"), sys.argv[1:], strict=True):
    module = AlignmentModule.load_from_checkpoint(path, weights_only=True, map_location="cpu").eval()
    alignment = module.look(image, caption, phrases)
    own = "cosine" if name == "CLIP" else "align"
    drawn |= {f"{name}, {own}": alignment.maps[own], f"{name}, dot": alignment.maps["dot"]}
masks = torch.stack([phrase.mask for phrase in scene.phrases[0]])
figure = overlay(alignment.pixels, drawn, phrases, grid=alignment.grid, masks=masks, caption=caption)
save(figure, Path(__file__).parent / "maps.png")
