"""Our tasks' items as tasks of lm-evaluation-harness."""

import json
from pathlib import Path
from typing import Any

YAML = """
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}"
doc_to_target: {target}
"""
CHOICE = "doc_to_choice: endings\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
WORD = "target_delimiter: ''\nmetric_list: [{metric: acc}, {metric: perplexity}]\n"


def write_tasks(results: Any, folder: Path) -> None:
    """Writes local_TASK for each result of `lmsmith.evaluate`: a .yaml and a .jsonl file."""
    for result in results:
        rows = [
            {
                "context": one.item.contexts[0],
                "endings": [ending.removeprefix(" ") for ending in one.item.endings],
                "gold": one.item.gold,
                "word": one.item.endings[0],
            }
            for one in result.items
        ]
        path = folder / f"{result.task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = result.task == "lambada"
        kind = "loglikelihood" if words else "multiple_choice"
        target = '"{{word}}"' if words else "gold"
        text = YAML.format(name=result.task, path=path, kind=kind, target=target)
        (folder / f"{result.task}.yaml").write_text(text + (WORD if words else CHOICE))
