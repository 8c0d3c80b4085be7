"""`python -m patchword.detector fit --config configs/detector/scenes.yaml --model.checkpoint CHECKPOINT`.

This is Lightning's own command line with the `Detector`. `patchword fit` trains alignments only.
"""

from __future__ import annotations

import sys

from lightning import LightningDataModule
from lightning.pytorch.cli import LightningCLI

# These imports make short class names resolve.
import patchword.data.scenes.datamodule
import patchword.data.tables.image_text  # noqa: F401
from patchword.detector.module import Detector
from patchword.errors import UserError


def main() -> None:
    """Run a sub-command of Lightning's command line, and print a user's mistake in one line."""
    try:
        LightningCLI(Detector, LightningDataModule, subclass_mode_data=True, seed_everything_default=0)
    except UserError as error:
        sys.exit(f"patchword: error: {error}")


if __name__ == "__main__":
    main()
