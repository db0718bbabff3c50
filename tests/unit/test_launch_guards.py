"""Launches that would silently be something else than the recipe says, and errors of several ranks."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch

from emma.errors import EmmaError
from emma.paths import project_root
from emma.train import load_recipe
from emma.train.arguments import training_arguments
from emma.train.engine_files import deepspeed_file, fsdp_settings
from emma.train.guards import check_launch
from emma.train.processes import be_alone, check_launcher, peer_gone, report
from emma.train.recipe import StageRecipe

LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture
def environment(monkeypatch):
    """Set exactly these of the variables that launchers use."""
    names = [*LAUNCHED, "LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    names += ["ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_CONFIG_DS_FIELDS"]
    names += ["ACCELERATE_MIXED_PRECISION", "FSDP_VERSION", "TORCHELASTIC_ERROR_FILE", "EMMA_DEBUG"]

    def put(**values):
        for name in names:
            monkeypatch.setenv(name, "")  # remembered, so that it is put back after the test
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    put()
    return put


@pytest.mark.parametrize(
    ("variables", "settings", "message"),
    [
        ({"WORLD_SIZE": "2"}, {}, "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({**ACCELERATE, "MASTER_PORT": "29500"}, {}, "accelerate launch was asked for several processes, but without"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, {}, r"srun started 4 copies of this command"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, {}, r"mpirun started 4 copies of this command \(OMPI_COMM_WORLD_SIZE\)"),
        (
            {**LAUNCHED, **ACCELERATE, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage"},
            {},
            r"accelerate launch asks for DeepSpeed, but finetune\.deepspeed of the recipe is null; set finetune",
        ),
        (
            {**LAUNCHED, **ACCELERATE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"deepspeed": "configs/deepspeed/zero2.json"},
            r"launch asks for FSDP, but finetune\.fsdp of the recipe is null; set finetune\.fsdp=configs/fsdp2",
        ),
        (
            {**LAUNCHED, "ACCELERATE_MIXED_PRECISION": "fp16"},
            {},
            r"asks for mixed_precision fp16, but finetune\.precision of the recipe is auto and means fp32 here",
        ),
    ],
)
def test_a_launcher_that_contradicts_the_recipe_is_refused(environment, variables, settings, message):
    environment(**variables)
    with pytest.raises(EmmaError, match=message):
        check_launcher(StageRecipe(**settings), "finetune", bf16=False, cuda=False)


def test_launchers_that_agree_with_the_recipe_are_taken(environment):
    environment(SLURM_STEP_ID="4294967290", SLURM_STEP_NUM_TASKS="4")  # the shell of salloc
    check_launcher(StageRecipe(), "finetune", bf16=False, cuda=False)
    environment(**LAUNCHED, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="2")  # one torchrun per node
    check_launcher(StageRecipe(), "finetune", bf16=False, cuda=True)
    asked = {**LAUNCHED, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": ""}
    environment(**asked, ACCELERATE_MIXED_PRECISION="bf16")
    check_launcher(StageRecipe(deepspeed="x.json"), "finetune", bf16=True, cuda=True)


def test_the_cpu_asked_for_beside_a_gpu_is_refused(environment):
    environment(**LAUNCHED, ACCELERATE_USE_CPU="true")
    with pytest.raises(EmmaError, match=r"ACCELERATE_USE_CPU is set .*, but this machine has a GPU"):
        check_launcher(StageRecipe(), "finetune", bf16=True, cuda=True)
    check_launcher(StageRecipe(), "finetune", bf16=False, cuda=False)


def test_what_an_earlier_run_left_behind_does_not_choose_the_engine(environment, tmp_path):
    environment(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_USE_FSDP="true")
    args = training_arguments(StageRecipe(batch_size=4), "finetune", tmp_path, 0)
    assert args.deepspeed_plugin is None


@pytest.mark.parametrize(
    ("asked", "got", "message"),
    [
        ({"world": 2}, ("NO", 1), r"asked for DDP with 2 process\(es\), but accelerate set up NO with 1"),
        (
            {"world": 2, "deepspeed": "x"},
            ("MULTI_CPU", 2),
            r"asked for DEEPSPEED .* set up MULTI_CPU .*ACCELERATE_USE_CPU",
        ),
        ({"deepspeed": "x"}, ("NO", 1), r"asked for DEEPSPEED with 1 process\(es\), but accelerate set up NO"),
        ({"world": 2, "fsdp": True}, ("MULTI_CPU", 2), r"asked for FSDP .* MULTI_CPU .*FSDP works on GPUs only"),
        ({"world": 2}, ("DEEPSPEED", 2), r"asked for DDP .* set up DEEPSPEED"),
        ({}, ("FSDP", 1), r"asked for a single process .* set up FSDP"),
        ({"world": 4}, ("MULTI_GPU", 2), r"with 4 process\(es\), but accelerate set up MULTI_GPU with 2"),
        ({"n_gpu": 8}, ("NO", 1), r"one process sees 8 GPUs.*torchrun --nproc-per-node 8 -m emma\.train"),
    ],
)
def test_another_engine_than_was_asked_for_stops_the_run(environment, asked, got, message):
    environment(WORLD_SIZE=str(asked.get("world", 1)))
    options = {"deepspeed": None, "fsdp": None, "n_gpu": 1} | {k: v for k, v in asked.items() if k != "world"}
    args = SimpleNamespace(**options, world_size=got[1])
    with pytest.raises(EmmaError, match=message):
        check_launch(args, SimpleNamespace(distributed_type=SimpleNamespace(name=got[0])))


@pytest.mark.parametrize(
    ("asked", "got"),
    [({}, "NO"), ({}, "MULTI_CPU"), ({"deepspeed": "x"}, "DEEPSPEED"), ({"fsdp": True}, "FSDP")],
)
def test_the_engine_that_was_asked_for_passes(environment, asked, got):
    args = SimpleNamespace(**{"deepspeed": None, "fsdp": None, "n_gpu": 1} | asked, world_size=1)
    check_launch(args, SimpleNamespace(distributed_type=SimpleNamespace(name=got)))


SHIPPED = json.loads((project_root() / "configs/deepspeed/zero2.json").read_text())


def with_deepspeed(folder, content, **settings):
    file = folder / "ds.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    stage = StageRecipe(deepspeed=str(file), batch_size=16, micro_batch=2, **settings)
    return deepspeed_file(stage, "finetune", world_size=2, micro=2, accumulation=4, bf16=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object, not a list"),
        ({"fp16": {"enabled": True}}, 'fp16.enabled is true; training is bf16 or fp32: set it to "auto" or false'),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true; but finetune.precision is auto and means fp32 here"),
        ({"scheduler": {"type": "WarmupLR"}}, "it would replace finetune.schedule and finetune.warmup: remove it"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type is "Lamb"; the recipe\'s optimizer is AdamW'),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr is 0.001; the recipe decides"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4; it must be 0, 1, 2 or 3"),
        ({"zero_optimization": {}}, "zero_optimization.stage is null; it must be 0, 1, 2 or 3"),
        ({"train_batch_size": 32}, "train_batch_size is 32; but finetune.batch_size is 16"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu is 4; but finetune.micro_batch gives 2",
        ),
        ({"gradient_accumulation_steps": 1}, "is 1; but batch_size, micro_batch and 2 process(es) make 4"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5; but finetune.max_grad_norm is 1.0"),
        ({"gradient_clipping": None}, 'has no gradient_clipping; add "gradient_clipping": "auto"'),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_recipe_is_refused(tmp_path, content, message):
    if isinstance(content, dict):
        content = {key: value for key, value in (SHIPPED | content).items() if value is not None}
    with pytest.raises(EmmaError) as raised:
        with_deepspeed(tmp_path, content)
    assert str(raised.value).startswith(f"finetune.deepspeed: {tmp_path / 'ds.json'}")
    assert message in str(raised.value)


def test_deepspeed_files_that_agree_with_the_recipe_pass(tmp_path):
    agreeing = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}
    optimizer = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}
    assert with_deepspeed(tmp_path, SHIPPED | agreeing | {"optimizer": optimizer}) == (tmp_path / "ds.json", 2)
    for file in sorted((project_root() / "configs/deepspeed").glob("*.json")):
        with_deepspeed(tmp_path, file.read_text())


@pytest.mark.parametrize(
    ("content", "cuda", "message"),
    [
        ({}, False, "finetune.fsdp is set, but there is no GPU, and on a CPU accelerate would silently train with DDP"),
        ({"version": 1}, True, "version is 1; only 2 is supported"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, True, "the finished model is one folder"),
        ({"reshard": True}, True, "reshard is not one of auto_wrap_policy, cpu_offload"),
    ],
)
def test_fsdp_files_are_checked(tmp_path, content, cuda, message):
    file = tmp_path / "fsdp.json"
    file.write_text(json.dumps(content))
    with pytest.raises(EmmaError) as raised:
        fsdp_settings(StageRecipe(fsdp=str(file)), "finetune", cuda)
    assert message in str(raised.value)


def test_the_shipped_fsdp_file_gives_fsdp2_of_the_language_models_layers(
    environment, monkeypatch, tmp_path, tiny_model
):
    environment()
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    settings = fsdp_settings(StageRecipe(fsdp="configs/fsdp2.json"), "finetune", cuda=True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, fsdp=True, fsdp_config=settings)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "")  # the plugin sets it
    plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    plugin.set_mixed_precision("bf16")
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    model = tiny_model()
    plugin.set_auto_wrap_policy(model)
    wrapped = {cls.__name__ for cls in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    assert wrapped == {type(model.llm.model.layers[0]).__name__}


def test_deepspeed_and_fsdp_exclude_each_other(assets):
    with pytest.raises(EmmaError, match=r"finetune\.deepspeed: a\.json and finetune\.fsdp: b\.json exclude each other"):
        load_recipe(assets / "recipe.yaml", ["finetune.deepspeed=a.json", "finetune.fsdp=b.json"])


def test_a_single_process_says_so_and_a_launched_one_is_left_alone(environment):
    import os

    environment()
    be_alone()
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == ("0", "0", "1")
    assert int(os.environ["MASTER_PORT"]) > 0
    environment(**LAUNCHED)
    be_alone()
    assert {key: os.environ[key] for key in LAUNCHED} == LAUNCHED


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:31337"


def test_a_rank_that_only_lost_the_others_says_so_in_one_line(environment, capsys, tmp_path):
    environment(**LAUNCHED, TORCHELASTIC_ERROR_FILE=str(tmp_path / "error.json"))
    wrapped = EmmaError("cannot write x")
    wrapped.__cause__ = RuntimeError(GLOO)
    for error in (RuntimeError(GLOO), torch.distributed.DistBackendError("NCCL error: unhandled"), wrapped):
        assert report(error) == 1
        assert capsys.readouterr().err == (
            "error: [rank 1] stopped because another rank has ended or does not answer; its message or the launcher's "
            "says why\n"
        )
    assert not (tmp_path / "error.json").exists(), "torchrun's table names the rank that failed first"


def test_other_errors_of_a_rank_carry_its_number(environment, capsys, tmp_path):
    environment(**LAUNCHED, TORCHELASTIC_ERROR_FILE=str(tmp_path / "error.json"))
    report(EmmaError("sample 'c7' is bad"))
    assert capsys.readouterr().err == "error: [rank 1] sample 'c7' is bad\n"
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "sample 'c7' is bad"
    report(OSError(28, "no", "/a"))
    assert capsys.readouterr().err == "error: [rank 1] /a: No space left on device; free some space and start again\n"
    try:
        raise KeyError("bug")
    except KeyError as error:
        report(error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[rank 1] Traceback (most recent call last):"
    assert all("[rank 1]" in line for line in lines)
    assert lines[-1] == "error: [rank 1] KeyError: 'bug'"
    assert not peer_gone(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_usr1_is_a_request_to_save_and_stop():
    from emma.train.signals import StopRequest

    with StopRequest() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert stop.received == signal.SIGUSR1
