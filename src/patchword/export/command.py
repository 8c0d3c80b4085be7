"""The options of `patchword export`, and the writing of its folder."""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.commands.options import Parser
from patchword.errors import UserError

if TYPE_CHECKING:
    from patchword.export.card import Results
    from patchword.module import AlignmentModule

EPILOG = """\
FOLDER contains image/ (for timm or transformers) and text/ (for transformers, with the tokenizer), or model/ for a
pretrained CLIP or SigLIP; heads.safetensors (with image/ and text/) and objective.safetensors; config.json, which
describes how to use them; and README.md, a model card.

  patchword export --ckpt runs/demo/fit --results runs/demo/test/results.json --out exported
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    about = "Write a trained model so that timm and transformers can load its towers."
    made = Parser("export", description=about, epilog=EPILOG)
    made.add_argument("--ckpt", required=True, metavar="RUN", help="a checkpoint or the folder of a run")
    made.add_argument("--results", type=Path, metavar="FILE", help="its results.json, whose numbers the card shows")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    return made


def main(arguments: list[str]) -> None:
    """Load the model, write it to a temporary folder, and rename the folder, so that it is never incomplete.

    `arguments` starts with `export`.
    """
    options = parser().parse_args(arguments[1:])
    out: Path = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; choose a new folder")

    from safetensors import SafetensorError

    from patchword.commands.explain import first_line
    from patchword.encoders.loading import quietly
    from patchword.training.last_checkpoint import find
    from patchword.viewer import runs

    file = find(Path(options.ckpt), f"--ckpt {options.ckpt}")
    (module,) = runs.load([str(file)], "cpu").values()
    results = None if options.results is None else _results(options.results, module)
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with quietly():
            export(module, file, aside, results)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except (OSError, SafetensorError) as error:  # If the disk is full, safetensors raises its own error.
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"--out {out}: the model cannot be written ({reason})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"written: {out} (its README.md describes how to load the parts)")


def _results(path: Path, module: AlignmentModule) -> Results:
    """Read the results of a module.

    Raises:
        UserError: If the file cannot be read, or has the results of another model.
    """
    from patchword.files.results_file import read_results

    metrics, measured = read_results(path)
    if measured.get("trained") != json.loads(json.dumps(module.trained)):
        raise UserError(
            f"--results {path}: these are not results of this checkpoint: test it, and name its results.json"
        )
    return metrics, measured


def export(module: AlignmentModule, checkpoint: Path, folder: Path, results: Results | None = None) -> None:
    """Write a module, in eval mode and on the CPU, to a new folder. `checkpoint` and `results` are for the model card.

    Raises:
        UserError: If timm or transformers cannot load the towers.
    """
    from safetensors.torch import save_file

    from patchword.encoders import PretrainedPair, TwoTowers
    from patchword.export.card import applied, card
    from patchword.export.towers import export_image, export_pair, export_text

    folder.mkdir(parents=True)
    encoder: Any = module.encoder
    if isinstance(encoder, PretrainedPair):
        parts = {"model": export_pair(encoder, module.objective, folder / "model")}
    elif isinstance(encoder, TwoTowers):
        image, text = export_image(encoder.image, folder / "image"), export_text(encoder.text, folder / "text")
        parts = {"image": image, "text": text}
        heads = {k: v for k, v in encoder.state_dict().items() if not k.startswith(("image.", "text."))}
        save_file(heads, folder / "heads.safetensors")
    else:
        raise UserError(
            f"{type(encoder).__name__} is neither TwoTowers nor PretrainedPair and cannot be exported; save its "
            "state_dict yourself"
        )
    learned = {name: value.clone() for name, value in module.objective.state_dict().items()}  # Some tensors are shared.
    save_file(learned, folder / "objective.safetensors")
    found = applied(module, checkpoint, parts)
    (folder / "config.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(found, results), encoding="utf-8")
