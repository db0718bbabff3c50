"""The models that the runner can ask, one file a kind."""
