"""Drives a server with OpenAI's own client; run by test_openai_client.py in an environment that has
the package. `python openai_client.py URL KEY`; prints JSON: a value for each point of the list that
test_openai_client.py checks.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
SAMPLED: dict[str, Any] = {"model": "run", "max_tokens": 20, "temperature": 0.9, "seed": 5}
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
]
found: dict[str, Any] = {}


class Seen(BaseModel):
    saw: bool
    what: str


def models() -> None:
    found["models"] = [model.id for model in client.models.list()]
    found["model"] = client.models.retrieve("run").id


def completions() -> None:
    create = client.completions.create
    done = create(prompt="The cat", n=2, logprobs=2, **SAMPLED)
    found["n"] = [choice.text for choice in done.choices]
    logprobs = done.choices[0].logprobs
    found["logprobs"] = "".join(logprobs.tokens)
    found["top_logprobs"] = {len(each) for each in logprobs.top_logprobs} == {2}
    found["usage"] = done.usage.model_dump(exclude_none=True)
    ids = create(prompt="The cat", extra_body={"return_token_ids": True}, **SAMPLED)
    prompt_ids = ids.choices[0].prompt_token_ids
    found["ids as a prompt"] = create(prompt=prompt_ids, **SAMPLED).choices[0].text
    found["lists"] = [c.text for c in create(prompt=["The", "A"], **SAMPLED).choices]
    found["lists of ids"] = [c.text for c in create(prompt=[prompt_ids] * 2, **SAMPLED).choices]
    found["echo"] = create(prompt="The", echo=True, **SAMPLED).choices[0].text
    scored = create(model="run", prompt=prompt_ids, echo=True, logprobs=1, max_tokens=0)
    found["echo with logprobs"] = len(scored.choices[0].logprobs.token_logprobs) == len(prompt_ids)
    found["best_of"] = len(create(prompt="The", best_of=4, **SAMPLED).choices)
    found["stop"] = create(prompt="The cat", stop=["a", "w"], **SAMPLED).choices[0].model_dump()
    found["seed"] = [create(prompt="The cat", **SAMPLED).choices[0].text for _ in range(2)]
    found["logit_bias"] = (
        create(model="run", prompt="A", logit_bias={str(prompt_ids[-1]): 100}, max_tokens=3)
        .choices[0]
        .text
    )
    chunks = list(create(prompt="The cat", stream=True, **SAMPLED))
    found["stream"] = "".join(chunk.choices[0].text for chunk in chunks)
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    found["stream usage"] = list(create(prompt="A", **with_usage, **SAMPLED))[-1].usage.total_tokens
    for name in ("ngram", "gru"):
        found[name] = create(prompt="The", **{**SAMPLED, "model": name}).choices[0].text


def chat() -> None:
    create = client.chat.completions.create
    done = create(messages=MESSAGES, logprobs=True, top_logprobs=2, n=2, **SAMPLED)
    first = done.choices[0]
    found["chat"] = first.message.content
    found["chat choices"] = [(c.index, c.message.role, c.finish_reason) for c in done.choices]
    content = first.logprobs.content
    found["chat logprobs"] = bytes(b for each in content for b in each.bytes).decode()
    found["chat top_logprobs"] = {len(each.top_logprobs) for each in content} == {2}
    found["chat usage"] = done.usage.prompt_tokens + done.usage.completion_tokens
    found["chat total"] = done.usage.total_tokens
    few = create(model="run", messages=MESSAGES, max_completion_tokens=3)
    found["max_completion_tokens"] = few.usage.completion_tokens
    stopped = create(messages=MESSAGES, stop=first.message.content[3:6], **SAMPLED).choices[0]
    found["chat stop"] = [stopped.message.content, stopped.finish_reason]
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(messages=MESSAGES, **asked, **SAMPLED))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    found["deltas"] = "".join(delta.content or "" for delta in deltas)
    found["role of the first delta"] = deltas[0].role
    found["chat finish_reason"] = [c.choices[0].finish_reason for c in chunks if c.choices][-1]
    found["chat stream usage"] = chunks[-1].usage.completion_tokens


def formats() -> None:
    """The model "gru" reads bytes, so it can write JSON; "a" and "}" are made likely."""
    likely = {str(ord(character)): 30.0 for character in 'a"}'}
    asked: dict[str, Any] = {"model": "gru", "messages": MESSAGES, "max_tokens": 400, "seed": 1}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
    for name, form in (("json_object", {"type": "json_object"}), ("json_schema", schema)):
        done = client.chat.completions.create(response_format=form, logit_bias=likely, **asked)
        found[name] = [json.loads(done.choices[0].message.content), done.choices[0].finish_reason]
    parsed = client.chat.completions.parse(response_format=Seen, logit_bias=likely, **asked)
    found["parse"] = isinstance(parsed.choices[0].message.parsed, Seen)


SCHEMA = {
    "type": "object",
    "properties": {"saw": {"type": "boolean"}},
    "required": ["saw"],
    "additionalProperties": False,
}


def errors() -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    text, say = client.completions.create, client.chat.completions.create
    calls: dict[str, Callable[[], Any]] = {
        "unknown model": lambda: text(model="nobody", prompt="x"),
        "models.retrieve": lambda: client.models.retrieve("nobody"),
        "n of a million": lambda: text(model="run", prompt="x", n=10**6),
        "wrong key": lambda: client.with_options(api_key="wrong").models.list(),
        "suffix": lambda: text(model="run", prompt="x", suffix="y"),
        "tools": lambda: say(model="run", messages=MESSAGES, tools=tools),
        "embeddings": lambda: client.embeddings.create(model="run", input="x"),
        "too long": lambda: say(model="run", messages=[{"role": "user", "content": "A" * 999}]),
        "stream of a wrong request": lambda: list(
            text(model="run", prompt="x", stream=True, temperature=9)
        ),
    }
    for name, call in calls.items():
        try:
            call()
            found[name] = "no error"
        except openai.APIStatusError as error:
            found[name] = [type(error).__name__, error.status_code, error.code]


for part in (models, completions, chat, formats, errors):
    part()
print(json.dumps(found))
