"""`lmsmith plan`: the tables, the JSON, several plans, and wrong use."""

import json

from conftest import Lmsmith


def test_tables_and_json(lmsmith: Lmsmith) -> None:
    options = ("--preset", "gpt2", "--device", "a100-80gb", "--train.batch_size", 16)
    done = lmsmith("plan", *options)
    assert done.status == 0, done.err
    assert "124,439,808" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    done = lmsmith("plan", *options, "--json")
    numbers = json.loads(done.out)
    assert numbers["parameters"]["total"] == 124_439_808
    assert numbers["step"]["tokens"] == 16 * 1024


def test_several_plans_and_a_page(lmsmith: Lmsmith) -> None:
    done = lmsmith("plan", "--compare", "gpt2", "gpt2-medium", "--out", "plan.html")
    assert done.status == 0, done.err
    assert "354,823,168" in done.out
    assert (lmsmith.cwd / "plan.html").read_text().count("<svg") == 6
    done = lmsmith("plan", "--preset", "gpt2", "--sweep", "context_length=1024,4096", "--json")
    assert list(json.loads(done.out)) == ["context_length=1024", "context_length=4096"]


def test_json_is_the_only_output_and_another_file_is_kept(lmsmith: Lmsmith) -> None:
    done = lmsmith("plan", "--preset", "gpt2", "--json", "--out", "one.html")
    assert json.loads(done.out)["preset"] == "gpt2"
    (lmsmith.cwd / "book.txt").write_text("It was late.")
    done = lmsmith("plan", "--preset", "gpt2", "--out", "book.txt")
    assert (done.status, done.out) == (1, "")
    assert "book.txt exists and is not a result" in done.err
    assert (lmsmith.cwd / "book.txt").read_text() == "It was late."


def test_a_method(lmsmith: Lmsmith) -> None:
    options = ("--preset", "gpt2", "--method", "grpo", "--rl.kl_weight", 0.1, "--lora.rank", 8)
    lengths = ("--prompt-tokens", 64, "--answer-tokens", 128)
    done = lmsmith("plan", *options, *lengths, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)["tuning"]
    assert list(found["parts"]) == [
        *("policy", "rollout: prompts", "rollout: answers", "reference model")
    ]
    assert list(found["extra_bytes"]) == ["reference model", "merged weights of the rollout"]


def test_lists(lmsmith: Lmsmith) -> None:
    done = lmsmith("plan", "--devices-list")
    assert "h100: https://glennklockwood.com/garden/processors/h100" in done.out
    done = lmsmith("plan", "--published")
    assert "Llama 8B, eager" in done.out


def test_wrong_use_gives_one_line(lmsmith: Lmsmith) -> None:
    for options, message in (
        (("--device", "h10"), "Did you mean 'h100'?"),
        (("--price", "-1"), "--price -1"),
        (("--preset", "gpt2", "--model.n_layer", "100000000"), "at most 2,000 layers"),
        (("--sweep", "context=1,2"), "no setting 'context' to sweep"),
        (("--sweep", "context_length"), "expected NAME=A,B,C."),
        (("--fit", "8GB", "--preset", "gpt2-xl"), "GB are missing"),
        (("--preset", "gpt2", "--model.n_head", "7"), "n_head"),
        (("nothing.toml",), "neither a recipe"),
        (("--published", "--grade"), "does not use --grade: run them one after the other"),
        (("--grade", "--json"), "does not use --json"),
        (("--grade", "--preset", "gpt2"), "does not use --preset"),
        (("--published", "--device", "t4"), "does not use --device"),
        (("--compare", "gpt2"), "expected two or more different presets, recipes or runs"),
        (("--compare", "gpt2", "gpt2"), "expected two or more different presets"),
        (("--devices-list", "gpt2.toml"), "does not use gpt2.toml"),
        (("--method", "dpo", "--prompt-tokens", "0"), "expected a whole number, 1 or more"),
    ):
        done = lmsmith("plan", *options)
        assert done.status == 2, done.out
        assert message in done.err
        assert "Traceback" not in done.err
        assert done.err.count("\n") == 1
