"""An OpenAI-compatible server and a page to talk to a model: `lmsmith serve RUN...`.

options.py      the options of the command; server.py starts and stops the server
app.py          the routes; guard.py checks each request before them
fields.py       reads and checks the fields of a JSON body; sampling.py: those of both endpoints
completions.py  /v1/completions; chat.py: /v1/chat/completions; answers.py: what both share
backlog.py      bounds the memory of pieces that clients have not read yet
scoring.py      log-probabilities of the tokens of a prompt
templates.py    messages -> the ids of a prompt
structured.py   response_format: constrained decoding
models.py       models by name, loaded when they are first asked for
scheduler.py    one thread that steps all engines; jobs.py: what it runs
pieces.py       tokens -> pieces of text
protocol.py     HTTP with time limits for slow clients
metrics.py      counters in Prometheus' text format
page.py         the page at /, from the files in page/
errors.py       errors in OpenAI's form
"""
