"""No image is its own negative: rows of one image are in different batches or are counted."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from patchword.data.tables.image_text import ImageText
from patchword.data.tables.order import apart
from patchword.objectives import CLIP
from tests import tiny
from tests.data import formats
from tests.data.test_image_text import _own_cache  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("images", "captions", "batch"), [(16, 3, 16), (48, 4, 16), (100, 5, 32), (7, 5, 7), (40, 1, 9)]
)
def test_samples_of_one_image_are_apart(images, captions, batch):
    """No batch has two of them, every sample comes once, epochs differ, and batches mix images well."""
    generator = torch.Generator().manual_seed(0)
    of = torch.arange(images).repeat_interleave(captions)
    orders = [apart(of, batch, generator) for _ in range(20)]
    whole = len(of) // batch * batch
    together = torch.zeros(images, images)
    for order in orders:
        assert order.sort().values.equal(torch.arange(len(of)))
        for one in of[order[:whole]].view(-1, batch):
            assert len(one.unique()) == batch
            together[one[:, None], one] += 1
    assert len({str(order.tolist()) for order in orders}) == 20
    if batch < images // 2:
        assert (together + torch.eye(images) > 0).float().mean() > 0.95, "images meet in some batch"


def test_an_image_with_more_captions_than_batches():
    """Some batches must contain it twice; no sample is lost."""
    of = torch.tensor([0] * 9 + [1, 2, 3])
    order = apart(of, 4, torch.Generator().manual_seed(0))
    assert order.sort().values.equal(torch.arange(12))


def rows(folder, captions=4, images=12):
    """Write a list with one row per caption."""
    path = formats.table(folder, numbers=range(images))
    lines = [f"images/{i}.jpg,caption {i} {k}" for i in range(images) for k in range(captions)]
    path.write_text("\n".join(["image,caption", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_of_one_image(tmp_path, world_size):
    """Training puts them into different batches over all devices; evaluation makes one sample of them."""
    path = rows(tmp_path)
    module = ImageText("csv", path, val=path, resize_mode="crop", image_size=16, batch_size=12 // world_size)
    module.setup("fit")
    shares = []
    for rank in range(world_size):
        module.trainer = type("Trainer", (), {"world_size": world_size, "global_rank": rank})
        shares.append([batch.ids.tolist() for batch in module.train_dataloader()])
    assert len(shares[0]) == 4
    for step in zip(*shares, strict=True):
        assert len({i // 4 for ids in step for i in ids}) == 12
    val = module.split("val")
    assert [val[i].captions for i in range(len(val))] == [[f"caption {i} {k}" for k in range(4)] for i in range(12)]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`|The 'train_dataloader' does not have many")
def test_an_image_that_is_its_own_negative_is_counted(tmp_path):
    """If the table contains the images, equal images are not known in advance."""
    table = pa.table({"image": [formats.jpeg(i // 4) for i in range(16)], "caption": ["a red fish"] * 16})
    pq.write_table(table, tmp_path / "a.parquet")
    data = ImageText("parquet", str(tmp_path / "a.parquet"), batch_size=8)
    trainer = tiny.trainer(tmp_path, max_epochs=1, logger=False)
    with pytest.warns(UserWarning, match=r"\d of the 8 images of a batch occur in it more than once"):
        trainer.fit(tiny.module(CLIP()), data)
    assert trainer.callback_metrics["train/repeated_images"] >= 8


def test_whole_data_has_no_repeats(tmp_path):
    """Nothing is counted if every image occurs once."""
    data = ImageText("csv", str(formats.table(tmp_path)), resize_mode="crop", image_size=16, batch_size=8)
    data.setup("fit")
    assert [batch.repeated for batch in data.train_dataloader()] == [0]
