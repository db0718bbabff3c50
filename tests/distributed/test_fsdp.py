"""FSDP2 on two gloo ranks, through the Trainer, against one process.

accelerate sets FSDP up for GPUs only; `ranks.fsdp_on_cpu` takes that one condition away, and the rest is what GPUs run.
NCCL, CUDA streams and offloading are what this does not show.
"""

import pytest
from rank_jobs import CONFIGS, torchrun
from test_equivalence import assert_same_run, settings
from train_runs import assert_same_model, part, weights

from emma.train import load_recipe, run

STAGES = ("pretrain", "finetune")


@pytest.fixture(scope="module")
def alone(assets, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    for stage in STAGES:
        run(load_recipe(assets / "recipe.yaml", settings(stage, output, output / "pretrain" / "model")), stage)
    return output


@pytest.fixture(scope="module")
def together(assets, alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    jobs = []

    def add(name, stage, *more, **how):
        overrides = [*settings(stage, folder / name, alone / "pretrain" / "model"), f"{stage}.micro_batch=2"]
        overrides += [f"{stage}.fsdp={CONFIGS.parent}/fsdp2.json", *more]
        recipe = str(assets / "recipe.yaml")
        jobs.append({"recipe": recipe, "stage": stage, "overrides": overrides, "fsdp": True, **how})

    for stage in STAGES:
        add("whole", stage, f"{stage}.gradient_checkpointing=true")
    add("broken", "finetune", "finetune.gradient_checkpointing=true", dies=4)  # goes on from checkpoint-0
    add("broken", "finetune", "finetune.gradient_checkpointing=true", dies=9)
    add("broken", "finetune", "finetune.gradient_checkpointing=true")
    add("bf16", "pretrain", "pretrain.precision=bf16")
    add("bf16", "finetune", "finetune.precision=bf16", f"finetune.init={folder}/bf16/pretrain/model")
    code, output, outcomes = torchrun(jobs, folder, ranks=2, seconds=280)
    assert code == 0, output[-4000:]
    assert not [rank["error"] for job in outcomes for rank in job if "error" in rank]
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_sharded_ranks_have_the_losses_and_the_model_of_one_process(alone, together, stage):
    assert_same_run(alone / stage, together / "whole" / stage)


def test_resumed_is_uninterrupted_bit_for_bit(together):
    assert_same_model(together / "broken" / "finetune" / "model", together / "whole" / "finetune" / "model")


def test_bfloat16_keeps_float32_masters_of_the_adapter(together):
    for stage in STAGES:
        stored = weights(together / "bf16" / stage / "model")
        assert {part(name): str(tensor.dtype) for name, tensor in stored.items()} == {
            "adapter": "torch.float32",
            "llm": "torch.bfloat16",
            "towers": "torch.bfloat16",
        }
        diagonal = stored["alignment.weight"].diagonal()
        assert not diagonal.equal(diagonal.bfloat16().float()), "digits that bfloat16 has not"
