"""From a base model to one that you can talk to.

conversations.py  files -> checked conversations
templates.py      conversations -> ids, by a chat template
masks.py          which ids are learned
rl/               reinforcement learning
"""
