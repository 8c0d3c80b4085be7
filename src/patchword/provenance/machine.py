"""Record the code, the packages and the machine that produced a result."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("patchword", "torch", "lightning", "timm", "transformers")


def provenance(devices: int = 1) -> dict[str, Any]:
    """The `versions`, the `commit` and the `hardware` of a run on `devices` processes or GPUs, as JSON data."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "hardware": hardware() | {"devices": devices},
    }


@cache
def commit() -> str | None:
    """The git commit of patchword, followed by "with changes" if files were modified; None outside a repository."""
    folder = Path(__file__).parents[1]
    found = _git(folder, "rev-parse", "HEAD")
    # patchword can be installed in an environment inside an unrelated repository.
    if not found or _git(folder, "ls-files", "--error-unmatch", str(Path(__file__).relative_to(folder))) is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--", "..", "../../objectives", "../../configs")
    return f"{found} with changes" if changes else found


@cache
def hardware() -> dict[str, Any]:
    """The CPU, its cores that are available to this process, torch's threads, the memory, the GPUs and the system."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    pages = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages else 0
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30) or None,
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def cpu_name() -> str:
    """The name of the CPU, or its architecture if the name is unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None if git fails or is not installed."""
    try:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
