"""Benchmark tasks: items from files, prompts, log-likelihoods, accuracies with standard errors.

    task.py         what a task is: `Item`, and the three kinds of tasks
    registry.py     tasks by name
    files.py        finds a task's files and reads their rows
    run.py          runs tasks on a model; `TaskResult`
    encode.py       context and ending as ids
    likelihoods.py  log-likelihoods of endings; endings of one context share its computation

Every other file is one task family. Prompts are those of EleutherAI's lm-evaluation-harness, so
accuracies can be compared with published ones.
"""
