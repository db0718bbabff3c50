"""Tiny towers, language model, tokenizer and processor that all tests share; made from scratch, nothing downloaded."""

import copy
import os
from pathlib import Path

# Tests of several ranks and a busy machine: one thread each is faster than many that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

ASSETS = Path(__file__).parent / "assets"


@pytest.fixture(scope="session")
def tiny_clip():
    """(ClipTowerConfig, weights): image 16, patch 8, so N = 4; widths 32 and 16; M = 77, CLIP's own vocabulary."""
    from open_clip.model import CLIP

    from emma.model import ClipTowerConfig

    config = ClipTowerConfig(
        embed_dim=16,
        quick_gelu=True,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        clip = CLIP(config.embed_dim, config.vision_cfg, config.text_cfg, quick_gelu=config.quick_gelu)
    return config, clip.state_dict()


@pytest.fixture(scope="session")
def _tiny_llm():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,  # wide enough that greedy answers differ from prompt to prompt
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return LlamaForCausalLM(config)


@pytest.fixture
def tiny_llm(_tiny_llm):
    """A fresh two-layer Llama of width 32 with the 640 ids of `tiny_tokenizer`."""
    return copy.deepcopy(_tiny_llm)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A sentencepiece BPE Llama tokenizer of 640 ids."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "parity" / "llm-base")


@pytest.fixture
def tiny_model(tiny_clip, _tiny_llm):
    """Factory `tiny_model(alignment="linear", **from_parts arguments)` of fresh models in training mode."""
    from emma.model import EmmaForConditionalGeneration

    def make(alignment="linear", llm=None, **parts):
        llm = llm if llm is not None else copy.deepcopy(_tiny_llm)
        return EmmaForConditionalGeneration.from_parts(llm, tiny_clip, alignment=alignment, **parts).train()

    return make


@pytest.fixture
def tiny_processor(tiny_tokenizer):
    """Factory `tiny_processor(model_config, **from_model_config arguments)`."""
    from emma.processing.processor import EmmaProcessor

    def make(config, **settings):
        return EmmaProcessor.from_model_config(config, copy.deepcopy(tiny_tokenizer), **settings)

    return make
