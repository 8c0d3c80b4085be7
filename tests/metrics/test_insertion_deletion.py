"""Insertion and deletion: the curves are those of a loop, and maps that are right beat maps that are wrong."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patchword.callbacks.insertion_deletion import COLUMNS, InsertionDeletion
from patchword.callbacks.results import Results
from patchword.errors import UserError
from patchword.maps.phrases import center_map, chance_maps
from patchword.maps.removal import background, without_patches
from patchword.metrics import insertion_deletion as metric
from patchword.objectives import CLIP, FILIP
from patchword.report import read_runs
from patchword.report.content import make
from patchword.report.removal import curve_table
from tests import planted, tiny
from tests.report import fake

ROOT = Path(__file__).parents[2]

GRID = planted.GRID
KEYS = torch.tensor([[3, 0], [5, 0], [8, 0]])


def pictures() -> torch.Tensor:
    return torch.stack([planted.image(place) for place in (0, planted.PLACE, 15)])


def measure(maps, steps=4, fill="mean", pixels=None, scores=None):
    """Return the metric of images whose caption is `red`, for one map of each image."""
    module = planted.planted(pool="mean")
    texts, _ = module.encode_texts(["red", "red fish", "fish"])
    score = scores or (lambda images: module.objective.score(images, texts))
    pixels = pictures() if pixels is None else pixels
    own = torch.zeros(len(pixels), dtype=torch.long)
    (curves,) = metric.curves_of(module.encode_images, score, pixels, own, [maps], KEYS, GRID, steps, fill)
    found = metric.InsertionDeletion(steps)
    found.update(KEYS[:, 0], curves)
    return found, found.compute(), curves


def test_the_curves_are_those_of_a_loop():
    """Step k removes the best k / K of the patches, one after the other, and the area is that of trapezoids."""
    maps, pixels, steps = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), pictures(), 4
    module = planted.planted(pool="mean")
    texts, _ = module.encode_texts(["red", "red fish", "fish"])
    areas = {process: [[], []] for process in metric.PROCESSES}
    complete, none = [], []
    for image, values in enumerate(maps.tolist()):
        order = sorted(range(16), key=lambda patch, values=values: -values[patch])
        for process in metric.PROCESSES:
            scores, ranks = [], []
            for step in range(steps + 1):
                shown = pixels[image].clone()
                best = order[: step * 4]
                for patch in best if process == "deletion" else [patch for patch in range(16) if patch not in best]:
                    row, column = 8 * (patch // 4), 8 * (patch % 4)
                    for channel in range(3):
                        mean = round(float(pixels[image, channel].float().mean()))
                        shown[channel, row : row + 8, column : column + 8] = mean
                found = module.objective.score(module.encode_images(shown[None]), texts)[0].tolist()
                scores.append(found[0])
                ranks.append(1 / (1 + sum(other >= found[0] - 1e-6 for other in found[1:])))
            if process == "deletion":
                complete.append(scores[0])
                none.append(scores[-1])
            for number, curve in enumerate((scores, ranks)):
                areas[process][number].append(sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / steps)
    _, result, _ = measure(maps, steps)
    for process in metric.PROCESSES:
        expected = (sum(areas[process][0]) - sum(none)) / (sum(complete) - sum(none))
        assert result[process] == pytest.approx(expected, abs=1e-5)
        assert result[f"{process}_rank"] == pytest.approx(sum(areas[process][1]) / 3, abs=1e-5)
    assert result["images"] == 3


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_a_right_map_beats_random_and_center_and_a_wrong_one(fill):
    """The score is that of one patch; a map that knows it loses it at once, or brings it at once."""
    right = torch.zeros(3, 16)
    right[torch.arange(3), torch.tensor([0, planted.PLACE, 15])] = 1
    maps = {"right": right, "chance": chance_maps(KEYS, 16), "center": center_map(GRID).expand(3, -1), "wrong": -right}
    found = {name: measure(values, 16, fill)[1] for name, values in maps.items()}
    deletion, insertion = ({name: one[process] for name, one in found.items()} for process in metric.PROCESSES)
    for other in ("chance", "center"):
        assert deletion["right"] < deletion[other] - 0.1 < deletion["wrong"] - 0.2
        assert insertion["right"] > insertion[other] + 0.1 > insertion["wrong"] + 0.2
    assert deletion["right"] < 0.1
    assert insertion["right"] > 0.9
    assert found["right"]["insertion_rank"] >= found["wrong"]["insertion_rank"]


def test_ranks_count_ties_and_nan_against_the_caption():
    """A caption that ties is second; a NaN of another caption is ranked before it."""
    table = torch.tensor([[0.5, 0.1, 0.2], [0.5, 0.5, 0.2], [0.5, torch.nan, 0.9]])
    _, _, curves = measure(torch.randn(3, 16), scores=lambda images: table)
    assert curves[:, 0, 1, 0].tolist() == pytest.approx([1, 1 / 2, 1 / 3])


def test_equal_patches_have_a_random_order_and_nan_gives_nan():
    """A constant map is the order of `chance`, and not from the top left."""
    kept = metric.kept_patches(torch.ones(3, 16), KEYS, 4)
    assert torch.equal(kept, metric.kept_patches(-chance_maps(KEYS, 16), KEYS, 4))
    assert not torch.equal(kept, metric.kept_patches(-torch.arange(16.0).expand(3, -1), KEYS, 4))
    assert torch.equal(kept[0], ~kept[1])
    assert kept.sum(-1)[0, :, 0].tolist() == [16, 12, 8, 4, 0]
    maps = torch.randn(3, 16)
    maps[1, 2] = torch.nan
    _, result, curves = measure(maps)
    assert curves[1].isnan().all()
    assert curves[[0, 2]].isfinite().all()
    assert result["deletion"] != result["deletion"]


def test_each_image_counts_once():
    """Samples that a distributed sampler repeats do not count twice, and the totals give the same means."""
    found, result, curves = measure(torch.randn(3, 16))
    twice = metric.InsertionDeletion(4)
    twice.update(KEYS[:, 0], curves)
    twice.update(KEYS[:1, 0], curves[:1])
    assert twice.compute() == result
    assert found.totals.means() == {name: value for name, value in result.items() if name != "images"}
    assert set(found.totals.intervals()) == set(metric.NAMES)


def test_removed_patches_are_hidden():
    """Kept patches do not change; removed ones have the mean color, or no detail that is finer than a patch."""
    pixels = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    kept = torch.rand(2, 24) < 0.5
    seen = kept.view(2, 4, 6).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    for fill in ("mean", "blur"):
        found = without_patches(pixels, kept, (4, 6), fill)
        assert torch.equal(found[seen], pixels[seen])
        assert torch.equal(found[~seen], background(pixels, (4, 6), fill)[~seen])
    mean = background(pixels, (4, 6), "mean")
    assert (mean == mean[..., :1, :1]).all()
    assert background(pixels, (4, 6), "blur").float().std((2, 3)).max() < 15 < pixels.float().std((2, 3)).min()
    constant = torch.full_like(pixels, 77)
    assert torch.equal(background(constant, (4, 6), "blur"), constant)


@pytest.mark.parametrize("objective", [CLIP, FILIP])
def test_measured_in_a_test_run(objective, tmp_path: Path):
    """The callback logs every source and both baselines, with intervals, and writes the curves."""
    module = tiny.exact_module(objective(), map_sources=["align", "grad_eclip"])
    callback = InsertionDeletion(samples=5, steps=2, batch_size=3)
    data, trainer = tiny.data(test_size=8, val_size=4), tiny.trainer(tmp_path, callback, Results(), max_epochs=1)
    trainer.test(module, data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    folder = Path(trainer.log_dir)
    place = "test/removal/content/mean"
    for source in ("align", "grad_eclip", "center_prior", "chance"):
        assert found[f"{place}/{source}/images"] == 5
        for name in metric.NAMES:
            assert found[f"{place}/{source}/{name}"] == found[f"{place}/{source}/{name}"]
    stored = json.loads((folder / "results.json").read_text())
    assert f"{place}/align/insertion_rank" in json.dumps(stored)
    with (folder / "test_insertion_deletion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 4 * 2 * 3
    ends = [float(row["score"]) for row in rows if row["source"] == "chance" and row["process"] == "deletion"]
    assert (ends[0], ends[-1]) == pytest.approx((1, 0), abs=1e-5)
    area = sum((a + b) / 4 for a, b in itertools.pairwise(ends))
    assert found[f"{place}/chance/deletion"] == pytest.approx(area, abs=1e-4)


@pytest.mark.parametrize("options", [{"samples": 0}, {"steps": 1}, {"batch_size": 0}])
def test_wrong_options_are_named(options):
    """An option that cannot be used is refused before the test."""
    with pytest.raises(UserError, match=next(iter(options))):
        InsertionDeletion(**options)


def test_wrong_names_are_refused_without_type_checks():
    """Tests check types. In a program without these checks, a wrong `fill` or source gets the same kind of message."""
    code = (
        "from patchword.callbacks.insertion_deletion import InsertionDeletion\n"
        "from patchword.errors import UserError\n"
        "from tests import tiny\n"
        "from PIL import Image\n"
        "from patchword.objectives import CLIP\n"
        "image, module = Image.new('RGB', (64, 64)), tiny.module(CLIP()).eval()\n"
        "calls = [lambda: InsertionDeletion(fill='black'), lambda: module.inspect(image, 'a', sources=['rollout'])]\n"
        "for call in calls:\n"
        "    try: call()\n"
        "    except UserError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "fill must be one of mean, blur, not 'black'" in run.stdout
    assert "there is no source of maps 'rollout'; there are align, cosine" in run.stdout


def test_the_report_plots_the_curves(tmp_path: Path):
    """There is one plot for each variant and process, with the mean over seeds, and one table."""
    fake.comparison(tmp_path / "runs", {"CLIP": 0.5, "SPARC": 0.6}, baseline="CLIP", seeds=(0, 1))
    for seed in (0, 1):
        folder = tmp_path / f"runs/SPARC/seed_{seed}/test"
        lines = [",".join(COLUMNS)]
        for process in metric.PROCESSES:
            lines += [f"align,mean,{process},{share},{(1 - share) * (seed + 1)},1" for share in (0, 0.5, 1)]
        (folder / "test_insertion_deletion.csv").write_text("\n".join(lines))
        stored = json.loads((folder / "results.json").read_text())
        stored["metrics"]["test/removal/content/mean/align/deletion"] = 0.5 + seed / 10
        (folder / "results.json").write_text(json.dumps(stored))
    comparison = read_runs(tmp_path / "runs")
    table = curve_table(comparison, "test")
    assert table.groupby(["process", "share"])["score"].mean()["deletion", 0] == 1.5
    report = make(comparison)
    titles = [plot.title for plot in report.plots if plot.name.startswith("removal")]
    assert titles == ["Deletion on test, mean: SPARC", "Insertion on test, mean: SPARC"]
    (removal,) = [table for table in report.splits["test"] if table.title.startswith("Insertion and deletion")]
    assert [column.title for column in removal.columns] == ["deletion ↓"]
