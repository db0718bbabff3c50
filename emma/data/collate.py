"""From encoded samples to the batch that the trainer hands to the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emma.data.packing import Packing, pack_batch
from emma.errors import EmmaError

if TYPE_CHECKING:
    from emma.processing.processor import EmmaProcessor


class Collator:
    """Pads encoded samples on the right, or packs them, and keeps their names and counts beside the tensors.

    Returns `{"model": {input_ids int64[B,L], attention_mask int64[B,L], labels int64[B,L], pixel_values float[I,3,H,W],
    instruction_ids int64[I,M]}, "ids": [str], "supervised": int, "samples": int, "truncated": int, "instruction_cut":
    int, "images": int, "tokens": int, "squared_tokens": int}`. The last three (the latter two the sums of the samples'
    lengths and of their squares), from which FLOPs follow, leave out padding and masked repeats. Packed batches have
    `position_ids` in place of `attention_mask`, batches from a feature cache `vision_features` float[I,N,Dv] in place
    of `pixel_values`. A sample that could not be read arrives as its `EmmaError`; the batch is then `{"error":
    EmmaError}`, because an exception in a worker process would come out wrapped in a foreign traceback.

    Args:
        packing: None pads.
    """

    def __init__(self, processor: "EmmaProcessor", packing: Packing | None = None):
        self.processor, self.packing = processor, packing

    def __call__(self, items: Sequence[dict | EmmaError]) -> dict[str, Any]:
        errors = [item for item in items if isinstance(item, EmmaError)]
        if errors:
            return {"error": errors[0]}
        samples = [item for item in items if not isinstance(item, EmmaError)]
        real = [item for item in samples if not item["masked"]]
        lengths = [len(item["input_ids"]) for item in real]
        visual = "vision_features" if samples and "vision_features" in samples[0] else "pixel_values"
        if self.packing is None:
            model = dict(self.processor.pad(samples, side="right"))
        else:
            model = dict(pack_batch(samples, self.processor.pad_id, self.packing))
        return {
            "model": model,
            "ids": [item["id"] for item in samples],
            # Label 0 of a row is never predicted: position t is judged on the logits of t-1.
            "supervised": int((model["labels"][:, 1:] != -100).sum()),
            "samples": len(real),
            "truncated": sum(item["truncated"] > 0 for item in samples),
            "instruction_cut": sum(item["instruction_cut"] > 0 for item in samples),
            "images": sum(len(item[visual]) for item in real),
            "tokens": sum(lengths),
            "squared_tokens": sum(length**2 for length in lengths),
        }
