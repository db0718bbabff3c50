"""LoRA on two ranks, with DDP, ZeRO-2 and ZeRO-3, against the run of one process: losses, resumption, folder, merge."""

import pytest
import torch
from rank_jobs import torchrun, write_deepspeed_files
from train_runs import log_lines, weights

import emma
from emma.checkpoints.merge import merge_folder
from emma.model import part_of
from emma.train import load_recipe, run

SETTINGS = [
    # Without dropout, which draws by rank.
    "finetune.lora={rank: 4, alpha: 8, dropout: 0}",
    "finetune.adapter_learning_rate=1e-4",
    "finetune.max_steps=8",
    "finetune.batch_size=8",
    "finetune.save_every=4",
    "finetune.log_every=1",
]
MODES = {
    "ddp": [],
    "zero2": ["finetune.deepspeed={folder}/zero2.json"],
    "zero3": ["finetune.deepspeed={folder}/zero3.json"],
    "zero3-checkpointing": ["finetune.deepspeed={folder}/zero3.json", "finetune.gradient_checkpointing=true"],
}
QUANTIZED = {"int8-ddp": MODES["ddp"], "int8-zero2": MODES["zero2"]}


@pytest.fixture(scope="module")
def alone(assets, tmp_path_factory):
    """Fine-tuning with LoRA in one process, after one step of pretraining."""
    output = tmp_path_factory.mktemp("alone")
    recipe = load_recipe(assets / "recipe.yaml", [f"output={output}", "pretrain.max_steps=1", *SETTINGS])
    run(recipe, "pretrain")
    return run(recipe, "finetune").parents[1]


@pytest.fixture(scope="module")
def together(assets, alone, tmp_path_factory):
    """The same on two ranks with every engine, and once more from the checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("together")
    write_deepspeed_files(folder)
    jobs = []
    for mode, overrides in (MODES | QUANTIZED).items():
        for name in (mode, f"{mode}-resumed") if mode in MODES else (mode,):
            settings = [f"output={folder / name}", f"finetune.init={alone}/pretrain/model", *SETTINGS]
            settings += ["finetune.micro_batch=2", *(text.format(folder=folder) for text in overrides)]
            if mode in QUANTIZED:
                settings.append("finetune.quantization=int8")
            resume = "auto" if name == mode else str(folder / mode / "finetune" / "checkpoint-4")
            recipe = str(assets / "recipe.yaml")
            jobs.append({"recipe": recipe, "stage": "finetune", "overrides": settings, "resume": resume})
    code, output, _ = torchrun(jobs, folder, ranks=2, seconds=280)
    assert code == 0, output[-4000:]
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_losses_and_the_adapter_of_one_process(alone, together, mode):
    reference, ours = alone / "finetune", together / mode / "finetune"
    for one, other in zip(log_lines(reference), log_lines(ours), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4), one["step"]
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3), one["step"]
    expected, found = weights(reference / "model"), weights(ours / "model")
    assert expected.keys() == found.keys()
    assert {part_of(name) for name in found} == {"adapter", "lora"}
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert max(float((expected[name] - found[name]).abs().max()) for name in expected) < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_resumed_is_uninterrupted_bit_for_bit(together, mode):
    whole, resumed = together / mode / "finetune", together / f"{mode}-resumed" / "finetune"
    assert [line["loss"] for line in log_lines(resumed)] == [line["loss"] for line in log_lines(whole)][4:]
    expected, found = weights(whole / "model"), weights(resumed / "model")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_quantised_base_under_zero_2_equals_ddp(together):
    one, other = (together / mode / "finetune" for mode in QUANTIZED)
    losses = [[line["loss"] for line in log_lines(folder)] for folder in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx([line["loss"] for line in log_lines(together / "ddp" / "finetune")], rel=1e-5)
    expected, found = weights(one / "model"), weights(other / "model")
    assert max(float((expected[name] - found[name]).abs().max()) for name in expected) < 1e-3


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_one_process_loads_and_merges_what_ranks_saved(together, mode, tmp_path):
    folder = together / mode / "finetune" / "model"
    ids = {"input_ids": torch.arange(3, 40)[None]}
    with torch.no_grad():
        expected = emma.load(folder, device="cpu")[0](**ids).logits
        merged, _ = emma.load(merge_folder(folder, tmp_path / "merged"), device="cpu")
        torch.testing.assert_close(merged(**ids).logits, expected, atol=1e-5, rtol=0)
