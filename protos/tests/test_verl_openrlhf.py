"""The contracts of verl's and OpenRLHF's reward functions."""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path
from typing import Any

import pytest

from trimtab import openrlhf, verl
from trimtab.clients.errors import TrimtabClientError
from trimtab.clients.reward import RowError
from trimtab.common.v1 import common_pb2 as common

ROW = {"data_source": "gsm8k", "solution_str": "four", "ground_truth": 4}


def test_verl_scores_a_row(fake: Any) -> None:
    """One row as verl hands it over: the prompt is found in extra_info, the rest travels as columns."""
    info = {"question": "2 + 2?", "index": 7, "num_turns": None}
    assert verl.compute_score(**ROW, extra_info=info, target=fake.target, model="hh") == 4.0
    [request] = fake.requests
    [row] = request.inputs
    assert (request.model, row.prompt, row.completion) == ("hh", "2 + 2?", "four")
    assert dict(row.columns) == {"data_source": "gsm8k", "ground_truth": "4", "index": "7"}
    assert info["question"] == "2 + 2?"


def test_verl_is_told_by_the_environment(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRIMTAB_TARGET and TRIMTAB_MODEL name the service; verl's own further arguments are let pass."""
    monkeypatch.setenv("TRIMTAB_TARGET", fake.target)
    monkeypatch.setenv("TRIMTAB_MODEL", "hh")
    info = {"prompt": [{"role": "user", "content": "2 + 2?"}]}
    assert verl.compute_score("gsm8k", "four", None, info, reward_router_address="a:1") == 4.0
    assert fake.requests[0].model == "hh"
    assert fake.requests[0].inputs[0].messages[0].content == "2 + 2?"


@pytest.mark.parametrize("place", ["beside", "options", "environment"])
def test_verl_shows_its_key(fake: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key file counts beside the target, among the options and in the environment, for all three functions."""
    monkeypatch.delenv("TRIMTAB_KEY", raising=False)
    file = tmp_path / "key"
    file.write_text("tt_0123")
    if place == "environment":
        monkeypatch.setenv("TRIMTAB_KEY_FILE", str(file))
    given: dict[str, Any] = {
        "beside": {"key_file": str(file)},
        "options": {"options": {"key_file": str(file)}},
        "environment": {},
    }[place]
    given |= {"target": fake.target, "prompt_key": "", "reward_router_address": "a:1"}
    verl.compute_score(**ROW, **given)
    asyncio.run(verl.compute_score_async(**ROW, **given))
    verl.compute_score_batch(["a"], ["four"], [4], **given)
    assert [told["authorization"] for told in fake.metadata] == ["Bearer tt_0123"] * 3


def test_verl_leaves_out_what_is_no_column(fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An image in extra_info, of which one line speaks; the rest goes along, and the row has its score."""
    info = {"question": "2 + 2?", "index": 3, "image": b"\x89PNG"}
    for _ in range(2):
        verl.compute_score("math", "four", "4", info, target=fake.target)
    assert set(fake.requests[-1].inputs[0].columns) == {"index", "data_source", "ground_truth"}
    assert [record.message for record in caplog.records if "is not sent" in record.message] == [
        "extra_info's image is not sent: a value of type bytes is no JSON"
    ]


def test_verl_turns_tls_on(fake: Any, tmp_path: Path) -> None:
    """With authorities to trust the call goes out over TLS, which a plaintext service does not answer."""
    trustme = pytest.importorskip("trustme")
    authority = tmp_path / "ca.pem"
    authority.write_bytes(trustme.CA().cert_pem.bytes())
    given = {"ca_file": str(authority), "options": {"patience_seconds": 0, "timeout_seconds": 5}}
    with pytest.raises(TrimtabClientError):
        verl.compute_score(**ROW, target=fake.target, prompt_key="", **given)
    assert fake.requests == []


def test_verl_misses_the_prompt(fake: Any) -> None:
    """Without a prompt there is no score, unless the caller says that none is needed."""
    with pytest.raises(ValueError, match="no prompt under prompt or question"):
        verl.compute_score(**ROW, extra_info={}, target=fake.target)
    with pytest.raises(ValueError, match="no prompt under problem"):
        verl.compute_score(**ROW, extra_info={"prompt": "2 + 2?"}, target=fake.target, prompt_key="problem")
    assert verl.compute_score(**ROW, target=fake.target, prompt_key="") == 4.0
    assert verl.compute_score("gsm8k", "", 4, target=fake.target, prompt_key="") == 0.0


def test_verl_scores_a_batch(fake: Any) -> None:
    """verl's batch manager gets one score for each row from one call; details bring the components."""
    got = verl.compute_score_batch(
        data_sources=["a", "b"],
        solution_strs=["one", "three"],
        ground_truths=[None, None],
        extra_infos=[{"prompt": "p"}, {"prompt": "q"}],
        target=fake.target,
        details=True,
    )
    assert got == [{"score": 3.0, "length": 3.0}, {"score": 5.0, "length": 5.0}]
    assert len(fake.requests) == 1


def test_verl_awaits(fake: Any) -> None:
    """The coroutine is known as one, and rows that wait at once share a call."""
    assert inspect.iscoroutinefunction(verl.compute_score_async)

    async def many() -> list[Any]:
        infos = [{"prompt": "p"}] * 30
        return await asyncio.gather(
            *(
                verl.compute_score_async("a", "x" * (n + 1), None, info, target=fake.target)
                for n, info in enumerate(infos)
            )
        )

    assert asyncio.run(many()) == [float(n) for n in range(1, 31)]
    assert len(fake.requests) == 1


def test_verl_gets_no_number_for_an_error(fake: Any) -> None:
    """A row that cannot be scored raises: neither 0 nor None stands for it."""
    with pytest.raises(RowError, match="a bad answer"):
        verl.compute_score("a", "bad", None, {"prompt": "p"}, target=fake.target)


@pytest.mark.parametrize(
    ("query", "prompt", "answer"),
    [
        ("Q: 2 + 2? A: four", "Q: 2 + 2? A:", " four"),
        ("<s>Q: 2 + 2? A: four", "<s>Q: 2 + 2? A:", " four"),
        ("Q: 2 + 2? A: four<|im_end|>", "Q: 2 + 2? A:", " four"),
        ("Q: 2 + 2? A:", "Q: 2 + 2? A:", ""),
    ],
)
def test_openrlhf_query_in_two_parts(query: str, prompt: str, answer: str) -> None:
    """The answer is what follows the prompt, without an end token; what precedes the prompt is of the prompt."""
    assert openrlhf.parted(query, "Q: 2 + 2? A:", ["<|im_end|>", "</s>"]) == (prompt, answer)


def test_openrlhf_query_without_its_prompt() -> None:
    """A query that is not of its prompt is an error: its answer is unknown."""
    with pytest.raises(ValueError, match="does not contain its prompt"):
        openrlhf.parted("something else", "Q: 2 + 2? A:")


def test_openrlhf_rendered_query_whose_prompt_was_cut_is_one_text() -> None:
    """As over HTTP: a model reads rendered text whole, wherever the answer begins. No prompt is a prompt, too."""
    assert openrlhf.parted("2? A: four</s>", "Q: 2 + 2? A:", ["</s>"], rendered=True) == ("", "2? A: four")
    assert openrlhf.parted("four", "", rendered=False) == ("", "four")


@pytest.mark.parametrize("rendered", [True, False])
def test_openrlhf_says_whether_text_is_rendered(fake: Any, rendered: bool) -> None:
    """Text with the policy's chat template around it says so, so that the model puts no second one."""
    openrlhf._scores(["pfour"], ["p"], [None], {"target": fake.target}, rendered=rendered)
    [row] = fake.requests[0].inputs
    assert (row.prompt, row.completion, row.rendered) == ("p", "four", rendered)


def test_openrlhf_logs_what_every_row_has() -> None:
    """A component that a composite skipped for some row is no log of numbers: its absence would read as 0."""
    both, one = common.Score(components={"a": 1.0, "b": 2.0}), common.Score(components={"b": 0.0})
    assert openrlhf._everywhere([both, one]) == ["b"]
    assert openrlhf._everywhere([both, both]) == ["a", "b"]
    assert openrlhf._everywhere([]) == []


def test_openrlhf_error_is_logged(fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    """OpenRLHF swallows what is raised; so the log says it, as an error, before it is raised."""
    settings = {"target": fake.target}
    with pytest.raises(RowError):
        openrlhf._scores(["pbad"], ["p"], [None], settings)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "a bad answer" in record.getMessage()


def test_openrlhf_threads_share_calls(fake: Any) -> None:
    """Rows that many threads ask for one by one all have their own score; the label travels."""
    got: dict[int, float] = {}

    def ask(size: int) -> None:
        [score] = openrlhf._scores(["p" + "x" * size], ["p"], [size], {"target": fake.target})
        got[size] = score.value

    threads = [threading.Thread(target=ask, args=(size,)) for size in range(1, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == {size: float(size) for size in range(1, 33)}
    rows = [row for request in fake.requests for row in request.inputs]
    assert all(row.columns["label"] == str(len(row.completion)) for row in rows)
