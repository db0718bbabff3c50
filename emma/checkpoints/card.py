"""The model card (README.md) of a saved folder, from what the model, the processor and the provenance say."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emma.checkpoints.adapter import Adapter
    from emma.model import EmmaForConditionalGeneration
    from emma.processing.processor import EmmaProcessor

_ALIGNMENTS = {
    "linear": "EMMA's linear visual alignment: every aligned visual token is a learned sum of all visual tokens and "
    "of all text tokens of the instruction",
    "cross_attention": "cross-attention from visual tokens to the text tokens of the instruction (EMMA's ablation)",
    "none": "none, as in LLaVA-1.5: the image is encoded without regard to the instruction",
}


def model_card(
    model: "EmmaForConditionalGeneration",
    processor: "EmmaProcessor",
    provenance: dict[str, Any],
    adapter: "Adapter | None" = None,
) -> str:
    """Markdown with Hugging Face's front matter; the licences are named as those of the parts."""
    config, towers = model.config, model.config.tower_config
    parameters = count_parameters(model)
    rows = {
        "visual alignment": _ALIGNMENTS[config.alignment],
        "CLIP towers, frozen": f"{towers.name or 'unnamed'}, image {towers.image_size}x{towers.image_size}, "
        f"{towers.num_visual_tokens} visual tokens, {parameters['towers']:,} parameters",
        "text tokens": "not used"
        if config.alignment == "none"
        else f"{config.text_layer} layer, {towers.context_length} positions",
        "adapter, float32": f"projector {config.projector}, {parameters['adapter']:,} parameters",
        "language model": f"{config.text_config.model_type}, {parameters['llm']:,} parameters",
        "image mode": processor.image_mode,
        "template": processor.template,
        "instruction rule, training": json.dumps(processor.instruction.to_dict()),
        "instruction rule, evaluation": json.dumps(processor.eval_instruction.to_dict()),
    }
    if adapter is not None:
        rows |= _adapter_rows(adapter, parameters["lora"])
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [emma, vision-language, multimodal]
---

# EMMA model

A vision-language model in the architecture of EMMA: image and instruction meet before the language model.

| | |
| --- | --- |
{table}

## Use

```python
import emma

model, processor = emma.load("path/to/this/folder")
prompt = processor.encode_prompt([{{"role": "user", "content": "What is this?"}}], images=[image])
batch = processor.pad([prompt], "left")
answer = model.generate(**batch, max_new_tokens=64)[0, batch["input_ids"].shape[1] :]
print(processor.decode(answer))
```

## Provenance

Also in `provenance.json`; the configuration of the run is in `train.yaml` where the model was trained by this project.

```json
{json.dumps(provenance, indent=1, ensure_ascii=False, default=str)}
```

## Licences and limits

The language model's and the CLIP towers' own licences apply to their weights, and the licences of the training data to
what was learned from them. The model can be wrong about what an image shows.
"""


def count_parameters(model: "EmmaForConditionalGeneration") -> dict[str, int]:
    """Parameters of `towers`, `adapter`, `llm` and `lora`; tied ones count once."""
    from emma.checkpoints.sharded import numel
    from emma.model import part_of

    counts = {"towers": 0, "adapter": 0, "llm": 0, "lora": 0}
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += numel(parameter)
    return counts


def _adapter_rows(adapter: "Adapter", parameters: int) -> dict[str, str]:
    lora = adapter.lora
    layers = ", ".join(lora["targets"]) if lora["targets"] else "all linear layers of the LLM's blocks"
    return {
        "LoRA, float32": f"rank {lora['rank']}, alpha {lora['alpha']}, dropout {lora['dropout']:g} on "
        f"{layers}, {parameters:,} parameters",
        "base, needed besides this folder": f"{adapter.base} (fingerprint {adapter.base_fingerprint})",
        "base quantised in training": adapter.quantization,
        "one folder of both": "`python -m emma.checkpoints merge THIS_FOLDER TARGET`",
    }
