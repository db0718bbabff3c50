"""The LLM's tokenizer of a checkpoint, with everything set that the released code sets or leaves to old defaults."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from emma.checkpoints.importing.source import read_json
from emma.errors import EmmaError

_FILES = ("tokenizer.model", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(folder: Path, max_length: int | None = None) -> Any:
    """The tokenizer in `folder`: BOS in front, padded on the right by the unknown token, as LLaVA's.

    Old sentencepiece folders leave out what transformers 4 had defaults for: BOS is added, and `legacy` is true unless
    it says otherwise (it decides whether the text after a special token starts with a space).

    Args:
        max_length: the length that the model was trained with.

    Raises:
        EmmaError: there is no tokenizer, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise EmmaError(f"{folder} has no tokenizer (tokenizer.model or tokenizer.json); give one's folder as --llm")
    settings = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = read_json(folder, "tokenizer_config.json")
    is_llama = settings.get("tokenizer_class", "LlamaTokenizer").startswith("LlamaTokenizer")
    sentencepiece = is_llama and (folder / "tokenizer.model").is_file()
    if sentencepiece:
        defaults = {"add_bos_token": True, "add_eos_token": False, "legacy": True, "unk_token": "<unk>"}
        given = {key: value for key, value in settings.items() if value is not None}
        settings = {**settings, **defaults, **given, "tokenizer_class": "LlamaTokenizer"}
    settings["padding_side"] = "right"
    if max_length is not None:
        settings["model_max_length"] = max_length
    with tempfile.TemporaryDirectory() as copy:  # without config.json, whose model type transformers does not know
        for name in _FILES:
            # tokenizer.json beside tokenizer.model is a conversion of it, in which `legacy` is settled already
            if (folder / name).is_file() and not (sentencepiece and name == "tokenizer.json"):
                shutil.copy(folder / name, copy)
        (Path(copy) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(copy, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EmmaError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from error
    if set(tokenizer("a word", add_special_tokens=False).input_ids) <= {tokenizer.unk_token_id}:
        raise EmmaError(f"the tokenizer in {folder} knows no words: its file is damaged or empty; copy it again")
    if tokenizer.pad_token is None and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
