"""The pages over HTTP, inside this process: who may what, what is kept, what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy.orm import Session

from services.preference import accounts
from services.preference.accounts import Person, Role
from services.preference.config import WebSpec
from services.preference.domain import Choice, Message
from services.preference.preferences import Preferences
from services.preference.ratings import RatingMethod
from services.preference.store import PreferenceStore
from services.preference.web.app import WebSettings, web_application
from tests.unit.preference.builders import answer, item

ORIGIN = "http://label.test"


class Site:
    """The application, and browsers of people who signed in."""

    def __init__(self, preferences: Preferences, settings: WebSettings) -> None:
        self.preferences = preferences
        self.app = web_application(preferences, settings)

    def stranger(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url=ORIGIN)

    async def link(self, name: str, role: Role = "annotator", campaign: str = "") -> str:
        person = Person(name=name, role=role, campaign=campaign)
        return await self.preferences.change(lambda session: accounts.new_person(session, person, now=0))

    async def signed_in(self, name: str, role: Role = "annotator", campaign: str = "") -> httpx.AsyncClient:
        client = self.stranger()
        answered = await client.post("/api/sign-in", json={"token": await self.link(name, role, campaign)})
        assert answered.status_code == 200
        page = (await client.get("/label")).text
        client.headers["x-csrf-token"] = page.partition('data-csrf="')[2].partition('"')[0]
        return client


@pytest.fixture
async def preferences(tmp_path: Path) -> AsyncIterator[Preferences]:
    opened = Preferences(lambda: PreferenceStore(f"sqlite:///{tmp_path / 'p.db'}"), RatingMethod(samples=20))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def site(preferences: Preferences) -> Site:
    return Site(preferences, WebSettings())


async def units(client: httpx.AsyncClient, limit: int = 5) -> list[dict[str, object]]:
    answered = await client.post("/api/tasks", json={"limit": limit})
    assert answered.status_code == 200, answered.text
    found: list[dict[str, object]] = answered.json()["units"]
    return found


def said(unit: dict[str, object], *ranks: int, revision: int = 1, **more: object) -> dict[str, object]:
    return {"unit": unit["unit"], "kind": unit["kind"], "revision": revision, "ranks": list(ranks), **more}


async def test_strangers_are_led_to_the_door(site: Site) -> None:
    """Without a session pages lead to /join, calls are 401, a wrong link is 401 with a clear line."""
    client = site.stranger()
    for path in ("/", "/label", "/overview", "/browse", "/export"):
        answered = await client.get(path)
        assert (answered.status_code, answered.headers["location"]) == (303, "/join")
    assert (await client.post("/api/tasks", json={"limit": 1})).status_code == 401
    wrong = await client.post("/api/sign-in", json={"token": "tp_wrong"})
    assert wrong.status_code == 401
    assert "not valid" in wrong.json()["error"]["message"]
    assert (await client.get("/join")).status_code == 200
    assert (await client.get("/nothing")).status_code == 404
    assert (await client.get("/healthz")).status_code == 200


async def test_annotators_see_no_overview(site: Site) -> None:
    """An annotator's request for an owner's page is refused; each is led to the page of the role."""
    ann, own = await site.signed_in("ann"), await site.signed_in("own", "owner")
    assert (await ann.get("/")).headers["location"] == "/label"
    assert (await own.get("/")).headers["location"] == "/overview"
    for path in ("/overview", "/browse", "/export"):
        assert (await ann.get(path)).status_code == 403
        assert (await own.get(path)).status_code == 200


async def test_other_sites_cannot_make_requests(site: Site) -> None:
    """Without the page's token, with another origin, or sent by another site's page, a change is refused."""
    ann = await site.signed_in("ann")
    body = {"limit": 1}
    for headers in (
        {"x-csrf-token": ""},
        {"x-csrf-token": "0" * 64},
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
    ):
        assert (await ann.post("/api/tasks", json=body, headers=headers)).status_code == 403
    assert (await ann.post("/api/tasks", json=body, headers={"origin": ORIGIN})).status_code == 200
    form = await ann.post("/api/tasks", content="limit=1", headers={"content-type": "text/plain"})
    assert form.status_code == 415
    token = await site.link("bob")
    stolen = await site.stranger().post(
        "/api/sign-in", json={"token": token}, headers={"origin": "https://evil.example"}
    )
    assert stolen.status_code == 403


async def test_every_answer_has_the_strict_headers(site: Site) -> None:
    """Pages, refusals, files and health carry a policy without inline code; pages are not cached, files are."""
    client = await site.signed_in("ann")
    for path in (
        "/label",
        "/overview",
        "/nothing",
        "/healthz",
        "/static/label.js",
        "/join",
        "/label-worker.js",
    ):
        headers = (await client.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert ("immutable" in headers["cache-control"]) == path.startswith("/static/")
    page = (await client.get("/label")).text
    assert "<script>" not in page
    assert " style=" not in page
    assert " onclick=" not in page


async def test_a_file_of_another_version_is_not_kept(site: Site) -> None:
    """While replicas are replaced a page may name a file as another one has it: under that name no other is given."""
    client = await site.signed_in("ann")
    names = re.findall(r"/static/[\w.-]+\?\w+", (await client.get("/label")).text)
    assert len(names) >= 4
    for name in names:
        there, other = await client.get(name), await client.get(f"{name}0")
        assert (there.status_code, "immutable" in there.headers["cache-control"]) == (200, True)
        assert (other.status_code, other.headers["cache-control"]) == (503, "no-store")


async def test_the_cookie_is_out_of_reach(site: Site, preferences: Preferences) -> None:
    """HttpOnly and Lax; over TLS also Secure, under a name that no subdomain can set."""
    token = await site.link("ann")
    plain = await site.stranger().post("/api/sign-in", json={"token": token})
    secure = (
        await Site(preferences, replace(WebSettings(), https=True))
        .stranger()
        .post("/api/sign-in", json={"token": token})
    )
    assert plain.headers["set-cookie"].startswith("trimtab=")
    assert secure.headers["set-cookie"].startswith("__Host-trimtab=")
    for answered, flag in ((plain, False), (secure, True)):
        cookie = answered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert ("secure" in cookie) is flag
    assert "max-age" in secure.headers["strict-transport-security"]


async def test_labels_are_kept_once_however_often_they_come(site: Site) -> None:
    """Two annotators' answers, one sent three times, another taken back: counts and choices are as said."""
    await site.preferences.upload([item(n) for n in range(3)])
    ann = await site.signed_in("ann")
    one, two, _ = await units(ann)
    sent = said(one, 2, 1, confidence=0.67, comment="why", seconds=3.5)
    for _ in range(3):
        answered = await ann.post("/api/answers", json={"answers": [sent]})
        assert answered.json()["outcomes"][0]["refused"] == ""
    await ann.post("/api/answers", json={"answers": [said(two, 1, 1), said(two, revision=2, withdrawn=True)]})
    [(kept, _)] = [row async for row in site.preferences.comparisons()]
    assert (kept.annotator, kept.choice, kept.confidence, kept.comment, kept.seconds) == (
        *("ann", Choice.SECOND, 0.67, "why"),
        3.5,
    )
    answered = await ann.post("/api/tasks", json={"limit": 5})
    assert answered.json()["progress"]["done"] == 1
    assert two["unit"] in {unit["unit"] for unit in answered.json()["units"]}


async def test_a_page_says_nothing_about_what_made_an_answer(site: Site) -> None:
    """Neither candidate ids nor sources nor gold orders reach the annotator."""
    await site.preferences.upload([item(1, "one", "two", sources=("secret@1", "secret@2"))])
    [unit] = await units(await site.signed_in("ann"))
    assert set(unit) == {"unit", "kind", "prompt", "answers", "until", "revision"}
    assert unit["prompt"] == [{"role": "user", "html": "<p>question 1</p>\n"}]
    shown = [answered["text"] for answered in unit["answers"]]  # type: ignore[index,attr-defined]
    assert sorted(shown) == ["one", "two"]
    assert all(set(answered) == {"html", "text"} for answered in unit["answers"])  # type: ignore[attr-defined]


async def test_a_person_of_one_campaign_gets_no_other(site: Site) -> None:
    """The link's campaign decides, not the request."""
    await site.preferences.upload([item(1, campaign="a"), item(2, campaign="b")])
    ann = await site.signed_in("ann", campaign="b")
    assert len(await units(ann)) == 1


async def test_a_person_of_one_campaign_answers_in_no_other(site: Site) -> None:
    """An answer to another campaign's task is refused as if there were no such task; one's own beside it is kept."""
    await site.preferences.upload([item(1, campaign="a"), item(2, campaign="b")])
    everywhere, ann = await site.signed_in("own", "owner"), await site.signed_in("ann", campaign="b")
    [mine] = await units(ann)
    [other] = await units(everywhere)
    answered = await ann.post("/api/answers", json={"answers": [said(other, 1, 2), said(mine, 1, 2)]})
    refused, kept = answered.json()["outcomes"]
    assert refused["refused"] == f"task {other['unit']} is not known"
    assert (kept["new"], kept["refused"]) == (1, "")
    assert [one.task_id async for one, _ in site.preferences.comparisons()] == [mine["unit"]]


async def test_malformed_calls_are_refused_by_name(site: Site) -> None:
    """Each names its field; a body that is too large is 413."""
    ann = await site.signed_in("ann")
    for body, field in (
        ({"limit": 0}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": 5, "annotator": "bob"}, "annotator"),
    ):
        answered = await ann.post("/api/tasks", json=body)
        assert answered.status_code == 400
        assert field in answered.json()["error"]["violations"]
    answered = await ann.post("/api/answers", json={"answers": [{"unit": "x"}]})
    assert "answers.0.kind" in answered.json()["error"]["violations"]
    broken = await ann.post("/api/answers", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400
    large = await ann.post("/api/answers", json={"answers": [], "x": "y" * (1 << 20)})
    assert large.status_code == 413
    own = await site.signed_in("own", "owner")
    for query in ("page=0", "page=x", "choice=best", "kind=none", "text=" + "x" * 201):
        assert (await own.get(f"/browse?{query}")).status_code == 400


async def test_too_many_requests_are_told_when_to_come_again(preferences: Preferences) -> None:
    """Of one person beyond the rate: 429 with Retry-After; others go on."""
    site = Site(preferences, replace(WebSettings(), web=WebSpec(requests_per_minute=10)))
    ann, bob = await site.signed_in("ann"), await site.signed_in("bob")
    statuses = [(await ann.get("/label")).status_code for _ in range(12)]
    assert statuses[:9] == [200] * 9
    assert statuses[-1] == 429
    assert int((await ann.get("/label")).headers["retry-after"]) >= 1
    assert (await bob.get("/label")).status_code == 200


async def test_nobody_with_a_valid_link_is_kept_out(preferences: Preferences) -> None:
    """Of sign-ins from one address those that fail are limited alone: before and after them a whole team gets in."""
    site = Site(preferences, replace(WebSettings(), web=WebSpec(sign_ins_per_minute=2)))
    for name in ("ann", "bob", "cid"):
        await site.signed_in(name)
    tries = [await site.stranger().post("/api/sign-in", json={"token": "x"}) for _ in range(4)]
    assert [answered.status_code for answered in tries] == [401, 401, 429, 429]
    assert int(tries[-1].headers["retry-after"]) >= 1
    for name in ("dan", "eve", "fay"):
        await site.signed_in(name)


async def test_strangers_hold_up_no_label(site: Site) -> None:
    """While the one thread that writes is busy, an invented cookie and a wrong link are refused all the same; the
    owner's overview and export wait for nobody, either."""
    own = await site.signed_in("own", "owner")
    began, ends = threading.Event(), threading.Event()

    def write(_: Session) -> bool:
        began.set()
        return ends.wait(60)

    writing = asyncio.create_task(site.preferences.change(write))
    await asyncio.to_thread(began.wait, 60)
    stranger = site.stranger()
    stranger.cookies.set("trimtab", "invented")
    try:
        async with asyncio.timeout(30):
            assert (await stranger.get("/label")).status_code == 303
            assert (await stranger.post("/api/sign-in", json={"token": "tp_wrong"})).status_code == 401
            assert (await own.get("/overview")).status_code == 200
            assert (await own.get("/export")).status_code == 200
    finally:
        ends.set()
    assert await writing


async def test_signing_out_and_revoking_end_sessions(site: Site) -> None:
    """After signing out the cookie opens nothing; after a renewal neither, as soon as the short memory is over."""
    ann, bob = await site.signed_in("ann"), await site.signed_in("bob")
    kept = dict(ann.cookies)
    assert (await ann.post("/api/sign-out", json={})).status_code == 204
    again = site.stranger()
    again.cookies.update(kept)
    assert (await again.get("/label")).status_code == 303
    await site.preferences.change(lambda session: accounts.revoke(session, "bob"))
    other = Site(site.preferences, WebSettings()).stranger()  # another replica, which never saw bob
    other.cookies.update(dict(bob.cookies))
    assert (await other.get("/label")).status_code == 303


async def test_the_overview_and_the_browser_show_what_was_said(site: Site) -> None:
    """Counts, ratings by version, annotators; filters by annotator, choice, text, dispute and kind; pages of 25."""
    await site.preferences.upload(
        [
            replace(item(n, f"apple {n}", f"pear {n}", sources=("policy@0", "policy@9")), annotators=2)
            for n in range(30)
        ]
    )
    for name, choice in (("ann", Choice.FIRST), ("bob", Choice.SECOND)):
        tasks = await site.preferences.next_tasks(name, limit=30)
        await site.preferences.record([answer(task, name, choice) for task in tasks])
    own = await site.signed_in("own", "owner")
    page = (await own.get("/overview")).text
    for shown in ("policy@0", "policy@9", "ann", "bob", "<dd>60</dd>", "<dd>0%</dd>", 'class="point"'):
        assert shown in page
    for query, total in (
        ("", 60),
        ("annotator=ann", 30),
        ("choice=second", 30),
        ("text=apple+7", 2),
        ("text=APPLE+7", 2),
        ("text=100%25", 0),
        ("disputed=1", 60),
        ("kind=gold", 0),
        ("campaign=none", 0),
    ):
        found = (await own.get(f"/browse?{query}")).text
        assert f"{total} found" in found, query
    assert "Page 3 of 3" in (await own.get("/browse?page=99")).text


async def test_prompts_are_found_by_any_text(site: Site) -> None:
    """Letters beyond ASCII and quotation marks are found in prompts, as in answers."""
    asked = replace(item(1), prompt=(Message("user", 'Was heißt "größer" 猫?'),))
    await site.preferences.upload([asked, item(2)])
    tasks = await site.preferences.next_tasks("ann", limit=2)
    await site.preferences.record([answer(task, "ann") for task in tasks])
    own = await site.signed_in("own", "owner")
    for text in ("größer", '"größer"', "猫", "Heißt"):
        found = await own.get("/browse", params={"text": text})
        assert "1 found" in found.text, text


async def test_the_export_is_every_comparison_once(site: Site) -> None:
    """`all` has every one, ties and skips too; `preferences` those with a winner, as TRL reads them."""
    await site.preferences.upload([item(n, campaign="c/1") for n in range(4)])
    tasks = await site.preferences.next_tasks("ann", limit=4)
    choices = [Choice.FIRST, Choice.SECOND, Choice.TIE, Choice.SKIP]
    await site.preferences.record([answer(t, "ann", c) for t, c in zip(tasks, choices, strict=True)])
    own = await site.signed_in("own", "owner")
    whole = await own.get("/export?form=all&campaign=c/1")
    assert whole.headers["content-disposition"] == 'attachment; filename="all-c-1.jsonl"'
    rows = [json.loads(line) for line in whole.text.splitlines()]
    assert sorted(row["choice"] for row in rows) == sorted(choice.value for choice in choices)
    assert len({row["task_id"] for row in rows}) == 4
    pairs = [json.loads(line) for line in (await own.get("/export")).text.splitlines()]
    assert len(pairs) == 2
    assert {"prompt", "chosen", "rejected"} <= set(pairs[0])
    assert (await own.get("/export?form=xml")).status_code == 400


async def test_the_margin_is_in_every_exported_preference_or_in_none(site: Site) -> None:
    """One comparison with a margin gives all of its campaign the column, 0 where none was said; others have none."""
    await site.preferences.upload([item(n, campaign="with" if n < 3 else "without") for n in range(5)])
    tasks = await site.preferences.next_tasks("ann", limit=5)
    margins = {"item-1": 2.5}
    await site.preferences.record(
        [replace(answer(task, "ann"), margin=margins.get(task.item.item_id)) for task in tasks]
    )
    own = await site.signed_in("own", "owner")

    async def exported(campaign: str) -> list[dict[str, object]]:
        lines = (await own.get(f"/export?campaign={campaign}")).text.splitlines()
        return [json.loads(line) for line in lines]

    assert sorted(row["margin"] for row in await exported("with")) == [0.0, 0.0, 2.5]  # type: ignore[type-var]
    assert not any("margin" in row for row in await exported("without"))


async def test_the_overview_of_ties_alone(tmp_path: Path) -> None:
    """With ratings weighted by reliability, too, a first answer that is a tie gives a page."""
    method = RatingMethod(kind="crowd", samples=20)
    preferences = Preferences(lambda: PreferenceStore(f"sqlite:///{tmp_path / 'ties.db'}"), method)
    await preferences.open()
    await preferences.upload([item(1, sources=("policy@0", "policy@1"))])
    [task] = await preferences.next_tasks("ann")
    await preferences.record([answer(task, "ann", Choice.TIE)])
    own = await Site(preferences, WebSettings()).signed_in("own", "owner")
    page = await own.get("/overview")
    assert page.status_code == 200
    assert "policy@1" in page.text
    await preferences.close()


async def test_the_overview_without_ratings_says_why(tmp_path: Path) -> None:
    """Without a prior a source that only won has no rating: the rest of the page is there, with that reason."""
    method = RatingMethod(kind="bradley-terry", prior_deviation=math.inf, samples=20)
    preferences = Preferences(lambda: PreferenceStore(f"sqlite:///{tmp_path / 'won.db'}"), method)
    await preferences.open()
    await preferences.upload([item(1, sources=("policy@0", "policy@1"))])
    [task] = await preferences.next_tasks("ann")
    await preferences.record([answer(task, "ann")])
    page = await (await Site(preferences, WebSettings()).signed_in("own", "owner")).get("/overview")
    assert page.status_code == 200
    assert "finite prior_deviation" in page.text.partition('id="ratings-title"')[2].partition("</section>")[0]
    assert ">ann</a>" in page.text
    await preferences.close()


async def test_texts_of_people_and_models_are_escaped_for_owners_too(site: Site) -> None:
    """A hostile annotator's comment, a campaign's name, a source and an answer are text on the owner's pages."""
    hurt = "<script>alert(1)</script>"
    await site.preferences.upload([item(1, hurt, "b", campaign=hurt, sources=(hurt, "x"))])
    [task] = await site.preferences.next_tasks("ann")
    await site.preferences.record([replace(answer(task, "ann"), comment=hurt)])
    own = await site.signed_in("own", "owner")
    for path in ("/overview", "/browse"):
        page = (await own.get(path)).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page
