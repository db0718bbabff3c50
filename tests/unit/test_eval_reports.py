"""Reports: published figures and their notes, runs compared, controls, pages in every form, all benchmarks at once."""

import csv
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from emma.errors import EmmaError
from emma.eval.__main__ import main
from emma.eval.answerers.constant import ConstantAnswerer
from emma.eval.controls import Controls
from emma.eval.report import failures, find_reports, find_runs, html, markdown, table
from emma.eval.report.compare import compare, find_run, sentence
from emma.eval.report.page import Cell, Page, Table, Text
from emma.eval.report.published import FIGURES, FILE, published
from emma.eval.runner import evaluate
from emma.eval.scoring.score import Score, accuracy

GOLD = "ABBAABBAAB"  # of ten questions, five pairs


class Answering(ConstantAnswerer):
    """Says the nth letter of `text` to question n, or the whole where that is longer; reads instructions."""

    def __init__(self, letters, weights="w"):
        super().__init__(letters)
        self.weights, self.name = weights, f"model {weights}"

    def fingerprint(self):
        kept = {key: value for key, value in super().fingerprint().items() if key != "constant"}
        return kept | {"weights": self.weights * 16}

    def instruction(self, question):
        return question

    def answer(self, questions, max_new_tokens, stop=()):
        return [
            answer.__class__(self.text[int(question.id) - 1], True)
            for question, answer in zip(questions, super().answer(questions, max_new_tokens, stop), strict=True)
        ]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "MMVP Images").mkdir(parents=True)
    rows = [("Index", "Question", "Options", "Correct Answer")]
    for index, letter in enumerate(GOLD, 1):
        Image.new("RGB", (600, 400), (20 * index, 0, 0)).save(folder / "MMVP Images" / f"{index}.jpg")
        rows.append((index, f"Is <b>{index}</b> red & round?", "(a) Yes (b) No", f"({letter.lower()})"))
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def run(data, tmp_path):
    def mmvp(name, letters, weights="w", **controls):
        evaluate("mmvp", Answering(letters, weights), data, tmp_path / name, controls=Controls(**controls))
        return tmp_path / name

    return mmvp


class Checker(HTMLParser):
    """Every tag that is opened is closed in turn; nothing is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "src":
                assert value.startswith("data:image/jpeg;base64,")
            if name == "href":
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def well_formed(page):
    assert page.startswith("<!doctype html>")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not {"script", "link", "iframe"} & checker.seen
    return checker


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_every_published_figure_of_a_benchmark_is_read():
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = [row for row in rows if (row["benchmark"], row["metric"]) in FIGURES]
    left = [row for row in rows if (row["benchmark"], row["metric"]) not in FIGURES]
    words = ("gain over", "samples", "pairs", "parameters", "mutual information", "module")
    assert len(known) > 80
    assert all(any(word in row["metric"] for word in words) for row in left), "what is left out is no benchmark's score"


def entries(benchmark, method):
    return [entry for entry in published([benchmark]) if entry.method.startswith(method)]


def test_published_figures_carry_their_notes():
    [emma] = entries("vqav2", "EMMA")
    assert emma.value == 89.42
    assert "no bar" in emma.notes[0]
    assert entries("vqav2", "BLIP-2")[0].notes == ()
    assert entries("mmvp", "LLaVA-1.5")[0].value == 24.7
    assert "own protocol" in entries("mmvp", "LLaVA-1.5")[0].notes[0]
    assert entries("mmvp", "EMMA (Linear)")[0].notes == ()
    assert all("labels" in entry.notes[0] and "swaps" in entry.notes[0] for entry in entries("amber", ""))
    assert all("hard pairs" in entry.notes[0] for entry in entries("foil", ""))
    assert "without the picture" in entries("mathvista", "EMMA")[0].notes[0]
    assert "without the picture" not in str(entries("mathvista", "LLaVA-1.5")[0].notes)
    assert ["trained on ScienceQA too" in str(e.notes) for e in entries("scienceqa", "EMMA")] == [True, False, False]
    assert all(entry.source.startswith("arXiv 2410.02080") for entry in published(["gqa", "pope"]))
    assert published(["mme", "world"]) == []


def test_what_two_tables_repeat_is_there_once():
    # Table 2 has LLaVA-1.5 on ScienceQA with 66.8, Table 4 with 66.80
    assert [entry.value for entry in entries("scienceqa", "LLaVA-1.5")] == [66.8]
    # Tables 2 and 4 have two EMMAs on it, of 1.8M and 1.2M samples, and the one with cross-attention
    assert [entry.value for entry in entries("scienceqa", "EMMA")] == [73.14, 71.0, 67.08]


def test_published_figures_stand_beside_official_uncontrolled_runs_only(run, data, tmp_path):
    plain = run("plain", GOLD)
    page = html.render(table.page(find_runs([plain]), table.summary(find_runs([plain]))))
    assert "24.70 [1]" in page
    assert "[1] MMVP: the MMVP paper" in page
    assert "24.70" in (plain / "report.html").read_text()
    assert "24.70" in (plain / "report.md").read_text()
    blank = run("blank", GOLD, image="blank")
    constant = tmp_path / "constant"
    evaluate("mmvp", ConstantAnswerer("A"), data, constant)
    (data.parent / "world.json").write_text("{}")
    world = run("world", GOLD)
    for other in (blank, constant, world):
        made = table.summary(find_runs([other]))
        assert made["published"] == []
        assert "24.70" not in markdown.render(table.page(find_runs([other]), made))
        assert "24.70" not in (other / "report.html").read_text() + (other / "report.md").read_text()
    assert "world (MMVP format)" in (world / "report.html").read_text()


def test_the_table_says_how_each_row_was_made(run):
    runs = find_runs([run("one", GOLD), run("two", "A" * 10, "v")])
    made = table.summary(runs)
    row = made["runs"][0]
    assert (row["value"], row["n"], row["unit"]) == (100, 5, "pairs")
    assert row["scorer"]["version"] == 1
    assert row["prompts"] == runs[0].report["fingerprint"]["questions"]
    assert row["batch_sizes"] == [16]
    assert {"commit", "versions", "dtype", "settings", "interval", "controls"} <= row.keys()
    page = markdown.render(table.page(runs, made))
    for part in (
        row["prompts"][:12],
        "letter by option inference (no judge), version 1",
        "emma 0.",
        "model v (vvvvvvvvvvvv)",
    ):
        assert part in page
    assert page.startswith("# Evaluation of 2 models")


def test_two_runs_are_compared_by_the_primary_figure(run, tmp_path, capsys):
    # Pairs are AB or BA. The first run gets the last alone, the second all but the last: McNemar's 1 against 4.
    first = run("first", "A" * 8 + GOLD[8:])
    second = run("second", GOLD[:8] + "AA", "v")
    made = compare(find_run(first), find_run(second))
    assert (made["figure"], made["first"], made["second"], made["difference"]) == ("pair_accuracy", 20, 80, 60)
    assert (made["test"], made["only_first"], made["only_second"], made["units"]) == ("McNemar", 1, 4, 5)
    assert made["p"] == pytest.approx(2 * (1 + 5) / 2**5)  # C(5,0) + C(5,1)
    assert made["sentence"].endswith("these questions do not tell the two runs apart.")
    # Questions: 4 of the first 8 and both of the last pair, against 8 and one; two of a pair are not independent.
    single = made["figures"]["single_accuracy"]
    assert (single["first"], single["second"], single["test"]) == (60, 90, "paired bootstrap")
    assert command("compare", first, second, "--output", tmp_path / "both.html") == 0
    said = capsys.readouterr().out
    assert "60.00 points above that of the first, 20.00 (n = 5 pairs" in said
    assert "p = 0.375, by McNemar's exact test: 4 right in the second alone, 1 in the first alone" in said
    assert "| better in first | 1 | 10 |" in said
    well_formed((tmp_path / "both.html").read_text())
    assert command("compare", first, second, "--output", tmp_path / "both.json") == 0
    assert json.loads((tmp_path / "both.json").read_text())["changed"]["better_in_first"] == ["10"]


def test_the_verdict_follows_from_p(run):
    made = compare(find_run(run("first", "A" * 10)), find_run(run("second", GOLD, "v")))
    assert made["p"] == pytest.approx(2 / 2**5), "five pairs cannot tell more"
    assert made["sentence"].endswith("do not tell the two runs apart.")
    assert sentence(made | {"p": 0.049}).endswith("The difference is more than chance explains at the 5 % level.")


def test_runs_that_cannot_be_compared(run, data, tmp_path, capsys):
    first, second = run("first", GOLD), run("second", GOLD, "v")
    assert command("compare", tmp_path, second) == 1
    assert "holds 2 runs" in capsys.readouterr().err
    assert command("compare", tmp_path / "gone", second) == 1
    assert "no report.json" in capsys.readouterr().err
    lines = (second / "predictions.jsonl").read_text().splitlines(keepends=True)
    (second / "predictions.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(EmmaError, match="1 of 10 questions have no answer"):
        compare(find_run(first), find_run(second))
    (second / "predictions.jsonl").write_text("".join(lines))
    report = json.loads((second / "report.json").read_text())
    for change, message in (
        ({"benchmark": "pope"}, "two runs are compared on the same questions"),
        ({"data": {"folder": "elsewhere", "world": True}}, "two runs are compared on the same questions"),
        (
            {"data": {"folder": "d", "world": False}, "fingerprint": report["fingerprint"] | {"questions": "other"}},
            "were asked other questions",
        ),
    ):
        (second / "report.json").write_text(json.dumps(report | change))
        with pytest.raises(EmmaError, match=message):
            compare(find_run(first), find_run(second))
    (second / "report.json").write_text(json.dumps(report))
    data.rename(tmp_path / "moved")
    with pytest.raises(EmmaError, match="--data DIR"):
        compare(find_run(first), find_run(second))
    assert compare(find_run(first), find_run(second), tmp_path / "moved")["difference"] == 0


def test_a_control_is_shown_against_the_run_without(run, tmp_path, capsys):
    run("runs/plain", GOLD)
    run("runs/shuffled", "A" * 10, instruction="shuffled")
    run("runs/other", "B" * 10, "v")
    assert command("report", tmp_path / "runs", "--output", tmp_path / "runs" / "all.html") == 0
    said = capsys.readouterr().out
    [line] = [line for line in said.splitlines() if "MMVP, shuffled instruction]" in line]
    # 100 without the control, 0 with it: every pair has an A and a B
    assert "| 0.00 | 0.00 to 0.00 | 5 pairs | 100.00 | -100.00 (-100.00 to -100.00) | 0.062 |" in line
    assert "[MMVP, shuffled instruction](shuffled/report.html)" in line
    page = (tmp_path / "runs" / "all.html").read_text()
    assert "plain/report.html" in well_formed(page).links
    beside = page[page.index("side by side") :]
    assert "shuffled" not in beside[: beside.index("</table>")], "no published figure beside a control"
    (tmp_path / "data").rename(tmp_path / "moved")
    assert command("report", tmp_path / "runs") == 0
    assert "MMVP, shuffled instruction: no difference, because" in capsys.readouterr().out


def test_the_form_follows_from_the_ending(run, tmp_path, capsys):
    one = run("one", GOLD)
    assert command("report", one, "--output", tmp_path / "table.json") == 0
    assert json.loads((tmp_path / "table.json").read_text())["runs"][0]["title"] == "MMVP"
    capsys.readouterr()
    assert command("report", one, "--output", tmp_path / "table.md") == 0
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out
    assert command("report", one, "--output", tmp_path / "table.pdf") == 1
    assert "must end in .md, .html, .json" in capsys.readouterr().err


def test_hostile_texts_stay_texts():
    hostile = '<script>alert("x")</script>|\n&'
    block = Table(hostile, (hostile,), [(hostile,), (Cell(hostile, bold=True, link='"><i>'),)])
    page = Page(hostile, [block, Text(hostile), Text(hostile, "a.html")])
    assert well_formed(html.render(page)).links == ['"><i>', "a.html"]
    rows = markdown.table(block).splitlines()
    assert len(rows) == 4, "a line break does not end the row"
    assert all(row.replace("\\|", "").count("|") == 2 for row in rows)
    assert "<script>" not in "".join(rows)


def test_failures_come_worst_first(tmp_path):
    credits = {"1": 1.0, "2": 0.6, "3": 0.0, "4": 0.3, "5": 0.0}
    assert failures.worst_first(credits) == ["3", "5", "4", "2"]
    Image.new("RGB", (900, 600), "red").save(tmp_path / "a.png")
    score = Score(
        "a", {"a": accuracy([True], [0])}, "images", {}, credits=credits, expected={"3": "gold & <i>green</i>"}
    )
    rows = {
        id: {"text": f"</dd><b>{id}", "prompt": "What?\nSay.", "instruction": "", "finished": id != "4"}
        for id in credits
    }
    pictures = {"3": (tmp_path / "a.png",), "4": (tmp_path / "gone.png",)}
    report = {"title": "T", "model": {"folder": "m"}}
    assert failures.write(tmp_path / "failures.html", report, score, pictures, rows)
    page = (tmp_path / "failures.html").read_text()
    assert "b" not in well_formed(page).seen
    shown = [page.index(f"&lt;/dd&gt;&lt;b&gt;{id}") for id in ("3", "5", "4", "2")]
    assert shown == sorted(shown)
    assert "&lt;b&gt;1" not in page
    assert "4 of 5 questions have less than full credit" in page
    assert "gold &amp; &lt;i&gt;green" in page
    assert "0.30 of 1" in page
    assert "answer, cut by max_new_tokens" in page
    assert "(empty)" in page, "an empty instruction is said to be one"
    assert 'width="320" height="213"' in page
    assert "gone.png" in page


def test_many_failures_are_limited_and_said_so(tmp_path):
    credits = dict.fromkeys(map(str, range(failures.LIMIT + 5)), 0.0)
    score = Score("a", {}, "images", {}, credits=credits)
    failures.write(tmp_path / "failures.html", {"title": "T", "model": {"folder": "m"}}, score, {}, {})
    page = (tmp_path / "failures.html").read_text()
    assert page.count("<article>") == failures.LIMIT
    assert "105 of 105 questions" in page
    assert "100 are shown" in page


def test_a_scorer_without_credits_has_no_page_of_failures(tmp_path):
    (tmp_path / "failures.html").write_text("of an earlier scorer")
    score = Score("a", {}, "captions", {})
    assert not failures.write(tmp_path / "failures.html", {}, score, {}, {})
    assert not (tmp_path / "failures.html").exists()


def test_a_run_leaves_pages_that_point_at_each_other(run):
    made = run("one", "A" * 10)
    page = well_formed((made / "report.html").read_text())
    assert "failures.html" in page.links
    shown = (made / "failures.html").read_text()
    assert "report.html" in well_formed(shown).links
    assert shown.count("<article>") == 5
    assert "Is &lt;b&gt;2&lt;/b&gt; red &amp; round?" in shown


def test_all_runs_what_is_there_and_names_the_rest(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EMMA_ROOT", str(tmp_path))
    here = tmp_path / "playground/data/eval"
    assert command("all", "constant:A") == 1
    assert "no benchmark's files are there" in capsys.readouterr().err
    here.mkdir(parents=True)
    data.rename(here / "mmvp")
    assert command("all", "constant:A", "batch_size=4") == 0
    said = capsys.readouterr().out
    assert "| MMVP | pair accuracy | 0.00 | 0.00 to 0.00 | 5 pairs |" in said
    assert f"not there: gqa (no folder {here / 'gqa'})" in said
    assert said.count("not there:") == 22
    (here / "pope").mkdir()
    output = tmp_path / "runs/eval/constant-A"
    assert command("all", "constant:A", "image_control=blank") == 1, "POPE's folder is there without its files"
    said = capsys.readouterr().out
    assert "FAILED: pope (POPE: no image folder" in said
    assert "| MMVP, blank image |" in said
    assert "| MMVP | pair accuracy |" in said, "the earlier run of the same model"
    well_formed((output / "table.html").read_text())
    assert len(json.loads((output / "table.json").read_text())["runs"]) == 2
    assert (output / "table.md").read_text().startswith("# Evaluation of constant:A")
    assert len(find_reports([output])) == 2, "the table is no run"


def test_all_takes_folders_and_settings_by_benchmark(data, tmp_path, capsys):
    root = tmp_path / "sets"
    root.mkdir()
    data.rename(root / "mmvp")
    assert command("all", "constant:A", f"data={root}", f"output={tmp_path / 'out'}", "scienceqa.split=val") == 0
    assert (tmp_path / "out" / "mmvp" / "report.json").is_file()
    capsys.readouterr()
    for word, message in (("scienceqa.spilt=val", "did you mean scienceqa.split"), ("images=x", "unknown setting")):
        assert command("all", "constant:A", word) == 1
        assert message in capsys.readouterr().err
