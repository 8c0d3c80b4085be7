"""Tokenizers in common styles, trained on a few sentences and saved in the format of the hub."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CAPTIONS = [
    "a red fire truck above a small café",
    "two dogs play with a yellow ball on the grass",
    "the blue umbrella is to the left of a purple octopus",
    "a photo of an apple, a banana and a green frog 🐸",
]


def wordpiece(path):
    """BERT: lower case, accents stripped, [CLS] ... [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CAPTIONS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    save(tokenizer, path, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def roberta(path):
    """RoBERTa: bytes, a space is part of the next word, <s> ... </s>, padding id 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    save(tokenizer, path, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def clip(path):
    """CLIP: lower case, bytes with an end-of-word mark, start and end last in the vocabulary, padded with end."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(pre_tokenizers_pattern(), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.add_special_tokens([start, end])
    ids = [(start, tokenizer.token_to_id(start)), (end, tokenizer.token_to_id(end))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    save(tokenizer, path, pad_token=end, unk_token=end, bos_token=start, eos_token=end)


def pre_tokenizers_pattern():
    from tokenizers import Regex

    return Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def unigram(path):
    """T5 and SigLIP 2: a space is part of the next word, no token at the start, </s> at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    save(tokenizer, path, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def words(path):
    """Complete words without special tokens: an empty caption has no tokens."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CAPTIONS, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"]))
    save(tokenizer, path, pad_token="<pad>", unk_token="<unk>")


def save(tokenizer, path, **special):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """Folders of tokenizers by style."""
    folder = tmp_path_factory.mktemp("tokenizers")
    styles = {"wordpiece": wordpiece, "roberta": roberta, "clip": clip, "unigram": unigram, "words": words}
    for name, make in styles.items():
        make(folder / name)
    return {name: str(folder / name) for name in styles}
