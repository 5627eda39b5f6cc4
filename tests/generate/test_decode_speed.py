"""`bench generate`: what it counts, and that it runs."""

import json

import pytest
import torch

from lmsmith.cli import run
from lmsmith.errors import ConfigError
from lmsmith.generate.bench import decode_speed, shape, weight_bytes
from lmsmith.generate.weights import pack
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig


def _tiny() -> GPT:
    config = GPTConfig(n_layer=2, n_head=2, d_model=32, vocab_size=64, context_length=128)
    model = GPT(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


def test_weight_bytes_are_those_of_the_matrices() -> None:
    model = _tiny()
    n = model.config.matrix_parameters()
    assert weight_bytes(model) == 4 * n
    pack(model, "bf16")
    assert weight_bytes(model) == 2 * n


def test_the_124m_shape_reads_its_parameters_but_positions_once() -> None:
    n = 12 * (12 * 768 * 768) + 50257 * 768
    assert shape("124M").config.matrix_parameters() == n


def test_speeds_have_a_batch_and_a_share() -> None:
    speeds = list(decode_speed(_tiny(), [1, 3], n_tokens=4, n=2, bytes_per_second=1e9))
    assert [speed.batch for speed in speeds] == [1, 3]
    assert all(speed.tokens_per_second > 0 for speed in speeds)
    read = weight_bytes(_tiny()) * speeds[0].tokens_per_second / 1e9
    assert speeds[0].share_of_read_rate == pytest.approx(read)


@pytest.mark.parametrize("context_length", [2, 20, 33])
def test_a_context_shorter_than_the_prompt(context_length: int) -> None:
    config = GPTConfig(
        n_layer=1, n_head=2, d_model=32, vocab_size=64, context_length=context_length
    )
    (speed,) = decode_speed(GPT(config).eval(), [2], n=1, bytes_per_second=1e9)
    assert speed.tokens_per_second > 0


def test_an_unknown_shape() -> None:
    with pytest.raises(ConfigError, match="expected 10M, 30M, 124M"):
        shape("7B")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "generate", "--shape", "10M", "--batch", "1", "--weights", "int8", "--json"]
    assert run(words, started=0.0) == 0
    assert json.loads(capsys.readouterr().out)["tokens_per_second"]["int8"]["1"] > 0
    for wrong in (["--weights", "int4"], ["--batch", "0"], ["--shape", "7B"]):
        assert run(["bench", "generate", *wrong], started=0.0) == 2
