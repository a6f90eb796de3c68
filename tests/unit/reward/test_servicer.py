"""RewardService as a servicer, called in this process: what a key of some models hears of the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.common.access.gate import Gate, Permit
from services.common.access.identity import Identity
from services.common.access.permit import entered
from services.common.errors import Forbidden, InvalidInput, Mismatch, Overloaded, TrimtabError, Unavailable
from services.reward.answering import Answering, CallLimits
from services.reward.scoring import RewardModels
from services.reward.servicer import RewardServicer
from services.reward.shadow import ShadowRunner
from tests.unit.reward.http.served import Recorder
from trimtab.reward.v1 import reward_pb2 as wire


def servicer(*names: str, source: Recorder | None = None) -> RewardServicer:
    models = RewardModels()
    for name in names:
        models.add(name, source or Recorder())
    return RewardServicer(
        models, Answering(models, ShadowRunner(models), CallLimits(rows=8, characters=1000))
    )


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    identity = Identity(name="trainer", scopes=frozenset({"score"}), models=frozenset({"a", "b"}))
    with entered(Permit(identity, "score", Gate())):
        yield


class Context:
    """A call without a deadline."""

    def time_remaining(self) -> None:
        return None


async def score(asked: RewardServicer, model: str, fingerprint: str = "") -> wire.ScoreResponse:
    request = wire.ScoreRequest(
        model=model, inputs=[wire.ScoreInput(completion="x")], tokenizer_fingerprint=fingerprint
    )
    return await asked.Score(request, Context())


@pytest.mark.parametrize("model", ["secret", "nothing"])
async def test_another_model_is_refused_whether_there_is_one_or_not(model: str) -> None:
    """Forbidden in the same words, so that nobody can tell by trying which names there are."""
    with pytest.raises(Forbidden) as refused:
        await score(servicer("a", "secret"), model)
    assert str(refused.value).replace(model, "NAME") == "trainer may not use the model NAME"


@pytest.mark.parametrize(
    ("names", "there"), [(("a", "b", "secret"), "there are a, b"), (("secret",), "none is for you")]
)
async def test_errors_name_the_callers_models_alone(names: tuple[str, ...], there: str) -> None:
    """Who names no model hears of those that the key is for."""
    with pytest.raises(InvalidInput) as refused:
        await score(servicer(*names), "")
    assert str(refused.value) == f"model: expected a name; {there}"


async def test_the_only_model_of_a_key_needs_no_name() -> None:
    """Who may use one of several models means that one."""
    answer = await score(servicer("a", "secret"), "")
    assert [one.model for one in answer.scores] == ["a"]


async def test_the_listing_is_of_the_callers_models() -> None:
    """Those that the key is for, by name."""
    listed = await servicer("b", "a", "secret").ListModels(wire.ListModelsRequest(), None)
    assert [one.name for one in listed.models] == ["a", "b"]


@pytest.mark.parametrize("refusal", [Overloaded("the queue is full"), Unavailable("gone")])
async def test_a_refused_call_costs_no_quota(refusal: TrimtabError) -> None:
    """A call that no model has worked on, or that names another tokenizer, takes none of the key's rows."""
    identity = Identity(name="trainer", scopes=frozenset({"score"}), rows_per_minute=1)
    with entered(Permit(identity, "score", Gate())):
        for _ in range(3):
            with pytest.raises(type(refusal), match=str(refusal)):
                await score(servicer("a", source=Recorder(refuses=refusal)), "a")
            with pytest.raises(Mismatch):
                await score(servicer("a"), "a", "another")
        await score(servicer("a"), "a")
        with pytest.raises(Overloaded, match="may have 1 rows a minute"):
            await score(servicer("a"), "a")
