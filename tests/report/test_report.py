"""Reports on artificial run folders: complete, cut short, damaged, several. A parser reads what a
browser would show.
"""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lmsmith.config import RunConfig
from lmsmith.errors import CheckpointError, StorageError, UsageError
from lmsmith.report.reading import read_run, split_samples
from lmsmith.report.runs import write_report

HOSTILE = "</pre><script>alert('x')</script> & \x1b[31m"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def make_run(folder: Path, *, n: int = 20, finished: str | None = "steps", **changes: Any) -> Path:
    """A run of n steps with an evaluation every five; the loss falls from 4 towards 1.5."""
    folder.mkdir(parents=True)
    config = RunConfig().changed(
        {"data.sources": "poems/sonnets.txt", "train.steps": n, **changes}, where="a test"
    )
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step in range(1, n + 1):
        loss = 1.5 + 2.5 / step
        spent = {"step": step, "tokens": 1000 * step, "seconds": 0.5 * step}
        rates = {"learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 2000.0, "mfu": 0.25}
        lines.append({"kind": "train", "loss": loss, **spent, **rates})
        if step % 5 == 0:
            lines.append(
                {
                    "kind": "eval",
                    "val_loss": loss + 0.1,
                    "val_bits_per_byte": (loss + 0.1) / math.log(2),
                    **spent,
                }
            )
    lines.append({"kind": "event", "step": n, "message": "the end <came>"})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    (folder / "samples.md").write_text(
        f"## step {n}\n\n```\n{HOSTILE}\n\u05e9\u05dc\n```\n", encoding="utf-8"
    )
    if finished:
        best = 1.6 + 2.5 / n
        summary = {
            "n_params": 1234567, "steps": n, "tokens_seen": 1000 * n, "val_loss": best,
            "val_bits_per_byte": best / math.log(2), "train_seconds": 0.5 * n, "wall_seconds": 0.6 * n,
            "tokens_per_second": 2000.0, "mfu": 0.25, "device": "cpu",
            "dtype": "float32", "finished": finished, "tokenizer": "char", "n_train_tokens": 5000, "n_val_tokens": 500,
            "n_val_bytes": 500, "peak_memory_bytes": 3 * 2**20, "seconds_to_target": None,
            "baselines": {"gzip": 3.9, "xz": 3.6, "source": 0.71},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Checks that tags are balanced; collects words and tags."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def test_a_complete_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sonnets & co")
    out = write_report([run], run / "report.html")
    assert out == run / "report.html"
    page = Page(out)
    for words in (
        "sonnets & co",
        "1.7250",
        "2.489",
        "5.613",
        "1.23M",
        "2,000",
        "25%",
        "10.0 s",
        "12.0 s in total",
        "cpu",
        "float32",
    ):
        assert words in page.text, words
    for words in (
        "gzip -9 3.900",
        "xz -9e 3.600",
        "this model 2.489",
        "entropy of the source 0.710",
        "uniform guess 8.000",
    ):
        assert words in page.text, words
    assert "31% fewer bits than xz" in page.text
    assert "69% smaller than the text" in page.text
    assert "1.779 are left to learn" in page.text
    for words in (
        "sonnets.txt",
        "ended after its planned steps",
        "the end <came>",
        "\u05e9\u05dc",
        "model.context_length".partition(".")[2],
    ):
        assert words in page.text, words
    assert "incomplete" not in page.text
    assert "still falling" in page.text
    assert f"lmsmith train '{run}/config.toml' --steps 40" in page.text
    assert page.tags.count("figure") == 5


def test_the_file_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run")], tmp_path / "report.html"))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    for way_out in ("url(", "@import", "http:", "https:", "//"):
        assert way_out not in page.source, way_out
    assert "alert('x')" in page.text  # a sample is shown, not run
    assert "\x1b" not in page.source
    assert "prefers-color-scheme: dark" in page.source


def test_a_run_that_was_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=None)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text(
        "".join(lines[:14]) + lines[14][:25], encoding="utf-8"
    )  # 12 steps, 2 evaluations
    page = Page(write_report([run], tmp_path / "report.html"))
    assert "incomplete" in page.text
    assert "last line of metrics.jsonl is incomplete" in page.text
    assert "no summary.json" in page.text
    for words in ("1.8500 nats per token, step 10", "steps 12", "training time 6.0 s", "2,000"):
        assert words in page.text, words
    assert f"lmsmith resume {run}" in page.text
    assert "xz" not in page.text


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "samples.md"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "folder"])
def test_a_report_on_a_run_with_missing_or_damaged_files(
    tmp_path: Path, name: str, damage: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    if damage == "folder":
        (run / name).mkdir()
    elif damage != "missing":
        (run / name).write_bytes(b"" if damage == "empty" else b"\xff\x00{[\n\n]= nonsense\n```\n")
    other = make_run(tmp_path / "other")
    for runs in ([run], [run, other]):
        page = Page(write_report(runs, tmp_path / "report.html"))
        if (name, damage) != (
            "samples.md",
            "garbage",
        ):  # what has no block is no sample; there is nothing to tell
            assert "incomplete" in page.text
            assert name in page.text
    assert "validation loss" in page.text


def test_runs_that_have_just_begun(tmp_path: Path) -> None:
    for i, lines in enumerate(
        [
            "",
            '{"kind": "train", "step": 1, "loss": null}\n',
            '{"kind": "eval", "step": 0, "val_loss": 4}\n',
        ]
    ):
        run = tmp_path / str(i)
        run.mkdir()
        (run / "metrics.jsonl").write_text(lines + 'true\n{"kind": "train"}\n', encoding="utf-8")
        page = Page(write_report([run], run / "report.html"))
        assert "incomplete" in page.text
    Page(write_report([tmp_path / "0", tmp_path / "1", tmp_path / "2"], tmp_path / "all.html"))


def test_a_resumed_run_counts_the_later_line_of_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in (18, 19, 20):
            file.write(json.dumps({"kind": "train", "step": step, "loss": 9.0}) + "\n")
    rows = read_run(run).train
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["loss"] for row in rows[-3:]] == [9.0] * 3


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [
        {"kind": "eval", "step": step, "val_loss": loss}
        for step, loss in enumerate((math.nan, 2.5, math.inf))
    ]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    (run / "summary.json").write_text(
        '{"val_loss": NaN, "n_params": null, "device": null, "mfu": "?"}', encoding="utf-8"
    )
    page = Page(write_report([run], run / "report.html"))
    assert "2.5000 nats per token, step 1" in page.text
    assert "nan" not in page.text
    assert "parameters —" in page.text


def test_advice_follows_the_curves(tmp_path: Path) -> None:
    def advice(name: str, finished: str, *lines: dict[str, Any]) -> str:
        run = make_run(tmp_path / name, finished=finished)
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        losses = [line["val_loss"] for line in lines if "val_loss" in line]
        summary |= {"val_loss": losses[-1], "best_val_loss": min(losses), "best_step": 1}
        (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return Page(write_report([run], run / "report.html")).text

    def evals(*losses: float) -> list[dict[str, Any]]:
        return [{"kind": "eval", "step": i, "val_loss": loss} for i, loss in enumerate(losses)]

    assert "memorize" in advice("overfits", "steps", *evals(3, 2, 2.5))
    assert "still falling" in advice("falls", "time", *evals(3, 2.5, 2))
    flat = advice("flat", "steps", *evals(3, 2, 2.001))
    assert "still falling" not in flat
    assert "memorize" not in flat
    diverged = advice("diverged", "steps", *evals(3, 2), {"kind": "train", "step": 9, "loss": None})
    assert re.search(r"--learning-rate 0.0067\s", diverged)
    assert "lmsmith resume" in advice("stopped", "signal", *evals(3, 2))


def test_the_learning_rate_of_each_group_is_drawn_and_named(tmp_path: Path) -> None:
    def chart(run: Path) -> str:
        page = write_report([run], run / "report.html").read_text(encoding="utf-8")
        found = re.search(r"<figcaption>Learning rate.*?(?=<figcaption>)", page, re.DOTALL)
        assert found
        return found.group()

    run = make_run(tmp_path / "muon")
    assert "legend" not in chart(run)  # of an older version: learning_rate alone
    rows = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for tables, labels in (
        (0.01, ["matrices (Muon)", "head, biases, gains", "embedding tables"]),
        (0.001, ["matrices (Muon)", "embedding tables, head, biases, gains"]),
    ):
        more = {"muon_learning_rate": 0.02, "embedding_learning_rate": tables}
        lines = [row | more if row["kind"] == "train" else row for row in rows]
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
        drawn = chart(run)
        assert re.findall(r"</svg>([^<]+)</li>", drawn.partition("</figure>")[0]) == labels
        assert drawn.count('<path class="soft"') == 2 * len(
            labels
        )  # in the chart and in the legend
    other = make_run(tmp_path / "adamw", **{"optim.name": "adamw"})
    page = write_report([run, other], tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Learning rate of the main parameter group" in page


def test_several_runs(tmp_path: Path) -> None:
    narrow = make_run(tmp_path / "a" / "run", **{"model.dropout": "0.3"})
    long = make_run(tmp_path / "b" / "run", n=40)
    page = Page(write_report([narrow, long], tmp_path / "report.html"))
    assert "2 runs" in page.text
    for name in (
        str(narrow),
        str(long),
    ):  # both are called "run", so they are told apart by their paths
        assert f"</span>{name}</th>" in page.source
    assert re.search(r"model.dropout \W*0.3 0.0", page.text)
    assert re.search(r"train.steps \W*20 40", page.text)
    assert "<b>1.6625</b>" in page.source
    assert "<b>1.7250</b>" not in page.source
    assert "differ in tokenizer" not in page.text
    assert "gzip -9 3.900" in page.text

    summary = json.loads((long / "summary.json").read_text(encoding="utf-8"))
    summary |= {"n_val_bytes": 7, "baselines": {"gzip": 2.0}}
    (long / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = Page(write_report([narrow, long], tmp_path / "report.html"))
    assert "differ in tokenizer" in page.text
    assert "gzip -9" not in page.text


def test_nine_runs_and_a_long_one(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{i}") for i in range(9)] + [
        make_run(tmp_path / "long", n=5000)
    ]
    out = write_report(runs, tmp_path / "report.html")
    Page(out)
    assert out.stat().st_size < 400_000


def test_samples_keep_their_characters_and_their_fences() -> None:
    markdown = (
        "# title\n```\nno heading\n```\n## step 1\n\n```\none\n\n "
        "two\u2028\x0c\n```\n```text\nthree\n```\n"
        "## empty\n## step 2\n````\n```\n````\n```\ncut off"
    )
    assert split_samples(markdown) == [
        ("step 1", ["one\n\n two\u2028\x0c", "three"]),
        ("step 2", ["```", "cut off"]),
    ]
    assert split_samples("") == []


def test_paths_that_are_not_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("nowhere", "does not exist"),
        ("file", "is a file"),
        ("empty", "neither metrics.jsonl nor"),
    ):
        with pytest.raises(CheckpointError, match=words) as error:
            write_report([tmp_path / name], tmp_path / "report.html")
        assert str(tmp_path / name) in str(error.value)
        assert not (tmp_path / "report.html").exists()
    with pytest.raises(UsageError, match="at least one"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(StorageError):
        write_report([make_run(tmp_path / "run")], tmp_path / "nowhere" / "report.html")


def test_a_report_is_made_without_torch_or_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lmsmith.report.runs import write_report;"
        f"write_report([Path({str(make_run(tmp_path / 'run'))!r})], "
        f"Path({str(tmp_path / 'r.html')!r}));"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2]
    )


def cut(run: Path, **changes: Any) -> Path:
    """Changes the run's summary."""
    summary = json.loads((run / "summary.json").read_text()) | changes
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_a_run_that_was_cut_short_is_marked_and_never_the_best(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", n=20)
    early = cut(make_run(tmp_path / "early", n=30, finished="time"), first_planned_steps=100)
    page = Page(write_report([whole, early], tmp_path / "both.html"))
    assert (
        "early is not comparable with the others: cut short by its time limit after 30 of 100 "
        "planned steps" in page.text
    )
    assert page.text.count("not comparable") == 3  # in the table, below it, beside its bar
    assert "<b>1.7250</b>" in page.source  # the other one's loss is lower
    assert page.source.count("<b>") == 1
    page = Page(write_report([early], tmp_path / "one.html"))
    assert "This run was cut short by its time limit after 30 of 100 planned steps" in page.text
    assert "nothing useful" not in page.text
    assert "not comparable" not in Page(write_report([whole], tmp_path / "whole.html")).text


def test_a_run_of_too_few_steps_says_that_it_has_learned_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "few", n=10, finished="time")
    assert (
        "The run made only 10 steps within its time limit and learned nothing useful."
        in Page(write_report([run], tmp_path / "one.html")).text
    )
    enough = make_run(tmp_path / "enough", n=10)
    assert "worth using" not in Page(write_report([enough], tmp_path / "two.html")).text


@pytest.mark.parametrize(
    ("drop", "steps", "cut_off"), [(1, 40, False), (9, 20, False), (90, 5, True)]
)
def test_the_top_of_the_training_curve_is_visible(
    tmp_path: Path, drop: float, steps: float, cut_off: bool
) -> None:
    """All of it, unless it would take more than four fifths of the height; then the caption says
    so.
    """
    run = make_run(tmp_path / "run", n=400)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            line["loss"] = 1.5 + drop * math.exp(-line["step"] / steps)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report([run], tmp_path / "report.html"))
    assert ("the first steps, from" in page.text) == cut_off
    paths = re.findall(r'<path class="soft" style="stroke:var\(--c1\)" d="M([^"]*)"', page.source)
    heights = [float(point.split()[1]) for point in re.split("[LM]", max(paths[:2], key=len))]
    assert (min(heights) < 0) == cut_off
    at_twentieth = heights[len(heights) // 20]
    assert at_twentieth < 1000 * 4 / 5


def test_the_suggested_commands_have_a_prompt(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert (
        f"lmsmith generate {run} 'Once upon a time' --n 3"
        in Page(write_report([run], tmp_path / "a.html")).text
    )
    (run / "tokens").mkdir()
    (run / "tokens" / "validation.txt").write_text("lf a word\n\n- \n It was, he said.\n")
    assert (
        f"lmsmith generate {run} 'It was' --n 3"
        in Page(write_report([run], tmp_path / "b.html")).text
    )


@pytest.mark.parametrize(
    ("layers", "words"),
    [(1, "Transformer: 1 layer, 1 head,"), (2, "Transformer: 2 layers, 1 head,")],
)
def test_singular_and_plural(tmp_path: Path, layers: int, words: str) -> None:
    sizes = {"model.n_layer": layers, "model.n_head": 1}
    run = make_run(tmp_path / "run", **sizes)
    assert words in Page(write_report([run], tmp_path / "a.html")).text


CHATS = "conversations"


def test_preference_training_has_charts_of_rewards_that_may_be_negative(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", **{"train.objective": "preferences"})
    lines = list(map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines()))
    for line in lines:
        if line["kind"] != "event":
            side = {"rewards/chosen": -0.1 * line["step"], "rewards/rejected": -0.3 * line["step"]}
            line |= side | {"rewards/margins": 0.2 * line["step"], "rewards/accuracies": 0.75}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("Loss of a preference", "Rewards", "Reward margins", "Reward accuracies"):
        assert title in page, title
    assert "Loss in nats per token" not in page
    rewards = page[page.index('aria-label="Rewards"') :].split("</figure>")[0]
    assert "chosen" in rewards
    assert re.search(r"[-\u2212]6", rewards)  # the scale reaches the last rejected reward
    assert "Reward" not in (make_page(tmp_path / "plain"))


def test_reinforcement_learning_shows_rewards_instead_of_a_likelihood(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", **{"train.objective": "rl", "data.documents": CHATS})
    lines = list(map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines()))
    for line in lines:
        if line["kind"] == "eval":
            line |= {"val_loss": 0.375, "val_reward": 0.625, "val_bits_per_byte": None}
        elif line["kind"] != "event":
            line |= {"reward": 0.5, "no_signal_share": 0.25}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"val_loss": 0.375, "best_val_loss": 0.375, "best_val_bits_per_byte": None}
    summary["val_bits_per_byte"] = None
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    tile = page[page.index("<dt>held-out reward</dt>") :].split("</div>")[0]
    assert "0.6250" in tile
    assert "mean of greedy answers" in tile
    for title in ("Mean reward", "Mean reward by training time", "Policy loss"):
        assert f'aria-label="{title}"' in page, title
    assert "lmsmith chat" in page
    for words in ("nats per token", "perplexity", "validation loss", "lmsmith generate"):
        assert words not in page.split("<pre")[0], words
    both = write_report([folder, folder], tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<th>held-out reward</th>" in both.replace(' scope="col"', "")


@pytest.mark.parametrize("documents", ["stream", CHATS])
def test_only_pre_training_is_told_to_take_more_text(tmp_path: Path, documents: str) -> None:
    folder = make_run(tmp_path / "run", **{"data.documents": documents})
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"val_loss": 2.0, "best_val_loss": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("Overfitting" in page) == (documents == "stream")
    assert ("lmsmith chat" in page) == (documents == CHATS)


def make_page(folder: Path) -> str:
    out = write_report([make_run(folder)], folder.parent / "plain.html")
    return out.read_text(encoding="utf-8")


def test_forecast_and_outcome_with_errors(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "summary.json"
    assert "Forecast and outcome" not in write_report([run], tmp_path / "a.html").read_text()
    summary = json.loads(path.read_text())
    summary["forecast"] = {
        "n_params": 100, "flops_per_token": 2e6, "peak_tensor_bytes": 9e6,
        "seconds_per_step": None, "seconds": None, "notes": ["seconds: <unknown>"],
    }  # fmt: skip
    summary["outcome"] = {
        "n_params": 100, "flops_per_token": None, "peak_tensor_bytes": 10_000_000,
        "seconds_per_step": 0.5, "seconds": 10.0, "notes": ["FLOPs: not counted"],
    }  # fmt: skip
    path.write_text(json.dumps(summary))
    html = write_report([run], tmp_path / "b.html").read_text()
    section = html.partition("Forecast and outcome")[2].partition("<h2>")[0]
    assert "-10.0%" in section
    assert "+0.0%" in section
    assert "500 ms" in section
    assert section.count("%") == 2
    assert "seconds: &lt;unknown&gt;." in section
    assert "FLOPs: not counted." in section
