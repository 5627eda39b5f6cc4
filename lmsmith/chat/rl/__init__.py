"""Reinforcement learning from rewards that a function computes (`lmsmith rl`).

task.py       what a task is: prompts with their truth; names of tasks and rewards
tasks.py      built-in tasks: sums, stories, word problems;  rewards.py: built-in rewards
rollouts.py   prompts -> sampled answers with rewards, a function of (weights, seed, step)
policy.py     log-probabilities of the answers, under the distribution that was sampled from
grpo.py       advantages and losses: GRPO, Dr. GRPO, DAPO, REINFORCE
run.py        the run: `lmsmith rl`, its loss, its metrics
"""
