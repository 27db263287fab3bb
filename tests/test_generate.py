from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moesearch.config.trial import TrialConfig
from moesearch.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from moesearch.errors import CorpusError, InputError
from moesearch.generate import main
from moesearch.model.transformer import MoETransformer
from moesearch.training.model_folder import config_yaml, write_model_folder
from tests.training.tiny import BASE


def write(folder: Path, tokenizer: Tokenizer, config: TrialConfig = BASE) -> Path:
    """A model that was never trained."""
    folder.mkdir(exist_ok=True)
    model = MoETransformer([config], len(tokenizer.pieces))
    texts = {"config.yaml": config_yaml(config, {}, {}), "tokenizer.json": tokenizer.to_json()}
    write_model_folder(folder, model.lane_tensors(0), texts, [])
    return folder


def test_it_continues_the_prompt_in_as_many_tokens_as_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, CharTokenizer("abc"))
    assert main([str(folder), "--prompt", "abcabcabcabc", "--tokens", "20"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("abcabcabcabc")
    assert len(said) == 12 + 20 + 1
    assert set(said) <= set("abc\n")


def test_a_seed_decides_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, CharTokenizer("abc"))

    def said(seed: str) -> str:
        main([str(folder), "--prompt", "a", "--tokens", "30", "--seed", seed])
        return capsys.readouterr().out

    assert said("1") == said("1") != said("2")


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path, ByteTokenizer())), "--prompt", "é", "--tokens", "60"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("é")
    assert "\N{REPLACEMENT CHARACTER}" in said


def test_a_character_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"character 'x' .* not one of the 3 characters"):
        main([str(write(tmp_path, CharTokenizer("abc"))), "--prompt", "ax"])


def test_a_folder_without_a_model_is_a_persons_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config.yaml, tokenizer.json, model.safetensors; give the folder"):
        main([str(tmp_path)])


def test_files_of_two_models_are_refused(tmp_path: Path) -> None:
    write(tmp_path, CharTokenizer("abc"))
    (tmp_path / "tokenizer.json").write_text(CharTokenizer("abcd").to_json())
    with pytest.raises(InputError, match=r"damaged, or not of one model: token_embedding.weight has shape"):
        main([str(tmp_path), "--prompt", "a"])


def test_torn_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path, CharTokenizer("abc"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        main([str(tmp_path), "--prompt", "a"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tokens", "-1"], "'-1' is no whole number from 0"),
        (["--temperature", "0"], "'0' is no number above 0"),
        (["--temperature", "nan"], "'nan' is no number above 0"),
        (["--prompt", ""], "is empty"),
    ],
)
def test_flags_without_sense_are_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["folder", *flags])
    assert words in capsys.readouterr().err


def test_low_temperatures_choose_the_likeliest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, CharTokenizer("abc"))
    main([str(folder), "--prompt", "a", "--tokens", "1", "--temperature", "1e-6"])
    model = MoETransformer([BASE], 3)
    likeliest = int(model(torch.tensor([[[0]]])).logits_RBTV.argmax())
    assert capsys.readouterr().out == f"a{'abc'[likeliest]}\n"
