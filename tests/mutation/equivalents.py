"""Mutants that make no difference to any result, with the reason.

Keys are (file, the line's text, what is replaced, by what), so that they survive changes elsewhere.
"""

_MEMORY = "only how much memory is used at once, and speed"

EQUIVALENTS: dict[tuple[str, str, str, str], str] = {
    ("lmsmith/loss.py", "GPU_CHUNK_ELEMENTS = 1 << 27", "27", "28"): _MEMORY,
    ("lmsmith/optim/muon.py", "AT_ONCE = 1 << 27", "27", "28"): _MEMORY,
    (
        "lmsmith/models/attention.py",
        'if q.device.type == "cpu" and not torch.compiler.is_compiling():',
        "and",
        "or",
    ): "differs only on other devices and in compiled code; both kernels compute the same",
    (
        "lmsmith/generate/filters.py",
        "scale = (_BUCKETS - 1) / width if width > 1e-300 else 0.0",
        "/",
        "*",
    ): "the scale only decides how many numbers the last bucket has, so only the speed",
    (
        "lmsmith/generate/filters.py",
        "floor = 0.5 * (1 - share) * total / len(z)",
        "0.5",
        "1.0",
    ): "the floor only decides how wide the buckets are, so only the speed",
    (
        "lmsmith/generate/filters.py",
        "return int(place if place < _BUCKETS - 1 else _BUCKETS - 1)",
        "1",
        "2",
    ): "numbers of the last bucket but one move to the last; buckets stay in order",
    (
        "lmsmith/generate/filters.py",
        "low, high = lanes[:half], lanes[half : 2 * half]",
        "2",
        "3",
    ): "only the first half of `high` is read",
    (
        "lmsmith/tokens/piece_cache.py",
        "ids = cache.room_for_ids(len(texts.padded) + _ROOM)",
        "+",
        "-",
    ): "the padding after each text has no ids, so there is room for the excess bytes either way",
    (
        "lmsmith/generate/decoders.py",
        "PROMPT_TOKENS = 2048",
        "2048",
        "2049",
    ): "only how long running sequences wait for prompts",
    (
        "lmsmith/generate/sampling.py",
        "self._touched[2, place] = 1",
        "1",
        "2",
    ): "only compared with 0",
    (
        "lmsmith/train/step.py",
        "with explain_lost_process() if replica.ranks.world > 1 else nullcontext():",
        ">",
        ">=",
    ): "one process has no others to lose",
    (
        "lmsmith/train/step.py",
        "if largest and norm > largest:",
        ">",
        ">=",
    ): "a norm at the limit is multiplied by 1",
    (
        "lmsmith/checkpoint.py",
        "if (older <= step and older not in kept_steps) or superseded:",
        "<=",
        "<",
    ): "the step just saved is one of those that are kept",
}
