"""MuirBench: multiple-choice questions about several images."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.pictures import in_parquet
from emma.eval.prompts import LETTER, option_lines
from emma.eval.scoring import muirbench as scoring


def items(data: Path, images: Path | None = None, prompt: str = "released") -> list[Item]:
    """See `wording`; pictures inside the parquet files, pasted side by side. CLIP may read the question without its
    placeholders."""
    rows, pictures = scoring.read(data), {}
    for file in dict.fromkeys(row.place[0] for row in rows if row.place[0].suffix == ".parquet"):
        for number, cell in enumerate(in_parquet(file, "image_list")):
            pictures[file, number] = tuple(cell)
    return [
        Item(
            row.id,
            " ".join(row.question.replace("<image>", "").split()) or "What is the answer?",
            wording(row, prompt),
            pictures.get(row.place, ()),
            row.task,
        )
        for row in rows
    ]


def wording(row: scoring.Row, prompt: str) -> str:
    """The released EMMA: the first placeholder is the picture, later ones in the question are the words `Right Image`,
    one in an option is `Image k`, counted from 2. The authors' and lmms-eval's wordings keep the text as it is, less
    the placeholders, since the picture stands in front."""
    if prompt == "released":
        head, *rest = row.question.split("<image>")
        question = head + "Right Image".join(rest)
        options, number = {}, 2
        for letter, option in row.options.items():
            options[letter] = f"Image {number}" if "<image>" in option else option
            number += "<image>" in option
        ending = f"Answer with the option's letter {', '.join(options)} directly ."
        return f"{question.strip()}\n{option_lines(tuple(options.values()))}\n{ending}"
    question = row.question.replace("<image>", "").strip()
    options = {letter: option.replace("<image>", "(image)") for letter, option in row.options.items()}
    if prompt == "lmms_eval":
        return f"{question}\n{option_lines(tuple(options.values()))}\n{LETTER}"
    lines = "\n".join(f"({letter}) {option}" for letter, option in options.items())
    hint = "Hint: Please provide the correct option letter, such as A, B, C, D, directly."
    return f"Question: {question}\nChoices:\n{lines}\n{hint}\nAnswer:"


BENCHMARK = Benchmark(
    name="muirbench",
    title="MuirBench",
    files="data/test-*.parquet (data set MUIRBENCH/MUIRBENCH)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
    several_images="side_by_side",
    hub="MUIRBENCH/MUIRBENCH",
)
