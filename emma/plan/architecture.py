"""The `EmmaConfig` of a recipe whose weights need not be here: from folders, open_clip's list, or known shapes."""

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from emma.errors import EmmaError
from emma.model import EmmaConfig
from emma.model.clip_files import read_clip_config
from emma.paths import resolve
from emma.train.assets import find_asset, local_folder
from emma.train.recipe import ModelRecipe, Recipe

_LLAMA2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_LLAMA2_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
# Touvron et al. 2023, Llama 2, and what was tuned from it; vocabulary 32,000.
KNOWN_LLMS = {
    "lmsys/vicuna-7b-v1.5": _LLAMA2_7B,
    "lmsys/vicuna-13b-v1.5": _LLAMA2_13B,
    "meta-llama/Llama-2-7b-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA2_13B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-13b-chat-hf": _LLAMA2_13B,
}


def find_architecture(recipe: Recipe) -> EmmaConfig:
    """The configuration of the recipe's model.

    Raises:
        EmmaError: an LLM or CLIP that is neither here nor known by name; says what to put where.
    """
    model = recipe.model
    return EmmaConfig(
        tower_config=read_clip_config(local_folder(recipe, "clip") or model.clip),
        text_config=_llm_config(recipe),
        alignment=model.alignment,
        text_layer=model.text_layer,
        projector=model.projector,
    )


def with_alignment(config: EmmaConfig, alignment: str) -> EmmaConfig:
    """The same model with another alignment."""
    return EmmaConfig(
        tower_config=config.tower_config,
        text_config=config.text_config,
        alignment=alignment,
        text_layer=config.text_layer,
        projector=config.projector,
    )


def _llm_config(recipe: Recipe) -> PreTrainedConfig:
    model: ModelRecipe = recipe.model
    try:
        folder = find_asset(recipe, "llm")
    except EmmaError:
        if model.llm in KNOWN_LLMS:
            return LlamaConfig(vocab_size=32000, **KNOWN_LLMS[model.llm])
        place = resolve(model.assets) / model.llm.rsplit("/", 1)[-1]
        raise EmmaError(
            f"model.llm: the shape of {model.llm} is not known here; put its config.json (no weights) into {place}, or "
            f"name one of {', '.join(KNOWN_LLMS)}"
        ) from None
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise EmmaError(f"model.llm: {folder} has no readable config.json: {' '.join(str(error).split())}") from None
