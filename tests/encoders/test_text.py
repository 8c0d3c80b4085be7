"""Text towers: spans, masks and truncation with real tokenizers; features, gradients and loading."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from patchword.encoders import HFText
from patchword.encoders.tokenizer import CaptionTokenizer, load_tokenizer

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS = {
    "bert": ("wordpiece", SMALL | {"max_position_embeddings": 12}),
    "distilbert": ("wordpiece", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    "roberta": ("roberta", SMALL | {"max_position_embeddings": 34}),
    "clip_text_model": ("clip", SMALL | {"max_position_embeddings": 20}),
    "siglip_text_model": ("unigram", SMALL | {"max_position_embeddings": 24}),
    "modernbert": ("wordpiece", SMALL | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}),
    "t5": ("unigram", {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}),
    "bag of words": ("words", {"model_type": "t5", "d_model": 16, "num_layers": 0}),
}
STYLES = ["wordpiece", "roberta", "clip", "unigram", "words"]
LINES = ["A red FIRE truck", "", "the café, and a 🐸"]


def tower(name, tokenizers, **arguments):
    style, config = TOWERS[name]
    torch.manual_seed(0)
    return HFText(config={"model_type": name} | config, tokenizer=tokenizers[style], **arguments)


def span(caption, phrase):
    start = caption.index(phrase)
    return torch.tensor([[start, start + len(phrase)]])


@pytest.mark.parametrize("style", STYLES)
def test_tokens(style, tokenizers):
    tokens = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(LINES)
    assert tokens.ids.shape == tokens.mask.shape == tokens.special.shape == tokens.spans.shape[:2]
    assert not tokens.truncated.any()
    assert tokens.special[~tokens.mask].all()
    assert (tokens.spans[tokens.special] == 0).all()
    assert not tokens.select("words")[1].any()  # the empty caption
    assert tokens.mask.any(-1).all() or style == "words"
    for row, caption in enumerate(LINES):
        covered = {i for a, b in tokens.spans[row][tokens.select("words")[row]].tolist() for i in range(a, b)}
        assert covered >= {i for i, letter in enumerate(caption) if letter.isalpha()}


@pytest.mark.parametrize("style", STYLES)
def test_a_phrase_selects_its_own_tokens(style, tokenizers):
    tokens = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(LINES)
    inside = tokens.within(torch.tensor([0]), span(LINES[0], "FIRE"))[0]
    texts = [LINES[0][a:b].strip() for a, b in tokens.spans[0][inside].tolist()]
    assert "".join(texts) == "FIRE"
    accent = tokens.within(torch.tensor([2]), span(LINES[2], "café"))[0]
    a, b = tokens.spans[2][accent].flatten().min(), tokens.spans[2][accent].flatten().max()
    assert LINES[2][a:b].strip() == "café"


@pytest.mark.parametrize("style", STYLES)
def test_tokens_know_their_phrase(style, tokenizers):
    """Numbers count within a caption; of overlapping phrases the last counts; other tokens belong to none."""
    tokens = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(LINES)
    rows = torch.tensor([2, 0, 0, 0])
    spans = torch.cat([span(LINES[2], "café"), span(LINES[0], "A red"), span(LINES[0], "red"), span(LINES[0], "truck")])
    found = tokens.phrases(rows, spans)
    for row, phrases in (0, ["A", "red", "truck"]), (2, ["café"]), (1, []):
        for number, phrase in enumerate(phrases):
            ends = tokens.spans[row][found[row] == number]
            assert LINES[row][ends.min() : ends.max()].strip() == phrase
        assert (found[row] >= 0).sum() == sum((found[row] == number).sum() for number in range(len(phrases)))
    assert (tokens.phrases(rows[:0], spans[:0]) == -1).all()


@pytest.mark.parametrize("style", STYLES)
def test_content_words(style, tokenizers):
    tokens = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(LINES)
    kept = "".join(LINES[2][a:b] for a, b in tokens.spans[2][tokens.select("content")[2]].tolist())
    assert "café" in kept
    assert "the" not in kept
    assert "and" not in kept


@pytest.mark.parametrize("style", STYLES)
def test_truncation(style, tokenizers):
    tokenizer = CaptionTokenizer(load_tokenizer(tokenizers[style]), 8)
    tokens = tokenizer([LINES[0] + " above a small café on the green grass", "red"])
    assert tokens.truncated.tolist() == [True, False]
    assert tokens.ids.shape == (2, 8)
    whole = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(["red"])
    assert tokens.ids[1][tokens.mask[1]].tolist() == whole.ids[0].tolist()


def test_no_captions(tokenizers):
    tokens = CaptionTokenizer(load_tokenizer(tokenizers["wordpiece"]), 8)([])
    assert tokens.ids.shape == (0, 1)
    assert tokens.spans.shape == (0, 1, 2)


def test_clip_pads_with_its_end_token(tokenizers):
    loaded = load_tokenizer(tokenizers["clip"])
    tokens = CaptionTokenizer(loaded, None)(LINES)
    last = tokens.mask.sum(-1) - 1
    assert (tokens.ids[torch.arange(3), last] == loaded.eos_token_id).all()
    assert (tokens.ids[~tokens.mask] == loaded.eos_token_id).all()


@pytest.mark.parametrize("name", TOWERS)
def test_features(name, tokenizers):
    text = tower(name, tokenizers)
    assert text.training
    text.eval()
    tokens = text.tokenize(LINES)
    features = text(tokens)
    assert features.shape == (*tokens.ids.shape, text.width)
    assert features.isfinite().all()
    alone = text(text.tokenize(LINES[2:]))[0]
    n = tokens.mask[2].sum()
    torch.testing.assert_close(features[2, :n], alone[:n], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_every_trainable_parameter_gets_a_gradient(name, tokenizers):
    text = tower(name, tokenizers)
    text(text.tokenize(LINES)).square().sum().backward()
    trainable = dict(text.named_parameters())
    idle = {key for key, p in trainable.items() if not p.requires_grad}
    assert idle <= {"backbone.head.weight", "backbone.head.bias"}  # SigLIP's pooled projection
    assert not [key for key, p in trainable.items() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in text.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["bert", "bag of words"])
def test_frozen(name, tokenizers):
    text = tower(name, tokenizers, freeze=True).train()
    assert not any(module.training for module in text.modules())
    assert not text(text.tokenize(LINES)).requires_grad


@pytest.mark.parametrize(("name", "limit"), [("bert", 12), ("roberta", 32), ("siglip_text_model", 24), ("t5", None)])
def test_limits(name, limit, tokenizers):
    assert tower(name, tokenizers).captions.max_length == limit


def test_siglip_pads_to_the_full_length(tokenizers):
    assert tower("siglip_text_model", tokenizers).tokenize(["red"]).ids.shape == (1, 24)


def test_longest_caption_that_roberta_has_positions_for(tokenizers):
    text = tower("roberta", tokenizers)
    tokens = text.tokenize(["red fire truck " * 20])
    assert tokens.ids.shape == (1, 32)
    assert tokens.truncated.all()
    assert text(tokens).isfinite().all()


def test_a_bag_of_words_knows_no_order(tokenizers):
    text = tower("bag of words", tokenizers).eval()
    one, other = text(text.tokenize(["red truck", "truck red"]))
    torch.testing.assert_close(one, other.flip(0))


def test_folder(tokenizers, tmp_path, capfd):
    """A BERT saved with its pooler comes back without it, in training mode, and says nothing."""
    saved = BertModel(BertConfig(vocab_size=200, **SMALL)).eval()
    saved.save_pretrained(tmp_path)
    load_tokenizer(tokenizers["wordpiece"]).save_pretrained(tmp_path)
    capfd.readouterr()
    text = HFText(str(tmp_path))
    assert text.training
    assert "REPORT" not in "".join(capfd.readouterr())
    tokens = text.eval().tokenize(LINES)
    expected = saved(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    torch.testing.assert_close(text(tokens), expected)
    assert not [key for key in text.state_dict() if "pooler" in key]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_text_half_of_a_pair(kind, tokenizers, tmp_path, capfd):
    config, model = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    loaded = load_tokenizer(tokenizers["clip" if kind == "clip" else "unigram"])
    ids = {"vocab_size": len(loaded), "pad_token_id": loaded.pad_token_id, "eos_token_id": loaded.eos_token_id}
    text_config = SMALL | ids | {"bos_token_id": 0, "max_position_embeddings": 24}
    saved = model(config(text_config=text_config, vision_config=SMALL | {"image_size": 32, "patch_size": 16}))
    saved.save_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    capfd.readouterr()
    text = HFText(str(tmp_path)).eval()
    assert "REPORT" not in "".join(capfd.readouterr())
    tokens = text.tokenize(LINES)
    mask = tokens.mask.long() if kind == "clip" else None
    expected = saved.eval().text_model(input_ids=tokens.ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(text(tokens), expected)


def test_weights_of_another_model(tokenizers, tmp_path):
    BertModel(BertConfig(vocab_size=200, **SMALL)).save_pretrained(tmp_path)
    config = BertConfig(vocab_size=200, **SMALL | {"num_hidden_layers": 3})
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is it another model"):
        HFText(str(tmp_path), tokenizer=tokenizers["wordpiece"])


def test_messages(tokenizers):
    with pytest.raises(ValueError, match="set tokenizer"):
        HFText(config={"model_type": "bert"})
    with pytest.raises(ValueError, match="give either model"):
        HFText(tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="model_type"):
        HFText(config={"hidden_size": 8}, tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="no folder"):
        HFText("./nowhere")
    with pytest.raises(ValueError, match="do not belong together"):
        HFText(config={"model_type": "bert", "vocab_size": 5}, tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="12 positions"):
        tower("bert", tokenizers, max_length=13)
