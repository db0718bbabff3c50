"""The self-contained model folder: what is in it, that it loads anywhere, and that damage is noticed."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model_basics import ROWS, batch

import emma
from emma.checkpoints import provenance
from emma.checkpoints.folder import load_folder, save_folder
from emma.checkpoints.seal import is_complete
from emma.errors import EmmaError


@pytest.fixture
def parts(tiny_model, tiny_processor):
    model = tiny_model().eval()
    return model, tiny_processor(model.config)


@pytest.fixture
def folder(parts, tmp_path):
    target = tmp_path / "llava? no: emma, with spaces"
    save_folder(target, *parts, {"stage": "finetune", "data": {"world": True}}, "seed: 1\n")
    return target


def test_the_folder_holds_everything(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "README.md", "chat_template.jinja", "complete.json", "config.json", "generation_config.json",
        "model.safetensors", "processor_config.json", "provenance.json", "tokenizer.json", "train.yaml",
    }  # fmt: skip
    assert is_complete(folder)
    assert (folder / "train.yaml").read_text() == "seed: 1\n"
    assert "temperature" not in (folder / "generation_config.json").read_text()
    assert "linear visual alignment" in (folder / "README.md").read_text()


def test_load_gives_the_same_model_and_processor(folder, parts):
    model, processor = emma.load(folder)
    assert not model.training
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        assert model.dtype == torch.float32
        inputs = batch(ROWS)
        assert torch.equal(model(**inputs).logits, parts[0](**inputs).logits)
    messages = [{"role": "user", "content": "What is this?"}]
    assert torch.equal(processor.encode_prompt(messages)["input_ids"], parts[1].encode_prompt(messages)["input_ids"])


def test_processor_and_model_fit_each_other(folder):
    from PIL import Image

    model, processor = emma.load(folder, device="cpu")
    chats = [
        ("What colour is it?", [Image.new("RGB", (30, 20), "red")]),
        ("Hello", []),
        ("Compare them", [Image.new("RGB", (9, 9)), Image.new("RGB", (20, 40), "blue")]),
    ]
    encoded = [processor.encode_prompt([{"role": "user", "content": text}], images) for text, images in chats]
    inputs = processor.pad(encoded, "left")
    answers = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert answers.shape == (3, inputs["input_ids"].shape[1] + 3)
    assert isinstance(processor.decode(answers[0]), str)


def test_auto_processor(folder):
    from transformers import AutoProcessor

    import emma.model

    assert isinstance(AutoProcessor.from_pretrained(folder), emma.EmmaProcessor)


def test_dtype(folder):
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = load_folder(folder, dtype=dtype, device="cpu")
        assert model.llm.dtype == torch.bfloat16
        assert model.alignment.weight.dtype == torch.float32
    with pytest.raises(EmmaError, match="dtype 'bf16' is not one of"):
        load_folder(folder, dtype="bf16")


def test_gathered_weights_are_saved_with_a_float32_adapter(parts, tmp_path):
    model, processor = parts
    gathered = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    save_folder(tmp_path, model, processor, {}, state_dict=gathered)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["alignment.weight"].dtype == torch.float32
    assert weights["llm.lm_head.weight"].dtype == torch.bfloat16
    assert not (tmp_path / "train.yaml").exists()


def test_sampling_settings_do_not_stop_the_save(parts, tmp_path):
    model, processor = parts
    model.generation_config.temperature = 0.9  # with do_sample off: transformers alone refuses to save this
    save_folder(tmp_path, model, processor, {})
    assert "temperature" not in (tmp_path / "generation_config.json").read_text()


def test_an_interrupted_save_is_not_a_model(folder, parts, monkeypatch):
    model, processor = parts

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(processor), "save_pretrained", full_disk)
    with pytest.raises(EmmaError, match=r"cannot save the model to .*No space left on device"):
        save_folder(folder, model, processor, {})
    with pytest.raises(EmmaError, match=r"not complete.*complete\.json is missing"):
        load_folder(folder)


def test_damage_is_noticed(folder):
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EmmaError, match=f"model.safetensors has {size - 100} bytes instead of {size}"):
        load_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EmmaError, match=r"tokenizer\.json is missing"):
        load_folder(folder)
    (folder / "complete.json").write_text("{")
    with pytest.raises(EmmaError, match=r"complete\.json is damaged"):
        load_folder(folder)


def test_files_that_do_not_parse_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(EmmaError, match=r"is damaged: .*header"):
        load_folder(folder)
    weights.write_bytes(whole)
    for name in ("processor_config.json", "config.json"):
        content = (folder / name).read_text()
        (folder / name).write_text("{")
        with pytest.raises(EmmaError, match=f"{name}.*(not a valid JSON|is damaged)"):
            load_folder(folder)
        (folder / name).write_text(content)
    load_folder(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(EmmaError, match=f"device '{device}'"):
        load_folder(folder, device=device)


def test_an_edited_card_is_fine(folder):
    (folder / "README.md").write_text("mine")
    load_folder(folder)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(EmmaError, match="does not exist"):
        load_folder(tmp_path / "nothing")
    with pytest.raises(EmmaError, match=r"has no config\.json"):
        load_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EmmaError, match="is a file"):
        load_folder(tmp_path / "file")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    with pytest.raises(EmmaError, match=r"type 'llava_llama', not 'emma'; import a released"):
        load_folder(tmp_path)


def test_provenance(folder, tmp_path):
    saved = provenance.read(folder)
    assert (saved["stage"], saved["data"]) == ("finetune", {"world": True})
    assert saved["versions"]["torch"] == provenance.collect()["versions"]["torch"]
    with pytest.raises(EmmaError, match=r"no provenance\.json"):
        provenance.read(tmp_path)


def test_weights_hash_depends_on_the_tensors_alone(folder, parts, tmp_path):
    whole = provenance.weights_hash(folder)
    parts[0].save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    assert provenance.weights_hash(tmp_path / "sharded") == whole
    weights = load_file(folder / "model.safetensors")
    weights["alignment.weight"][0, 0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert provenance.weights_hash(folder) != whole
    with pytest.raises(EmmaError, match="no \\*\\.safetensors"):
        provenance.weights_hash(tmp_path)


def test_importing_the_package_is_light():
    code = "import emma, emma.checkpoints.provenance, emma.checkpoints.seal, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = emma.nothing_here
    assert set(emma.__all__) <= set(dir(emma))
