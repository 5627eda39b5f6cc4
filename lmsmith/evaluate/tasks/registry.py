"""Tasks by name. Extensions add theirs with `lmsmith.extend.register_task`."""

from lmsmith.config.registry import Registry
from lmsmith.evaluate.tasks.task import Task

_HERE = "lmsmith.evaluate.tasks"

TASKS: Registry[Task] = Registry(
    "task",
    "lmsmith.tasks",
    {
        "hellaswag": f"{_HERE}.hellaswag:HELLASWAG",
        "arc_easy": f"{_HERE}.arc:ARC_EASY",
        "arc_challenge": f"{_HERE}.arc:ARC_CHALLENGE",
        "piqa": f"{_HERE}.piqa:PIQA",
        "winogrande": f"{_HERE}.winogrande:WINOGRANDE",
        "lambada": f"{_HERE}.lambada:LAMBADA",
        "mmlu": f"{_HERE}.mmlu:MMLU",
        "gsm8k": f"{_HERE}.gsm8k:GSM8K",
        "gsm8k_chat": f"{_HERE}.chats:GSM8K_CHAT",
        "core": f"{_HERE}.core:CORE",
        "story_character": f"{_HERE}.stories:CHARACTER",
        "story_object": f"{_HERE}.stories:OBJECT",
        "story_questions": f"{_HERE}.chats:STORY_QUESTIONS",
        "little_stories": f"{_HERE}.chats:LITTLE_STORIES",
        "arithmetic": f"{_HERE}.chats:ARITHMETIC",
    },
)
