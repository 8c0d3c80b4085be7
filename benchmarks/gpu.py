"""Measure patchword on one GPU: one command, one table, one JSON file, less than ten minutes.

    python benchmarks/gpu.py                          all parts on the GPU with bf16, within nine minutes
    python benchmarks/gpu.py --compile                with compiled towers
    python benchmarks/gpu.py --device cpu --small     a dry run of the same code, about a minute; its times mean nothing

It downloads nothing. Its parts are files of `benchmarks/gpu_parts`: memory of late interaction and of exact Shapley
interactions, decoding of JPEGs, agreement of losses and gradients with float64 on the CPU, two processes on one GPU,
and training steps of every objective beside open_clip's loss. Each part runs in its own process, so that a crash ends
only this part. What fails or does not fit into the time is a row that says so. The file is written after every row.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # torch finds GPUs without starting CUDA, so forks can

import torch
from gpu_parts.processes import all_rows
from gpu_parts.rows import HEADER, Setup, line

from patchword.commands.options import provenance
from patchword.files.atomic_write import atomic_write


def main() -> None:
    """Measure all parts, print the table, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny models and batches, to try the script")
    parser.add_argument("--compile", action="store_true", help="compile the towers of the training steps")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all parts (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu.json"), help="default: %(default)s")
    options = parser.parse_args()
    setup = Setup(options.device, options.small, options.compile)
    written = {"setup": asdict(setup) | {"budget": options.budget}, "machine": provenance(setup.device), "rows": []}
    print(", ".join(f"{name} {value}" for name, value in written["machine"].items()))
    print(HEADER, flush=True)
    for row in all_rows(setup, options.budget):
        print(line(row), flush=True)
        written["rows"].append(asdict(row))
        with atomic_write(options.json) as file:
            json.dump(written, file, indent=1)
    print(f"written: {options.json}")


if __name__ == "__main__":
    main()
