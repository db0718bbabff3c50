"""From an annotation or a chat to tensors: one truth for training, evaluation, chat and serving."""
