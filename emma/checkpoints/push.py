"""Publishes a model folder on the Hugging Face hub, with the evaluation reports beside it in its model card."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from emma.checkpoints.folder import check_is_model
from emma.checkpoints.provenance import weights_hash
from emma.errors import EmmaError

logger = logging.getLogger(__name__)

_SECTION = re.compile(r"## Evaluation\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def push(folder: str | Path, repository: str, private: bool = False) -> str:
    """Write the evaluation section of the folder's model card, then upload the folder; returns the address.

    Reports are taken from `folder`/eval/*/report.json, if they are of these weights. The answers and reports themselves
    stay here.

    Args:
        repository: `USER/NAME`, made if there is none.

    Raises:
        EmmaError: no complete model folder, no network, no permission, or no such name.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    folder = Path(folder).expanduser()
    check_is_model(folder)
    if constants.HF_HUB_OFFLINE:
        raise EmmaError(f"cannot push to {repository}: HF_HUB_OFFLINE is set; unset it where there is a network")
    reports = read_reports(folder)
    write_evaluation(folder, reports)
    logger.info("%d evaluation report(s) in %s", len(reports), folder / "README.md")
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=["eval/*"],
            commit_message="EMMA model folder",
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EmmaError(
            f"cannot push to {repository}: {reason}; the model card is written, and `hf auth login` gives permission"
        ) from error
    return str(address)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports beside a model that are of its weights, by title; others are named in a warning.

    Raises:
        EmmaError: a report is damaged.
    """
    files = sorted(folder.glob("eval/*/report.json"))
    weights = weights_hash(folder) if files else None
    reports = []
    for file in files:
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            known = report["model"]["weights"]
            _row(report)
        except (ValueError, KeyError, TypeError) as error:
            raise EmmaError(f"{file} is no report, or damaged ({type(error).__name__}: {error})") from error
        if known == weights:
            reports.append(report)
        else:
            logger.warning("%s is of other weights, and left out", file)
    return sorted(reports, key=lambda report: report["title"])


def write_evaluation(folder: Path, reports: list[dict[str, Any]]) -> None:
    """Put the section into README.md, in place of an older one, before the section on the provenance."""
    file = folder / "README.md"
    card = _SECTION.sub("", file.read_text(encoding="utf-8") if file.is_file() else "# EMMA model\n")
    head, mark, tail = card.partition("## Provenance\n")
    file.write_text(f"{head.rstrip()}\n\n{_section(reports)}{mark}{tail}", encoding="utf-8")


def _section(reports: list[dict[str, Any]]) -> str:
    if not reports:
        return ""
    rows = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _row(report))} |" for report in reports
    )
    return f"""## Evaluation

The main figure of each report, with its 95 % bootstrap interval, measured on these weights.

| benchmark | figure | value | 95 % interval | n | scorer |
| --- | --- | ---: | ---: | ---: | --- |
{rows}

"""


def _row(report: dict[str, Any]) -> tuple[str, ...]:
    from emma.eval.report.page import interval, number, spoken

    first = report["figures"][report["metric"]]
    scorer = f"{report['scorer']['name']}, version {report['scorer']['version']}"
    return (
        report["title"],
        spoken(report["metric"]),
        number(first).text + (" %" if first.get("scale", "percent") == "percent" else ""),
        interval(first),
        f"{report['n']} {report['unit']}",
        scorer,
    )
