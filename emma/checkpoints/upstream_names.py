"""Names of tensors in the layouts of others, and ours: released EMMA and LLaVA-1.5, and `llava-hf`. No torch.

The layout of the released code (EMMA is a fork of LLaVA) is the one in the middle: `llava-hf` names are translated
to it and from it. CLIP's tensors carry Hugging Face's names in all of them; what those are called here says
`emma.model.clip_files.huggingface_names`.
"""

import re

TOWER = "model.vision_tower."
"""Prefix of everything that belongs to the released EMMA's tower: CLIP copies and fusion."""
CLIP_COPIES = {"vision_model.": f"{TOWER}vision_tower.", "text_model.": f"{TOWER}text_encoder."}
"""Where a CLIP tensor of Hugging Face's name (by its first part) stands in the main weights: the prefix before it."""
PROJECTOR = "model.mm_projector."
RECORD = "emma_export"
"""Key of a config.json that this project exported, for what the layout itself cannot say, all optional:
`processor` (template, image_mode, instruction, eval_instruction, as in processor_config.json), and `vocab_size`
(rows of the embeddings before placeholder tokens were added, which an import takes away again)."""
ADAPTER_CONFIG = "llava_config"
"""Metadata of an exported adapter file: what LLaVA's config.json would say of it, JSON, with `RECORD`."""
CLIP_REST = "clip_projection.safetensors"
"""File that an export to `llava-hf` adds: what that layout leaves out of CLIP, so that an import gets all of it."""

# The fusion tensors: EMMA's instruction projection and visual alignment. Ours on the left, `vision_tower.bin` on the
# right (in its unprefixed form, which stage 1 and training without DeepSpeed write).
FUSION = {
    "instruction_projection.linear.weight": "text_projection.weight",
    "instruction_projection.linear.bias": "text_projection.bias",
    "alignment.weight": "image_text_infusion.weight",
    "alignment.bias": "image_text_infusion.bias",
    "alignment.learnable_tokens": "learnable_tokens",  # encoder_version v3 only
}

# llava-hf, as transformers saves it to this day, on the left; what its modules are called since 4.52 on the right.
_HF_FORMS = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.", "model.vision_tower."),
)
_HF_LINEAR = {"linear_1.": "0.", "linear_2.": "2."}


def to_llava(name: str, projector: str) -> str:
    """Our name of a tensor outside the towers, in the main weights of released EMMA and LLaVA-1.5.

    Args:
        projector: the configuration's kind; the released code's `linear` one has no number.
    """
    if name in FUSION:
        return TOWER + FUSION[name]
    if name.startswith("projector."):
        rest = name.removeprefix("projector.")
        return PROJECTOR + (rest.removeprefix("0.") if projector == "linear" else rest)
    if not name.startswith("llm."):
        raise ValueError(f"{name} has no counterpart in LLaVA's layout")
    return name.removeprefix("llm.")


def clip_to_llava(name: str) -> str:
    """Hugging Face's name of a CLIP tower's tensor (`vision_model.*`, `text_model.*`) in LLaVA's main weights."""
    return next(prefix + name for side, prefix in CLIP_COPIES.items() if name.startswith(side))


def clip_from_llava(name: str) -> str | None:
    """The way back from `clip_to_llava`; None if `name` is no CLIP tensor of LLaVA's main weights."""
    for side, prefix in CLIP_COPIES.items():
        if name.startswith(prefix + side):
            return name.removeprefix(prefix)
    return None


def hf_to_llava(name: str) -> str:
    """A `llava-hf` name, old or new, in LLaVA's layout; other names stay as they are."""
    for old, new in _HF_FORMS:
        if name.startswith(new):
            name = old + name.removeprefix(new)
    if name.startswith("language_model."):
        return name.removeprefix("language_model.")
    if name.startswith("multi_modal_projector."):
        number, rest = re.fullmatch(r"multi_modal_projector\.(linear_[12]\.|)(.*)", name).groups()  # type: ignore[union-attr]
        return PROJECTOR + _HF_LINEAR.get(number, "") + rest
    if name.startswith("vision_tower."):
        return clip_to_llava("vision_model." + name.removeprefix("vision_tower.").removeprefix("vision_model."))
    return name


def llava_to_hf(name: str) -> str:
    """A name of LLaVA's layout as `llava-hf` folders have it (the old form, which every transformers reads)."""
    if name.startswith(PROJECTOR):
        number = {ours: theirs for theirs, ours in _HF_LINEAR.items()}
        rest = name.removeprefix(PROJECTOR)
        return "multi_modal_projector." + number[rest[:2]] + rest[2:]
    if (clip := clip_from_llava(name)) is not None:
        return "vision_tower." + clip
    return "language_model." + name
