"""Names of options and commands in other programs, and their names in lmsmith.

For an unknown name such as `--lr` or `lmsmith finetune`, the tables below give the name that the
user meant, where a comparison of spellings would not find it. They are consulted only after the
name turned out to be unknown, so an entry never hides a real name.
"""

from __future__ import annotations

from collections.abc import Iterable

# Real name: its synonyms. If there are several real names, the first one that the command (or the
# recipe) has counts. A word after a real name is the value to set. A synonym may occur on several
# lines; the first line that applies counts.
_OPTIONS: dict[str | tuple[str, ...], str] = {
    # The length of a run.
    (
        "steps",
        "train.steps",
    ): "max_steps num_steps n_steps total_steps train_steps num_train_steps max_iters "
    "max_iterations iterations iters num_iterations training_steps updates",
    (
        "epochs",
        "train.epochs",
    ): "epoch num_epochs n_epochs max_epochs num_train_epochs training_epochs passes",
    "tokens": "epochs epoch num_epochs",  # for `resume`, which has no epochs
    ("tokens", "train.tokens"): "max_train_tokens max_tokens num_tokens n_tokens total_tokens "
    "train_tokens token_budget",
    ("minutes", "train.minutes"): "max_minutes",
    # The optimizer and its schedule.
    ("learning-rate", "optim.learning_rate"): "lr rate max_lr peak_lr base_lr alpha eta step_size",
    "optim.muon_learning_rate": "muon_lr matrix_lr",
    "optim.embedding_learning_rate": "embedding_lr embed_lr",
    "optim.name": "optimizer optimiser optim opt",
    "optim.weight_decay": "wd decay l2",
    "optim.clip_norm": "clip grad_clip gradient_clip max_grad_norm clip_grad_norm "
    "gradient_clipping clip_grad "
    "gradient_clip_val",
    "optim.beta1": "adam_beta1 b1",
    "optim.beta2": "adam_beta2 b2",
    "optim.eps": "adam_epsilon epsilon adam_eps",
    "optim.sgd_momentum": "momentum",
    "schedule.shape": "schedule scheduler lr_scheduler lr_schedule lr_scheduler_type lr_decay "
    "decay_lr",
    "schedule.warmup_steps": "warmup warmup_iters warm_up num_warmup_steps warmup_iterations "
    "lr_warmup_steps",
    "schedule.cooldown_fraction": "cooldown decay_fraction warmdown_ratio",
    "schedule.final_fraction": "final_lr_fraction min_lr_ratio",
    # The model.
    "model.size": "model_size depth",
    "model.n_layer": "layers layer n_layers num_layers num_hidden_layers n_blocks blocks "
    "num_blocks",
    "model.n_head": "heads head n_heads num_heads num_attention_heads attention_heads nhead",
    "model.n_kv_head": "kv_heads num_kv_heads n_kv_heads num_key_value_heads gqa n_query_groups",
    "model.n_head_per_kv": "num_key_value_groups kv_groups gqa_ratio group_size",
    "model.d_model": "hidden_size hidden_dim hidden dim d n_embd n_embed embed_dim embedding_size "
    "embedding_dim "
    "emb_dim embd width model_dim d_hidden",
    "model.d_ff": "ff ffn ffn_dim ff_dim intermediate_size mlp_dim dim_feedforward d_ffn d_mlp "
    "n_inner hidden_ff",
    "model.context_length": "context ctx n_ctx context_size context_window block_size seq_len "
    "sequence_length "
    "seq_length max_seq_len max_seq_length max_length max_len n_positions max_position_embeddings "
    "bptt length",
    "model.vocab_size": "vocab vocabulary vocabulary_size n_vocab vocab_len",
    "model.positions": "position pos position_embedding positional_encoding positional_embedding "
    "pos_emb",
    "model.positions rope": "rope rotary use_rope rotary_embeddings",
    "model.rope_base": "rope_theta rotary_base rotary_emb_base",
    "model.rope_fraction": "rotary_pct partial_rotary_factor rotary_fraction rotary_percentage",
    "model.rope_pattern": "no_rope_layers nope nope_layers",
    "model.parallel_residual": "use_parallel_residual parallel_block parallel_attention",
    "model.feed_forward": "mlp mlp_type ffn_type",
    "model.feed_forward swiglu": "swiglu",
    "model.norm": "normalization normalisation norm_type",
    "model.norm rmsnorm": "rmsnorm rms_norm",
    "model.norm layernorm": "layernorm layer_norm",
    "model.norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "model.dropout": "drop resid_dropout resid_pdrop embd_pdrop dropout_rate p_dropout",
    "model.attention_dropout": "attn_dropout attn_pdrop",
    "model.tied_head": "tie tied tie_weights tie_embeddings tie_word_embeddings weight_tying "
    "tied_embeddings",
    "model.window": "sliding_window attention_window window_size",
    "model.logit_softcap": "softcap logit_cap",
    "model.bias": "biases use_bias attention_bias",
    "model.init": "initializer initialization init_method",
    "model.kind": "model_type arch architecture",
    "model.order": "order n_gram ngram n_order",
    "preset": "model config_name model_name model_preset arch_name",
    # Batches and data.
    "train.batch_size": "batch bs batchsize train_batch_size per_device_train_batch_size "
    "per_device_batch_size "
    "global_batch_size device_batch_size b",
    "train.batch_tokens": "total_batch_size batch_size_tokens tokens_per_batch tokens_per_step",
    "train.micro_batch_size": "micro_batch microbatch mbs",
    (
        "validation",
        "data.validation_fraction",
    ): "val valid dev validation_file val_file validation_data val_data "
    "eval_data valid_file validation_text test_data",
    (
        "data.validation_fraction",
        "validation-fraction",
    ): "val_fraction val_split validation_split val_ratio val_size "
    "valid_fraction test_size holdout eval_fraction split",
    "data.text_field": "field column text_column text_key json_key content_field",
    "data.encoding": "charset codec",
    "data.documents packed": "packing pack packed document_mask doc_mask",
    "tokenizer": "tokeniser tok tokenizer_name tokenizer_path encoding_name",
    # The machine.
    "train.device": "device gpu cuda cpu mps accelerator",
    ("threads", "train.threads"): "n_threads num_threads cores cpus",
    (
        "workers",
        "threads",
        "train.threads",
    ): "workers num_workers n_workers num_proc n_proc jobs processes j",
    "train.dtype": "dtype precision mixed_precision torch_dtype amp data_type",
    "train.dtype bfloat16": "bf16 bfloat16",
    "train.dtype float16": "fp16 float16 half",
    "train.dtype float32": "fp32 float32",
    "train.compile": "compile torch_compile use_compile no_compile",
    "train.activation_checkpointing "
    "yes": "activation_checkpointing gradient_checkpointing grad_checkpoint checkpoint_activations "
    "use_gradient_checkpointing",
    "train.parallel": "ddp distributed strategy",
    "train.parallel fsdp": "fsdp",
    # Evaluation, checkpoints, logging, output.
    (
        "from",
        "train.init_from",
    ): "init_from pretrained pretrained_model base_model start finetune fine_tune "
    "finetune_from checkpoint ckpt weights load model_name_or_path init_weights",
    "train.eval_every": "eval_interval eval_steps eval_iters evaluate_every val_every "
    "val_interval eval_freq "
    "validate_every val_check_interval",
    "train.save_every": "save_interval save_steps checkpoint_every checkpoint_interval save_freq "
    "ckpt_every",
    "train.log_every": "log_interval logging_steps log_steps log_freq print_every",
    ("keep", "train.keep"): "save_total_limit keep_checkpoints max_checkpoints",
    "train.track wandb": "wandb use_wandb wandb_log wandb_project",
    "train.track tensorboard": "tensorboard tb tb_log",
    "train.track": "report_to logger tracker",
    (
        "stop-at-val-loss",
        "train.stop_at_val_loss",
    ): "target target_loss early_stopping patience stop_loss",
    ("seed", "train.seed"): "random_seed random_state rng manual_seed rng_seed",
    (
        "out",
        "runs-out",
    ): "output output_dir out_dir outdir save_dir output_path save_path dest destination o run_dir "
    "log_dir run_name name",
    # Generation and evaluation.
    "max-tokens": "max_new_tokens max_length max_len length n_predict num_tokens n_tokens tokens "
    "max_tokens_to_sample "
    "max_completion_tokens n_tokens_to_generate",
    "temperature": "temp t",
    "top-k": "topk k",
    "top-p": "topp nucleus p nucleus_p",
    "min-p": "minp",
    "n": "num_samples n_samples samples count num_return_sequences num rounds",
    "stop": "stop_token stop_sequence stop_sequences stop_string eos",
    "temperature 0": "greedy",
    "text": "file files input input_file data dataset data_path corpus eval_file test_file "
    "train_file i",
    "stride": "overlap",
    "vocab-size": "vocab vocabulary vocabulary_size n_vocab merges size n_merges num_merges "
    "model_vocab_size",
    "special": "special_tokens special_token add_special_tokens allowed_special",
    "pattern": "regex split_pattern pat_str pre_tokenizer pretokenizer",
    "to": "format target_format export_format output_format outtype f",
    "dedup": "deduplicate dedupe deduplication",
    "shard-tokens": "shard_size tokens_per_shard",
    "skip-bad": "ignore_errors skip_errors skip_invalid",
    ("errors", "data.errors"): "on_error decode_errors encoding_errors",
}

# Names without an equivalent option: a sentence for the user. By command; "" for all commands.
_SENTENCES: dict[str, dict[str, str]] = {
    "train": {
        "text file files input data dataset dataset_name data_path data_dir train_data train_file "
        "corpus i input_file": "Give the text after the command: `lmsmith train book.txt`.",
        "resume resume_from_checkpoint continue restart "
        "resume_from": "`lmsmith resume RUN` continues a run.",
        "config config_file recipe "
        "c": "Give the recipe after the command: `lmsmith train recipe.toml`.",
        "flash flash_attention use_flash flash_attn "
        "sdpa": "Attention uses PyTorch's fused kernels automatically.",
        "shuffle": "Windows are reshuffled in each epoch; with --train.truncated_bptt the text is "
        "read in order.",
        "num_gpus gpus n_gpus nproc nproc_per_node world_size devices": (
            "For several GPUs, use `torchrun --nproc-per-node N -m lmsmith train ...`."
        ),
        "min_lr lr_min final_lr "
        "end_lr": "--schedule.final_fraction sets it, as a fraction of the peak learning rate.",
        "warmup_ratio warmup_fraction warmup_percent": "--schedule.warmup_steps sets the warm-up, "
        "in steps.",
        "gradient_accumulation gradient_accumulation_steps grad_accum accumulation "
        "accumulation_steps "
        "accumulate_grad_batches grad_accum_steps accum_steps": (
            "For gradient accumulation, --train.micro_batch_size sets the sequences per forward "
            "pass; --train.batch_size is the batch of a full step."
        ),
        "hours seconds time max_time time_limit "
        "duration": "--minutes limits how long the command may take.",
        "activation act activation_function hidden_act act_fn": (
            "--model.feed_forward sets the activation of a Transformer, --model.activation that of "
            "an Elman network."
        ),
        "name run_name": "--out RUN sets the run folder.",
        "source sources": "Give the text after the command: `lmsmith train book.txt`.",
        "prompt": "Training generates samples without a prompt; `lmsmith generate RUN TEXT` "
        "continues a prompt.",
    },
    "generate": {
        "prompt text input start p_text "
        "prompts": 'Give the prompt after the run: `lmsmith generate RUN "TEXT"`.',
        "file prompt_file": "Prompts from a file are read from standard input: `lmsmith generate "
        "RUN < FILE`.",
        "device gpu cuda cpu mps": "Generation runs on the CPU.",
    },
    "eval": {"device gpu cuda cpu mps": "Evaluation runs on the CPU."},
    "": {
        "model checkpoint ckpt model_path run run_dir "
        "path": "Give the run after the command, without an option.",
        "verbose v quiet q debug log_level": "There is no option for the amount of output.",
    },
}

# Verbs of other programs: a sentence for the user. Commands in backquotes can be typed as they are.
_VERBS = {
    "sample write complete completion infer inference predict run gen text prompt continue_text "
    "use": "`lmsmith generate RUN` continues a text.",
    "talk converse ask interactive repl": "`lmsmith chat RUN` talks to a tuned model.",
    "server api deploy host": (
        "`lmsmith serve RUN` starts a server with an OpenAI-compatible API and a page; `lmsmith "
        "export RUN --to hf --out DIR` writes the model for vLLM or transformers."
    ),
    "finetune fine_tune adapt sft lora fine_tuning finetuning": (
        "`lmsmith train TEXT --from RUN` fine-tunes a model on other text, and `lmsmith tune RUN "
        "CHATS` on conversations."
    ),
    "dpo ipo simpo kto orpo preference preferences rlhf": (
        "`lmsmith align RUN PAIRS` trains a tuned model on preferences, with --method dpo, ipo, "
        "simpo or kto."
    ),
    "grpo ppo reinforce reinforcement": (
        "`lmsmith rl RUN --task NAME` does reinforcement learning with rewards that a program "
        "computes."
    ),
    "evaluate score test validate validation val perplexity ppl measure": (
        "`lmsmith eval RUN` computes a model's loss, perplexity and bits per byte on a text."
    ),
    "tokenize tokenise encode": "`lmsmith tokenizer encode TOKENIZER TEXT` converts text to ids.",
    "detokenize detokenise decode": "`lmsmith tokenizer decode TOKENIZER ID...` converts ids to "
    "text.",
    "tokenizers tokeniser bpe "
    "train_tokenizer": "`lmsmith tokenizer train TEXT --vocab-size N --out DIR` learns a "
    "tokenizer.",
    "pretrain fit learn start create new init": "`lmsmith train TEXT` trains a model.",
    "continue restart go_on": "`lmsmith resume RUN` continues a run.",
    "convert save to_hf to_gguf gguf "
    "onnx": "`lmsmith export RUN --to hf --out DIR` writes a model for other programs.",
    "load from_hf pull": "`lmsmith import NAME` converts another program's model to a run.",
    "download fetch get": "`lmsmith data download NAME` downloads a corpus, `lmsmith import NAME` "
    "a model.",
    "prepare preprocess prep shard process dataset datasets": (
        "`lmsmith data prepare TEXT --out DIR` tokenizes text into shards."
    ),
    "list ls corpora": "`lmsmith data list` lists the available corpora.",
    "show info stats": "Use `lmsmith inspect RUN`, `lmsmith report RUN`, `lmsmith data inspect "
    "DIR` or `lmsmith tokenizer inspect TOKENIZER`.",
    "benchmark speed profile time": "`lmsmith bench train` measures the speed of a training step.",
    "plot plots graph curves dashboard": "`lmsmith report RUN` writes plots and tables.",
    "league leaderboard rank": "`lmsmith compare RUN... --text FILE` compares models on one text.",
    "help": "`lmsmith --help` lists the commands.",
    "version": "`lmsmith --version` prints the version.",
    "tutorial tour quickstart example": "`lmsmith demo` is a two-minute tour.",
    "check doctor selftest": "`lmsmith verify` checks this machine.",
}
_SECOND_WORDS = {
    "tokenizer": {
        "tokenize": "encode",
        "tokenise": "encode",
        "detokenize": "decode",
        "learn": "train",
        "fit": "train",
    },
    "data": {
        "fetch": "download",
        "get": "download",
        "tokenize": "prepare",
        "encode": "prepare",
        "show": "inspect",
    },
    "bench": {
        "model": "train",
        "training": "train",
        "tokenizers": "tokenizer",
        "encode": "tokenizer",
    },
}


def plain(name: str) -> str:
    """Normalizes the spelling of a name: `--N-Layers` -> `n_layers`."""
    return name.lstrip("-").lower().replace("-", "_")


def option(word: str, known: Iterable[str], verb: str = "") -> str:
    """Returns the real name for an unknown option or setting, or a sentence about it; "" if it is
    not in the tables.

    `known`: the real names, with or without leading dashes; the result is spelled as in `known`. A
    value may follow the name: "--model.positions rope".
    """
    names = {plain(name): name for name in known}
    whole = plain(word)
    last = whole.rpartition(".")[2]
    if last in _SAID.get(verb, {}):
        return _SAID[verb][last]
    same = [name for name in names if name.rpartition(".")[2] == last]
    if same:
        return names[min(same, key=lambda name: "." in name)]
    for synonym in (whole, last):
        for target in _TARGETS.get(synonym, ()):
            name, _, value = target.partition(" ")
            if plain(name) in names:
                return f"{names[plain(name)]} {value}".rstrip()
    return _SAID[""].get(last, "") if verb else ""


def verb(word: str, group: str = "") -> str:
    """Returns a sentence that names the command for an unknown one; "" if it is not in the tables.

    `group`: the first word of a two-word command.
    """
    if group:
        second = _SECOND_WORDS.get(group, {}).get(plain(word), "")
        return f"Use `lmsmith {group} {second}`." if second else ""
    return _MEANT.get(plain(word), "")


def _targets() -> dict[str, list[str]]:
    """Maps each synonym to its real names, in the order of `_OPTIONS`."""
    targets: dict[str, list[str]] = {}
    for real, synonyms in _OPTIONS.items():
        for synonym in synonyms.split():
            targets.setdefault(synonym, []).extend([real] if isinstance(real, str) else real)
    return targets


_TARGETS = _targets()
_SAID = {
    verb: {name: sentence for names, sentence in table.items() for name in names.split()}
    for verb, table in _SENTENCES.items()
}
_MEANT = {name: sentence for names, sentence in _VERBS.items() for name in names.split()}
