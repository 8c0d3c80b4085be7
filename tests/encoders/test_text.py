"""Text towers: spans, masks and truncation with real tokenizers; features, gradients and loading."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from patchword.encoders import HFText
from patchword.encoders.positions import stretch
from patchword.encoders.tokenizer import CaptionTokenizer, load_tokenizer
from patchword.errors import UserError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS = {
    "bert": ("wordpiece", SMALL | {"max_position_embeddings": 12}),
    "distilbert": ("wordpiece", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    "roberta": ("roberta", SMALL | {"max_position_embeddings": 34}),
    "clip_text_model": ("clip", SMALL | {"max_position_embeddings": 20}),
    "siglip_text_model": ("unigram", SMALL | {"max_position_embeddings": 24}),
    "modernbert": ("wordpiece", SMALL | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}),
    "t5": ("unigram", {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}),
    "mt5": ("unigram", {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}),
    "bart": ("roberta", {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 34}),
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
    """Phrases are numbered within a caption, and a phrase that contains another one is a level above it."""
    tokens = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(LINES)
    rows = torch.tensor([2, 0, 0, 0])
    spans = torch.cat([span(LINES[2], "café"), span(LINES[0], "A red"), span(LINES[0], "red"), span(LINES[0], "truck")])
    found = tokens.phrases(rows, spans)
    assert found.shape == (len(LINES), 2, tokens.ids.shape[1])
    for row, level, phrases in (0, 0, {1: "red", 2: "truck"}), (0, 1, {0: "A red"}), (2, 0, {0: "café"}), (1, 0, {}):
        for number, phrase in phrases.items():
            ends = tokens.spans[row][found[row, level] == number]
            assert LINES[row][ends.min() : ends.max()].strip() == phrase
        assert {*found[row, level].tolist()} == {-1, *phrases}


@pytest.mark.parametrize("style", STYLES)
def test_of_phrases_that_overlap_on_one_level_the_last_one_is_used(style, tokenizers):
    tokens = CaptionTokenizer(load_tokenizer(tokenizers[style]), None)(LINES)
    spans = torch.cat([span(LINES[0], "A red"), span(LINES[0], "red FIRE")])
    found = tokens.phrases(torch.tensor([0, 0]), spans)
    assert found.shape[1] == 1
    ends = tokens.spans[0][found[0, 0] == 1]
    assert LINES[0][ends.min() : ends.max()].strip() == "red FIRE"
    rows = torch.tensor([0])
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


@pytest.mark.parametrize(
    ("name", "limit"), [("bert", 12), ("roberta", 32), ("siglip_text_model", 24), ("t5", None), ("bart", 34)]
)
def test_limits(name, limit, tokenizers):
    assert tower(name, tokenizers).captions.max_length == limit


STRETCHED = ["bert", "distilbert", "roberta", "clip_text_model", "siglip_text_model", "bart"]


def stretched(name, tokenizers, **arguments):
    """A tower with 30 positions and the same tower with 20 + 4 * 10 positions."""
    offset = {"roberta": 2}.get(name, 0)  # rows of the table before the first position
    extra = {"decoder_layers": 1, "encoder_layers": 1} if name == "bart" else {}
    style, config = TOWERS[name]
    config = {"model_type": name} | config | extra | {"max_position_embeddings": 30 + offset}
    towers = []
    for factor in (None, 4):
        torch.manual_seed(0)
        towers.append(HFText(config=config, tokenizer=tokenizers[style], stretch_positions=factor, **arguments).eval())
    return towers


def longest(tower):
    return tower.tokenize(["red fire truck " * 40])


@pytest.mark.parametrize("name", STRETCHED)
def test_stretched_positions(name, tokenizers):
    """A caption can be twice as long, and the features of 20 tokens are the same, so no position has moved.

    SigLIP attends to its padding, whose length differs, so that only its table can be compared.
    """
    short, long = stretched(name, tokenizers)
    assert (short.captions.max_length, long.captions.max_length) == (30, 60)
    tokens = longest(long)
    assert tokens.ids.shape == (1, 60)
    assert long(tokens).isfinite().all()
    few = long.tokenize(["red fire truck " * 40]).cut(20)
    if name != "siglip_text_model":
        torch.testing.assert_close(long(few), short(few))
    ((key, before, after),) = [
        (key, before, after)
        for (key, before), after in zip(short.named_parameters(), long.parameters(), strict=True)
        if not torch.equal(before, after)
    ]
    first = len(before) - 30
    assert "position" in key or "embed" in key
    assert torch.equal(after[: first + 20], before[: first + 20])
    assert torch.equal(after[first + 20 :: 4], before[first + 20 :])
    long(tokens).square().sum().backward()
    assert (after.grad[first:] != 0).any(-1).all()


def test_stretched_positions_are_interpolated():
    """Between two rows are 3/4, 2/4 and 1/4 of the first one plus the rest of the second, as in the authors' code."""
    rows = torch.randn(5, 3, dtype=torch.float64)
    found = stretch(rows, 4)
    for i in range(5):
        step = rows[i + 1] - rows[i] if i < 4 else rows[4] - rows[3]
        for part in range(4):
            torch.testing.assert_close(found[4 * i + part], rows[i] + part / 4 * step)
    torch.testing.assert_close(stretch(torch.arange(57.0)[:, None], 4)[:, 0], torch.arange(228.0) / 4)


@pytest.mark.parametrize(("max_length", "expected"), [(None, 248), (248, 248), (100, 100)])
def test_clip_gets_248_positions_as_in_long_clip(max_length, expected, tokenizers, tmp_path):
    """The default is all positions, because the tokenizer's own limit is that of the original model."""
    words = load_tokenizer(tokenizers["clip"])
    words.model_max_length = 77
    words.save_pretrained(tmp_path)
    config = TOWERS["clip_text_model"][1] | {"model_type": "clip_text_model", "max_position_embeddings": 77}
    text = HFText(config=config, tokenizer=str(tmp_path), stretch_positions=4, max_length=max_length)
    assert text.captions.max_length == expected


def test_a_stretched_tower_is_saved_with_all_positions(tokenizers, tmp_path):
    """Its configuration knows the number, so that transformers and HFText load it like any other model."""
    _, text = stretched("bert", tokenizers)
    text.backbone.save_pretrained(tmp_path)
    text.captions.save_pretrained(tmp_path)
    again = HFText(str(tmp_path)).eval()
    assert again.captions.max_length == 60
    torch.testing.assert_close(again(longest(again)), text(longest(text)))


def test_a_stretched_tower_starts_like_one_that_is_not(tokenizers):
    """Stretching draws no random numbers, so that runs with and without it see the same data."""
    states = []
    for factor in (None, 2):
        torch.manual_seed(0)
        config = {"model_type": "bert", "max_position_embeddings": 30} | SMALL
        HFText(config=config, tokenizer=tokenizers["wordpiece"], stretch_positions=factor)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("bert", 4, "bert has 12 positions: stretch_positions keeps the first 20 and needs at least 2 more"),
        ("bert", 1, "stretch_positions must be 2 or more, not 1"),
        ("t5", 4, "t5 does not have one table of positions"),
        ("modernbert", 4, "modernbert does not have one table of positions"),
    ],
)
def test_positions_that_cannot_be_stretched(name, factor, message, tokenizers):
    with pytest.raises(UserError, match=message):
        tower(name, tokenizers, stretch_positions=factor)


# Types whose positions do not always start at 0. The padding ids are 1 (roberta) and 0 (wordpiece).
SHIFTED = {
    "camembert": ("roberta", 30),
    "data2vec-text": ("roberta", 30),
    "esm": ("roberta", 30),
    "ibert": ("roberta", 30),
    "longformer": ("roberta", 30),
    "luke": ("roberta", 30),
    "markuplm": ("roberta", 30),
    "mpnet": ("wordpiece", 30),
    "roberta": ("wordpiece", 31),
    "roberta-prelayernorm": ("roberta", 30),
    "xlm-roberta": ("roberta", 30),
    "xlm-roberta-xl": ("roberta", 30),
    "xmod": ("roberta", 30),
    "bert": ("roberta", 32),
    "electra": ("wordpiece", 32),
    "opt": ("roberta", 32),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_the_longest_caption_of_every_type(name, tokenizers):
    """The limit is the number of positions of the model. With one more token, the model fails."""
    style, limit = SHIFTED[name]
    extra = {"xmod": {"languages": ["en_XX"], "default_language": "en_XX"}, "longformer": {"attention_window": 4}}
    extra["luke"] = {"entity_vocab_size": 4, "entity_emb_size": 4}
    sizes = SMALL | {"max_position_embeddings": 32, "type_vocab_size": 1, "embedding_size": 16} | extra.get(name, {})
    if name == "opt":
        sizes |= {"ffn_dim": 32, "word_embed_proj_dim": 16}
    text = HFText(config={"model_type": name} | sizes, tokenizer=tokenizers[style]).eval()
    assert text.captions.max_length == limit
    tokens = text.tokenize(["red fire truck " * 20])
    assert tokens.ids.shape == (1, limit)
    assert text(tokens).isfinite().all()
    text.captions.max_length += 1
    with pytest.raises((IndexError, RuntimeError)):
        text(text.tokenize(["red fire truck " * 20]))


@pytest.mark.parametrize("name", ["fnet", "convbert", "nystromformer", "yoso"])
def test_features_that_depend_on_the_padding_are_refused(name, tokenizers):
    """Otherwise, the features of a caption would depend on its batch, and a loss in chunks on the chunks."""
    with pytest.raises(UserError, match="depend on the padding"):
        HFText(config={"model_type": name} | SMALL, tokenizer=tokenizers["wordpiece"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"} | SMALL, "vit"),
        ({"model_type": "xmod"} | SMALL, "xmod computes no features"),
        ({"model_type": "berd"}, "did you mean bert"),
        ({"model_type": "bert", "hidden_size": 30}, "transformers cannot build bert"),
    ],
)
def test_models_that_are_not_text_towers_are_refused(config, message, tokenizers):
    """The message is one short line for every error of transformers."""
    with pytest.raises(UserError, match=message) as raised:
        HFText(config=config, tokenizer=tokenizers["wordpiece"])
    assert len(str(raised.value)) < 400


def test_the_encoder_of_an_encoder_decoder_is_used(tokenizers):
    """The features at a position depend on the token there, and not on the previous token as in a decoder."""
    sizes = TOWERS["bart"][1] | {"encoder_layers": 0, "decoder_layers": 0}
    text = HFText(config={"model_type": "bart"} | sizes, tokenizer=tokenizers["roberta"]).eval()
    tokens = text.tokenize(["red fire truck", "red dogs truck"])
    one, other = text(tokens)
    assert torch.equal((one != other).any(-1), tokens.ids[0] != tokens.ids[1])


def test_siglip_pads_to_the_full_length(tokenizers):
    assert tower("siglip_text_model", tokenizers).tokenize(["red"]).ids.shape == (1, 24)


def test_a_bag_of_words_knows_no_order(tokenizers):
    text = tower("bag of words", tokenizers).eval()
    one, other = text(text.tokenize(["red truck", "truck red"]))
    torch.testing.assert_close(one, other.flip(0))


def test_folder(tokenizers, tmp_path, capfd):
    """A BERT that was saved with its pooler is loaded without it, in training mode, and without messages."""
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
def test_text_tower_of_a_pair(kind, tokenizers, tmp_path, capfd):
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
    with pytest.raises(ValueError, match=r"16 are missing, first (encoder\.)?layers?\.2\."):
        HFText(str(tmp_path), tokenizer=tokenizers["wordpiece"])


def test_messages(tokenizers):
    with pytest.raises(ValueError, match="set tokenizer"):
        HFText(config={"model_type": "bert"})
    with pytest.raises(ValueError, match="set either model"):
        HFText(tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="model_type"):
        HFText(config={"hidden_size": 8}, tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="no folder"):
        HFText("./nowhere")
    with pytest.raises(ValueError, match="the text model has 5"):
        HFText(config={"model_type": "bert", "vocab_size": 5}, tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match=r"12 positions: set max_length .* or set stretch_positions"):
        tower("bert", tokenizers, max_length=13)
