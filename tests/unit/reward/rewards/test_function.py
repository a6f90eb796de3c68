"""A user's function in real worker processes: what it may do, and what its misbehaviour costs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from services.common.errors import (
    Corrupted,
    Expired,
    InvalidInput,
    Mismatch,
    Overloaded,
    ServiceError,
    TrimtabError,
)
from services.reward.config import FunctionSpec
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, SourceClosed, TokenIds
from services.reward.rewards.function import FunctionReward
from tests.fakes.processes import is_running, until

MODULE = "tests.fakes.reward_functions"
Opener = Callable[..., FunctionReward]


def row(completion: str, columns: Mapping[str, str] | None = None, prompt: str = "q") -> ScoreRow:
    return ScoreRow(messages=(("user", prompt),), completion=completion, columns=columns or {})


def spec(function: str, **fields: object) -> FunctionSpec:
    name = function if ":" in function or fields.pop("entry_point", False) else f"{MODULE}:{function}"
    return FunctionSpec.model_validate({"name": name, "timeout_seconds": 20, **fields})


@pytest.fixture
def opened() -> Iterator[Opener]:
    sources: list[FunctionReward] = []

    def open_function(function: str, *, max_queued_rows: int = 16384, **fields: object) -> FunctionReward:
        source = FunctionReward(spec(function, **fields), name="mine", max_queued_rows=max_queued_rows)
        sources.append(source)
        return source

    yield open_function
    for source in sources:
        source.close()


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[FunctionReward]:
    source = FunctionReward(spec("misbehaves", timeout_seconds=20), name="bad")
    yield source
    source.close()


def scored(source: FunctionReward, *rows: ScoreRow | str) -> list[ScoreOutcome]:
    whole = [each if isinstance(each, ScoreRow) else row(each) for each in rows]
    return source.submit(whole, Caller()).result(timeout=100)


def values(outcomes: Sequence[ScoreOutcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def error_of(outcome: ScoreOutcome) -> TrimtabError:
    assert outcome.value is None
    assert outcome.error is not None
    return outcome.error


# ------------------------------------------------------------------ what it may do


def test_a_function_scores_in_order(opened: Opener) -> None:
    """Each row has the function's value for it, in the order of the rows, over several batches and processes."""
    source = opened("length", workers=2, batch_rows=3)
    assert values(scored(source, *("x" * size for size in range(20)))) == [float(size) for size in range(20)]
    assert source.kind == "function"
    assert source.describe().input_kind == "text"


def test_a_function_gets_the_keywords_that_it_names(opened: Opener) -> None:
    """prompts and completions are texts; what a function without **kwargs does not name is not handed over."""
    assert values(scored(opened("plain"), row("abc", {"answer": "x"}, prompt="12"))) == [2.3]


def test_columns_are_lists_with_none_where_a_row_lacks_one(opened: Opener) -> None:
    """A column is handed over for all rows of the batch if any row has it."""
    source = opened("uses_columns")
    rows = [row("a", {"answer": "a", "hint": "h"}), row("b", {"answer": "b"}), row("c", {"answer": "x"})]
    assert values(scored(source, *rows)) == [1.5, 1.0, 0.0]


def test_a_column_that_no_row_has_is_named(opened: Opener) -> None:
    """A function's required argument that is no column of the rows is InvalidInput naming it."""
    error = error_of(scored(opened("uses_columns"), "a")[0])
    assert isinstance(error, InvalidInput)
    assert list(error.violations) == ["columns[answer]"]
    assert "needs the column answer" in str(error)


def test_messages_are_there_for_who_asks(opened: Opener) -> None:
    """`messages` holds the conversation before the completion, as role and content."""
    conversation = ScoreRow(messages=(("system", "s"), ("user", "abc")), completion="x")
    assert values(scored(opened("uses_messages"), conversation)) == [203.5]


def test_async_functions_and_objects_are_called(opened: Opener) -> None:
    """A coroutine is awaited, on one loop for all calls; an object with __call__ is a function."""
    source = opened("awaited")
    assert values(scored(source, "a", "b")) == [1.0, 1.0]
    assert values(scored(source, "a")) == [1.0]
    assert values(scored(opened("instance"), "a")) == [2.0]


def test_arrays_are_lists(opened: Opener) -> None:
    """numpy's arrays and scalars are numbers."""
    assert values(scored(opened("numbers"), "a", "bcd")) == [1.0, 3.0]


def test_texts_travel_unchanged(opened: Opener) -> None:
    """Any text arrives as it is: line ends, zero bytes, all of Unicode, half of a surrogate pair, a megabyte."""
    texts = ["\r\n\x00", "\U0001f9ed é", "\ud83e", "x" * 1_000_000]
    assert values(scored(opened("length"), *texts)) == [float(len(text)) for text in texts]


# ------------------------------------------------------------------ what a bad result costs


def test_a_bad_value_is_its_rows_error(opened: Opener) -> None:
    """NaN, infinity, None and a string are errors of their rows; a bool and an integer are numbers."""
    outcomes = scored(opened("mixed"), "good", "nan", "inf", "none", "text", "list", "true", "big")
    assert values(outcomes) == [1.5, None, None, None, None, None, 1.0, 1e30]
    assert isinstance(error_of(outcomes[1]), Corrupted)
    assert isinstance(error_of(outcomes[2]), Corrupted)
    assert [type(error_of(outcome)) for outcome in outcomes[3:6]] == [ServiceError] * 3
    assert "returned None for this row" in str(error_of(outcomes[3]))
    assert "returned a value of type str for this row" in str(error_of(outcomes[4]))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("string", "returned a value of type str, expected a list of 3 numbers"),
        ("none", "returned None, expected a list of 3 numbers"),
        ("short", "returned 2 values for 3 rows"),
        ("long", "returned 4 values for 3 rows"),
        ("dict", "returned a value of type dict"),
        ("number", "returned a value of type float"),
    ],
)
def test_a_result_of_the_wrong_shape_is_every_rows_error(opened: Opener, kind: str, says: str) -> None:
    """What is no list of one number for each row fails the batch, and the next call works."""
    source = opened("shape")
    for outcome in scored(source, kind, "b", "c"):
        assert says in str(error_of(outcome))
    assert values(scored(source, "a")) == [1.0]


def test_raising_fails_the_row_that_it_raises_for(misbehaving: FunctionReward) -> None:
    """A batch whose function raises is tried row by row: neighbours keep their scores, the error is one line."""
    outcomes = scored(misbehaving, "a", "raise", "abc")
    assert values(outcomes) == [1.0, None, 3.0]
    message = str(error_of(outcomes[1]))
    assert message.startswith(
        f"reward function {MODULE}:misbehaves raised ValueError: of two lines (reward_functions"
    )


def test_the_second_try_has_the_time_of_the_first(opened: Opener) -> None:
    """Row by row a batch has what is left of its limit: rows beyond it have errors."""
    source = opened("slow_to_raise", timeout_seconds=1.0)
    outcomes = scored(source, *["a"] * 8)
    errors = [error_of(outcome) for outcome in outcomes if outcome.value is None]
    assert 6 <= len(errors) <= 8
    assert all(isinstance(error, ServiceError) for error in errors)
    assert "no time to try this row alone" in str(errors[-1])
    assert values(scored(source, "a")) == [1.0]


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        ("sys.exit", "raised SystemExit: 3"),
        ("recurse", "raised RecursionError"),
        ("exit", "its process ended with status 3"),
        ("segfault", "its process was ended by SIGSEGV"),
        ("close", "its process ended with status"),
    ],
)
def test_ending_costs_the_rows_and_nothing_else(misbehaving: FunctionReward, deed: str, says: str) -> None:
    """A function that ends its process fails the rows of its call; the next call is scored by another process."""
    outcomes = scored(misbehaving, deed)
    assert says in str(error_of(outcomes[0]))
    assert values(scored(misbehaving, "abc", "a")) == [3.0, 1.0]


@pytest.mark.parametrize("deed", ["sleep", "loop", "hold the interpreter"])
def test_hanging_costs_its_rows_an_error(opened: Opener, deed: str) -> None:
    """A function that does not come back is ended at its limit; its rows are DEADLINE_EXCEEDED, the next call works."""
    source = opened("misbehaves", timeout_seconds=1.0, batch_rows=2)
    outcomes = scored(source, "a", deed, "abc")
    assert values(outcomes) == [None, None, 3.0]
    for outcome in outcomes[:2]:
        error = error_of(outcome)
        assert isinstance(error, Expired)
        assert "took longer than 1 s" in str(error)


def test_a_slow_call_does_not_hold_up_other_processes(opened: Opener, tmp_path: Path) -> None:
    """With two processes one call takes its time while others are scored."""
    source = opened("misbehaves", timeout_seconds=100.0, workers=2)
    slow = source.submit([row("wait", {"folder": str(tmp_path)})], Caller())
    for _ in range(5):
        assert values(scored(source, "abc")) == [3.0]
    assert not slow.done()
    (tmp_path / "go").touch()
    assert values(slow.result(timeout=60)) == [4.0]


@pytest.mark.parametrize("deed", ["print", "fork", "thread"])
def test_printing_forking_and_threads_harm_nothing(misbehaving: FunctionReward, deed: str) -> None:
    """What a function prints, and the copy of it that a fork makes, never become an answer."""
    assert values(scored(misbehaving, deed, "abc")) == [float(len(deed)), 3.0]
    assert values(scored(misbehaving, "ab")) == [2.0]


def test_token_ids_are_refused_for_their_rows(opened: Opener) -> None:
    """A function reads text: rows of ids have FAILED_PRECONDITION in their place."""
    ids = ScoreRow(messages=(), completion="", ids=TokenIds(prompt=(1,), completion=(2,), fingerprint="f"))
    outcomes = scored(opened("length"), "a", ids, "abc")
    assert values(outcomes) == [1.0, None, 3.0]
    assert isinstance(error_of(outcomes[1]), Mismatch)


# ------------------------------------------------------------------ processes


def test_nothing_that_a_function_started_outlives_its_process(opened: Opener, tmp_path: Path) -> None:
    """Closing ends the worker, its children, and orphans in sessions of their own."""
    source = opened("misbehaves")
    scored(source, row("leave children", {"folder": str(tmp_path)}))
    processes = [int((tmp_path / name).read_text()) for name in ("worker", "child", "orphan")]
    assert all(is_running(process) for process in processes)
    source.close()
    until(lambda: not any(map(is_running, processes)), "the end of the function's processes")


def test_workers_die_with_a_service_that_is_killed(tmp_path: Path) -> None:
    """After SIGKILL of the service nothing of the function is left, whatever it is doing."""
    script = f"""
from services.reward.config import FunctionSpec
from services.reward.rewards.base import Caller, ScoreRow
from services.reward.rewards.function import FunctionReward
source = FunctionReward(FunctionSpec(name="{MODULE}:misbehaves", timeout_seconds=600), name="f")
def row(text): return ScoreRow(messages=(), completion=text, columns={{"folder": {str(tmp_path)!r}}})
source.submit([row("leave children"), row("hold the interpreter")], Caller()).result()
"""
    with subprocess.Popen([sys.executable, "-c", script]) as service:
        until((tmp_path / "worker").exists, "the call")
        service.kill()
    processes = [int((tmp_path / name).read_text()) for name in ("worker", "child", "orphan")]
    until(lambda: not any(map(is_running, processes)), "the end of the function's processes")


def test_a_process_that_died_between_calls_is_replaced(opened: Opener, tmp_path: Path) -> None:
    """A worker that is killed while it is idle costs no row an error."""
    source = opened("misbehaves")
    scored(source, row("leave children", {"folder": str(tmp_path)}))
    worker = int((tmp_path / "worker").read_text())
    subprocess.run(["kill", "-9", str(worker)], check=True)
    until(lambda: not is_running(worker), "the end of the worker")
    slot = source._slots[0].process
    assert slot is not None
    until(lambda: not slot.alive, "its guard's end")
    assert values(scored(source, "abc")) == [3.0]


def write_function(folder: Path, body: str) -> None:
    (folder / "their_rewards.py").write_text(f"def reward(completions, **_):\n    {body}\n")


def test_the_digest_is_of_the_source(opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal sources have equal digests, an edit changes it, and so does another function of the same file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write_function(tmp_path, "return [1.0 for _ in completions]")
    first = opened("their_rewards:reward").digest
    assert opened("their_rewards:reward").digest == first
    write_function(tmp_path, "return [2.0 for _ in completions]")
    assert opened("their_rewards:reward").digest != first
    assert opened("length").digest != opened("plain").digest


def test_an_edited_source_is_never_scored_under_the_old_digest(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is replaced after the file was edited is refused, with what to do, until it is edited back."""
    monkeypatch.syspath_prepend(str(tmp_path))
    body = "import os; return os._exit(1) if completions[0] == 'exit' else [1.0 for _ in completions]"
    write_function(tmp_path, body)
    source = opened("their_rewards:reward")
    write_function(tmp_path, "return [2.0 for _ in completions]")
    assert values(scored(source, "a")) == [1.0]
    scored(source, "exit")
    error = error_of(scored(source, "a")[0])
    assert isinstance(error, Mismatch)
    assert "has changed since it was loaded" in str(error)
    write_function(tmp_path, body)
    assert values(scored(source, "a")) == [1.0]


def test_entry_points_are_found(opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a colon is an entry point of group trimtab.rewards; its version is part of the digest."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write_function(tmp_path, "return [4.0 for _ in completions]")
    digests = []
    for version in ("1.0", "1.1"):
        about = tmp_path / "theirs.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: theirs\nVersion: {version}\n")
        (about / "entry_points.txt").write_text("[trimtab.rewards]\nfour = their_rewards:reward\n")
        source = opened("four", entry_point=True)
        assert values(scored(source, "a")) == [4.0]
        digests.append(source.digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:reward", "ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{MODULE}:nothing", f"module {MODULE} has no nothing"),
        (f"{MODULE}:not_a_function", "is a int, not a function"),
        ("their_rewards:reward", "RuntimeError: no licence (their_rewards.py:1)"),
    ],
)
def test_an_import_that_fails_is_a_clear_error_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    """What cannot be imported is InvalidInput naming function and reason, in one line."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_rewards.py").write_text("raise RuntimeError('no licence')\n")
    with pytest.raises(InvalidInput) as caught:
        FunctionReward(spec(name), name="mine")
    assert f"reward function {name} cannot be imported" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_entry_point_is_told_with_what_there_is() -> None:
    """A name that is no entry point says how functions may be written."""
    with pytest.raises(InvalidInput, match=r"no entry point nowhere of group trimtab\.rewards"):
        FunctionReward(FunctionSpec(name="nowhere"), name="mine")


def test_importing_happens_in_the_worker_alone(opened: Opener) -> None:
    """The service's process never imports the user's module."""
    opened("length")
    assert MODULE not in sys.modules


# ------------------------------------------------------------------ the queue


def test_a_full_queue_is_overloaded_and_room_comes_back(opened: Opener) -> None:
    """Rows beyond the limit are refused whole; a call larger than the limit is taken when there is no other."""
    source = opened("misbehaves", timeout_seconds=1.0, batch_rows=2, max_queued_rows=5)
    assert values(scored(source, *["ab"] * 9)) == [2.0] * 9
    waiting = source.submit([row("sleep"), row("a"), row("b"), row("c")], Caller())
    with pytest.raises(Overloaded, match="4 rows wait for mine, the limit is 5"):
        source.submit([row("a"), row("b")], Caller())
    assert values(waiting.result(timeout=60)) == [None, None, 1.0, 1.0]
    assert values(scored(source, *["ab"] * 5)) == [2.0] * 5


def test_what_has_not_begun_is_dropped_when_the_caller_leaves(opened: Opener, tmp_path: Path) -> None:
    """Cancelling frees the places of batches that wait; the one that is being scored ends by itself."""
    source = opened("misbehaves", timeout_seconds=100.0, batch_rows=1, max_queued_rows=3)
    call = source.submit([row("wait", {"folder": str(tmp_path)}), row("a"), row("b")], Caller())
    assert call.cancel()
    until(lambda: source._pool._rows <= 1, "the end of what waits")
    (tmp_path / "go").touch()
    assert values(scored(source, "ab")) == [2.0]


def test_an_expired_call_is_not_begun(opened: Opener) -> None:
    """A call whose deadline has passed ends with Expired and runs nothing."""
    source = opened("length")
    with pytest.raises(Expired):
        source.submit([row("a")], Caller(deadline=time.monotonic() - 1)).result(timeout=60)


def test_closing_finishes_what_was_submitted(opened: Opener) -> None:
    """close() waits for what is in the queue; afterwards a call is told that the source is gone."""
    source = opened("length", batch_rows=1)
    futures = [source.submit([row("x" * size)], Caller()) for size in range(10)]
    closing = threading.Thread(target=source.close)
    closing.start()
    assert [values(future.result(timeout=60)) for future in futures] == [[float(size)] for size in range(10)]
    closing.join(timeout=60)
    with pytest.raises(SourceClosed):
        source.submit([row("a")], Caller())
