"""Measure the time of the grounding metrics on random phrases and maps of the size of a validation of photographs.

    python benchmarks/grounding.py                     250 images of 192 x 192 pixels with 3,300 phrases
    python benchmarks/grounding.py --against ../other  also run another source tree, and compare times and values

The maps come from random patches and tokens, through the same `Evaluation` that validation and test use, so that the
time includes the maps of all sources. Further validations of a run do not measure the baselines again. Times are those
of one processor, which other work on the machine affects less than time on the clock. Both trees are measured in turn,
in processes of their own, on the same data; the fastest of all turns counts. `--objective CLIP` measures an objective
whose own maps are the cosines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn

IMAGES, BATCH, CAPTIONS, PHRASES = 250, 50, 5, 3_300
SIDE, GRID, WIDTH, WORDS = 192, (12, 12), 128, 14


def batches() -> Iterator[tuple[Any, Any, Any, Any]]:
    """Batches of images, with embedded images, embedded captions, and tokens."""
    from patchword.data.batch import collate
    from patchword.encoders.base import Tokens
    from patchword.features import Images, Texts

    generator = torch.Generator().manual_seed(0)
    spans = torch.tensor([(5 * n, 5 * n + 4) for n in range(WORDS)])
    of_image = [PHRASES * (i + 1) // IMAGES - PHRASES * i // IMAGES for i in range(IMAGES)]
    for start in range(0, IMAGES, BATCH):
        samples = [sample(i, of_image[i], generator) for i in range(start, start + BATCH)]
        batch = collate(samples)
        texts = len(batch.captions)
        mask = torch.ones(texts, WORDS, dtype=torch.bool)
        # Neighboring patches are alike, as in the features of photographs.
        coarse = torch.randn(BATCH, WIDTH, 4, 4, generator=generator)
        patches = nn.functional.interpolate(coarse, GRID, mode="bilinear").flatten(2).mT
        patches = patches + 0.3 * torch.randn(patches.shape, generator=generator)
        images = Images(torch.randn(BATCH, WIDTH, generator=generator), patches, GRID)
        words = torch.randn(texts, WORDS, WIDTH, generator=generator)
        tokens = Tokens(
            captions=batch.captions,
            ids=torch.zeros(texts, WORDS, dtype=torch.long),
            mask=mask,
            special=~mask,
            spans=spans.expand(texts, -1, -1),
            truncated=torch.zeros(texts, dtype=torch.bool),
            unknown=~mask,
        )
        yield batch, images, Texts(torch.randn(texts, WIDTH, generator=generator), words, mask), tokens


def sample(number: int, phrases: int, generator: torch.Generator) -> Any:
    """An image with five captions, whose phrases have boxes of the sizes of Flickr30k Entities."""
    from patchword.data.batch import Phrase, Sample

    captions = [" ".join(f"w{number % 90 + 10}{n % 10}" for n in range(WORDS)) for _ in range(CAPTIONS)]
    found: list[list[Phrase]] = [[] for _ in captions]
    for n in range(phrases):
        first = 5 * 4 * (n // CAPTIONS)
        area, shape, x, y = torch.rand(4, generator=generator).tolist()
        high, wide = ((0.01 ** (1 - area)) ** power for power in (0.3 + 0.4 * shape, 0.7 - 0.4 * shape))
        top, left = (round(SIDE * at * (1 - size)) for at, size in ((y, high), (x, wide)))
        bottom, right = top + max(1, round(SIDE * high)), left + max(1, round(SIDE * wide))
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        found[n % CAPTIONS].append(Phrase(first, first + 14, (left, top, right, bottom), mask))
    return Sample(number, torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), captions, found, [])


def measure(objective: str) -> dict[str, Any]:
    """The processor seconds of two validations with the imported tree, and the values of the metrics."""
    import patchword.objectives
    from patchword.metrics.evaluation import Evaluation

    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = getattr(patchword.objectives, objective)()
    if hasattr(made, "build"):
        made.build(WIDTH)
    prepared = [*batches()]
    seconds, known = [], {}
    for _ in range(2):
        evaluation = Evaluation(nn.Identity(), made, "all", "content", **known)
        if hasattr(evaluation, "baselines"):
            known = {"baselines": evaluation.baselines}
        evaluation.retrieval.update = _nothing  # not measured here
        start = time.process_time()
        with torch.no_grad():
            for batch in prepared:
                evaluation.update(*batch)
        values = {name: metric.compute() for name, metric in evaluation.grounding.items()}
        seconds.append(time.process_time() - start)
    return {"seconds": seconds, "values": values}


def _nothing(*_: Tensor) -> None:
    pass


def in_process(tree: Path, objective: str) -> dict[str, Any]:
    """What `measure` returns for a source tree."""
    environment = os.environ | {"PYTHONPATH": str(tree.resolve() / "src")}
    command = [sys.executable, __file__, "--objective", objective, "--json"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure one tree or two trees, and print the seconds, their ratio, and the largest difference of the values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="PATH", help="the folder of another source tree")
    parser.add_argument("--objective", default="SPARC", help="the objective whose maps are measured (default: SPARC)")
    parser.add_argument("--repeats", type=int, default=1, help="the number of turns (default: 1)")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options.objective)))
        return
    trees = {"this tree": Path(__file__).parents[1]}
    if options.against is not None:
        trees[str(options.against)] = options.against
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for _ in range(options.repeats):
        for name, tree in trees.items():
            found[name].append(in_process(tree, options.objective))
    seconds = [[min(turn["seconds"][n] for turn in turns) for turns in found.values()] for n in range(2)]
    for which, times in zip(("first validation or test", "further validations"), seconds, strict=True):
        print(f"{which}, {PHRASES} phrases:")
        for name, own in zip(found, times, strict=True):
            print(f"  {own:7.2f} s  {name}" + (f"  {own / times[0]:.1f} times as long" if own is not times[0] else ""))
    if options.against is not None:
        here, there = (turns[0]["values"] for turns in found.values())
        print(f"largest difference of the values: {gap(here, there):.1g}")


def gap(here: dict[str, Any], there: dict[str, Any]) -> float:
    """The largest difference between values that both trees report, for sources and metrics of any names."""
    from patchword.report.former_names import present_name

    old = {
        present_name(f"/{source}/{name}"): value for source, values in there.items() for name, value in values.items()
    }
    new = {f"/{source}/{name}": value for source, values in here.items() for name, value in values.items()}
    both = old.keys() & new.keys()
    print(f"compared: {len(both)} values")
    return max(abs(old[name] - new[name]) for name in both)


if __name__ == "__main__":
    main()
