"""Records of results: samples, cost, initial weights, code and machine."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything

import patchword.encoders
import patchword.objectives  # noqa: F401 - short class names resolve
from patchword import AlignmentModule
from patchword.callbacks.cost import Cost
from patchword.callbacks.maps import AlignmentMaps
from patchword.callbacks.results import Results
from patchword.callbacks.samples import SampleSums, sample_sums
from patchword.data.batch import collate
from patchword.maps.alignment import Alignment
from patchword.objectives import CLIP, SPARC
from patchword.provenance import machine
from patchword.provenance.fingerprint import weights_checksum
from tests import tiny
from tests.ranks import on_ranks

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in ROOT.glob("configs/*.yaml") if "\nmodel:" in path.read_text())


def trained(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True)["trained"]


def test_a_checkpoint_says_what_its_training_cost_and_began_with(tmp_path: Path) -> None:
    """The record has the times, the memory, and the checksums of weights and data order of this training."""
    module = tiny.module(CLIP())
    before = weights_checksum(module.encoder)
    tiny.trainer(tmp_path, Cost()).fit(module, tiny.data())
    found = trained(tmp_path / "last.ckpt")
    assert (found["steps"], found["seed"], found["batch"]) == (12, 0, 16)
    assert found["encoder_at_start"] == before != weights_checksum(module.encoder)
    assert 0 < found["step_seconds"] < found["seconds"] / 5  # type: ignore[operator]
    assert 0 < found["step_cpu_seconds"] < 60  # type: ignore[operator]
    assert found["memory_of"] == "process"
    assert 2**27 < found["peak_memory"] < 2**36  # type: ignore[operator]
    assert found["hardware"]["devices"] == 1  # type: ignore[index]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]  # type: ignore[index]


def test_a_resumed_training_adds_up(tmp_path: Path) -> None:
    """Time is added to the time before, and the initial checksums do not change."""
    tiny.trainer(tmp_path, Cost(), max_epochs=1).fit(tiny.module(CLIP()), tiny.data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["callbacks"]["Cost"] |= {"seconds": 1000.0, "encoder_at_start": "as it was", "peak_memory": 2**40}
    torch.save(saved, tmp_path / "last.ckpt")
    tiny.trainer(tmp_path, Cost()).fit(tiny.module(CLIP()), tiny.data(), ckpt_path=tmp_path / "last.ckpt")
    found = trained(tmp_path / "last.ckpt")
    assert found["steps"] == 12
    assert 1000 < found["seconds"] < 2000  # type: ignore[operator]
    assert (found["encoder_at_start"], found["peak_memory"]) == ("as it was", 2**40)
    assert found["data_order"] == saved["trained"]["data_order"]


def test_objectives_share_the_start_of_a_seed(tmp_path: Path) -> None:
    """All objectives have the same initial encoder and data order for a seed, although objectives have parameters."""
    sums = {}
    for name, objective, seed in (("clip", CLIP(), 0), ("sparc", SPARC(), 0), ("other", CLIP(), 1)):
        folder = tmp_path / name
        tiny.trainer(folder, Cost(), max_epochs=1).fit(tiny.module(objective), tiny.data(seed=seed))
        sums[name] = [trained(folder / "last.ckpt")[key] for key in ("encoder_at_start", "data_order")]
    assert sums["clip"] == sums["sparc"]
    assert sums["clip"][1] != sums["other"][1]


def test_every_configuration_begins_with_the_same_encoders() -> None:
    """The parameters of the objective are initialized after the encoder, so that comparisons are paired."""
    from jsonargparse import ArgumentParser

    def sums(path: Path, seed: int) -> str:
        parser = ArgumentParser(parser_mode="omegaconf+")
        parser.add_class_arguments(AlignmentModule, "model")
        config = parser.parse_object({"model": yaml.safe_load(path.read_text())["model"]})
        seed_everything(seed)
        return weights_checksum(parser.instantiate_classes(config).model.encoder)

    assert len(CONFIGS) == 20
    assert len({sums(path, 0) for path in CONFIGS}) == 1
    assert sums(CONFIGS[0], 1) != sums(CONFIGS[0], 0)


def test_results_say_what_was_measured_and_keep_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tests of the same data have the same definition, and tests of other data do not. Maps can be read."""
    trainer = tiny.trainer(tmp_path, Cost(), Results(), AlignmentMaps(samples=2))
    module, data = tiny.module(SPARC()), tiny.data()
    trainer.fit(module, data)

    def definition(data: object) -> dict[str, object]:
        trainer.test(module, data, verbose=False)
        return json.loads(Path(trainer.log_dir, "results.json").read_text())["measured"]["definition"]

    first = definition(data)
    assert first == definition(tiny.data(batch_size=7, seed=5))
    assert (first["data_set"], first["image_size"], first["query"]) == ("Scenes", [64, 64], "content")
    assert first["splits"]["test"]["samples"] == 24  # type: ignore[index]
    assert first != definition(tiny.data(test_size=23))
    assert first != definition(tiny.data(overlap=0.3))
    kept = sorted(Path(trainer.log_dir, "maps").glob("test_*.npz"))
    alignment = Alignment.load(kept[0])
    assert len(kept) == 2
    assert alignment.words == [alignment.caption[start:end] for start, end in alignment.spans] != []
    assert alignment.maps["align"].shape == (len(alignment.words), 64)
    capsys.readouterr()


def test_a_checksum_sees_every_part_of_a_sample_and_no_order() -> None:
    """It depends on pixels, captions, phrases, masks and negatives, and not on batches and repetitions."""
    scenes = [tiny.data().split("test")[i] for i in range(6)]

    def checksum(*groups: list[int]) -> dict[str, int | str]:
        sums = SampleSums()
        for group in groups:
            sums.update(collate([scenes[i] for i in group]))
        return sums.compute(torch.device("cpu"))

    whole = checksum([0, 1, 2, 3, 4, 5])
    assert whole == checksum([5, 3], [1, 0, 2, 4], [4, 5])
    assert whole["samples"] == 6
    assert whole != checksum([0, 1, 2, 3, 4])
    batch = collate(scenes)
    pixels, mask, span = batch.images.clone(), batch.phrase_mask.clone(), batch.phrase_span.clone()
    pixels[2, 0, 0, 0] += 1
    mask[0, 0, 0] ^= True
    span[0, 1] -= 1
    captions, negatives = ([texts[0] + "!", *texts[1:]] for texts in (batch.captions, batch.negatives))
    for change in (
        {"images": pixels},
        {"phrase_mask": mask},
        {"phrase_span": span},
        {"captions": captions},
        {"negatives": negatives},
    ):
        assert (sample_sums(replace(batch, **change)) != sample_sums(batch)).any(), list(change)


def _sums_of_a_rank(rank: int) -> dict[str, int | str]:
    """The checksum of five samples on two ranks. Each rank has three samples, and the last one is repeated."""
    sums = SampleSums()
    sums.update(collate([tiny.data().split("test")[i] for i in ([0, 2, 4], [1, 3, 0])[rank]]))
    return sums.compute(torch.device("cpu"))


def test_ranks_count_each_sample_once() -> None:
    """A checksum over two ranks equals that of one process."""
    one = SampleSums()
    one.update(collate([tiny.data().split("test")[i] for i in range(5)]))
    assert on_ranks(_sums_of_a_rank) == [one.compute(torch.device("cpu"))] * 2


def test_the_commit_is_that_of_the_code_that_runs() -> None:
    """The commit is the head of the repository, with a note about changes. Without a repository, it is None."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode:
        assert machine.commit() is None
    else:
        assert machine.commit() in (head.stdout.strip(), f"{head.stdout.strip()} with changes")


def test_hardware_is_what_this_is() -> None:
    """The record names the CPU, the number of threads and the devices."""
    found = machine.hardware()
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert len(found["gpus"]) == torch.cuda.device_count()
