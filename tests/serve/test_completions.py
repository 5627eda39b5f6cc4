"""/v1/completions: the texts are those of `lmsmith generate`, alone and in a crowd."""

import threading
from typing import Any

import pytest
import torch

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from running import Answer, Server, wait_until

from lmsmith.api import LM

SAMPLED: dict[str, Any] = {"max_tokens": 40, "temperature": 0.9, "seed": 7}


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][0]["text"])


def test_text_equals_generate(server: Server, lm: LM) -> None:
    answer = server.complete(prompt="The cat", **SAMPLED)
    assert text_of(answer) == lm.generate("The cat", **SAMPLED)
    assert answer.json["object"] == "text_completion"
    assert answer.json["usage"]["completion_tokens"] <= 40
    assert answer.json["choices"][0]["finish_reason"] in ("length", "stop")


def test_n_choices_are_the_samples_of_generate(server: Server, lm: LM) -> None:
    choices = server.complete(prompt="A", n=5, **SAMPLED).json["choices"]
    assert [c["text"] for c in choices] == lm.generate_batch(["A"], n=5, **SAMPLED)[0]
    assert [c["index"] for c in choices] == [0, 1, 2, 3, 4]


def test_streams_in_a_crowd_equal_generate(server: Server, lm: LM) -> None:
    prompts = ["The cat", "A bird hid", "Nobody", "", "It was the cat and", "x"] * 5
    got: dict[int, Answer] = {}

    def ask(i: int) -> None:
        got[i] = server.complete(prompt=prompts[i], stream=True, **SAMPLED | {"seed": i})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, prompt in enumerate(prompts):
        text = "".join(e["choices"][0]["text"] for e in got[i].events)
        assert text == lm.generate(prompt, **SAMPLED | {"seed": i}), i
        assert got[i].events[-1]["choices"][0]["finish_reason"]


def test_stop_strings_and_ids_as_a_prompt(server: Server, lm: LM) -> None:
    for stop in (".", ["zzz", " s", "a"]):
        assert text_of(server.complete(prompt="The", stop=stop, **SAMPLED)) == lm.generate(
            "The", stop=stop, **SAMPLED
        )
    ids = lm.writer.encode("The")
    assert text_of(server.complete(prompt=ids, **SAMPLED)) == lm.generate("The", **SAMPLED)
    both = server.complete(prompt=["The", "A"], **SAMPLED).json["choices"]
    assert [c["text"] for c in both] == [lm.generate(p, **SAMPLED) for p in ("The", "A")]


def test_logprobs_are_those_of_the_model(server: Server, lm: LM) -> None:
    answer = server.complete(prompt="The", logprobs=3, return_token_ids=True, **SAMPLED)
    choice = answer.json["choices"][0]
    logprobs, ids = choice["logprobs"], choice["token_ids"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    offsets = [len("".join(logprobs["tokens"][:i])) for i in range(len(ids))]
    assert logprobs["text_offset"] == offsets or len(offsets) != len(logprobs["text_offset"])
    before = lm.writer.encode("The")
    assert choice["prompt_token_ids"] == before
    rows = lm.logits([*before, *ids][:64]).log_softmax(-1)
    for i, (id, p) in enumerate(zip(ids, logprobs["token_logprobs"], strict=True)):
        if len(before) + i < 64:
            assert p == pytest.approx(float(rows[len(before) + i - 1, id]), abs=1e-4)
            best = max(logprobs["top_logprobs"][i].values())
            assert best == pytest.approx(float(rows[len(before) + i - 1].max()), abs=1e-4)


def test_echo_with_logprobs_scores_the_prompt(server: Server, lm: LM) -> None:
    ids = lm.writer.encode("The cat saw x.")
    answer = server.complete(prompt=ids, echo=True, logprobs=1, max_tokens=0)
    logprobs = answer.json["choices"][0]["logprobs"]
    expected = lm.logits(ids).log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answer.json["usage"]["completion_tokens"] == 0
    longer = server.complete(prompt=ids, echo=True, logprobs=1, **SAMPLED).json["choices"][0]
    assert longer["logprobs"]["token_logprobs"][: len(ids)] == logprobs["token_logprobs"]
    assert len(longer["logprobs"]["tokens"]) > len(ids)
    stream = server.complete(prompt=ids, echo=True, logprobs=1, stream=True, **SAMPLED).events
    assert "".join(e["choices"][0]["text"] for e in stream) == longer["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        parts = [part for e in stream for part in e["choices"][0]["logprobs"][name]]
        assert parts == longer["logprobs"][name], name


def test_echo_of_too_many_tokens_is_refused(server: Server) -> None:
    answer = server.complete(prompt=[1] * 65, echo=True, logprobs=1)
    assert answer.error["code"] == "context_length_exceeded"


def test_best_of_takes_the_likeliest(server: Server) -> None:
    many = server.complete(prompt="The", n=6, logprobs=0, **SAMPLED).json["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / 40 for c in many]
    best = server.complete(prompt="The", n=2, best_of=6, **SAMPLED).json["choices"]
    if all(c["finish_reason"] == "length" for c in many):
        order = sorted(range(6), key=lambda i: -means[i])
        assert [c["text"] for c in best] == [many[i]["text"] for i in order[:2]]
    assert len(best) == 2


def test_an_ngram_model_is_loaded_when_it_is_asked_for(server: Server, folder: Any) -> None:
    import lmsmith

    answer = server.complete(prompt="The", model="ngram", **SAMPLED)
    assert text_of(answer) == lmsmith.load(folder / "ngram").generate("The", **SAMPLED)
    models = server.send("/v1/models").json["data"]
    assert [each["id"] for each in models] == ["run", "ngram", "gru"]
    assert server.send("/v1/models/ngram").json["id"] == "ngram"


def test_logit_bias_and_usage_in_a_stream(server: Server, lm: LM) -> None:
    id = int(lm.tokenizer.encode("x")[0])
    events = server.complete(
        prompt="A",
        logit_bias={str(id): 100},
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    ).events
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == "xxx"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_token_has_a_log_probability(server: Server, gru: LM, stream: bool) -> None:
    """Harnesses ask for one new token and drop the last log-probability: it must not be one of the
    prompt's.
    """
    end, ids = min(gru.writer.ends), gru.writer.encode("The cat")
    answer = server.complete(
        **{
            "model": "gru",
            "prompt": ids,
            "echo": True,
            "logprobs": 1,
            "max_tokens": 1,
            "stream": stream,
        },
        **{"logit_bias": {str(end): 100}, "return_token_ids": True},
    )
    choices = [e["choices"][0] for e in answer.events] if stream else answer.json["choices"]
    found = {
        name: [each for choice in choices for each in choice["logprobs"][name]]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs")
    }
    assert choices[-1]["finish_reason"] == "stop"
    assert [id for choice in choices for id in choice["token_ids"]] == [end]
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(found, len(ids) + 1)
    assert found["tokens"][-1] == ""
    assert found["text_offset"][-1] == len("".join(choice["text"] for choice in choices))
    expected = float(gru.logits(ids).log_softmax(-1)[-1, end])
    assert found["token_logprobs"][-1] == pytest.approx(expected, abs=1e-4)
    asked = {"model": "gru", "logprobs": True, "logit_bias": {str(end): 100}, "max_tokens": 5}
    chat = server.chat(**asked).json["choices"][0]
    assert chat["logprobs"]["content"] == []  # as OpenAI's API: tokens of the content alone
    assert chat["finish_reason"] == "stop"


def test_a_recurrent_model_is_served(server: Server, gru: LM) -> None:
    assert text_of(server.complete(prompt="The", model="gru", **SAMPLED)) == (
        gru.generate("The", **SAMPLED)
    )


def test_characters_and_stop_strings_that_are_split_between_tokens(server: Server) -> None:
    """A model of bytes draws bytes of "é", "→" and "x": some pieces are whole characters, others
    are not. Python's decoder is the oracle.
    """
    bias = {str(byte): 100.0 for byte in "é→x".encode()}
    asked = {"model": "gru", "prompt": "A", "max_tokens": 60, "logit_bias": bias}
    n_stopped = 0
    for seed in range(12):
        one = server.complete(**asked, seed=seed, return_token_ids=True).json["choices"][0]
        text = bytes(one["token_ids"]).decode("utf-8", "replace")
        assert one["text"] == text
        for stop in (None, "éx", "→", "xxé"):
            events = server.complete(**asked, seed=seed, stop=stop, stream=True).events
            streamed = "".join(e["choices"][0]["text"] for e in events)
            assert streamed == text.partition(stop or "\0")[0], (seed, stop)
            found = bool(stop and stop in text)
            assert events[-1]["choices"][0]["finish_reason"] == ("stop" if found else "length")
            n_stopped += found
    assert n_stopped > 3


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    import http.client
    import json

    body = json.dumps(
        {"model": "run", "prompt": "A", "max_tokens": 1 << 20, "n": 16, "stream": True}
    )
    scheduler = server.serving.scheduler
    for streams in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/completions", body.replace("true", str(streams).lower()))
        wait_until(lambda: scheduler.n_running == 16)
        if streams:
            connection.getresponse().read(10)
        connection.close()
        wait_until(lambda: scheduler.n_running == 0)
    assert scheduler.n_waiting == 0


def test_shared_prefixes_are_read_once(folder: Any, lm: LM) -> None:
    """The tiny model's context is shorter than a piece, so the cache is tested in tests/generate;
    here, that serving with it gives the same texts.
    """
    from running import serving

    with serving([folder / "run"], prefix_bytes=1 << 20) as server:
        for _ in range(2):
            assert text_of(server.complete(prompt="The cat saw x. " * 20, **SAMPLED)) == (
                lm.generate("The cat saw x. " * 20, **SAMPLED)
            )


def test_models_are_dropped_when_another_needs_their_memory(folder: Any) -> None:
    from running import serving

    with serving([folder / "run", folder / "ngram"], max_bytes=1) as server:
        models = server.serving.models
        for name in ("ngram", "run", "ngram"):
            assert server.complete(model=name, prompt="A", max_tokens=2).status == 200
            assert models.n_loaded == 1
            assert models.all[name].loaded is not None


def test_a_model_is_not_dropped_between_a_request_and_its_answer(folder: Any) -> None:
    """Two models take turns in memory for one. A request may have to wait (429), and nothing else
    goes wrong.
    """
    from running import serving

    found: list[tuple[int, bytes]] = []
    with serving([folder / "run", folder / "ngram"], max_bytes=1) as server:

        def ask(name: str) -> None:
            for i in range(12):
                chat = i % 2 == 0
                answer = (server.chat if chat else server.complete)(
                    **{"model": name, "max_tokens": 1}, **({} if chat else {"prompt": "A"})
                )
                found.append((answer.status, answer.body))

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("run", "ngram") * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.serving.models.n_loaded == len(server.serving.scheduler._lanes) == 1
    assert {status for status, _ in found} <= {200, 429}, found


def test_a_long_prompt_is_not_scored_by_a_model_without_a_context(server: Server) -> None:
    answer = server.complete(model="ngram", prompt=[1] * 10_000, echo=True, logprobs=0)
    assert answer.error["code"] == "context_length_exceeded"
    assert server.complete(prompt="A", echo=True, max_tokens=0, stream=True).status == 400
