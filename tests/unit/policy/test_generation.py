"""The one place where the policy's weights change."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import InvalidInput, Mismatch, Unavailable
from services.models.loading import LoadedModel
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy, Update, check_limits
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return loaded_from(folder)


@pytest.fixture
def policy(loaded: LoadedModel) -> Policy:
    return Policy(TransformersEngine(loaded), loaded.tokenizer)


def state_with(policy: Policy, **changes: float) -> dict[str, torch.Tensor]:
    """The served weights as cloned, with a number added to some tensors."""
    names = {"embedding": EMBEDDING, "norm": NORM}
    state = {name: value.clone() for name, value in policy.engine.weights().items()}
    for key, change in changes.items():
        state[names[key]] += change
    return state


def update_to(policy: Policy, state: dict[str, torch.Tensor], *, epoch: int = 1, step: int = 1) -> Update:
    """What a reader would offer: the tensors that differ from what the policy says it has, now."""
    entries = entries_of(state)
    manifest = Manifest(Version(epoch, step, whole_digest(entries)), entries)
    own = policy.entries()
    return Update(manifest, {e.name: state[e.name] for e in entries if own.get(e.name) != e})


def assert_serves(policy: Policy, state: dict[str, torch.Tensor]) -> None:
    """Every byte is the state's, and the version is the digest of what is served."""
    for name, value in policy.engine.weights().items():
        assert torch.equal(value, state[name]), name
    assert whole_digest(entries_of(policy.engine.weights())) == policy.version.digest


def test_a_fresh_policy_is_version_zero_of_its_own_bytes(policy: Policy) -> None:
    """Before any learner: epoch 0, step 0 and the digest that a learner of the same weights would publish."""
    assert (policy.version.epoch, policy.version.step) == (0, 0)
    assert_serves(policy, state_with(policy))


def test_offered_weights_are_applied_before_the_next_batch(policy: Policy) -> None:
    """An offer changes nothing by itself; generating does."""
    state, before = state_with(policy, norm=0.5), policy.version
    policy.offer(update_to(policy, state))
    assert policy.version == before
    request = Request(prompt_ids=np.ones(3, np.int32), sampling=Sampling(max_new_tokens=1))
    policy.generate([request], threading.Event())
    assert (policy.version.epoch, policy.version.step) == (1, 1)
    assert_serves(policy, state)


def test_an_offer_over_an_offer_keeps_what_the_first_brought(policy: Policy) -> None:
    """The second update repeats only what differs from the first: together they are the second version."""
    first = state_with(policy, embedding=0.25)
    policy.offer(update_to(policy, first, step=1))
    second = {**first, NORM: first[NORM] + 1}
    update = update_to(policy, second, step=2)
    assert list(update.tensors) == [NORM]
    policy.offer(update)
    policy.apply_offered()
    assert policy.version.step == 2
    assert_serves(policy, second)


def test_what_is_offered_while_weights_are_loaded_builds_on_them(policy: Policy) -> None:
    """A version that goes back to the old bytes, offered in the middle of a swap, is served byte for byte."""
    original, changed = state_with(policy), state_with(policy, norm=1.0)
    load, calls = policy.engine.load_weights, 0

    def load_and_offer(tensors: dict[str, torch.Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            policy.offer(update_to(policy, original, step=2))
        load(tensors)

    policy.engine.load_weights = load_and_offer  # type: ignore[method-assign,assignment]
    policy.offer(update_to(policy, changed, step=1))
    policy.apply_offered()
    policy.apply_offered()
    assert policy.version.step == 2
    assert_serves(policy, original)


def test_a_swap_that_fails_changes_neither_bytes_nor_version(policy: Policy) -> None:
    """After a refused update the policy still is what it was, and says so."""
    before, version, entries = state_with(policy), policy.version, dict(policy.entries())
    update = update_to(policy, state_with(policy, norm=1.0))
    policy.offer(Update(update.manifest, {**update.tensors, NORM: torch.zeros(2)}))
    with pytest.raises(Mismatch):
        policy.apply_offered()
    assert policy.version == version
    assert policy.entries() == entries
    assert_serves(policy, before)


def test_a_swap_that_breaks_off_is_tried_again(policy: Policy) -> None:
    """The update stays offered, one that comes meanwhile is laid over it, and all of both is loaded the next time."""
    original, version = state_with(policy), policy.version
    load, down = policy.engine.load_weights, True

    def load_half(tensors: dict[str, torch.Tensor]) -> None:
        load({NORM: tensors[NORM]} if down else tensors)
        if down:
            policy.offer(update_to(policy, {**original, EMBEDDING: original[EMBEDDING] + 1}, step=2))
            raise Unavailable("away")

    policy.engine.load_weights = load_half  # type: ignore[method-assign,assignment]
    policy.offer(update_to(policy, state_with(policy, norm=1.0, embedding=2.0)))
    with pytest.raises(Unavailable):
        policy.generate([], threading.Event())
    assert policy.version == version
    assert policy.has_offer()
    down = False
    policy.apply_offered()
    assert policy.version.step == 2
    assert_serves(policy, {**original, EMBEDDING: original[EMBEDDING] + 1})


def test_manifests_of_another_model_are_refused(policy: Policy) -> None:
    """A tensor too many, one too few, another shape or dtype: named before a byte is fetched."""
    good = state_with(policy)
    policy.check_manifest(update_to(policy, good).manifest)
    for state, message in (
        ({**good, "zz": torch.ones(1)}, "this model does not have zz"),
        ({name: value for name, value in good.items() if name != NORM}, f"the learner lacks {NORM}"),
        (
            {**good, NORM: torch.ones(3)},
            rf"{NORM}: weights bring float32 \[3\], the model has float32 \[16\]",
        ),
        ({**good, NORM: good[NORM].bfloat16()}, f"{NORM}: weights bring bfloat16"),
    ):
        with pytest.raises(Mismatch, match=message):
            policy.check_manifest(update_to(policy, state).manifest)


def test_waiting_ends_with_the_version(policy: Policy) -> None:
    """await_version returns as soon as another thread offers what is waited for, and it is served then."""
    state = state_with(policy, norm=0.5)
    update = update_to(policy, state, step=3)
    offering = threading.Timer(0.05, policy.offer, [update])
    offering.start()
    assert policy.await_version(Version(1, 3, ""), stopping=threading.Event(), wait_seconds=30)
    offering.join()
    assert policy.version == update.manifest.version
    assert_serves(policy, state)


def test_later_versions_do_as_well(policy: Policy) -> None:
    """Weights of a later step, or of a later epoch's earlier step, are new enough; older ones are not."""
    stopping = threading.Event()
    policy.offer(update_to(policy, state_with(policy, norm=0.5), epoch=2, step=4))
    assert policy.await_version(Version(2, 3, ""), stopping=stopping, wait_seconds=0)
    assert policy.await_version(Version(1, 9, ""), stopping=stopping, wait_seconds=0)
    with pytest.raises(Unavailable, match="epoch 2, step 5 did not arrive"):
        policy.await_version(Version(2, 5, ""), stopping=stopping, wait_seconds=0.01)


def test_waiting_ends_when_the_service_drains(policy: Policy) -> None:
    """With `stopping` set nobody waits on: False, at once."""
    stopping = threading.Event()
    stopping.set()
    started = time.monotonic()
    assert not policy.await_version(Version(9, 9, ""), stopping=stopping, wait_seconds=60)
    assert time.monotonic() - started < 5


def test_a_required_version_is_exactly_that_one(policy: Policy) -> None:
    """By digest where one is given, else by epoch and step; another one is refused, newer ones too."""
    policy.offer(update_to(policy, state_with(policy, norm=0.5), epoch=2, step=4))
    policy.apply_offered()
    policy.require(policy.version)
    policy.require(Version(0, 0, policy.version.digest))
    policy.require(Version(2, 4, ""))
    for other in (Version(2, 4, "0" * 64), Version(2, 3, ""), Version(3, 0, "")):
        with pytest.raises(Mismatch, match="are asked for, those loaded are"):
            policy.require(other)


def test_prompts_are_encoded_and_fingerprints_compared(policy: Policy, loaded: LoadedModel) -> None:
    """Text and messages become the tokenizer's ids; another tokenizer's ids are refused."""
    text = "<|user|>hi<|end|><|assistant|>"
    expected = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert policy.encode(messages=[{"role": "user", "content": "hi"}], text="").tolist() == expected
    assert policy.encode(messages=[], text=text).tolist() == expected
    policy.check_fingerprint("")
    policy.check_fingerprint(policy.facts.tokenizer_fingerprint)
    with pytest.raises(Mismatch, match="the ids are of tokenizer abc, the policy tiny has"):
        policy.check_fingerprint("abc")


def test_limits_of_a_call() -> None:
    """No prompt and too many completions are refused by arithmetic, before anything is made."""
    check_limits(2, 4, most=8)
    with pytest.raises(InvalidInput, match="there is no prompt"):
        check_limits(0, 4, most=8)
    with pytest.raises(InvalidInput, match="8000000000 completions are asked for, at most 8 in one call"):
        check_limits(2, 4_000_000_000, most=8)
