"""Installation: once for a set of versions, held to what was tested, clear when it fails; and the metadata."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FAKE_PYTHON = """#!/bin/sh
{ printf '<%s>' "$@"; printf '\\n'; } >> "$0.log"
if [ "$2" = pip ]; then
    cp "$9" "$0.constraints"
    echo "Collecting everything"
    if [ -e "$0.fails" ]; then echo "WARNING: a warning"; echo "ERROR: no route to anywhere"; exit 1; fi
fi
if [ "$1" = -c ]; then
    if [ -e "$0.misfit" ]; then echo "operator torchvision::nms does not exist" >&2; exit 1; fi
    echo "torch 0 (fake)"
fi
"""


@pytest.fixture
def install(tmp_path, monkeypatch) -> ModuleType:
    """`scripts/_install.py` on a copy of the metadata, an empty environment, and a Python that only takes notes."""
    spec = importlib.util.spec_from_file_location("_install", ROOT / "scripts" / "_install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "env" / "python"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(python.parent))
    monkeypatch.setattr(sys, "executable", str(python))
    return module


def calls(install: ModuleType) -> list[str]:
    log = install.CHECKOUT / "env" / "python.log"
    return [line for line in log.read_text().splitlines() if "<pip>" in line] if log.exists() else []


def test_installs_once_until_the_metadata_changes(install, capfd):
    install.main()
    assert len(calls(install)) == 1
    assert calls(install)[0].endswith("<-e><.[dev]>")
    assert "torch 0 (fake)" in capfd.readouterr().err
    install.main()
    assert len(calls(install)) == 1
    assert capfd.readouterr().err == ""
    with (install.CHECKOUT / "constraints.txt").open("a") as file:
        file.write("six==1.17.0\n")
    install.main()
    assert len(calls(install)) == 2


def test_a_failure_shows_pips_last_words_and_leaves_no_stamp(install, capfd):
    fails = install.CHECKOUT / "env" / "python.fails"
    fails.touch()
    with pytest.raises(SystemExit, match=r"could not install EMMA into .*EMMA_NO_INSTALL=1"):
        install.main()
    shown = capfd.readouterr().err
    assert "no route to anywhere" in shown
    assert "a warning" not in shown
    fails.unlink()
    install.main()
    assert len(calls(install)) == 2


def test_packages_that_do_not_fit_each_other_are_an_error(install):
    (install.CHECKOUT / "env" / "python.misfit").touch()
    with pytest.raises(SystemExit, match=r"do not work together: operator torchvision::nms"):
        install.main()
    assert not (install.CHECKOUT / "env" / install.STAMP).exists()


def test_an_environment_of_the_users_own_keeps_its_torch(install):
    install.main()
    held = (install.CHECKOUT / "env" / "python.constraints").read_text().splitlines()
    assert f"torch=={importlib.metadata.version('torch')}" in held
    assert sum(line.startswith("torch==") for line in held) == 1
    tested = install.constraint_lines((ROOT / "constraints.txt").read_text(), keep_torch=False)
    assert {line for line in tested if not line.startswith("torch")} <= set(held)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Collecting torch<3,>=2.6 (from emma-vlm==0.1.0)\n", "collecting torch<3,>=2.6"),
        ("  Downloading https://host/a/b/torch-2.14.1.whl (530 MB)\n", "downloading torch-2.14.1.whl"),
        ("Installing collected packages: a, b, c\n", "unpacking 3 packages"),
        ("Requirement already satisfied: pip\n", None),
    ],
)
def test_progress_is_one_short_phrase(install, line, expected):
    assert install.activity(line) == expected


def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_direct_dependency_has_a_tested_version_inside_its_range(python):
    metadata = project()
    direct = [
        *metadata["dependencies"],
        *(line for extra in metadata["optional-dependencies"].values() for line in extra),
    ]
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    tested = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                name = requirement.name.lower().replace("_", "-")
                assert name not in tested, f"{name} has two versions for Python {python}"
                tested[name] = next(iter(requirement.specifier)).version
    for requirement in map(Requirement, direct):
        name = requirement.name.lower().replace("_", "-")
        if name != "emma-vlm":
            assert requirement.specifier.contains(tested[name]), f"{requirement} excludes the tested {tested[name]}"


def test_every_folder_with_code_is_a_package():
    """Else a wheel would lack it, though an editable installation works."""
    folders = {path.parent for path in (ROOT / "emma").rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
