"""Conversations: the usual forms give the same messages, and each mistake is one clear error."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lmsmith.chat.conversations import Conversations, conversation_of
from lmsmith.errors import DataError
from lmsmith.text import hub, records

WANTED = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": WANTED},
    "parts": {
        "messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in WANTED]
    },
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
        ]
    },
    "sharegpt with system": {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    },
    "texts": {"prompt": "Hi", "completion": "Hello", "system": "Be kind."},
    "lists": {"prompt": WANTED[:2], "completion": WANTED[2:]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello", "system": "Be kind."},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_messages(form: str) -> None:
    assert list(conversation_of(FORMS[form]).messages) == WANTED


def test_an_alpaca_input_follows_the_instruction() -> None:
    found = conversation_of({"instruction": "Add", "input": "1 2", "output": "3"})
    assert found.messages[0]["content"] == "Add\n\n1 2"


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (turns(("assistant", "Hi")), "starts with the assistant"),
        (turns(("system", "a"), ("assistant", "Hi")), "starts with the assistant"),
        (turns(("user", " \n"), ("assistant", "Hi")), r"turn 1 \(user\) is empty"),
        (turns(("user", "a"), ("assistant", "")), r"turn 2 \(assistant\) is empty"),
        (turns(("user", "a"), ("critic", "b")), "turn 2 has the role 'critic', expected one of system"),
        (turns(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")), "2 system messages"),
        (turns(("user", "c"), ("system", "a"), ("assistant", "d")), "system message is turn 2"),
        (turns(("user", "c")), "no turn of the assistant"),
        ({"messages": []}, "has no messages"),
        ({"messages": ["Hi"]}, "turn 1 is 'Hi'"),
        ({"messages": [{"text": "Hi"}]}, "turn 1 has 'text'; expected role and content"),
        ({"messages": [{"role": "user", "content": 3}]}, "has the content 3, expected text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are not text"),
        ({"text": "Hi"}, "it has 'text'; expected `messages`"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_error_that_names_the_line(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (FORMS["messages"], record)))
    with pytest.raises(DataError, match=message) as error:
        list(Conversations([str(path)]))
    assert f"{path}:2" in str(error.value)
    some = Conversations([str(path)], skip_bad=True)
    assert len(list(some)) == 1
    (note,) = some.notes()
    assert note.startswith("1 bad item skipped")


def test_bad_lines_are_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(FORMS["messages"]) + "\n\n{broken\n[1]\n3\n")
    with pytest.raises(DataError, match=r"chats.jsonl:3 is not JSON"):
        list(Conversations([str(path)]))
    some = Conversations([str(path)], skip_bad=True)
    assert len(list(some)) == 1
    assert "3 bad items skipped" in some.notes()[0]


def test_turns_after_the_last_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [*WANTED, {"role": "user", "content": "More?"}]}))
    some = Conversations([str(path)])
    assert [list(each.messages) for each in some] == [WANTED]
    assert some.notes() == ["1 turn after the assistant's last one dropped"]


def test_arrays_parquet_and_compressed_files_give_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [FORMS["messages"], turns(("user", "a"), ("assistant", "b"))]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    lines = "\r\n".join(map(json.dumps, rows))
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    found = [
        [(each.messages, each.source.rpartition(":")[2]) for each in Conversations([str(path)])]
        for path in sorted(tmp_path.iterdir())
    ]
    assert len(found) == 3
    assert [messages for messages, _ in found[0]] == [messages for messages, _ in found[2]]
    assert all(len(each) == 2 for each in found)
    assert found[2][1][1] == "2"


def test_a_name_on_the_hub_is_its_training_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [hub.HubFile(name, 1, "") for name in ("data/test-0.parquet", "data/train-0.parquet")]
    monkeypatch.setattr(hub, "list_files", lambda name, patterns, revision: ("abc", files))
    (path,) = records.find_record_files(["trl-lib/Capybara"])
    assert path.as_posix() == "hf:/datasets/trl-lib/Capybara@abc/data/train-0.parquet"


def test_no_conversations_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="there are no conversations"):
        list(Conversations([str(tmp_path / "empty.jsonl")]))
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        Conversations([str(tmp_path / "nowhere.jsonl")])
