"""push and hub names, against a stand-in for the hub: what is written, what is uploaded, and offline."""

import json
import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from test_eval_runner import checkpoint, data, run  # noqa: F401

import emma
from emma.checkpoints.__main__ import main
from emma.checkpoints.importing import import_folder
from emma.checkpoints.push import push
from emma.checkpoints.seal import is_complete
from emma.errors import EmmaError


@pytest.fixture
def hub(monkeypatch):
    """Records what is asked of it."""
    calls = []

    class Api:
        def create_repo(self, repository, private, exist_ok):
            calls.append(("create", repository, private))
            return f"hub address of {repository}"

        def upload_folder(self, **arguments):
            calls.append(("upload", arguments))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return calls


@pytest.fixture
def evaluated(checkpoint, run, tmp_path):  # noqa: F811
    """A model folder with a report beside it."""
    run(checkpoint(), output="model/eval/mmvp")
    return tmp_path / "model"


def test_card_and_upload(evaluated, hub):
    assert push(evaluated, "user/name", private=True) == "hub address of user/name"
    report = json.loads((evaluated / "eval" / "mmvp" / "report.json").read_text())
    card = (evaluated / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith(f"| {report['title']} |"))
    assert f"| {report['score']:.2f} % |" in row
    assert "{:.2f} to {:.2f}".format(*report["interval"]) in row
    assert card.index("## Use") < card.index("## Evaluation") < card.index("## Provenance") < card.index("## Licences")
    assert is_complete(evaluated)
    assert hub[0] == ("create", "user/name", True)
    upload = hub[1][1]
    assert (upload["repo_id"], upload["folder_path"]) == ("user/name", evaluated)
    assert upload["ignore_patterns"] == ["eval/*"]
    push(evaluated, "user/name")
    assert (evaluated / "README.md").read_text() == card, "a second push replaces the section"


def test_reports_of_other_weights_are_left_out(evaluated, hub, caplog):
    file = evaluated / "eval" / "mmvp" / "report.json"
    push(evaluated, "user/name")
    report = json.loads(file.read_text())
    report["model"]["weights"] = "0" * 64
    file.write_text(json.dumps(report))
    push(evaluated, "user/name")
    assert "is of other weights, and left out" in caplog.text
    assert "## Evaluation" not in (evaluated / "README.md").read_text()
    file.write_text("{}")
    with pytest.raises(EmmaError, match="is no report, or damaged"):
        push(evaluated, "user/name")


def test_no_permission_and_offline(evaluated, hub, monkeypatch):
    def refuse(*_, **__):
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(EmmaError, match=r"cannot push to user/name: Token is required; .*hf auth login"):
        push(evaluated, "user/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EmmaError, match="HF_HUB_OFFLINE is set"):
        push(evaluated, "user/name")
    with pytest.raises(EmmaError, match="does not exist"):
        push(evaluated / "nowhere", "user/name")


# -------------------------------------------------------------------------------------------------------- hub names


def test_names_are_downloaded(evaluated, monkeypatch, tmp_path, capsys):
    calls = []

    def download(name, allow_patterns, local_files_only):
        calls.append((name, local_files_only))
        if not (tmp_path / "cache").exists():
            ignored = shutil.ignore_patterns("eval")
            shutil.copytree(evaluated, tmp_path / "cache", ignore=ignored)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    model, _ = emma.load("someone/emma-tiny", device="cpu")
    assert model.config.alignment == "linear"
    with pytest.raises(SystemExit):
        main(["show", "someone/emma-tiny"])
    assert "EMMA model folder of this project" in capsys.readouterr().out
    assert set(calls) == {("someone/emma-tiny", False)}


def test_names_offline_say_which_folder_to_give(tmp_path, capsys):
    message = r"saraghznfri/emma-7b is no folder here.*HF_HUB_OFFLINE is set.*give its path"
    with pytest.raises(EmmaError, match=message):
        emma.load("saraghznfri/emma-7b")
    with pytest.raises(EmmaError, match=message):
        import_folder("saraghznfri/emma-7b", tmp_path / "target")
    for command in (
        ["show", "saraghznfri/emma-7b"],
        ["export", "saraghznfri/emma-7b", str(tmp_path / "t"), "--format=llm"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1


# ----------------------------------------------------------------------------------------------------- command line


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for command in ("fetch", "import", "export", "merge", "show", "push"):
        assert f"    {command} " in listed
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"emma.checkpoints {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
