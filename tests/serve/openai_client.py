"""Drives a server with OpenAI's own client; run by test_openai_client.py in an environment that has
the package. `python openai_client.py URL KEY`; prints JSON.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
found: dict[str, object] = {"models": [model.id for model in client.models.list()]}
found["model"] = client.models.retrieve("run").id

sampled = {"model": "run", "max_tokens": 20, "temperature": 0.9, "seed": 5}
done = client.completions.create(prompt="The cat", n=2, logprobs=2, **sampled)
found["texts"] = [choice.text for choice in done.choices]
found["usage"] = done.usage.total_tokens - done.usage.prompt_tokens - done.usage.completion_tokens
found["tokens"] = "".join(done.choices[0].logprobs.tokens)
found["echo"] = client.completions.create(prompt="The", echo=True, **sampled).choices[0].text
stream = client.completions.create(prompt="The cat", stream=True, **sampled)
found["streamed"] = "".join(chunk.choices[0].text for chunk in stream)

messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
chat = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **sampled)
found["chat"] = chat.choices[0].message.content
found["role"] = chat.choices[0].message.role
found["finish"] = chat.choices[0].finish_reason
found["alternatives"] = {len(t.top_logprobs) for t in chat.choices[0].logprobs.content} == {2}
deltas = client.chat.completions.create(
    messages=messages, stream=True, stream_options={"include_usage": True}, **sampled
)
chunks = list(deltas)
found["chat_streamed"] = "".join(
    chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
)
found["stream_usage"] = chunks[-1].usage.completion_tokens > 0

errors = {}
for name, call in {
    "404": lambda: client.completions.create(model="nobody", prompt="x"),
    "400": lambda: client.completions.create(model="run", prompt="x", n=10**6),
    "401": lambda: client.with_options(api_key="wrong").models.list(),
    "tools": lambda: client.chat.completions.create(
        model="run",
        messages=messages,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
    ),
    "embeddings": lambda: client.embeddings.create(model="run", input="x"),
}.items():
    try:
        call()
    except openai.APIStatusError as error:
        errors[name] = [type(error).__name__, error.status_code, bool(error.message)]
found["errors"] = errors
print(json.dumps(found))
