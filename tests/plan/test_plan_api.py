"""The call and its parts: devices, choices for a budget, bad input."""

import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import lmsmith
from lmsmith.api.planning import plans_file, setting_named, sweep
from lmsmith.errors import ConfigError, LmsmithError, UsageError
from lmsmith.plan.communication import communication
from lmsmith.plan.compute_optimal import EPOCH, HOFFMANN, by_ratio
from lmsmith.plan.devices import STALE_DAYS, device, devices
from lmsmith.plan.fit import parse_bytes, parse_dollars
from lmsmith.plan.inference import cache_per_token
from lmsmith.plan.memory import memory
from lmsmith.plan.predict import config_for
from lmsmith.plan.show import WIDTH, compare, duration

SIXTEEN = {"train.batch_size": 16}


def test_a_plan() -> None:
    plan = lmsmith.plan(preset="gpt2", device="a100-80gb", price=2.0, settings=SIXTEEN)
    numbers = plan.as_dict()
    assert numbers["parameters"]["total"] == 124_439_808
    assert plan.fits
    assert plan.dollars == pytest.approx(2 * plan.hours)
    assert plan.tokens == 20 * plan.n_parameters
    assert numbers["run"]["steps"] == round(plan.tokens / 16384)
    text = str(plan)
    assert max(map(len, text.splitlines())) <= WIDTH
    for word in ("feed-forward", "optimizer state", "kWh", "assumed:", "KV cache"):
        assert word in text
    assert "days ago" not in text  # the price is the user's


def test_no_torch_and_less_than_a_second() -> None:
    program = (
        "import sys, time\nbegan = time.process_time()\nimport lmsmith\n"
        "str(lmsmith.plan(preset='gpt3-175b', devices=8, settings={'train.parallel': 'fsdp'}))\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\nprint(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1


def test_devices_have_sources_and_prices_dates() -> None:
    known = devices()
    assert len(known) >= 12
    for found in known.values():
        assert found.source
        assert bool(found.price) == bool(found.price_date and found.price_source)
    h100 = known["h100"]
    assert h100.peak("bfloat16") == pytest.approx(989.4e12)
    assert h100.peak("float32") == pytest.approx(67e12)
    assert known["t4"].peak("bfloat16") == known["t4"].peaks["float32"]  # it has no bfloat16
    assert known["t4"].usual_dtype == "float16"


def test_an_old_price_gives_a_warning() -> None:
    found = device("h100")
    date = found.price_date
    assert date is not None
    assert not found.stale(date + datetime.timedelta(days=STALE_DAYS))
    assert "181 days ago" in found.stale(date + datetime.timedelta(days=STALE_DAYS + 1))
    assert not device("h100", 2.5).stale()


def test_the_users_devices(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "devices.toml"
    monkeypatch.setenv("LMSMITH_DEVICES", str(file))
    file.write_text(
        "[mine]\npeaks = { float32 = 10 }\nmemory = 8\nbandwidth = 100\n[h100]\nprice = 1.5\n"
    )
    assert device("mine").memory == 8e9
    assert device("h100").price == 1.5
    assert device("h100").memory == 85.9e9
    for wrong, message in (
        ("[mine]\nmemory = 8\nbandwidth = 1\n", "mine has no peaks"),
        ("[h100]\nprice = -1\n", r"h100.price = -1: expected a number, 0 or more"),
        ("[h100]\nbandwith = 1\n", "Did you mean 'bandwidth'"),
        ("[h100]\nmemory = true\n", "expected a number, more than 0"),
        ("h100 = 1\n", "expected a table"),
        ("[h100", "cannot read the devices"),
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=message):
            devices()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"device": "a100-80g"}, "Did you mean 'a100-80gb'"),
    ({"device": "H100 SXM"}, "Did you mean 'h100'"),
    ({"price": -1.0}, "price = -1: expected 0 or more"),
    ({"price": float("nan")}, "price = nan"),
    ({"devices": 0}, "devices = 0"),
    ({"devices": 3}, "cannot be divided evenly among 3"),
    ({"preset": "gpt2", "settings": {"model.n_head": 7}}, "n_head"),
    ({"settings": {"model.n_heads": 8}}, "Did you mean 'model.n_head'"),
    ({"preset": "gpt5"}, "preset"),
    ({"preset": "ngram"}, "counted in one pass"),
    ({"fit": "24"}, "expected a size of memory such as 24GB"),
    ({"fit": "-3GB"}, "expected a size of memory"),
    ({"budget": "0usd"}, "expected dollars above 0"),
    ({"hours": -1.0}, "hours = -1: expected more than 0"),
    ({"preset": "gpt2-xl", "fit": "8GB"}, r"GB are missing. The largest --model.size that fits is"),
    ({"preset": "llama", "fit": "1MB"}, r"even --model.size 1 needs"),
    ({"preset": "llama", "hours": 1e-9}, r"and there are 3.6 us: .* are missing. Allow --hours"),
    ({"preset": "llama", "budget": "0.0001usd"}, r"Allow --hours 0.0\d+ \(--budget 0.0\d+usd\)"),
    ({"preset": "gpt2", "hours": 1e-9}, r"one step takes about"),
    ({"preset": "gpt2", "device": "h100-96gb", "budget": "5usd"}, "give --price"),
    ({"preset": "gpt2", "hours": 1, "settings": {"train.minutes": 90.0}}, "only 60 minutes are"),
    ({"preset": "gpt2", "hours": 1, "settings": {"train.epochs": 2.0}}, "give --train.tokens"),
    ({"device": "a100"}, "Did you mean 'a100-40gb'"),
    ({"method": "gppo"}, "Did you mean 'grpo'"),
    ({"method": "dpo", "prompt_tokens": 2000}, "exceed model.context_length"),
    ({"method": "dpo", "prompt_tokens": -1}, "prompt_tokens = -1: expected 1 or more"),
    ({"prompt_tokens": 5}, "need a method"),
    ({"method": "grpo", "devices": 2}, "runs in one process"),
    ({"method": "grpo", "settings": {"train.batch_size": 9}}, "not a multiple of rl.group_size"),
    ({"preset": "lstm", "method": "dpo"}, "known for Transformers"),
    ({"preset": "gpt2", "method": "dpo", "hours": 1.0}, "for training on text only"),
    ({"preset": "gpt2", "hours": 0.01, "settings": {"train.steps": 10**6}}, "or fewer"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=str)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsmithError, match=message):
        lmsmith.plan(**arguments)


def test_the_limit_that_a_message_names_suffices() -> None:
    with pytest.raises(ConfigError) as found:
        lmsmith.plan(preset="llama", budget="0.0001usd")
    named = re.search(r"--hours (\S+) \(--budget (\S+)\)", str(found.value))
    assert named is not None
    assert lmsmith.plan(preset="llama", hours=float(named[1])).config.model.size == 1
    assert lmsmith.plan(preset="llama", budget=named[2]).config.model.size == 1


def test_a_setting_of_several_sections_is_not_swept() -> None:
    with pytest.raises(ConfigError, match=r"several settings: align.method, rl.method"):
        setting_named("method")


def test_a_recipe_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a recipe"):
        lmsmith.plan(tmp_path / "nothing.toml")
    recipe = tmp_path / "small.toml"
    recipe.write_text('preset = "gpt2"\n[train]\nsteps = 7\nbatch_size = 2\n')
    assert lmsmith.plan(recipe).steps == 7
    recipe.write_text("[model]\nn_layr = 7\n")
    with pytest.raises(ConfigError, match=f"unknown setting 'model.n_layr' in {recipe}"):
        lmsmith.plan(recipe)


def test_choices_for_memory_time_and_money() -> None:
    plan = lmsmith.plan(preset="gpt2-xl", fit="40GB", device="a100-80gb")
    assert plan.memory.n_bytes <= 40e9
    assert 1 <= plan.config.train.micro_batch_size < 32
    # One more row does not fit.
    more = plan.config.changed(
        {"train.micro_batch_size": plan.config.train.micro_batch_size + 1}, where="here"
    )
    assert memory(more, gpu=True).n_bytes > 40e9
    small, large = (
        lmsmith.plan(preset="llama", hours=hours, device="rtx-4090") for hours in (1, 100)
    )
    assert small.n_parameters < large.n_parameters
    assert 0.99 < small.hours <= 1
    assert small.tokens >= 20 * small.n_parameters
    paid = lmsmith.plan(preset="llama", budget="100usd", device="a100-80gb", devices=8, price=2)
    assert paid.dollars is not None
    assert 99 < paid.dollars <= 100


def test_a_note_names_the_plans_that_it_is_about() -> None:
    names = ("gpt2", "llama")
    options: dict[str, Any] = {"fit": "8GB", "device": "a100-80gb", "price": 1.0}
    plans = [(name, lmsmith.plan(preset=name, **options)) for name in names]
    text = compare(plans)
    assert "note (gpt2): chosen: --train.micro_batch_size" in text
    assert "note (llama): chosen: --model.size" in text
    text = compare([(name, plans[0][1]) for name in names])
    assert "note: chosen: --train.micro_batch_size" in text
    assert plans[0][1].device.memory == 8e9
    assert plans[0][1].fits


def test_minutes_within_the_hours() -> None:
    settings = {"train.minutes": 30.0}
    plan = lmsmith.plan(preset="gpt2", hours=1, price=1.0, settings=settings)
    assert 0.49 < plan.hours <= 0.5
    epochs = lmsmith.plan(preset="gpt2", settings={"train.epochs": 2.0})
    assert any("train.epochs needs the text" in note for note in epochs.notes)


def test_sizes_of_limits() -> None:
    assert parse_bytes("24GB") == 24e9
    assert parse_bytes(" 80 GiB ") == 80 * 2**30
    assert [parse_dollars(text) for text in ("100usd", "$100", "1,000")] == [100, 100, 1000]


def test_a_sweep_and_a_comparison(tmp_path: Path) -> None:
    found = sweep(
        "context_length", ["1024", "4096"], preset="gpt2", settings={"train.batch_size": 4}
    )
    assert [plan.config.model.context_length for _, plan in found] == [1024, 4096]
    assert found[1][1].memory.n_bytes > 1.8 * found[0][1].memory.n_bytes
    path = "/a/very/long/path" * 6
    text = compare([*found, *found, *found, (path, found[0][1])])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert path[-40:] in text
    assert path not in text
    page = plans_file(found, tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 6  # memory, FLOPs and time, one bar each
    assert "optimizer state" in page
    with pytest.raises(ConfigError, match="there is no setting 'context_lenght' to sweep"):
        sweep("context_lenght", ["1"])
    with pytest.raises(ConfigError, match="expected a whole number"):
        sweep("context_length", ["x"])


def test_communication() -> None:
    config, _ = config_for(None, {"preset": "gpt2", "model.vocab_size": 50257}, "here")
    n_bytes = 4 * config.neural.n_parameters()
    assert communication(config, 1).n_bytes == 0
    assert communication(config, 8).n_bytes == pytest.approx(2 * 7 / 8 * n_bytes)
    sharded = config.changed({"train.parallel": "fsdp"}, where="here")
    assert communication(sharded, 8, 2).n_bytes == pytest.approx((4 + 1) * 7 / 8 * n_bytes)


def test_scaling_laws() -> None:
    for law in (EPOCH, HOFFMANN):
        n, tokens = law.best(1e21)
        assert 6 * n * tokens == pytest.approx(1e21)
        for factor in (0.9, 1.1):  # the same compute, a worse loss
            assert law.loss(n * factor, tokens / factor) > law.loss(n, tokens)
    n, tokens = EPOCH.best(5.76e23)  # Chinchilla's compute: 70B parameters, 1.4T tokens
    assert n == pytest.approx(70e9, rel=0.25)
    assert tokens / n == pytest.approx(20, rel=0.35)
    assert by_ratio(6 * 20 * 1e18) == pytest.approx((1e9, 20e9))


def test_the_cache_of_a_known_model() -> None:
    """Llama 3 8B: 32 layers, 8 key-value heads of 128, 2 bytes: 131,072 bytes per token."""
    config, _ = config_for(
        None,
        {
            "preset": "llama",
            "model.n_layer": 32,
            "model.n_head": 32,
            "model.n_kv_head": 8,
            "model.d_model": 4096,
        },
        "here",
    )
    assert cache_per_token(config.model) == 131_072  # type: ignore[arg-type]


def test_a_method(tmp_path: Path) -> None:
    """What each count is, `test_plan_tuning.py` compares with PyTorch's counter."""
    given: dict[str, Any] = {"preset": "gpt2", "prompt_tokens": 50, "answer_tokens": 100}
    plan = lmsmith.plan(**given, method="grpo", settings={"rl.kl_weight": 0.1})
    assert plan.tuning is not None
    assert plan.memory.by_kind["reference model"] == 4 * 124_439_808
    assert list(plan.tuning.parts) == [
        *("policy", "rollout: prompts", "rollout: answers", "reference model")
    ]
    assert max(map(len, str(plan).splitlines())) <= WIDTH
    lora = lmsmith.plan(**given, method="dpo", settings={"lora.rank": 8})
    assert lora.tuning is not None
    assert lora.tuning.flops < lmsmith.plan(**given, method="dpo").tuning.flops  # type: ignore[union-attr]
    assert plans_file([("grpo", plan)], tmp_path / "grpo.html").read_text().count("<svg") == 3


def test_years_of_the_worked_figure() -> None:
    """400,000 steps of batch 1024 at T = 1024, at half of 19.5 TFLOP/s, take 17.4 years."""
    seconds = 400_000 * 6 * 2_127_057_600 * 1024 * 1024 / (19.5e12 / 2)
    assert duration(seconds) == "17.4 years"
    assert duration(825e9 / 12.86e6) == "17.8 h"


def test_each_device_says_where_its_figures_and_its_price_are_from() -> None:
    table = tomllib.loads(
        (Path(lmsmith.__file__).parent / "plan" / "devices.toml").read_text(encoding="utf-8")
    )
    for key, entry in table.items():
        assert "https://" in entry["source"], key
        assert isinstance(entry["checked"], datetime.date), key
        assert isinstance(entry["verified"], bool), key
        assert (
            entry["verified"] or "from memory" in entry["source"] or "the rest" in entry["source"]
        )
        if "price" in entry:
            assert "https://" in entry["price_source"], key
            assert entry["price_date"] <= entry["checked"], key


def test_a_batch_decodes_more_tokens_per_second() -> None:
    one, eight = (
        lmsmith.plan(preset="gpt2", device="a100-80gb", settings=SIXTEEN, decode_batch=n).inference
        for n in (1, 8)
    )
    assert one is not None
    assert eight is not None
    assert eight.cache == 8 * one.cache
    assert one.tokens_per_second < eight.tokens_per_second < 8 * one.tokens_per_second
    plan = lmsmith.plan(preset="gpt2", device="a100-80gb", settings=SIXTEEN, decode_batch=8)
    assert "8 sequences together" in str(plan)
    with pytest.raises(ConfigError, match="decode_batch"):
        lmsmith.plan(preset="gpt2", decode_batch=0)
