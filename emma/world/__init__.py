"""The embedded default: a small generated visual world with its towers, language model, data and evaluation sets."""
