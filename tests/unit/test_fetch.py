"""Fetching of base weights: what is asked of the hub, checksums, and clear errors. No network is used."""

from pathlib import Path

import pytest

from emma.checkpoints import fetch as module
from emma.errors import EmmaError

CONFIG = Path(__file__).parents[2] / "configs" / "emma-7b.yaml"


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: writes one file a repository and records the calls."""
    import huggingface_hub

    calls = []

    def download(repository, local_dir, allow_patterns):
        calls.append(repository)
        Path(local_dir).mkdir(parents=True)
        (Path(local_dir) / "weights.safetensors").write_text(repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the test script sets it
    return calls


def test_fetches_once_into_the_folders_that_training_looks_for(hub, tmp_path):
    folders = module.fetch(CONFIG, tmp_path)
    assert [folder.name for folder in folders] == ["vicuna-7b-v1.5", "ViT-L-14-336-quickgelu-openai"]
    assert hub == ["lmsys/vicuna-7b-v1.5", "timm/vit_large_patch14_clip_336.openai"]
    assert module.fetch(CONFIG, tmp_path) == folders
    assert len(hub) == 2, "the second call finds everything"


def test_damaged_file_is_named(hub, tmp_path):
    folder = module.fetch(CONFIG, tmp_path)[0]
    (folder / "weights.safetensors").write_text("cut")
    with pytest.raises(EmmaError, match=r"weights.safetensors differ\(s\) from SHA256SUMS"):
        module.fetch(CONFIG, tmp_path)


def test_offline_says_so(monkeypatch, hub, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EmmaError, match="HF_HUB_OFFLINE is set"):
        module.fetch(CONFIG, tmp_path)
    assert not hub
