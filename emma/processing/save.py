"""Saves a tokenizer so that it loads with the same ids."""

import json
from pathlib import Path


def save_tokenizer(tokenizer, folder: str | Path) -> None:
    """Write the tokenizer's files into a folder."""
    tokenizer.save_pretrained(folder)
    keep_legacy(tokenizer, folder)


def keep_legacy(tokenizer, folder: str | Path) -> None:
    """Put `legacy` into a saved `tokenizer_config.json`: LlamaTokenizer forgets it, and has other ids after `</s>`."""
    if hasattr(tokenizer, "legacy"):
        file = Path(folder) / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) | {"legacy": tokenizer.legacy}
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
