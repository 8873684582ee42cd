"""The report is a page that a stranger can open anywhere: whole, safe, readable, and saying what the numbers say."""

from __future__ import annotations

import doctest
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib as mpl
import pytest

from attendo.comparison.results import CellResult, Epoch
from attendo.comparison.statistics import summarise, verdict
from attendo.report import render, wording, write_report
from attendo.report.layout import apart, padded

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}
NASTY = '<script>alert("1")</script> $x_1$ {{ 7 * 7 }} &amp; größer 注意 🙂'


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children = tag, attributes, parent, []

    def all(self, tag=None, **attributes):
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and attributes.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Page(HTMLParser):
    """Parses strictly: whatever is opened must be closed, in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.root = self.here = Element("", {}, None)
        self.feed(page)
        self.close()
        assert self.here is self.root, f"<{self.here.tag}> is not closed"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.here)
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.here.children.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag, attrs):
        self.here.children.append(Element(tag, dict(attrs), self.here))

    def handle_endtag(self, tag):
        assert tag == self.here.tag, f"</{tag}> closes <{self.here.tag}>"
        self.here = self.here.parent

    def handle_data(self, data):
        self.here.children.append(data)

    def rows(self):
        """The rows of the results by (model, attention), each cell as its words."""
        found, model = {}, ""
        for row in self.root.all("table", **{"class": "results"})[0].all("tr"):
            cells = [" ".join(cell.text.split()) for cell in row.all() if cell.tag in ("th", "td")]
            if row.attributes.get("class") == "model":
                model = cells[0]
            else:
                found[model, cells[0]] = cells[1:]
        return found

    def drawings(self, name):
        """The SVG elements under the heading with this id."""
        heading = self.root.all("h2", id=name)
        return heading[0].parent.all("svg") if heading else []


def cell(attention, seed, accuracy, model="resnet8", epochs=3):
    history = tuple(Epoch(e, 2.0 - e / 10, 2.1 - e / 10, accuracy * (e + 1) / epochs) for e in range(epochs))
    return CellResult(model, attention, seed, "done", "", history, accuracy, 78_042, 12_480_000, 3.1, 0.2, 1, 61.5)


def cells(model="resnet8", epochs=3, **accuracies):
    return [
        cell(attention.replace("__", ":"), seed, value, model, epochs)
        for attention, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def failed(result, error="out of memory"):
    return CellResult(result.model, result.attention, result.seed, "failed", error)


CLEAR = cells(
    none=[0.70, 0.71, 0.72],
    static=[0.70, 0.712, 0.719],
    se=[0.80, 0.811, 0.82],
    eca=[0.72, 0.69, 0.73],
    cbam=[0.60, 0.61, 0.622],
)
SPEC = {
    "data": "digits",
    "models": ["resnet8"],
    "recipe": {"lr": 0.1, "optimizer": "sgd"},
    "limit": None,
    "command": "attendo compare digits",
}
ENVIRONMENT = {"torch": "2.15.0", "threads": 2, "cuda": False}


@cache
def clear_page():
    return render(CLEAR, SPEC, ENVIRONMENT)


@pytest.mark.parametrize(
    "results",
    [
        CLEAR,
        cells(none=[0.5], se=[0.6]),
        cells(se=[0.5, 0.6]),
        [failed(result) for result in CLEAR],
        [*CLEAR[:-1], failed(CLEAR[-1])],
        [*CLEAR, *cells("resnet20", none=[0.8, 0.81], se=[0.82, 0.83])],
        cells(none=[0.5, 0.5], se=[0.5, 0.5]),
        [],
    ],
    ids=["clear", "one seed", "no baseline", "all failed", "one failed", "two models", "no spread", "empty"],
)
def test_the_page_is_whole_whatever_the_results(results):
    page = Page(render(results, SPEC, ENVIRONMENT))
    ids = [element.attributes["id"] for element in page.root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in page.root.all():
        points_at = [element.attributes.get("aria-labelledby"), element.attributes.get("href", "").removeprefix("#")]
        points_at += re.findall(r"url\(#(.+?)\)", " ".join(element.attributes.values()))
        assert not [target for target in points_at if target and target not in ids and target != "data:,"]
    assert len(page.root.all("h1")) == 1
    assert len(page.root.all("main")) == 1
    assert all(table.all("caption") for table in page.root.all("table") if table.parent.tag != "td")
    assert all(head.attributes.get("scope") for head in page.root.all("th"))
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in page.root.all("svg"))


def test_the_table_holds_the_numbers_of_the_statistics():
    rows = Page(clear_page()).rows()
    for s in summarise(CLEAR):
        accuracy, against_none, against_static, *costs, seeds = rows["", s.attention]
        a = s.accuracy
        assert accuracy == f"{100 * a.mean:.2f}[{100 * a.low:.2f}, {100 * a.high:.2f}]"
        for shown, contrast in ((against_none, s.baseline), (against_static, s.control)):
            if contrast is None:
                assert shown == DASH
            else:
                d = contrast.difference
                numbers = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]".replace("-", MINUS)
                assert shown.startswith(f"{numbers} {contrast.verdict.split(':')[0]} p")
                p = float(shown.split("p ")[1].removeprefix("= ").removeprefix("< "))
                assert p == pytest.approx(contrast.p_corrected, abs=0.005)
        assert costs == [
            text if s.attention == "none" else f"{text}±0 %" for text in ("78.04 k", "12.48 M", "3.10 ± 0.10", "61.5")
        ]
        assert seeds == "3"


def test_the_verdict_comes_first():
    page = clear_page()
    said = Page(page).root.all("p", **{"class": "verdict"})[0].text
    assert said == verdict(summarise(CLEAR))
    assert page.index('class="verdict"') < page.index("<table")
    head = Page(page).root.all("header")[0].text
    assert all(
        word in head for word in ("resnet8", "digits", "none, static, se, eca, cbam", "0, 1, 2", "15 of 15 cells")
    )


def test_no_difference_is_a_result_like_any_other():
    page = Page(clear_page())
    assert "no detectable difference" in page.rows()["", "eca"][1]
    assert "No detectable difference to no attention: static, eca" in page.root.all("p", **{"class": "verdict"})[0].text
    assert "eca +0.33 [" in page.drawings("differences")[0].attributes["aria-label"]


def test_nothing_is_loaded_and_nothing_runs():
    page = clear_page()
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    parsed = Page(page).root
    for tag in ("script", "img", "iframe", "object", "embed", "base", "form", "audio", "video"):
        assert not parsed.all(tag)
    assert [link.attributes["href"] for link in parsed.all("link")] == ["data:,"]
    assert not [key for element in parsed.all() for key in element.attributes if key == "src" or key.startswith("on")]
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    policy = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert policy.startswith("default-src 'none';")


def test_what_others_wrote_is_shown_and_never_obeyed():
    se, model = f"se {NASTY}", f"resnet {NASTY}"
    results = [
        replace(result, model=model, attention={"se": se}.get(result.attention, result.attention)) for result in CLEAR
    ]
    results[-1] = failed(results[-1], f"RuntimeError: {NASTY}\n  {NASTY}")
    text = render(results, {"data": NASTY, NASTY: {NASTY: [NASTY]}, "command": NASTY}, {"cpu": NASTY})
    page = Page(text)
    assert "<script" not in text
    assert ("", se) in page.rows()
    assert model in page.root.all("h1")[0].text
    for name in ("failed", "again", "configuration", "environment"):
        assert NASTY in page.root.all("h2", id=name)[0].parent.text
    drawn = " ".join("".join(t.text for t in svg.all("text")) for svg in page.drawings("differences"))
    assert NASTY.replace(" ", "") in drawn.replace(" ", "")
    assert "$x_1$" in drawn
    assert se in page.drawings("differences")[0].attributes["aria-label"]


def test_text_that_is_no_text_does_not_stop_the_page(tmp_path):
    error = "\x1b[31mno such file\x1b[0m: caf\udce9.png\x00\r\nsecond line"
    write_report([*CLEAR[:-1], failed(CLEAR[-1], error)], SPEC, ENVIRONMENT, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9.png␀\nsecond line" in page
    assert not set(page) & set(map(chr, (*range(9), *range(11, 32))))


def test_the_written_file_is_the_page_and_the_only_file(tmp_path):
    write_report(CLEAR, SPEC, ENVIRONMENT, str(tmp_path / "report.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == clear_page()


def test_one_seed_has_no_interval_and_the_page_says_so():
    page = Page(render(cells(none=[0.7], static=[0.72], se=[0.9]), SPEC, ENVIRONMENT))
    assert "One seed." in page.root.all("p", **{"class": "notice"})[0].text
    assert page.rows()["", "se"][:3] == ["90.00", "+20.00 one seed", "+18.00 one seed"]
    assert not [cell for row in page.rows().values() for cell in row if "[" in cell or "p =" in cell]
    drawing = page.drawings("differences")[0]
    assert len(lines(drawing, 0)) == 0
    assert "95" not in " ".join(figure.text for figure in page.root.all("figcaption"))


def test_a_missing_baseline_is_said():
    page = Page(render(cells(se=[0.7, 0.8], eca=[0.7, 0.8]), SPEC, ENVIRONMENT))
    assert not page.drawings("differences")
    assert "no difference to show" in page.root.all("h2", id="differences")[0].parent.text
    assert page.rows()["", "se"][1] == DASH


def test_failed_cells_stand_with_their_errors_and_seeds():
    results = [failed(r, "CUDA out of memory") if r.attention == "cbam" and r.seed else r for r in CLEAR]
    page = Page(render(results, SPEC, ENVIRONMENT))
    assert "2 of 15 cells failed" in page.root.all("p", **{"class": "notice"})[0].text
    (entry,) = page.root.all("ul", **{"class": "failures"})[0].all("li")
    assert " ".join(entry.text.split()) == "resnet8 cbam, seeds 1, 2 CUDA out of memory"
    assert page.rows()["", "cbam"][-1] == "12 failed"  # one seed; two failed, on a line of its own


def test_a_long_error_is_folded_under_its_last_line():
    trace = "Traceback:\n  File x\nRuntimeError: no"
    page = Page(render([*CLEAR[:-1], failed(CLEAR[-1], trace)], SPEC, ENVIRONMENT))
    details = page.root.all("h2", id="failed")[0].parent.all("details")[0]
    assert details.all("summary")[0].text == "RuntimeError: no"
    assert details.all("pre")[0].text == trace


def test_no_failure_no_section():
    page = Page(clear_page())
    assert not page.root.all(id="failed")
    assert not page.root.all("p", **{"class": "notice"})


def test_all_cells_failed():
    page = Page(render([failed(result) for result in CLEAR], SPEC, ENVIRONMENT))
    assert page.root.all("p", **{"class": "verdict"})[0].text.startswith("No cell finished")
    assert len(page.root.all("ul", **{"class": "failures"})[0].all("li")) == 5
    assert not page.root.all("svg")


def test_models_stand_apart():
    other = cells("resnet20", none=[0.8, 0.81, 0.82], se=[0.86, 0.88, 0.87])
    page = Page(render([*CLEAR, *other], SPEC, ENVIRONMENT))
    rows = page.rows()
    assert rows["resnet8", "se"][0].startswith("81.03")
    assert rows["resnet20", "se"][0].startswith("87.00")
    assert rows["resnet20", "se"][2] == DASH  # its static gate was not run
    assert [len(page.drawings(name)) for name in ("differences", "costs", "curves")] == [2, 4, 7]
    assert "resnet8 and resnet20" in page.root.all("h1")[0].text


def test_no_control_no_column():
    page = render(cells(none=[0.7, 0.71], se=[0.8, 0.82]), SPEC, ENVIRONMENT)
    assert "Against none" in page
    assert "Against static" not in page
    assert "never looks" not in page


def test_many_attentions_seeds_and_epochs_stay_apart():
    names = ["none", "static", "se", "se:reduction=4", "eca", "cbam", "cbam:variant=paper,spatial_kernel=3", "psa"]
    results = cells(
        epochs=30,
        **{
            name.replace(":", "__"): [0.7 + i / 100 + seed * 1e-3 * (i % 3) for seed in range(5)]
            for i, name in enumerate(names)
        },
    )
    page = Page(render(results, SPEC, ENVIRONMENT))
    assert [attention for _, attention in page.rows() if attention in names] == names
    assert len(page.drawings("curves")) == 8
    for drawing in page.drawings("costs"):
        labels = [t for t in drawing.all("text") if t.text in {wording.shortened(name, 15) for name in names}]
        heights = sorted(float(label.attributes["y"]) for label in labels)
        assert len(heights) == 8
        assert min(b - a for a, b in pairwise(heights)) > 11  # a line of text


def lines(drawing, series, width="2"):
    """Ends of the straight lines of two points in the colour of a series, as x and y of each end."""
    found = []
    for path in drawing.all("path"):
        style = path.attributes.get("style", "")
        if f"stroke:var(--s{series})" in style and f"stroke-width:{width};" in f"{style};":
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attributes["d"])]
            found += [numbers] if len(numbers) == 4 else []
    return found


def test_intervals_are_drawn_to_scale():
    drawing = Page(clear_page()).drawings("differences")[0]
    ticks = {t.text: float(t.attributes["x"]) for t in drawing.all("text") if re.fullmatch(rf"[+{MINUS}]?\d+", t.text)}
    unit = (ticks["+10"] - ticks["0"]) / 10  # of a percentage point
    compared = [s for s in summarise(CLEAR) if s.baseline is not None]
    for series, s in enumerate(compared):
        ((left, _, right, _),) = lines(drawing, series)
        d = s.baseline.difference
        assert left == pytest.approx(ticks["0"] + 100 * d.low * unit, abs=0.01)
        assert right == pytest.approx(ticks["0"] + 100 * d.high * unit, abs=0.01)


def test_the_zero_line_ends_where_words_and_numbers_stand():
    for drawing in Page(clear_page()).drawings("differences"):
        elements, bands = drawing.all(), []
        for element in elements:
            style, numbers = element.attributes.get("style", ""), path_numbers(element)
            if "fill:var(--paper)" in style and len(numbers) >= 8:
                bands.append((min(numbers[1::2]), max(numbers[1::2]), max(numbers[::2]) - min(numbers[::2]), element))
        (zero,) = [e for e in drawing.all("path") if "stroke:var(--ink)" in e.attributes.get("style", "")]
        labels = [t for t in drawing.all("text") if re.search(r"[a-z]|\[|\(", t.text) and "percentage" not in t.text]
        assert labels
        for label in labels:
            y = float(label.attributes["y"])
            (band,) = [band for top, bottom, width, band in bands if top <= y - 8 and y + 3 <= bottom and width > 300]
            assert elements.index(zero) < elements.index(band) < elements.index(label)  # later is painted over


def path_numbers(element):
    return [float(number) for number in re.findall(r"-?[\d.]+", element.attributes.get("d", ""))]


def test_a_wide_spread_of_latency_stays_inside_its_axes():
    noisy = [replace(result, latency_spread_ms=0.25 * 3.1) for result in CLEAR]
    drawing = Page(render(noisy, SPEC, ENVIRONMENT)).drawings("costs")[1]
    flat = [line for series in range(4) for line in lines(drawing, series, "1.5") if line[1] == line[3]]
    assert len(flat) == 4
    assert all(40 < left < right < 360 - 118 for left, _, right, _ in flat)


def test_the_latency_of_a_busy_machine_is_no_number_but_a_word_with_the_way_out():
    results = [replace(r, latency_ms=1.02, latency_spread_ms=58) if r.attention == "se" else r for r in CLEAR]
    page = Page(render(results, SPEC, ENVIRONMENT))
    assert page.rows()["", "se"][-3] == "busy"
    assert page.rows()["", "eca"][-3] == "3.10 ± 0.10±0 %"
    said = " ".join(page.root.all("p", **{"class": "notice"})[0].text.split())
    assert said.startswith("The machine was busy when the latency of se was measured")
    assert said.endswith("Measure again when the machine rests. The same command does, and trains nothing twice.")
    assert "se " not in page.drawings("costs")[1].attributes["aria-label"]


def test_a_cost_is_not_compared_with_that_of_a_busy_machine():
    results = [replace(r, latency_spread_ms=58) if r.attention == "none" else r for r in CLEAR]
    assert Page(render(results, SPEC, ENVIRONMENT)).rows()["", "eca"][-3] == "3.10 ± 0.10"


def test_nothing_is_said_of_a_machine_that_rested():
    assert not Page(clear_page()).root.all("p", **{"class": "notice"})


def test_only_a_detected_difference_is_filled():
    drawing = Page(clear_page()).drawings("differences")[0]
    hollow = {
        int(series)
        for use in drawing.all("use")
        for series in re.findall(r"fill:var\(--paper\).*stroke:var\(--s(\d)\)", use.attributes.get("style", ""))
    }
    expected = {i for i, s in enumerate(s for s in summarise(CLEAR) if s.baseline) if "no detect" in s.baseline.verdict}
    assert hollow == expected == {0, 2}


def test_learning_curves_hold_every_epoch_of_the_finished_cells():
    results = [replace(failed(r), history=r.history) if r.attention == "cbam" else r for r in CLEAR]
    drawings = Page(render(results, SPEC, ENVIRONMENT)).drawings("curves")
    assert len(drawings) == 4
    assert (
        "none: validation accuracy from 23.7 % in epoch 0 to 71.0 % in epoch 2" in drawings[0].attributes["aria-label"]
    )


def test_unknown_numbers_are_a_dash():
    nan = math.nan
    odd = replace(
        CLEAR[6],
        accuracy=nan,
        history=(Epoch(0, nan, nan, nan), Epoch(1, math.inf, nan, 0.5), Epoch(2, nan, nan, 0.6)),
        parameters=None,
        macs=None,
        latency_ms=nan,
        latency_spread_ms=nan,
        train_seconds=nan,
    )
    lost = [replace(r, attention="lost", accuracy=nan, latency_ms=nan, macs=0) for r in CLEAR if r.attention == "eca"]
    page = Page(render([*CLEAR[:6], odd, *CLEAR[7:], *lost], SPEC, {"seconds": nan, "nothing": None, "empty": {}}))
    assert page.rows()["", "lost"][0] == DASH
    assert not re.search(r"\b(nan|inf)\b", page.root.all("body")[0].text)
    assert "None" not in str(page.rows())
    assert not [e for e in page.root.all() if "nan" in e.attributes.get("d", "")]


def test_settings_are_tables_and_the_command_stands_alone():
    page = Page(clear_page())
    table = page.root.all("h2", id="configuration")[0].parent.all("table")[0]
    assert [" ".join(row.text.split()) for row in table.all("tr")] == [
        "data digits",
        "models resnet8",
        "recipe lr 0.1 optimizer sgd",
        "lr 0.1",
        "optimizer sgd",
        f"limit {DASH}",
    ]
    assert page.root.all("h2", id="again")[0].parent.all("pre")[0].text == "attendo compare digits"
    bare = Page(render(CLEAR, {}, {}))
    assert not bare.root.all("h2", id="configuration") + bare.root.all("h2", id="again")


def test_the_same_results_give_the_same_bytes_whatever_matplotlib_is_set_to():
    first = clear_page()
    users = {"text.usetex": True, "svg.fonttype": "path", "axes.facecolor": "red", "font.size": 30, "axes.grid": True}
    with mpl.rc_context(users):
        before = dict(mpl.rcParams)
        assert render(CLEAR, SPEC, ENVIRONMENT) == first
        assert dict(mpl.rcParams) == before


def test_threads_do_not_disturb_each_other():
    with ThreadPoolExecutor(3) as pool:
        pages = list(pool.map(lambda _: render(CLEAR, SPEC, ENVIRONMENT), range(3)))
    assert len(set(pages)) == 1


def test_colours_can_be_told_from_the_page_in_light_and_dark():
    style = Page(clear_page()).root.all("style")[0].text
    light, dark = (
        dict(re.findall(r"--([\w-]+): #(\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    )
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for name in ("ink", "quiet", "accent", "higher", "lower"):
            assert contrast(theme[name], theme["paper"]) >= 4.5  # WCAG 2.2, 1.4.3
        assert contrast(theme["ink"], theme["tint"]) >= 4.5
        assert contrast(theme["ink"], theme["warn-tint"]) >= 4.5
        assert all(contrast(theme[f"s{i}"], theme["paper"]) >= 3 for i in range(8))  # WCAG 2.2, 1.4.11


def contrast(one, other):
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_places_are_apart_in_order_and_inside():
    assert apart([5.0, 50.0], 9, 100) == [5.0, 50.0]
    assert apart([50.0, 50.0, 50.0], 10, 100) == [40.0, 50.0, 60.0]
    assert apart([0.0, 0.0], 10, 100) == [0.0, 10.0]
    assert apart([99.0, 30.0, 100.0], 10, 100) == [90.0, 30.0, 100.0]
    assert apart([20.0, 29.0, 38.0], 10, 100) == pytest.approx([19.0, 29.0, 39.0])
    assert apart([], 10, 100) == []


def test_limits_hold_their_numbers_and_are_never_empty():
    low, high = padded([3.0, 5.0], least=0.5)
    assert low < 3 < 5 < high
    assert padded([2.0], least=1.0) == (1.5, 2.5)


def test_the_examples_of_the_wording_are_true():
    assert doctest.testmod(wording).failed == 0
