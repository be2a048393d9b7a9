import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from robustcompress.report.model import Report
from robustcompress.report.page import render_page
from robustcompress.report.table import print_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Outline(HTMLParser):
    """Collects headings, pictures and whether elements nest as they must."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.tags: list[str] = []
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_heading = tag in ("h1", "h2", "h3")

    def handle_endtag(self, tag: str) -> None:
        self._in_heading = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data.strip())


def test_the_page_needs_nothing_but_itself(report: Report) -> None:
    page = render_page(report)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.findall(r"https?://", without_names)
    outline = Outline(page)
    assert "script" not in outline.tags
    assert "link" not in outline.tags
    for _, target in re.findall(r'\b(src|href)="([^"]*)"', page):
        assert target.startswith(("data:", "#"))


def test_everything_is_escaped(report: Report) -> None:
    page = render_page(report)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "look &lt;here&gt;" in page


def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    assert render_page(report) == render_page(report)


def test_ids_are_unique(report: Report) -> None:
    ids = re.findall(r'\sid="([^"]+)"', render_page(report))
    assert len(ids) == len(set(ids))


def test_every_number_stands_with_how_it_was_measured(report: Report) -> None:
    page = render_page(report)
    for row in report.measurements:
        low, high = row.interval
        assert f"{row.correct}" in page
        assert f"{100 * low:.1f}" in page
        assert f"{100 * high:.1f}" in page
        assert row.attack in page
    for word in ("white-box", "transfer", "100,392", "832,333", "90.0%", "T-shirt/top", "ignored by"):
        assert word in page


def test_every_certified_accuracy_stands_with_its_radius_and_interval(report: Report) -> None:
    page = render_page(report)
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for part in report.certified:
        for item in part.accuracies:
            low, high = item.interval
            row = f"{item.accuracy:.1%} {low:.1%} to {high:.1%} {item.correct} / {item.count} 31 slack 0.0001"
            assert row in text
    assert "smoothing 0.25 (under noise) L2 0.5 48.0%" in text
    assert "best Linf 0.05 68.5%" in text
    pictures = re.findall(r'<svg[^>]*aria-label="(Certified[^"]*)"', page)
    assert pictures == [
        "Certified accuracy against the Linf radius. best: 68.5% at radius 0.05, 56.5% at radius 0.1; "
        "interval: 64.5% at radius 0.05, 50.5% at radius 0.1.",
        "Certified accuracy against the L2 radius. smoothing 0.25: 75.5% at radius 0, 63.5% at radius 0.25, "
        "48.0% at radius 0.5.",
    ]


def test_without_certifiers_nothing_is_said_of_certificates(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = report.model_copy(update={"certified": ()})
    print_report(bare)
    assert "ertif" not in render_page(bare).replace("(or certified)", "")
    assert "ertif" not in capsys.readouterr().out


def test_every_picture_has_words_for_it(report: Report) -> None:
    page = render_page(report)
    pictures = re.findall(r"<svg[^>]*>", page)
    assert len(pictures) >= 6
    assert all("aria-label=" in picture for picture in pictures)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) == 3 * len(report.examples)
    assert all("alt=" in image for image in images)


def test_what_was_not_measured_is_said_not_drawn(report: Report) -> None:
    bare = report.model_copy(
        update={"curve": None, "examples": (), "files": (), "histograms": (), "stages": ()}
    )
    page = render_page(bare)
    assert len(re.findall(r"<svg", page)) < len(re.findall(r"<svg", render_page(report)))
    assert "No training stage of this run was judged" in page
    assert "<img" not in page


def test_a_report_survives_json(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.model_dump_json())
    assert Report.read(path) == report
    assert report.network.sparsity == pytest.approx(0.9, abs=1e-4)
    measured = report.measured("model.onnx", "PGD")
    assert measured is not None
    assert measured.correct == 652
    assert report.measured("model.onnx", "Square") is None


def test_the_table_says_subject_attack_access_and_interval(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(report)
    shown = capsys.readouterr().out
    for words in (
        "80.1%",
        "65.2%",
        "62.2% to 68.1%",
        "white-box",
        "transfer",
        "8.3x",
        "certified accuracy on 200 test images",
        "smoothing 0.25",
        "Linf 0.05",
        "L2 0.5",
        "68.5%",
        "warning: look <here>",
    ):
        assert words in shown
    assert "accuracy on 1000 test images, Linf eps 0.1" in shown


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_every_picture(report: Report, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = render_page(report)
    # The page has no script of its own and forbids any; this one measures what the browser laid out.
    assert "Content-Security-Policy" in page
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page)
    probe = (
        "<script>window.onload = () => { const sizes = [...document.querySelectorAll('svg, img')]"
        ".map(e => { const b = e.getBoundingClientRect();"
        " const broken = e.tagName == 'IMG' && !e.naturalWidth ? 'broken' : '';"
        " return Math.round(b.width) + 'x' + Math.round(b.height) + broken; });"
        "document.title = sizes.join(' ') + ' overflow ' +"
        " (document.documentElement.scrollWidth > window.innerWidth); }</script>"
    )
    path = tmp_path / "report.html"
    path.write_text(page.replace("</head>", f"{probe}</head>", 1), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *flags.split(),
            "--window-size=1200,4000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    sizes = title.split(" overflow ")[0].split()
    assert len(sizes) == len(re.findall(r"<svg|<img", page))
    assert not [size for size in sizes if "broken" in size or min(map(int, size.split("x"))) < 20]
    assert title.endswith("overflow false")
