"""The costs that `patchword bench` measures, as the numbers of a row."""

from __future__ import annotations

from typing import Any

from patchword.bench.candidates import Candidate, Setting
from patchword.bench.measure import measure


def costs(candidate: Candidate, setting: Setting) -> dict[str, Any]:
    """Measure time and peak memory of a candidate on random features, which are not counted."""
    (found,) = measure([candidate], setting, repeats=3)
    if found.failure:
        return {"note": f"FAILED: {found.failure}"}
    return {
        "seconds": found.seconds,
        "peak_bytes": found.peak,
        "images_per_second": setting.batch / found.seconds,
    }
