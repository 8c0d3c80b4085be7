"""Detection of the objects of emoji scenes by the maps of a trained model: mAP@0.3 and mAP@0.5.

    python benchmarks/detection.py runs/demo/fit/checkpoints/last.ckpt --samples 200

The categories are the phrases of all objects in the scenes, such as "a red apple". Each image gets one box for each
category: the box around the largest component of the pixels at or above the midpoint of the map's range, as in the
metrics of grounding. Its confidence is the model's score of the image and the phrase, for all sources of maps alike, so
that sources differ only in their boxes. True boxes are those of the visible pixels.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from patchword import AlignmentModule
from patchword.data.scenes import EmojiScenes
from patchword.maps.phrases import BASELINES, center_map, chance_maps, token_maps, upsample
from patchword.maps.sources import PLAIN_SOURCES
from patchword.metrics.components import largest_box
from patchword.metrics.detection import Boxes, mean_average_precision
from patchword.ops import masked_mean


@torch.inference_mode()
def main() -> None:
    """Measure one checkpoint, and print the metrics of each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    module = AlignmentModule.load_from_checkpoint(options.checkpoint, map_location="cpu").eval()
    size = module.encoder.image_size
    scenes = EmojiScenes("test", length=options.samples, image_size=size[0])
    objects = [
        (number, scene.captions[0][phrase.start : phrase.end], phrase.box)
        for number, scene in enumerate(scenes)
        for phrase in scene.phrases[0]
    ]
    names = sorted({name for _, name, _ in objects})
    true = Boxes(
        torch.tensor([box for *_, box in objects]),
        torch.tensor([number for number, *_ in objects]),
        torch.tensor([names.index(name) for _, name, _ in objects]),
    )
    texts, tokens = module.encode_texts(names)
    words = tokens.select("content") & texts.mask
    sources = (*PLAIN_SOURCES, *BASELINES)
    boxes: dict[str, list[Tensor]] = {source: [] for source in sources}
    scores = []
    for number in range(options.samples):
        images = module.encode_images(scenes[number].image[None])
        scores.append(module.objective.score(images, texts)[0])
        repeated = images[torch.zeros(len(names), dtype=torch.long)]
        keys = torch.stack([torch.full((len(names),), number), torch.arange(len(names))], 1)
        for source in sources:
            if source == "center_prior":
                maps = center_map(images.grid).expand(len(names), -1)
            elif source == "chance":
                maps = chance_maps(keys, repeated.patches.shape[1])
            else:
                maps = masked_mean(token_maps(source, module.objective, repeated, texts), words)
            pixels = upsample(maps, images.grid, size)
            middle = (pixels.amin((1, 2), keepdim=True) + pixels.amax((1, 2), keepdim=True)) / 2
            boxes[source].append(largest_box(pixels >= middle))
    image = torch.arange(options.samples).repeat_interleave(len(names))
    category = torch.arange(len(names)).repeat(options.samples)
    print(f"{options.samples} images, {len(true.boxes)} objects, {len(names)} categories")
    print("source         mAP@0.3  mAP@0.5")
    for source, found in boxes.items():
        measured = mean_average_precision(Boxes(torch.cat(found), image, category), torch.cat(scores), true)
        print(f"{source:14} {measured['map@0.3']:7.3f}  {measured['map@0.5']:7.3f}")


if __name__ == "__main__":
    main()
