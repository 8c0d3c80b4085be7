"""Weights and model folders from untrusted sources: their code does not run, and each error is one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from patchword.encoders import HFText, TimmImage
from patchword.encoders.tokenizer import load_tokenizer
from patchword.errors import UserError

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 300}


class Code:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("echo > OWNED",)


def saved(path: Path) -> None:
    torch.save({"weights": Code()}, path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code()))


def text(path: Path) -> None:
    path.write_text("no weights")


@pytest.fixture(autouse=True)
def _a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(make: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    for word in words:
        assert word in str(error.value)
    assert "weights_only" not in str(error.value)
    assert "trust_remote_code" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("OWNED").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [saved, pickled])
def test_pickles_are_refused(write: Callable[[Path], None]) -> None:
    """The messages of torch and timm, which explain how to load pickles, are not shown."""
    write(Path("weights.pth"))
    timm = lambda: TimmImage("mobilenetv4_conv_small_050", weights="weights.pth")  # noqa: E731
    refused(timm, "weights.pth", "a pickle of more than tensors")
    BertConfig(**BERT).save_pretrained("bert")
    write(Path("bert/pytorch_model.bin"))
    refused(lambda: HFText("./bert", tokenizer="emoji-scenes"), "./bert", "a pickle of more than tensors")


def test_files_that_hold_no_weights_are_refused() -> None:
    text(Path("weights.safetensors"))
    timm = lambda: TimmImage("mobilenetv4_conv_small_050", weights="weights.safetensors")  # noqa: E731
    refused(timm, "the weights of weights.safetensors are damaged")
    BertConfig(**BERT).save_pretrained("bert")
    text(Path("bert/model.safetensors"))
    refused(lambda: HFText("./bert", tokenizer="emoji-scenes"), "the weights of ./bert are damaged")


def test_code_in_the_folder_of_a_model_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would ask on the terminal whether to run the code."""
    Path("evil").mkdir()
    Path("evil/config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "code.C"}}')
    Path("evil/tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": [null, "code.C"]}}')
    Path("evil/code.py").write_text("open('OWNED', 'w').close()\nclass C: pass\n")
    refused(lambda: HFText("./evil", tokenizer="emoji-scenes"), "./evil needs code")
    refused(lambda: load_tokenizer("./evil"), "./evil")
    assert "[y/N]" not in capsys.readouterr().out


def test_kernels_from_the_hub_are_refused() -> None:
    """transformers would download and run such an implementation."""
    config = {"model_type": "bert", "attn_implementation": "somebody/kernel", **BERT}
    refused(lambda: HFText(config=config, tokenizer="emoji-scenes"), "somebody/kernel is code")
    nested = {"model_type": "clip", "attn_implementation": {"text_config": "somebody/kernel"}}
    refused(lambda: HFText(config=nested, tokenizer="emoji-scenes"), "somebody/kernel is code")
    BertModel(BertConfig(**BERT)).save_pretrained("bert")
    content = Path("bert/config.json").read_text()
    Path("bert/config.json").write_text(content.replace("{", '{"_attn_implementation": "somebody/kernel",', 1))
    refused(lambda: HFText("./bert", tokenizer="emoji-scenes"), "somebody/kernel is code")
