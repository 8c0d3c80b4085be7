"""The options of `patchword export`, and the folder that it writes."""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.commands import Parser
from patchword.errors import InputError

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

EPILOG = """\
FOLDER holds image/ (timm or transformers) and text/ (transformers, with the tokenizer), or model/ of a CLIP or SigLIP;
heads.safetensors and objective.safetensors; patchword.json, which says how they apply; and README.md, a model card.

  patchword export --ckpt runs/sparc/version_0 --out exported
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "export",
        description="Write a trained model as timm and transformers load it.",
        epilog=EPILOG,
    )
    made.add_argument("--ckpt", required=True, metavar="RUN", help="a checkpoint or a run's folder")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder that is new, or empty")
    return made


def main(arguments: list[str]) -> None:
    """Load, write aside, rename: there is a whole folder, or none.

    Args:
        arguments: The command line from `export` on.
    """
    options = parser().parse_args(arguments[1:])
    out: Path = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: there is something already; name a new folder")

    from patchword.encoders.loading import quietly
    from patchword.viewer import runs

    file = runs.find(Path(options.ckpt))
    (module,) = runs.load([str(file)], "cpu").values()
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with quietly():
            export(module, file, aside)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"written: {out} (README.md in it says how to load the parts)")


def export(module: AlignmentModule, checkpoint: Path, folder: Path) -> None:
    """Write a module to a new folder.

    Args:
        module: In eval mode, on the CPU.
        checkpoint: Where it comes from, for the model card.
        folder: Where to write.

    Raises:
        InputError: If the libraries cannot load what the towers are.
    """
    from safetensors.torch import save_file

    from patchword.encoders import PretrainedPair, TwoTowers
    from patchword.export.card import applied, card
    from patchword.export.towers import export_image, export_pair, export_text

    folder.mkdir(parents=True)
    encoder: Any = module.encoder
    if isinstance(encoder, PretrainedPair):
        parts = {"model": export_pair(encoder, module.objective, folder / "model")}
        heads = {}
    elif isinstance(encoder, TwoTowers):
        parts = {
            "image": export_image(encoder.image, folder / "image"),
            "text": export_text(encoder.text, folder / "text"),
        }
        heads = {k: v for k, v in encoder.state_dict().items() if not k.startswith(("image.", "text."))}
        save_file(heads, folder / "heads.safetensors")
    else:
        raise InputError(f"{type(encoder).__name__} is neither TwoTowers nor PretrainedPair: export it yourself")
    learned = {name: value.clone() for name, value in module.objective.state_dict().items()}  # some share memory
    save_file(learned, folder / "objective.safetensors")
    found = applied(module, checkpoint, parts)
    (folder / "patchword.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(found), encoding="utf-8")
