"""Draw `docs/maps.png`: one scene, its phrases, and where four objectives see them.

Run as `python docs/make_maps_picture.py docs/benchmark/runs`, the recorded runs of the benchmark. Graphics: OpenMoji
(https://openmoji.org), CC BY-SA 4.0.
"""

import sys
from pathlib import Path

from patchword.maps.alignment import Alignment
from patchword.maps.plots import overlay, save

SAMPLE = "test_3"
OBJECTIVES = ("CLIP", "SPARC", "CLIP + FILIP", "LOUPE")

found = {name: Alignment.load(Path(sys.argv[1], name, "seed_0/test/maps", f"{SAMPLE}.npz")) for name in OBJECTIVES}
scene = found["CLIP"]
figure = overlay(
    scene.pixels,
    {name: alignment.maps["align"] for name, alignment in found.items()},
    scene.words,
    grid=scene.grid,
    masks=scene.masks,
    caption=scene.caption,
)
save(figure, Path(__file__).parent / "maps.png")
