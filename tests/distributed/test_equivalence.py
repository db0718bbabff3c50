"""Runs of several ranks against the run of one process: same samples, same losses, same model, whatever the engine.

Tolerances: float32, and only the order of sums differs between numbers of ranks. Losses agree to 1e-5 of their size,
the weights after 20 steps of AdamW at 1e-3 to 1e-5 (measured: 1.2e-7).
"""

import shutil
from pathlib import Path

import pytest
import torch
from rank_jobs import torchrun, write_deepspeed_files
from ranks import interleaved
from train_runs import assert_same_model, log_lines, part, weights

from emma.train import load_recipe, run

STAGES = ("pretrain", "finetune")
STEPS = 20
MODES = {
    "ddp": [],
    "zero2": ["{stage}.deepspeed={folder}/zero2.json"],
    "zero3": ["{stage}.deepspeed={folder}/zero3.json", "{stage}.gradient_checkpointing=true"],
    "zero3-packed-cached": [
        "{stage}.deepspeed={folder}/zero3.json",
        "{stage}.packing=true",
        "{stage}.text_cache=true",
        "{stage}.feature_cache={folder}/features",
    ],
}
ENGINES = ("ddp", "zero2", "zero3")


class Jobs:
    """Collects runs for one torchrun; each has a name, which is its output folder's."""

    def __init__(self, assets: Path, folder: Path, pretrained: Path):
        self.assets, self.folder, self.pretrained = assets, folder, pretrained
        self.jobs: list[dict] = []
        self.names: list[str] = []
        write_deepspeed_files(folder)

    def add(self, name: str, stage: str, mode: str, *more: str, output: str | None = None, **how) -> None:
        overrides = [*settings(stage, self.folder / (output or name), self.pretrained), f"{stage}.micro_batch=2"]
        overrides += [text.format(stage=stage, folder=self.folder) for text in MODES[mode]]
        recipe = str(self.assets / "recipe.yaml")
        self.jobs.append({"recipe": recipe, "stage": stage, "overrides": [*overrides, *more], **how})
        self.names.append(f"{name} {stage}")

    def launch(self, ranks: int, seconds: int) -> tuple[int, str, list[list[dict]]]:
        return torchrun(self.jobs, self.folder, ranks, seconds)

    def run(self, ranks: int, seconds: int = 280) -> dict[str, list[dict]]:
        """Outcomes by name and rank. The time limit is what says that no rank waits for ever."""
        code, output, outcomes = self.launch(ranks, seconds)
        assert code == 0, output[-20_000:]
        return dict(zip(self.names, outcomes, strict=True))


def settings(stage: str, output: Path, pretrained: Path | None = None) -> list[str]:
    """8 samples a step: 10 with an image and 5 without make batches of both kinds, and masked repeats."""
    values = {"max_steps": STEPS, "batch_size": 8, "log_every": 1, "save_every": 5}
    start = [f"finetune.init={pretrained}"] if pretrained else []
    return [f"output={output}", *(f"{stage}.{key}={value}" for key, value in values.items()), *start]


@pytest.fixture(scope="module")
def alone(assets, tmp_path_factory):
    """Both stages in one process."""
    output = tmp_path_factory.mktemp("alone")
    for stage in STAGES:
        run(load_recipe(assets / "recipe.yaml", settings(stage, output, output / "pretrain" / "model")), stage)
    with interleaved():
        start = output / "pretrain" / "model"
        run(load_recipe(assets / "recipe.yaml", settings("finetune", output / "interleaved", start)), "finetune")
    return output


@pytest.fixture(scope="module")
def together(assets, alone, tmp_path_factory):
    """All runs on two ranks; (folder, outcomes)."""
    folder = tmp_path_factory.mktemp("two ranks")
    killed = Jobs(assets, folder, alone / "pretrain" / "model")
    killed.add("zero3-killed", "finetune", "zero3", killed=[9, 1])
    assert killed.launch(ranks=2, seconds=100)[0] != 0

    jobs = Jobs(assets, folder, alone / "pretrain" / "model")
    jobs.add("zero3-killed", "finetune", "zero3")
    for mode in MODES:
        for stage in STAGES:
            jobs.add(mode, stage, mode)
    for mode in ENGINES:
        jobs.add(f"{mode}-broken", "finetune", mode, dies=9)
        jobs.add(f"{mode}-broken-again", "finetune", mode, output=f"{mode}-broken")
    # What one process saved, two go on with; what was partitioned among four is refused.
    moved = folder / "one-to-two" / "finetune"
    shutil.copytree(alone / "finetune", moved)
    shutil.rmtree(moved / "model")
    shutil.rmtree(moved / "checkpoint-20")
    jobs.add("one-to-two", "finetune", "ddp")
    jobs.add("one-to-zero2", "finetune", "zero2", output="one-to-two", resume=str(alone / "finetune" / "checkpoint-15"))
    for mode in ("ddp", "zero3"):
        jobs.add(f"{mode}-interleaved", "finetune", mode, interleaved=True)
    jobs.add("full", "finetune", "zero2", disk_full=10)
    jobs.add("full-again", "finetune", "zero2", output="full")
    jobs.add("diverged", "finetune", "zero2", "finetune.learning_rate=1e30")
    for mode in ("zero2", "zero3"):
        jobs.add(f"{mode}-bf16", "pretrain", mode, "pretrain.precision=bf16")
        start = f"finetune.init={folder}/{mode}-bf16/pretrain/model"
        jobs.add(f"{mode}-bf16", "finetune", mode, "finetune.precision=bf16", "finetune.learning_rate=1e-6", start)
    return folder, jobs.run(ranks=2)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_losses_and_the_model_of_one_process(alone, together, mode, stage):
    assert_same_run(alone / stage, together[0] / mode / stage)


def assert_same_run(reference: Path, ours: Path):
    for one, other in zip(log_lines(reference), log_lines(ours), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5), one["step"]
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4), one["step"]
        assert other["supervised_tokens"] == one["supervised_tokens"]
    expected, found = weights(reference / "model"), weights(ours / "model")
    assert expected.keys() == found.keys()
    assert max(float((expected[name] - found[name]).abs().max()) for name in expected) < 1e-5


@pytest.mark.parametrize("mode", ENGINES)
def test_resumed_is_uninterrupted_bit_for_bit(together, mode):
    folder, outcomes = together
    assert not any("error" in rank for rank in outcomes[f"{mode}-broken-again finetune"])
    assert_same_model(folder / f"{mode}-broken" / "finetune" / "model", folder / mode / "finetune" / "model")
    for ours, theirs in zip(
        log_lines(folder / f"{mode}-broken" / "finetune"), log_lines(folder / mode / "finetune"), strict=True
    ):
        assert (ours["step"], ours["loss"]) == (theirs["step"], theirs["loss"])


def test_whole_copies_go_on_with_another_number_of_ranks(alone, together):
    assert_same_run(alone / "finetune", together[0] / "one-to-two" / "finetune")


def test_another_engine_is_refused_with_a_sentence(together):
    for rank in together[1]["one-to-zero2 finetune"]:
        assert "saved by plain data parallelism on 1 process(es), and this run is ZeRO-2 on 2" in rank["error"]


@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_ranks_with_and_without_images_in_one_step_do_not_wait_for_each_other(alone, together, mode):
    assert_same_run(alone / "interleaved" / "finetune", together[0] / f"{mode}-interleaved" / "finetune")


def test_killed_rank_ends_the_run_and_the_next_start_gives_the_uninterrupted_result(together):
    folder, _ = together
    assert_same_model(folder / "zero3-killed" / "finetune" / "model", folder / "zero3" / "finetune" / "model")


def test_full_disk_ends_all_ranks_and_the_previous_checkpoint_loads(together):
    folder, outcomes = together
    for number, rank in enumerate(outcomes["full finetune"]):
        reason = "No space left on device" if number == 0 else "another rank failed"
        assert reason in rank["error"]
        assert "Last complete checkpoint" in rank["error"]
        assert "checkpoint-5;" in rank["error"]
    assert_same_model(folder / "full" / "finetune" / "model", folder / "zero2" / "finetune" / "model")


def test_diverged_run_stops_on_all_ranks_and_saves_nothing(together):
    folder, outcomes = together
    for rank in outcomes["diverged finetune"]:
        assert "the gradient norm is" in rank["error"] or "the loss is" in rank["error"]
    assert [path.name for path in (folder / "diverged" / "finetune").glob("checkpoint-*")] == ["checkpoint-0"]


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_saved_model_is_one_folder_that_one_process_loads(together, mode):
    import emma

    model, _ = emma.load(together[0] / mode / "finetune" / "model", device="cpu")
    assert all(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_float32_masters_survive_bfloat16_in_both_stages(together, mode):
    folder, _ = together
    before = weights(folder / f"{mode}-bf16" / "pretrain" / "model")
    after = weights(folder / f"{mode}-bf16" / "finetune" / "model")
    for stored in (before, after):
        assert {part(name): str(tensor.dtype) for name, tensor in stored.items()} == {
            "adapter": "torch.float32",
            "llm": "torch.bfloat16",
            "towers": "torch.bfloat16",
        }
    diagonal = before["alignment.weight"].diagonal()
    assert not torch.equal(diagonal, diagonal.bfloat16().float()), "digits that bfloat16 has not"
    assert torch.allclose(after["alignment.weight"].diagonal(), diagonal, atol=5e-5, rtol=0)


@pytest.mark.slow
def test_four_ranks(assets, alone, together, tmp_path):
    jobs = Jobs(assets, tmp_path, alone / "pretrain" / "model")
    for mode in ENGINES:
        for stage in STAGES:
            jobs.add(mode, stage, mode)
    broken = tmp_path / "of-two"
    for mode in ("zero2", "zero3"):
        shutil.copytree(together[0] / mode / "finetune", broken / mode / "finetune")
        shutil.rmtree(broken / mode / "finetune" / "model")
        jobs.add(f"{mode}-of-two", "finetune", mode, output=f"of-two/{mode}")
    outcomes = jobs.run(ranks=4, seconds=580)
    for mode in ENGINES:
        for stage in STAGES:
            assert_same_run(alone / stage, tmp_path / mode / stage)
    for mode in ("zero2", "zero3"):
        for rank in outcomes[f"{mode}-of-two finetune"]:
            name = f"ZeRO-{mode[-1]}"
            assert f"saved by {name} on 2 process(es), and this run is {name} on 4" in rank["error"]
