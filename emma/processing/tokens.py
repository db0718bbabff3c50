"""Segments to ids and labels, in one pass: nothing is tokenized twice, nothing is compared afterwards.

Between two images or special tokens the text is one chunk and is encoded by one call; the character offsets of each
token say whether any of its characters are supervised. Special tokens in the text itself are not looked for.
"""

from collections.abc import Iterator, Sequence

from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import Metaspace

from emma.errors import EmmaError
from emma.processing.template import Segment

IGNORE = -100
"""Label of a position that is not supervised."""
OVER_LENGTH = ("truncate", "drop", "error")


class OverLengthError(EmmaError):
    """A sample does not fit into `max_length` and may not (or cannot) be cut."""


class SegmentEncoder:
    """Encodes segments for one LLM tokenizer.

    Sentencepiece writes a dummy space before a text. LLaVA encodes what comes before and after an image separately, so
    the first chunk and each chunk after an image have one; the chunk after a special token has one only in tokenizers
    with `legacy: true`. Byte-level tokenizers know no such prefix.
    """

    def __init__(self, tokenizer, image_token_id: int, num_visual_tokens: int):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise EmmaError(
                f"{type(tokenizer).__name__} has no fast (tokenizers) backend, which emma needs for offsets"
            )
        self.image_ids = [image_token_id] * num_visual_tokens
        self.prefix_ids = _prefix_ids(tokenizer)
        # Own copies: `encode_special_tokens` is a switch on the object, and others use the tokenizer too.
        self._at_start = Tokenizer.from_str(backend.to_str())
        self._at_start.no_truncation()
        self._at_start.no_padding()
        self._after_special = self._at_start
        scheme = getattr(self._at_start.pre_tokenizer, "prepend_scheme", None)
        self._dummy_prefix = isinstance(self._at_start.pre_tokenizer, Metaspace) and scheme != "never"
        if self._dummy_prefix and scheme == "first":
            self._after_special = Tokenizer.from_str(self._at_start.to_str())
            metaspace = self._after_special.pre_tokenizer
            self._after_special.pre_tokenizer = Metaspace(metaspace.replacement, "never", metaspace.split)

    @property
    def prefix_at_start_only(self) -> bool:
        """Whether the tokenizer itself writes the dummy space only before a text, but not after a special token."""
        return self._after_special is not self._at_start

    def encode(self, segments: Sequence[Segment], bos: bool) -> tuple[list[int], list[int]]:
        """Ids and labels, equally long; each image is `num_visual_tokens` placeholder ids.

        Args:
            segments: what a template renders.
            bos: put the tokenizer's BOS in front, if it is one that adds a BOS.
        """
        ids = list(self.prefix_ids) if bos else []
        labels = [IGNORE] * len(ids)
        for part, flags in self._parts(segments):
            if isinstance(part, list):
                ids += part
                labels += part if flags[0] else [IGNORE] * len(part)
                continue
            ids += part.ids
            labels += [
                token if flags.find(1, start, max(end, start + 1)) >= 0 else IGNORE
                for token, (start, end) in zip(part.ids, part.offsets, strict=True)
            ]
        return ids, labels

    def length(self, segments: Sequence[Segment], bos: bool) -> int:
        """Number of ids that `encode` gives, at a third of its cost."""
        parts = (part for part, _ in self._parts(segments))
        return len(self.prefix_ids) * bos + sum(len(part) for part in parts)

    def _parts(self, segments: Sequence[Segment]) -> Iterator[tuple[list[int] | Encoding, bytearray]]:
        """Ids of an image or a special token with one flag, or the encoding of a chunk with one flag a character."""
        text, flags, after_special = "", bytearray(), False
        for segment in segments:
            if segment.kind == "text":
                text += segment.text
                flags += bytes([segment.supervised]) * len(segment.text)
                continue
            if text:
                yield self._encode_chunk(text, flags, after_special)
                text, flags = "", bytearray()
            after_special = segment.kind == "special"
            yield [self._special_id(segment.text)] if after_special else self.image_ids, bytearray([segment.supervised])
        if text:
            yield self._encode_chunk(text, flags, after_special)

    def _encode_chunk(self, text: str, flags: bytearray, after_special: bool) -> tuple[Encoding, bytearray]:
        backend = self._after_special if after_special else self._at_start
        if text[0] == " " and self._dummy_prefix and backend.pre_tokenizer.prepend_scheme != "never":
            # Metaspace takes a leading space for the dummy prefix; sentencepiece writes one all the same.
            text, flags = " " + text, flags[:1] + flags
        backend.encode_special_tokens = True  # not kept by pickling, so set it here
        return backend.encode(text, add_special_tokens=False), flags

    def _special_id(self, text: str) -> int:
        token = self._at_start.token_to_id(text)
        if token is None:
            raise EmmaError(f"the template writes {text!r}, which is no token of this tokenizer")
        return token


def overhang(ids: list[int], max_length: int, over_length: str, image_token_id: int, name: str) -> int:
    """How many ids are to be cut off the tail, 0 if none.

    Raises:
        EmmaError: `over_length` is none of `OVER_LENGTH`.
        OverLengthError: too long, and `over_length` is not `truncate`, or an image would be cut.
    """
    if over_length not in OVER_LENGTH:
        raise EmmaError(f"over_length: {over_length!r} is not one of {', '.join(OVER_LENGTH)}")
    if len(ids) <= max_length:
        return 0
    if over_length != "truncate":
        raise OverLengthError(f"{name} has {len(ids)} tokens, more than max_length {max_length}")
    if image_token_id in ids[max_length:]:
        raise OverLengthError(
            f"{name} has {len(ids)} tokens, and cutting at max_length {max_length} would cut an image away; "
            "raise max_length or set over_length: drop"
        )
    return len(ids) - max_length


def _prefix_ids(tokenizer) -> list[int]:
    """[BOS] if this tokenizer puts one before a text, else nothing."""
    ids = tokenizer("").input_ids
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
