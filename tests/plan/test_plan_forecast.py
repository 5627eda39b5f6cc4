"""The numbers that a run stores about its cost, and the warning before it starts."""

from lmsmith.config.presets import preset
from lmsmith.plan.flops import flops
from lmsmith.plan.forecast import forecast, memory_warning
from lmsmith.plan.memory import memory, of_process, room_for_tensors

CONFIG = preset("gpt2").changed(
    {"model.vocab_size": 50257, "train.batch_size": 16, "train.dtype": "float32"}, where="here"
)


def test_a_forecast() -> None:
    found = forecast(CONFIG, gpu=False)
    assert found["n_params"] == 124_439_808
    assert found["flops_per_step"] == flops(CONFIG).per_step(16 * 1024)
    assert found["peak_tensor_bytes"] == memory(CONFIG).n_bytes
    lstm = preset("lstm").changed({"model.vocab_size": 100}, where="here")
    assert forecast(lstm, gpu=False)["peak_tensor_bytes"] is None


def test_a_warning_offers_settings_that_fit() -> None:
    needed = memory(CONFIG).n_bytes
    assert memory_warning(CONFIG, 1.001 * of_process(needed), gpu=False) == ""
    assert memory_warning(CONFIG, 0.999 * of_process(needed), gpu=False) != ""
    on_gpu = memory(CONFIG, gpu=True).n_bytes
    assert memory_warning(CONFIG, on_gpu, gpu=True) == ""  # tensors alone
    assert memory_warning(CONFIG, 0, gpu=False) == ""
    text = memory_warning(CONFIG, needed / 2, gpu=False)
    n = int(text.partition("micro_batch_size ")[2].split()[0])
    smaller = CONFIG.changed({"train.micro_batch_size": n}, where="here")
    larger = CONFIG.changed({"train.micro_batch_size": n + 1}, where="here")
    assert memory(smaller).n_bytes <= room_for_tensors(needed / 2) < memory(larger).n_bytes
    tight = memory_warning(CONFIG, 3.3e9, gpu=False)
    assert "activation_checkpointing yes" in tight
    assert "smaller model" in memory_warning(CONFIG, 1e9, gpu=False)
