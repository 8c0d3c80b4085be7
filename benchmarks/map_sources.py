"""Measure the sources of maps of trained models on photographs: do maps find objects, and do they tell the truth?

    python benchmarks/map_sources.py runs/natural/CLIP/seed_0 runs/natural/SPARC/seed_0

For each run of `patchword compare`, `patchword test` measures the maps of all `SOURCES` on the first photographs of the
test split: how well the maps of phrases fit the phrases' boxes (grounding), and how fast the score of photograph and
caption falls or rises when patches are removed or shown in the order of the caption's map
(configs/maps/insertion_deletion.yaml). The towers run on the pixels, also if the model was trained on cached features.

docs/benchmark/map_sources/VARIANT.json gets the value of each metric, and the difference of each pair of sources, with
95 % intervals by a bootstrap over photographs. Differences are paired: both sources have the same photographs. It has
no photographs and no captions. `python benchmarks/table.py docs/benchmark/map_sources docs/maps.md` writes the table.

Further options are those of `patchword test`, such as `--data.root FOLDER`. `banzhaf` takes most of the time: twice
2 (P + 1) passes of the image tower for each photograph. On Linux, set MALLOC_MMAP_THRESHOLD_=1000000000 and
MALLOC_TRIM_THRESHOLD_=1000000000, so that memory is kept between passes.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from patchword.files.results_file import read_results
from patchword.lightning_cli import run as patchword
from patchword.maps.sources import TokenSource
from patchword.metrics.insertion_deletion import NAMES

# A convolutional network has no attention, which the other sources read.
SOURCES: tuple[TokenSource, ...] = ("align", "cosine", "dot", "grad_cam", "banzhaf")
BASELINES = ("chance", "center_prior", "mean_prior")
GROUNDING = ("average_precision", "pointing_game")
ROOT = Path(__file__).parents[1]
DIGITS = 6  # decimal places of numbers


def main() -> None:
    """Measure the runs on the command line, and write one file for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, VARIANT/seed_N")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmark/map_sources", help="the folder of the files")
    parser.add_argument("--photographs", type=int, default=40, help="the number of photographs (default: 40)")
    options, further = parser.parse_known_args()
    for run in options.runs:
        if not (run / "fit/checkpoints/last.ckpt").is_file():
            parser.error(f"{run} is not a run of `patchword compare`: it has no fit/checkpoints/last.ckpt")
    variants = [run.resolve().parent.name for run in options.runs]
    if len(set(variants)) < len(variants):
        parser.error("several seeds of a variant would write the same file: measure one seed at a time")
    options.out.mkdir(parents=True, exist_ok=True)
    for run in options.runs:
        start, processor = time.perf_counter(), time.process_time()
        file = options.out / f"{run.resolve().parent.name}.json"
        file.write_text(json.dumps(measure(run, options.photographs, further)) + "\n")
        minutes = [(now - then) / 60 for now, then in ((time.perf_counter(), start), (time.process_time(), processor))]
        print(f"written: {file} ({minutes[0]:.1f} minutes, {minutes[1]:.1f} minutes of processor time)", flush=True)


def measure(run: Path, photographs: int, options: list[str]) -> dict[str, Any]:
    """Test the model of a run.

    Args:
        run: The folder of the run.
        photographs: The number of photographs, which are the first ones of the test split.
        options: Further options of `patchword test`.

    Returns:
        What was measured, `values` by source and metric, and `differences` by pair of sources and metric; each is a
        list of the number and the two ends of its interval.
    """
    with TemporaryDirectory() as folder:
        command = ["test", "--config", f"{run}/fit/config.yaml", "--ckpt_path", f"{run}/fit/checkpoints/last.ckpt"]
        command += ["--config", str(ROOT / "configs/maps/insertion_deletion.yaml")]
        command += ["--trainer.callbacks.init_args.samples", str(photographs)]
        command += ["--model.map_sources", f"[{','.join(SOURCES)}]"]
        command += ["--data.features", "null", "--data.test_sets", "null", "--data.num_workers", "0"]
        command += ["--data.batch_size", str(photographs), "--trainer.limit_test_batches", "1"]
        command += ["--trainer.logger.save_dir", folder, "--loggers", "null", "--maps.samples", "0"]
        tested: Any = patchword("test", [*command, *options])
        (file,) = Path(folder).rglob("results.json")
        metrics, measured = read_results(file)
    totals, query = tested.model.totals, tested.model.phrase_query
    values: dict[str, dict[str, list[float]]] = {}
    differences: dict[str, dict[str, list[float]]] = {}
    for part, names in ((f"test/grounding/{query}", GROUNDING), (f"test/removal/{query}/mean", NAMES)):
        of = {source: totals[key] for source in (*SOURCES, *BASELINES) if (key := f"{part}/{source}") in totals}
        for source, own in of.items():
            bounds = own.intervals()
            found = {name: (metrics[f"{part}/{source}/{name}"], *bounds[name]) for name in names if name in bounds}
            values.setdefault(source, {}).update(_short(found))
        for other, source in combinations(of, 2):
            found = {name: each for name, each in of[source].differences(of[other]).items() if name in names}
            differences.setdefault(f"{source} - {other}", {}).update(_short(found))
    return {
        "seed": measured["trained"]["seed"],
        "trained": measured["trained"]["commit"],
        "measured": measured["commit"],
        "samples": measured["definition"]["splits"]["test"],
        "phrases": metrics[f"test/grounding/{query}/align/phrases"],
        "values": values,
        "differences": differences,
    }


def _short(found: dict[str, tuple[float, ...]]) -> dict[str, list[float]]:
    return {name: [round(number, DIGITS) for number in numbers] for name, numbers in found.items()}


if __name__ == "__main__":
    main()
