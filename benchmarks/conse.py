"""Measure ConSE on Flickr8k: image-text retrieval and maps without any training on images with captions.

    python benchmarks/package_weights.py runs/weights
    python benchmarks/conse.py FOLDER docs/benchmark/natural_references

FOLDER is Flickr8k with Flickr30k Entities, as for configs/natural/flickr8k.yaml. ConSE (Norouzi et al., ICLR 2014,
arXiv 1312.5650, equation 4) embeds an image as the mean of the text embeddings of its ten most probable ImageNet
classes, weighted by their probabilities. Here, every patch is embedded in the same way, so that phrases have maps.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from jaxtyping import Float, UInt8
from lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor

import patchword.suites
from patchword import AlignmentModule
from patchword.callbacks.results import Results
from patchword.data.tables.image_text import ImageText
from patchword.encoders import HFText
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.pixels import Normalize
from patchword.features import Images, Texts
from patchword.files.published import read_lines
from patchword.objectives import CLIP
from patchword.ops import masked_mean, normalize
from patchword.suites.prompts import split_names

WEIGHTS = Path("runs/weights")
MOST_PROBABLE = 10


class ConSE(Encoder):
    """Images and patches as mixtures of the text embeddings of ImageNet's class names.

    Args:
        name: A timm model with a classifier of ImageNet's 1,000 classes after a global mean, such as an EfficientNet.
        text: The name of a sentence encoder.
        image_size: The height and width of images in pixels.
    """

    def __init__(self, name: str, text: str, image_size: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(name)
        lacking = self.backbone.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"), strict=False).missing_keys
        assert all(key.endswith("num_batches_tracked") for key in lacking), lacking
        self.text = HFText(model=str(WEIGHTS / text), config=None, tokenizer=None, freeze=True)
        data = timm.data.resolve_model_data_config(self.backbone)
        self.normalize = Normalize(data["mean"], data["std"])
        self.embed_dim, self.image_size = self.text.width, (image_size, image_size)
        self.eval().requires_grad_(False)
        names = Path(patchword.suites.__file__).parent / "imagenet_classes.txt"
        first = [split_names(line.partition(" ")[2])[0] for _, line in read_lines(names)]
        self.register_buffer("classes", normalize(self.encode_texts(self.tokenize(first)).pooled))
        features = self.backbone.forward_features(torch.zeros(1, 3, *self.image_size))
        self.grid = (features.shape[2], features.shape[3])

    def towers(self) -> list[torch.nn.Module]:
        """The classifier and the sentence encoder."""
        return [self.backbone, self.text]

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids with masks and character spans."""
        return self.text.tokenize(captions)

    def encode_images(self, pixels: UInt8[Tensor, "I 3 H W"]) -> Images:
        """Mixtures for the image and for each patch."""
        patches = self.backbone.forward_features(self.normalize(pixels)).flatten(2).mT
        return Images(self.mixture(patches.mean(1)), self.mixture(patches), self.grid)

    def mixture(self, features: Float[Tensor, "*n C"]) -> Float[Tensor, "*n D"]:
        """Equation 4: the mean embedding of the most probable classes, weighted by probability."""
        probability, place = self.backbone.classifier(features).softmax(-1).topk(MOST_PROBABLE)
        weight = probability / probability.sum(-1, keepdim=True)
        return (weight[..., None] * self.classes[place]).sum(-2)

    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        """Sentence embeddings, and the features of tokens."""
        features = self.text(tokens)
        return Texts(masked_mean(features, tokens.mask), features, tokens.select(selection))


def main() -> None:
    """Measure ConSE with EfficientNet-Lite0 and MiniLM, and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder of Flickr8k")
    parser.add_argument("out", type=Path, help="the folder of the results")
    options = parser.parse_args()
    module = AlignmentModule(ConSE("tf_efficientnet_lite0", "all-MiniLM-L6-v2", 288), CLIP())
    splits = {"train": "train", "test": "test"}
    data = ImageText("flickr8k", root=options.data, **splits, phrases="auto", resize_mode="stretch")
    trainer = Trainer(default_root_dir=options.out / "run", logger=False, callbacks=[Results()], devices=1)
    trainer.test(module, data)
    (found,) = (options.out / "run").rglob("results.json")
    (options.out / "ConSE").mkdir(exist_ok=True)
    shutil.copy(found, options.out / "ConSE/results.json")
    shutil.rmtree(options.out / "run")


if __name__ == "__main__":
    main()
