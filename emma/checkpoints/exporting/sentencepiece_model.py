"""`tokenizer.model` and its settings, which transformers 4 needs, from a tokenizer that only holds `tokenizer.json`."""

import json
import re
from pathlib import Path
from typing import Any

from emma.errors import EmmaError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE_TYPE = 1, 2, 3, 6
_PROBES = (
    "Hello, world!", "  two  spaces  and a tail ", "What is 3.14 + 1,000?", "line\nline\n\n\tTab",
    "naïve café, 日本語 😀", "def f(x):\n    return x ** 2", "ASSISTANT: a-b_c/d", "aaaaaaaaaaaaaaaaaaaa",
)  # fmt: skip


def write_slow_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json` as transformers 4 reads them.

    Raises:
        EmmaError: no sentencepiece BPE as Llama's, or one that could not be rebuilt exactly.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    proto = sentencepiece_model(backend, tokenizer)
    _check(proto, tokenizer)
    (folder / "tokenizer.model").write_bytes(proto)
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    special["pad_token"] = special["pad_token"] or special["unk_token"]
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in backend["added_tokens"]}
    settings = special | {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "legacy": bool(tokenizer.legacy),
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    for name, values in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sentencepiece_model(backend: dict[str, Any], tokenizer: Any) -> bytes:
    """A serialised sentencepiece BPE model with the pieces and merges of a tokenizer.json.

    In sentencepiece, of two neighbours the pair is merged whose result has the best score. So the pieces' scores are
    given by the order in which merges first make them; pieces that no merge makes (characters) come after all others.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = backend["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback") or not hasattr(tokenizer, "legacy"):
        raise EmmaError(
            f"{type(tokenizer).__name__} ({model['type']}) is no sentencepiece tokenizer as Llama's, and the released "
            "code reads no other; --format llm and adapter remain"
        )
    order: dict[str, int] = {}
    for left, right in model["merges"]:
        order.setdefault(left + right, len(order))
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    if [model["vocab"][piece] for piece in pieces] != list(range(len(pieces))):
        raise EmmaError("the ids of the tokenizer's vocabulary have gaps: no sentencepiece model can be made of it")
    control = {token["content"] for token in backend["added_tokens"] if token["special"]}
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for number, piece in enumerate(pieces):
        kind = _UNKNOWN if piece == tokenizer.unk_token else _CONTROL if piece in control else _NORMAL
        kind = _BYTE_TYPE if _BYTE.fullmatch(piece) else kind
        score = -float(order.get(piece, len(order) + number)) if kind == _NORMAL else 0.0
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size, trainer.byte_fallback = len(pieces), True
    trainer.unk_id, trainer.pad_id = model["vocab"][tokenizer.unk_token], -1
    trainer.bos_id, trainer.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    trainer.unk_piece, trainer.bos_piece = tokenizer.unk_token, tokenizer.bos_token
    trainer.eos_piece = tokenizer.eos_token
    normalizer.name = "identity"
    normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = True, False
    return proto.SerializeToString()


def _check(proto: bytes, tokenizer: Any) -> None:
    """The rebuilt model must give the ids of the original on texts of many kinds, and read them back."""
    import sentencepiece

    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=proto)
    for text in _PROBES:
        # A leading space: sentencepiece writes its dummy space besides, the tokenizer takes the one for the other.
        expected = tokenizer(" " + text if text[0] == " " else text, add_special_tokens=False).input_ids
        if (found := rebuilt.encode(text)) != expected:
            raise EmmaError(
                f"tokenizer.model cannot be rebuilt from this tokenizer: {text!r} has ids {found[:8]} instead of "
                f"{expected[:8]}; --format llm and adapter remain"
            )
