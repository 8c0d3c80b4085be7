"""`predict` compares any images with any texts, and writes complete tables and pictures in the shape of the images."""

from __future__ import annotations

import csv
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from patchword import AlignmentModule
from patchword.callbacks.predictions import PredictionWriter
from patchword.cli import main
from patchword.data.pixels import Preprocessing, read_image
from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError
from patchword.objectives import CLIP, SPARC
from patchword.suites.zero_shot import ZeroShot
from tests import tiny
from tests.ranks import as_device, on_ranks

TEXTS = ["a red apple", "the", "a blue umbrella next to a dog"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a checkpoint of an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny.trainer(folder, max_steps=1, every_n_steps=1, limit_val_batches=0)
    trainer.fit(tiny.module(SPARC()), tiny.data())
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write seven photos of several shapes, one of them in a subfolder, two broken images, and a text."""
    made = tmp_path_factory.mktemp("photos")
    (made / "deep").mkdir()
    noise = np.random.default_rng(0)
    for number, (width, height) in enumerate([(80, 64), (64, 100), (64, 64), (300, 100), (90, 64), (64, 64)]):
        picture = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(made / f"{number}.png")
    Image.fromarray(picture).save(made / "deep" / "a.jpg")
    (made / "broken.jpg").write_bytes(b"no image")
    whole = (made / "deep" / "a.jpg").read_bytes()
    (made / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (made / "notes.txt").write_text("not an image")
    return made


def predict(place, run, data, writer):
    """Run predict and return the rows of the table by image."""
    module = AlignmentModule.load_from_checkpoint(run, weights_only=True).eval()
    trainer = tiny.trainer(place, writer, max_steps=1)
    trainer.predict(module, data, return_predictions=False)
    folder = Path(trainer.log_dir) / "predictions"
    with (folder / "images.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert len({row[0] for row in rows}) == len(rows)
    return folder, head, {name: [*map(float, scores)] for name, *scores in rows}, module


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_every_image_with_every_text(folder, run, tmp_path):
    """Scores equal the objective's, broken images are listed, and maps and pictures have the right shape."""
    place, head, scores, module = predict(tmp_path, run, ZeroShot(str(folder), TEXTS, batch_size=2), PredictionWriter())
    assert head == ["image", *TEXTS]
    assert [*scores] == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "deep/a.jpg"]
    with (place / "broken.csv").open(newline="") as file:
        _, *broken = csv.reader(file)
    assert [row[0] for row in broken] == ["broken.jpg", "cut.jpg"]
    assert all(row[1] for row in broken)

    picture = Image.open(folder / "3.png")
    view = module.encoder.preprocessing.view(300, 100, 64)
    with torch.no_grad():
        images = module.encode_images(view.image(picture)[None])
        texts, tokens = module.encode_texts(TEXTS)
        assert scores["3.png"] == pytest.approx(module.objective.score(images, texts)[0].tolist(), abs=1e-5)
        with np.load(place / "images" / "3.png.npz") as file:
            saved = dict(file)
        maps = module.objective.align(images[torch.zeros(3, dtype=torch.long)], texts)
    for number in range(3):
        mask = texts.mask[number]
        np.testing.assert_allclose(saved[f"map_{number}"], maps[number][mask].numpy(), atol=1e-5)
        assert saved[f"spans_{number}"].tolist() == tokens.spans[number][mask].tolist()
    assert saved["seen"].tolist() == pytest.approx(view.source)
    assert saved["grid"].tolist() == list(module.encoder.grid)
    assert (place / "images" / "deep" / "a.jpg.npz").is_file()

    _, _, again, _ = predict(
        tmp_path / "other",
        run,
        ZeroShot(str(folder), TEXTS, batch_size=64, num_workers=1),
        PredictionWriter(maps=False),
    )
    assert {**again} == {name: pytest.approx(row, abs=1e-5) for name, row in scores.items()}


def test_names_and_texts_of_any_kind(run, tmp_path):
    """File names that are not UTF-8, or that look like formulas, do not break the table."""
    names = [b"caf\xe9.png", b"=1+1.png", b"\x1b[2J.png"]
    (tmp_path / "photos").mkdir()
    for name in names:
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / os.fsdecode(name))
    texts = ["@apple", "a red apple"]
    writer = PredictionWriter(overlays=True)
    place, head, scores, _ = predict(tmp_path / "run", run, ZeroShot(str(tmp_path / "photos"), texts), writer)
    assert head == ["image", "'@apple", "a red apple"]
    assert [*scores] == ["\x1b[2J.png", "'=1+1.png", "caf\\udce9.png"]
    for name in names:
        assert (place / "images" / f"{os.fsdecode(name)}.npz").is_file()
        assert (place / "images" / f"{os.fsdecode(name)}.png").is_file()


def test_no_half_table(folder, run, tmp_path, monkeypatch):
    """If predict fails, the table of the previous run is kept."""
    data = ZeroShot(str(folder / "deep"), TEXTS)
    monkeypatch.setattr(PredictionWriter, "_save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        predict(tmp_path, run, data, PredictionWriter())
    assert not [path for path in tmp_path.rglob("predictions/*") if path.is_file()]


def written(place):
    """Return the rows of all tables, and the maps and pictures by name."""
    tables = [list(csv.reader(path.read_text().splitlines())) for path in place.glob("images*.csv")]
    assert {tuple(head) for head, *_ in tables} == {("image", *TEXTS)}
    rows = sorted((name, *map(float, scores)) for _, *rows in tables for name, *scores in rows)
    found = {path.relative_to(place).as_posix(): path for path in (place / "images").rglob("*.*")}
    maps = {}
    for name, path in found.items():
        if name.endswith(".npz"):
            with np.load(path) as file:
                maps[name] = dict(file)
    pictures = {name: np.asarray(read_image(path)) for name, path in found.items() if not name.endswith(".npz")}
    return rows, maps, pictures


def test_two_devices_write_what_one_writes(folder, run, tmp_path):
    """All three images are written once, with the scores, maps and pictures of one device.

    The first device has two of them. The second one has the third and a broken one, which it reports. Both devices
    refuse a single image, so that none waits for the other.
    """
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, source in {"0": "0", "2": "3", "deep/1": "1"}.items():
        shutil.copy(folder / f"{source}.png", tmp_path / "photos" / f"{name}.png")
    shutil.copy(folder / "broken.jpg", tmp_path / "photos" / "1.jpg")
    with pytest.warns(UserWarning, match=r"1 image\(s\) cannot be read: .*broken.csv lists"):
        place, *_ = predict(
            tmp_path / "one", run, ZeroShot(str(tmp_path / "photos"), TEXTS, batch_size=1), PredictionWriter(True, True)
        )
    rows, maps, pictures = written(place)
    said = on_ranks(_predict, run, tmp_path / "two", tmp_path / "photos", PredictionWriter(True, True))
    two = tmp_path / "two" / "logs" / "version_0" / "predictions"
    assert sorted(path.name for path in two.glob("*.csv")) == [
        "broken_rank_1.csv", "images_rank_0.csv", "images_rank_1.csv",
    ]  # fmt: skip
    assert said == [[], [f"1 image(s) cannot be read: {two / 'broken_rank_1.csv'} lists them"]]
    found, other_maps, other_pictures = written(two)
    assert [row[0] for row in found] == ["0.png", "2.png", "deep/1.png"]
    for row, expected in zip(found, rows, strict=True):
        assert row[1:] == pytest.approx(expected[1:], abs=1e-5)
    assert {*other_maps} == {*maps} == {f"images/{row[0]}.npz" for row in rows}
    for name, arrays in maps.items():
        for part, values in arrays.items():
            np.testing.assert_allclose(other_maps[name][part], values, atol=1e-5)
    assert {*other_pictures} == {*pictures} == {f"images/{row[0]}.png" for row in rows}
    for name, picture in pictures.items():
        assert np.abs(other_pictures[name].astype(float) - picture).mean() < 0.1, name

    said = on_ranks(_predict, run, tmp_path / "alone", tmp_path / "photos" / "0.png", PredictionWriter(maps=False))
    assert all("1 image(s) for 2 devices: set trainer.devices to 1 or less" in one for (one,) in said)


def _predict(rank, run, place, images, writer):
    """Return the warnings of this device, or its error."""
    module = AlignmentModule.load_from_checkpoint(run, weights_only=True).eval()
    with as_device(rank) as options, warnings.catch_warnings(record=True, action="always") as caught:
        trainer = tiny.trainer(place, writer, max_steps=1, **options)
        try:
            trainer.predict(module, ZeroShot(str(images), TEXTS, batch_size=1), return_predictions=False)
        except UserError as error:
            return [str(error)]
    return [str(one.message) for one in caught if "cannot be read" in str(one.message)]


def test_pictures_have_the_shape_of_the_image(folder, run, tmp_path):
    """The map of a panorama covers the part that the model saw: the whole image or its center."""
    from patchword.callbacks.predictions import _on_photo

    photo = Image.open(folder / "3.png")
    maps = torch.arange(8.0).view(2, 2, 2)
    for fit, columns in (("stretch", 300), ("crop", 100)):
        view = Preprocessing(fit).view(300, 100, 64)
        shown, large, seen = _on_photo(photo, maps, view.source)
        assert shown.size == (300, 100)
        assert large.shape == (2, 100, 300)
        assert seen.sum() == columns * 100
        assert large[0].amin() == 0
        assert large[0].amax() == 3
        assert (large[0][~seen] == 0).all()
        inside = large[0][seen].view(100, columns)
        assert (inside.diff(dim=1) >= 0).all(), "values rise from left to right, as in the map"
    data = ZeroShot(str(folder / "3.png"), TEXTS)
    place, _, scores, _ = predict(tmp_path, run, data, PredictionWriter(maps=False, overlays=True))
    assert [*scores] == ["3.png"]
    with Image.open(place / "images" / "3.png.png") as drawn:
        assert drawn.width > drawn.height
    assert not list(place.rglob("*.npz"))


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_parquet_file(folder, run, tmp_path):
    """Images in a column can be bytes or the format of `datasets`, and rows without an image are listed."""
    content = [(folder / f"{n}.png").read_bytes() for n in range(3)]
    rows = [{"bytes": content[0], "path": "a.png"}, {"bytes": b"?", "path": None}, {"bytes": content[2], "path": None}]
    pq.write_table(pa.table({"photo": rows}), tmp_path / "records.parquet")
    pq.write_table(pa.table({"photo": pa.array([content[0], None, content[2]])}), tmp_path / "plain.parquet")
    found = []
    for name in ("records", "plain"):
        data = ZeroShot(str(tmp_path / f"{name}.parquet"), TEXTS, column="photo")
        place, _, scores, _ = predict(tmp_path / name, run, data, PredictionWriter())
        assert [*scores] == ["row_0", "row_2"]
        assert "row_1" in (place / "broken.csv").read_text()
        found.append(scores)
    assert found[0] == found[1]


def test_a_folder_of_broken_images(run, tmp_path):
    """The table lists the images, and the run ends with an error."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the images can be read: .*broken\.csv lists"):
        predict(tmp_path, run, ZeroShot(str(tmp_path / "photos"), TEXTS), PredictionWriter())
    (table,) = tmp_path.rglob("broken.csv")
    assert "a.png" in table.read_text()


def test_a_folder_that_is_used_again_has_the_last_run_alone(folder, run, tmp_path):
    """Maps and broken images of a previous run with other images and texts are removed."""
    writer = PredictionWriter(overlays=True)
    with pytest.warns(UserWarning, match="cannot be read"):
        predict(tmp_path, run, ZeroShot(str(folder), TEXTS), writer)
    place, head, scores, _ = predict(tmp_path, run, ZeroShot(str(folder / "0.png"), ["a dog"]), writer)
    assert (head, [*scores]) == (["image", "a dog"], ["0.png"])
    written = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert written == {"images.csv", "images/0.png.npz", "images/0.png.png"}


def test_a_line_is_a_text(tmp_path):
    """Lines end with a line feed; other line separators of Unicode can be part of a text."""
    (tmp_path / "texts.txt").write_bytes("a\u2028b\x85c\r\n\n d\n".encode())
    assert ZeroShot(str(tmp_path), str(tmp_path / "texts.txt")).texts == ["a\u2028b\x85c", "d"]


def test_captions_and_overlays(tmp_path):
    """With captioned data, each caption has a row and a map, and pictures have one row per phrase."""
    trainer = tiny.trainer(tmp_path, PredictionWriter(overlays=True), max_steps=1)
    trainer.predict(tiny.module(CLIP()), tiny.data(test_size=1), return_predictions=False)
    folder = Path(trainer.log_dir) / "predictions"
    for split in ("test", "unseen_combinations", "unseen_concepts"):
        assert (folder / split / "0_0.npz").is_file()
        with Image.open(folder / split / "0_0.png") as drawn:
            assert min(drawn.size) > 100
        assert len((folder / f"{split}.csv").read_text().splitlines()) == 2


@pytest.mark.filterwarnings("ignore:skipped a broken sample")
def test_a_substitute_of_a_broken_sample_is_not_written_twice(folder, tmp_path):
    """The table has one row for each caption of the images that can be read."""
    names = sorted(path.name for path in folder.glob("*.*"))  # "broken.jpg", "cut.jpg" and "notes.txt" among them
    (tmp_path / "list.csv").write_text("image,caption\n" + "".join(f"{name},a dog\n" for name in names))
    data = ImageText(
        "csv",
        train="-",
        test=str(tmp_path / "list.csv"),
        root=str(folder),
        resize_mode="crop",
        image_size=64,
        batch_size=2,
    )
    trainer = tiny.trainer(tmp_path, PredictionWriter(maps=False), max_steps=1)
    trainer.predict(tiny.module(CLIP()), data, return_predictions=False)
    with (Path(trainer.log_dir) / "predictions" / "test.csv").open(newline="") as file:
        written = sorted(names[int(row["id"])] for row in csv.DictReader(file))
    assert written == [name for name in names if name.endswith(".png")]


def test_on_the_command_line(folder, run, tmp_path, monkeypatch, capsys):
    """Texts come from a file or from the command line, and user errors give one line."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("a red apple\n\na dog\n")
    command = ["predict", "--ckpt_path", str(run), "--data", "ZeroShot", "--trainer.enable_progress_bar", "false"]
    command += ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger"]
    command += ["--trainer.logger.init_args.save_dir", "out"]
    try:
        main([*command, "--data.images", str(folder / "0.png"), "--data.texts", "labels.txt"])
        main([*command, "--data.images", str(folder / "0.png"), "--data.texts", "[a red apple, a dog]"])
        first, second = sorted(Path("out").rglob("images.csv"))
        assert first.read_text() == second.read_text()
        assert first.read_text().startswith("image,a red apple,a dog\n0.png,")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*command, "--data.images", str(folder), "--data.texts", "[a, a]"])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert "data.texts: 'a' occurs twice" in error
        assert "Traceback" not in error
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_mistakes(folder, run, tmp_path):
    """The message names the option to correct."""
    pq.write_table(pa.table({"photo": [1, 2]}), tmp_path / "numbers.parquet")
    module = AlignmentModule.load_from_checkpoint(run, weights_only=True)
    trainer = tiny.trainer(tmp_path, max_steps=1)
    for images, message in {
        "nowhere": "data.images: there is no folder or file nowhere",
        str(run.parent / "logs"): "contains no image file",
        str(tmp_path / "numbers.parquet"): "has no column 'image' but photo: set data.column",
    }.items():
        with pytest.raises(UserError, match=message):
            trainer.predict(module, ZeroShot(images, ["a"]), return_predictions=False)
    with pytest.raises(UserError, match="use it with `patchword predict`"):
        trainer.test(module, ZeroShot(str(folder), ["a"]))
    with pytest.raises(UserError, match=r"there is no file nowhere.txt"):
        ZeroShot(str(folder), "nowhere.txt")
    for texts in ([], ["a", " "]):
        with pytest.raises(UserError, match=r"data\.texts: the list of texts is empty"):
            ZeroShot(str(folder), texts)
