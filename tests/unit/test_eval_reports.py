"""Comparisons worked out by hand, published figures and their notes, HTML, and all benchmarks in one call."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from emma.errors import EmmaError
from emma.eval.__main__ import main
from emma.eval.compare import compare, mcnemar
from emma.eval.html import MOST_FAILURES, failures_page, table
from emma.eval.published import published_figures
from emma.eval.summary import as_html, as_markdown, compare_reports, find_reports, published_beside


def test_mcnemar():
    # 1 against 6: 2 * (C(7,0) + C(7,1)) / 2^7 = 16/128
    assert mcnemar(1, 6) == pytest.approx(0.125)
    assert mcnemar(6, 1) == pytest.approx(0.125)
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 3) == 1, "never above 1"
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)


def test_comparison_of_right_and_wrong():
    first = {str(i): float(i < 4) for i in range(12)}
    second = {str(i): float(i < 10 and i != 0) for i in range(12)} | {"extra": 1.0}
    # first right: 0-3; second right: 1-9; only first: 0; only second: 4-9
    found = compare(first, second)
    assert (found.n, found.test) == (12, "McNemar, exact")
    assert found.p == pytest.approx(0.125)
    assert found.difference == pytest.approx(100 * (9 - 4) / 12)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.sentence.endswith("chance alone explains a difference of this size.")
    clear = compare({str(i): 0.0 for i in range(20)}, {str(i): 1.0 for i in range(20)})
    assert clear.sentence.endswith("the difference is larger than chance explains.")


def test_comparison_of_credits_is_a_bootstrap():
    first = {str(i): 0.3 for i in range(30)}
    second = {str(i): 0.6 if i % 3 else 0.3 for i in range(30)}
    found = compare(first, second)
    assert found.test == "paired bootstrap"
    assert found.difference == pytest.approx(20)
    assert found.p < 0.05
    with pytest.raises(EmmaError, match="no question with a credit in common"):
        compare({"a": 1.0}, {"b": 1.0})


def test_published_figures_carry_their_notes():
    def notes(benchmark, start):
        return {p.note for p in published_figures(benchmark) if p.method.startswith(start)}

    assert all("no bar to compare with" in note for note in notes("vqav2", "EMMA"))
    assert notes("vqav2", "BLIP-2") == {""}
    assert all("6,775" in p.note for p in published_figures("foil"))
    assert all("shifted" in p.note for p in published_figures("amber"))
    assert any(p.value == 34.0 for p in published_figures("mmvp"))
    assert published_figures("mme") == []


def report(benchmark="mmvp", world=False, control="none", folder="m"):
    figure = {"value": 50.0, "n": 10, "unit": "pairs", "interval": [40.0, 60.0], "scale": "percent"}
    return {
        "benchmark": benchmark,
        "title": f"{benchmark} <b>",
        "metric": "pair_accuracy",
        "score": 50.0,
        "n": 10,
        "unit": "pairs",
        "figures": {"pair_accuracy": figure},
        "model": {"folder": folder, "weights": "0123456789abcdef"},
        "data": {"folder": "d", "world": world},
        "settings": {},
        "fingerprint": {"control": {"image": "none", "instruction": control}},
    }


def test_published_figures_stand_beside_real_runs_only():
    assert published_beside([report()])
    assert not published_beside([report(world=True)])
    assert not published_beside([report(control="shuffled")])
    page = as_markdown("All", [report()])
    assert "24.7" in page
    assert "own protocol" in page


class Checker(HTMLParser):
    """Every tag that is opened is closed in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def well_formed(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker.seen


def test_pages_are_well_formed_and_escaped():
    page = as_html("A & B", [report()], ["X: <script>"])
    assert "script" not in well_formed(page)
    assert "mmvp &lt;b&gt;" in page
    assert "<td>&lt;i&gt;</td>" in table(("a",), [("<i>",)])


def test_failures_come_worst_first_with_pictures(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    credits = {"1": 1.0, "2": 0.6, "3": 0.0, "4": 0.3}
    rows = {id: {"text": f"<answer {id}>", "prompt": "What?", "instruction": "read"} for id in credits}
    page = failures_page("T", rows, credits, {"3": "gold"}, {"3": (tmp_path / "a.png",), "4": (tmp_path / "gone.png",)})
    assert well_formed(page) >= {"img", "section"}
    assert page.index("&lt;answer 3&gt;") < page.index("&lt;answer 4&gt;") < page.index("&lt;answer 2&gt;")
    assert "&lt;answer 1&gt;" not in page
    assert "3 of 4 questions without full credit" in page
    assert "data:image/jpeg;base64," in page
    assert "does not exist" in page
    many = {str(i): 0.0 for i in range(MOST_FAILURES + 5)}
    assert f"the {MOST_FAILURES} worst are shown" in failures_page("T", {}, many, {}, {})


def write_run(place, credits, **changes):
    place.mkdir()
    (place / "report.json").write_text(json.dumps(report(**changes)))
    (place / "scores.jsonl").write_text(
        "".join(json.dumps({"id": id, "credit": credit}) + "\n" for id, credit in credits.items())
    )
    return place


def test_compare_on_the_command_line(tmp_path, capsys):
    one = write_run(tmp_path / "one", {str(i): 0.0 for i in range(10)})
    two = write_run(tmp_path / "two", {str(i): 1.0 for i in range(10)}, folder="n")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(one), str(two)])
    assert ended.value.code == 0
    # 2 / 2^10
    assert "+100.00 points (0.00 to 100.00) over 10 common questions" in (said := capsys.readouterr().out)
    assert "p = 0.00195 (McNemar, exact)" in said
    other = write_run(tmp_path / "other", {"1": 1.0}, benchmark="pope")
    with pytest.raises(EmmaError, match="differ in benchmark"):
        compare_reports(*find_reports([one, other]))
    (one / "scores.jsonl").unlink()
    with pytest.raises(EmmaError, match=r"no scores.jsonl beside it"):
        compare_reports(*find_reports([one, two]))


def test_controls_are_compared_with_the_run_without(tmp_path, capsys):
    write_run(tmp_path / "plain", {str(i): 1.0 for i in range(10)})
    write_run(tmp_path / "shuffled", {str(i): float(i < 5) for i in range(10)}, control="shuffled")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")])
    assert "-50.00 points (100.00 to 50.00) over 10 common questions" in capsys.readouterr().out
    well_formed((tmp_path / "page.html").read_text())


def test_all_runs_what_is_here_and_names_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EMMA_ROOT", str(tmp_path))
    data = tmp_path / "playground" / "data" / "eval" / "pope"
    (data / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(data / "images" / "a.jpg")
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"}
    (data / "coco_pope_random.json").write_text(json.dumps(row) + "\n")
    (tmp_path / "playground" / "data" / "eval" / "mmvp").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["all", "constant:Yes"])
    assert ended.value.code == 1, "MMVP's folder is there without its files"
    said = capsys.readouterr().out
    assert "| POPE | constant:Yes | mean f1 | 100.00 % | – | 1 questions |" in said
    assert "- MMVP: " in said
    assert "- MMVP: its files" not in said
    assert "- GQA: its files are not here" in said
    made = tmp_path / "runs" / "eval" / "constant-Yes"
    whole = json.loads((made / "report.json").read_text())
    assert [r["benchmark"] for r in whole["reports"]] == ["pope"]
    well_formed((made / "report.html").read_text())
    well_formed((made / "pope" / "report.html").read_text())
    assert len(find_reports([made])) == 1, "the page of all is no run"
