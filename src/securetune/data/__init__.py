"""Data: prompts for probing and evaluation, conversations for training. Import from the submodules."""
