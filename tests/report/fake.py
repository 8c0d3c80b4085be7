"""Fake run folders in the format of `patchword compare`."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from patchword.maps.alignment import Alignment

SPLITS = ("test", "unseen_concepts")
HARDWARE = {"cpu": "A CPU", "cores": 2, "threads": 1, "memory_gib": 24, "gpus": [], "devices": 1, "system": "Linux"}
VERSIONS = {"patchword": "0.1.0", "torch": "2.15.0"}


def metrics(quality: float, splits: tuple[str, ...] = SPLITS) -> dict[str, float]:
    """Return the numbers of a test; `quality` is between 0 and 1."""
    found: dict[str, float] = {}
    for split in splits:
        found |= {f"{split}/loss": 1 - quality, f"{split}/retrieval/images": 64.0, f"{split}/retrieval/captions": 64.0}
        for way in ("image_to_text", "text_to_image"):
            found[f"{split}/retrieval/{way}/r@1"] = quality
            found[f"{split}/retrieval/{way}/median_rank"] = 1.0
            found[f"{split}/retrieval/{way}/chance_r@1"] = 1 / 64
        for source, factor in {"align": 1.0, "cosine": 0.9, "dot": 0.8, "center_prior": 0.2, "chance": 0.1}.items():
            prefix = f"{split}/grounding/content/{source}"
            best = quality if source not in ("center_prior", "chance") else 1.0
            names = ("pointing_game", "box_accuracy", "average_precision", "object_choice")
            found |= {f"{prefix}/{name}": factor * best * 0.6 for name in names}
            found[f"{prefix}/phrases"] = 128.0
        found |= {
            f"{split}/hard_negatives/per_negative": quality,
            f"{split}/hard_negatives/chance_per_negative": 0.5,
            f"{split}/hard_negatives/negatives": 100.0,
        }
    return found


def measured(seed: int, objective: str = "CLIP", **options: Any) -> dict[str, Any]:
    """Return the record of a run."""
    return {
        "model": {"objective": {"class_path": f"patchword.objectives.{objective}", "init_args": options}},
        "data": {
            "class_path": "patchword.data.scenes.datamodule.Scenes",
            "init_args": {"seed": seed, "image_size": 64},
        },
        "config_hash": f"{zlib.crc32(f'{objective} {options} {seed}'.encode()):012x}",
        "definition": {
            "data_set": "Scenes",
            "image_size": [64, 64],
            "query": "content",
            "metrics": 1,
            "splits": {split: {"samples": 64, "checksum": "0011aabb"} for split in SPLITS},
        },
        "checkpoint": "elsewhere/fit/checkpoints/last.ckpt",
        "patch_grid": [8, 8],
        "trained": {
            "steps": 300,
            "seed": seed,
            "patchword": "0.1.0",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "seconds": 60.0 + seed,
            "step_seconds": 0.1 + 0.001 * seed + 0.02 * (zlib.crc32(objective.encode()) % 10),
            "peak_memory": 2**30,
            "memory_of": "process",
            "batch": 16,
            "encoder_at_start": f"0000000{seed}",
            "data_order": f"1111111{seed}",
            "hardware": HARDWARE,
            "versions": VERSIONS,
        },
        "versions": VERSIONS,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "hardware": HARDWARE,
    }


def write(path: Path, numbers: dict[str, float], about: dict[str, Any]) -> Path:
    """Write one `results.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": numbers, "measured": about}), encoding="utf-8")
    return path


def write_curve(folder: Path, quality: float) -> None:
    """Write a `metrics.csv` in the format of `fit`."""
    names = ["val/retrieval/image_to_text/r@1", "val/retrieval/text_to_image/r@1"]
    names.append("val/grounding/content/align/average_precision")
    lines = [",".join(["epoch", "step", "train/loss", *names]), f"0,49,1.5{',' * len(names)}"]
    for step in (99, 199, 299):
        lines.append(f"0,{step},,{','.join([f'{quality * (step + 1) / 300:.4f}'] * len(names))}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def alignment(number: int, variant: int = 0) -> Alignment:
    """Write an image with two phrases, whose maps depend on the variant."""
    random = np.random.default_rng(100 * number + variant)
    pixels = np.random.default_rng(number).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, 4:12, 4:12] = masks[1, 18:28, 16:28] = True
    maps = {
        name: torch.from_numpy(random.normal(size=(2, 16)).astype(np.float32)) for name in ("align", "cosine", "dot")
    }
    caption = "a red apple next to a snail"
    return Alignment(torch.from_numpy(pixels), caption, [(0, 11), (20, 27)], maps, (4, 4), torch.from_numpy(masks))


def comparison(
    folder: Path,
    variants: dict[str, float],
    seeds: tuple[int, ...] = (0, 1, 2),
    baseline: str | None = None,
    claim: str | None = None,
    samples: int = 0,
) -> Path:
    """Write a finished comparison with one folder per variant, whose runs have about the given quality."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"name": folder.name, "claim": claim, "baseline": baseline, "seeds": list(seeds)}
    plan["variants"] = {name: {} for name in variants}
    (folder / "compare.yaml").write_text(yaml.safe_dump(plan, sort_keys=False, allow_unicode=True), encoding="utf-8")
    random = np.random.default_rng(0)
    for number, (name, quality) in enumerate(variants.items()):
        for seed in seeds:
            run = folder / name / f"seed_{seed}"
            reached = float(quality + 0.01 * seed + 0.005 * random.normal())
            write(run / "test" / "results.json", metrics(reached), measured(seed, f"Objective{number}"))
            write_curve(run / "fit", reached)
            for sample in range(samples):
                alignment(sample, number).save(run / "test" / "maps" / f"test_{sample}.npz")
    return folder
