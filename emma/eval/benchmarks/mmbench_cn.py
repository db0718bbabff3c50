"""MMBench in Chinese: each question under every order of its options."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.pictures import Embedded
from emma.eval.prompts import LETTER_CN, option_lines
from emma.eval.scoring import mmbench_cn as scoring


def items(data: Path, images: Path | None = None, file: str = "auto") -> list[Item]:
    """Hint if there is one, question, option lines, suffix; the picture is in the row. One prompt a row: the file holds
    the orders already."""
    rows = []
    for row in scoring.read(data, file):
        asked = f"{row.hint}\n{row.question}" if row.hint else row.question
        prompt = f"{asked}\n{option_lines(tuple(row.options.values()))}\n{LETTER_CN}"
        picture = Embedded.of_base64(row.image, str(row.group))
        rows.append(Item(str(row.index), asked, prompt, (picture,), row.category or None))
    return rows


BENCHMARK = Benchmark(
    name="mmbench_cn",
    title="MMBench (cn)",
    files="the tsv of OpenCompass, such as mmbench_dev_cn_20231003.tsv",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
)
