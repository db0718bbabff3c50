"""Runs with LoRA: what they train, save, resume, and the adapter folder and its merge."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import disturb
from test_model_basics import ROWS, batch
from train_runs import assert_same_model, log_lines, part, weights

import emma
from emma.checkpoints import provenance
from emma.checkpoints.__main__ import main as checkpoints
from emma.checkpoints.adapter import read_adapter
from emma.checkpoints.folder import save_folder
from emma.checkpoints.merge import merge_folder
from emma.checkpoints.seal import is_complete
from emma.errors import EmmaError
from emma.model import part_of
from emma.train import load_recipe, run

LORA = ("finetune.lora={rank: 4, alpha: 8, dropout: 0.1}", "finetune.adapter_learning_rate=1e-4")


def recipe_for(assets, output, pretrained, *overrides):
    settings = [f"output={output}", f"finetune.init={pretrained / 'model'}", *LORA, *overrides]
    return load_recipe(assets / "recipe.yaml", settings)


@pytest.fixture(scope="module")
def tuned(assets, finished, tmp_path_factory):
    """(recipe, base folder, finetune folder) of an uninterrupted LoRA run."""
    _, pretrained, _ = finished
    recipe = recipe_for(assets, tmp_path_factory.mktemp("lora"), pretrained)
    return recipe, pretrained / "model", run(recipe, "finetune").parent


def test_exactly_lora_and_adapter_are_trained_and_saved(tuned):
    _, base, folder = tuned
    stored = load_file(folder / "checkpoint-6" / "trainable.safetensors")
    assert {part_of(name) for name in stored} == {"adapter", "lora"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    finished = load_file(folder / "model" / "adapter.safetensors")
    assert finished.keys() == stored.keys()
    assert all(torch.equal(finished[name], stored[name]) for name in stored)
    before = weights(base)
    assert {name for name in before if part(name) == "adapter"} == {n for n in stored if part_of(n) == "adapter"}
    first = load_file(folder / "checkpoint-4" / "trainable.safetensors")
    assert not [name for name in stored if torch.equal(first[name], stored[name])], "all of them move"


def test_the_two_learning_rates(tuned):
    _, _, folder = tuned
    groups = torch.load(folder / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["initial_lr"] for group in groups} == {1e-3, 1e-4}
    names = list(load_file(folder / "checkpoint-4" / "trainable.safetensors"))
    sizes = {rate: sum(len(g["params"]) for g in groups if g["initial_lr"] == rate) for rate in (1e-3, 1e-4)}
    assert sizes[1e-4] == sum(part_of(name) == "adapter" for name in names)
    assert sizes[1e-3] == sum(part_of(name) == "lora" for name in names)
    assert log_lines(folder)[1]["learning_rate"] > 1e-4, "the log shows the rate of LoRA"


def test_resumed_equals_uninterrupted(tuned, assets, finished, tmp_path, monkeypatch):
    from emma.train.trainer import EmmaTrainer

    class Kill(BaseException):
        pass

    original = EmmaTrainer._maybe_log_save_evaluate

    def dying(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Kill
        return original(self, *args, **kwargs)

    _, _, folder = tuned
    recipe = recipe_for(assets, tmp_path, finished[1])
    with monkeypatch.context() as patch:
        patch.setattr(EmmaTrainer, "_maybe_log_save_evaluate", dying)
        with pytest.raises(Kill):
            run(recipe, "finetune")
    again = run(recipe, "finetune").parent
    assert_same_model(again / "model", folder / "model")
    assert [line["loss"] for line in log_lines(again)] == [line["loss"] for line in log_lines(folder)]


def test_finished_run_and_other_settings(tuned, assets, finished):
    recipe, _, folder = tuned
    assert run(recipe, "finetune") == folder / "model"
    other = recipe_for(assets, recipe.output, finished[1], "finetune.lora.rank=8")
    with pytest.raises(EmmaError, match=r"recipe\.finetune\.lora\.rank: 4 -> 8"):
        run(other, "finetune")


def test_bfloat16_freezes_the_llm_in_it_and_trains_in_float32(assets, finished, tmp_path, monkeypatch):
    import emma.train.session as session

    seen = {}
    original = session.load_for_stage

    def looking(*args, **settings):
        model = original(*args, **settings)
        seen.update({name: parameter.dtype for name, parameter in model.named_parameters()})
        return model

    monkeypatch.setattr(session, "load_for_stage", looking)
    recipe = recipe_for(assets, tmp_path, finished[1], "finetune.precision=bf16", "finetune.max_steps=2")
    folder = run(recipe, "finetune")
    dtypes = {kind: {dtype for name, dtype in seen.items() if part_of(name) == kind} for kind in map(part_of, seen)}
    assert dtypes["llm"] == dtypes["towers"] == {torch.bfloat16}
    assert dtypes["lora"] == dtypes["adapter"] == {torch.float32}
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_text_only_batches_with_gradient_checkpointing(assets, finished, tmp_path):
    texts = [r for r in json.loads((assets / "chats.json").read_text()) if "image" not in r]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    settings = (f"finetune.data[0].annotations={tmp_path}/texts.json", "finetune.warmup=0", "finetune.max_steps=2")
    lines = []
    for on in ("false", "true"):
        recipe = recipe_for(
            assets,
            tmp_path / on,
            finished[1],
            *settings,
            f"finetune.gradient_checkpointing={on}",
            "finetune.lora.dropout=0",
        )
        lines.append(log_lines(run(recipe, "finetune").parent))
    for plain, saving in zip(*lines, strict=True):
        assert saving["loss"] == pytest.approx(plain["loss"], rel=1e-6)
        assert saving["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)


# ------------------------------------------------------------------------------------------------- the adapter folder


def test_adapter_folder_round_trip(tuned, tmp_path):
    _, base, folder = tuned
    names = {path.name for path in (folder / "model").iterdir()}
    assert names >= {
        "README.md", "adapter.safetensors", "chat_template.jinja", "complete.json", "config.json",
        "generation_config.json", "lora.json", "processor_config.json", "provenance.json", "tokenizer.json",
        "train.yaml",
    }  # fmt: skip
    assert not [name for name in names if name.startswith("model")]
    assert is_complete(folder / "model")
    record = read_adapter(folder / "model")
    assert record.lora == {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": None}
    assert record.base == str(base)
    assert "rank 4, alpha 8, dropout 0.1 on all linear layers" in (folder / "model" / "README.md").read_text()

    inputs = batch(ROWS)
    model, processor = emma.load(folder / "model", device="cpu")
    assert not model.training
    assert processor.template == "vicuna_v1"
    copy = tmp_path / "saved again"
    record = record.of(copy, base, record.lora, "none")
    save_folder(copy, model, processor, {}, adapter=record)
    assert_same_model(copy, folder / "model")
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(emma.load(copy, device="cpu")[0](**inputs).logits, expected)
        assert not torch.equal(emma.load(base, device="cpu")[0](**inputs).logits, expected)
    with pytest.raises(EmmaError, match="saved with the record of its base, or merged first"):
        save_folder(tmp_path / "whole", model, processor, {})


def test_the_base_is_looked_for_and_checked(tuned, tmp_path):
    _, base, folder = tuned
    there = tmp_path / "there"
    shutil.copytree(base, there / "base")
    shutil.copytree(folder / "model", there / "adapter")
    record = read_adapter(there / "adapter")
    record.of(there / "adapter", there / "base", record.lora, "none").write(there / "adapter")
    expected = weights(there / "adapter")
    there.rename(tmp_path / "moved")  # base and adapter move together
    model, _ = emma.load(tmp_path / "moved" / "adapter", device="cpu")
    name = next(name for name in expected if part_of(name) == "lora")
    assert torch.equal(model.get_parameter(name).cpu(), expected[name])

    (tmp_path / "moved" / "base").rename(tmp_path / "gone")
    with pytest.raises(EmmaError, match=r"needs its base model, which is not at .*there/base nor at .*moved/base; put"):
        emma.load(tmp_path / "moved" / "adapter")
    shutil.copytree(tmp_path / "gone", tmp_path / "moved" / "base")
    facts = tmp_path / "moved" / "base" / "provenance.json"
    facts.write_text(facts.read_text() + " ")
    with pytest.raises(EmmaError, match=r"adapter of another base: .*moved/base has the fingerprint \w+, not \w+"):
        emma.load(tmp_path / "moved" / "adapter")
    (tmp_path / "moved" / "adapter" / "lora.json").write_text("{")
    with pytest.raises(EmmaError, match=r"lora\.json is damaged"):
        emma.load(tmp_path / "moved" / "adapter")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_every_tensor_must_fit(tuned, tmp_path, change):
    _, _, folder = tuned
    copy = tmp_path / "copy"
    shutil.copytree(folder / "model", copy)
    tensors = load_file(copy / "adapter.safetensors")
    first = sorted(name for name in tensors if part_of(name) == "lora")[0]
    tensor = tensors.pop(first)
    if change == "unknown":
        tensors |= {first: tensor, "llm.model.norm.weight": torch.ones(32)}
    if change == "shape":
        tensors[first] = tensor[:2].contiguous()
    save_file(tensors, copy / "adapter.safetensors")
    (copy / "complete.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(
        EmmaError, match=r"does not fit its base and lora\.json: .*1 (missing|unknown|of another shape)"
    ):
        emma.load(copy)


def test_answers_hash_depends_on_the_base(tuned, tmp_path):
    _, _, folder = tuned
    copy = tmp_path / "copy"
    shutil.copytree(folder / "model", copy)
    same = provenance.weights_hash(folder / "model")
    assert provenance.weights_hash(copy) == same
    record = json.loads((copy / "lora.json").read_text())
    (copy / "lora.json").write_text(json.dumps(record | {"base_fingerprint": "0" * 16}))
    assert provenance.weights_hash(copy) != same


def test_an_adapter_is_no_start_for_a_stage(tuned, assets, tmp_path):
    _, _, folder = tuned
    recipe = load_recipe(
        assets / "recipe.yaml", [f"output={tmp_path}", f"finetune.init={folder / 'model'}", "finetune.max_steps=1"]
    )
    with pytest.raises(EmmaError, match=r"a LoRA adapter: merge it into its base first \(python -m emma\.checkpoints"):
        run(recipe, "finetune")


# -------------------------------------------------------------------------------------------------------------- merge


def test_merge_writes_one_self_contained_model(tuned, tmp_path, capsys):
    _, base, folder = tuned
    target = tmp_path / "merged"
    with pytest.raises(SystemExit) as ended:
        checkpoints(["merge", str(folder / "model"), str(target)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(target)
    assert is_complete(target)
    assert weights(target).keys() == weights(base).keys()
    inputs = batch(ROWS)
    adapter, _ = emma.load(folder / "model", device="cpu")
    merged, processor = emma.load(target, device="cpu")
    assert processor.template == "vicuna_v1"
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, adapter(**inputs).logits, atol=1e-5, rtol=0)
    facts = provenance.read(target)
    assert facts["parent"] == str(folder / "model")
    assert facts["merged"]["base"] == str(base)
    assert (facts["stage"], facts["steps"]) == ("finetune", 6)
    assert (target / "train.yaml").read_text() == (folder / "model" / "train.yaml").read_text()
    with pytest.raises(EmmaError, match=r"merged exists already; move it away"):
        merge_folder(folder / "model", target)
    with pytest.raises(EmmaError, match=r"is no adapter folder \(it has no lora\.json\)"):
        merge_folder(base, tmp_path / "other")
    with pytest.raises(EmmaError, match=r"is no adapter folder"):
        merge_folder(tmp_path / "nothing", tmp_path / "other")


def test_merged_keeps_the_dtype_of_the_base(tuned, tiny_processor, tmp_path):
    _, base, _ = tuned
    model, processor = emma.load(base, dtype="bfloat16", device="cpu")
    save_folder(tmp_path / "base", model, processor, {})
    from emma.checkpoints.adapter import Adapter
    from emma.model.lora import inject

    lora = {"rank": 2, "alpha": 2, "dropout": 0.0, "targets": ["q_proj"]}
    inject(model, **lora)
    disturb(model)
    record = Adapter.of(tmp_path / "adapter", tmp_path / "base", lora, "none")
    save_folder(tmp_path / "adapter", model, processor, {}, adapter=record)
    for dtype, expected in ((None, torch.bfloat16), ("float32", torch.float32)):
        merged = weights(merge_folder(tmp_path / "adapter", tmp_path / f"merged {dtype}", dtype))
        assert {t.dtype for name, t in merged.items() if part(name) != "adapter"} == {expected}
        assert {t.dtype for name, t in merged.items() if part(name) == "adapter"} == {torch.float32}
