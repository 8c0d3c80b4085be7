"""The tokenizer of the scenes knows all words and keeps its ids."""

import pytest

from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.tokenizer import scene_tokenizer


@pytest.mark.parametrize("split", ["train", "test", "unseen_combinations", "unseen_concepts"])
def test_knows_every_word_of_every_split(split):
    """Unknown words could make two different captions identical."""
    tokenizer = scene_tokenizer()
    data = EmojiScenes(split, 300, objects=(2, 5), negatives=("color", "noun", "exchange"))
    texts = [text for i in range(300) for text in [*data[i].captions, *data[i].negatives]]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert len(ids) <= tokenizer.model_max_length


def test_ids_and_spans():
    """Words have their positions in the caption, in upper or lower case; no special tokens are added."""
    tokenizer = scene_tokenizer()
    text = "There is a RED car, zzz"
    found = tokenizer(text, return_offsets_mapping=True)
    assert [text[a:b] for a, b in found["offset_mapping"]] == ["There", "is", "a", "RED", "car", ",", "zzz"]
    assert found["input_ids"][-1] == tokenizer.unk_token_id == 1
    assert found["input_ids"][:-1] == tokenizer("there is a red car,")["input_ids"]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == 64


def test_vocabulary_is_the_same_every_time():
    """The embeddings in a checkpoint depend on these ids."""
    vocabulary = scene_tokenizer().get_vocab()
    assert vocabulary == scene_tokenizer().get_vocab()
    words = sorted(vocabulary, key=vocabulary.get)
    assert words[:2] == ["[PAD]", "[UNK]"]
    assert words[2:] == sorted(words[2:])
