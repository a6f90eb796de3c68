"""What watches the reward service, over real loopback gRPC: metrics, request log, traces, padding."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from services.common import tracing
from services.common.server import serving
from services.models.reward_model import load_reward_model
from services.reward.application import RewardApplication
from services.reward.batching import Limits
from services.reward.config import RewardConfig
from services.reward.drift import DriftSpec
from services.reward.request_log import RequestLogSpec
from services.reward.rewards.base import Caller, ScoreRow
from services.reward.rewards.model import ModelReward
from services.reward.rewards.turns import Turns
from services.reward.scoring import RewardModels
from services.reward.shadow import ShadowRunner
from services.reward.watching import Watch
from services.reward.worker import RewardProcessor
from tests.fakes.tiny_models import make_tiny_reward_model
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc
from trimtab.rollout.v1 import rollout_pb2 as rollout

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
METADATA = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"), ("x-request-id", "step-7"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_reward_model(tmp_path_factory.mktemp("watched") / "m", pooling="last", seed=1)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.start(SimpleSpanProcessor(exporter), service="reward", replica="r")
    yield exporter
    tracing.close()


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"trimtab_reward_{name}", labels) or 0.0


def inputs(*answers: str) -> list[wire.ScoreInput]:
    return [wire.ScoreInput(prompt="How are you?", completion=answer) for answer in answers]


async def test_a_call_is_counted_logged_and_traced(
    folder: Path, tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    """One call of four rows, two of them the same and one unreadable: every figure, line and span is there."""
    config = RewardConfig.model_validate(
        {
            "models": [{"name": "watched", "path": str(folder)}],
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
            "request_log": {"path": str(tmp_path / "log.jsonl"), "texts": "keep"},
        }
    )
    async with (
        serving(config, RewardApplication(config)) as endpoints,
        grpc.aio.insecure_channel(endpoints.grpc) as channel,
    ):
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        admin = reward_pb2_grpc.RewardAdminServiceStub(channel)
        request = wire.ScoreRequest(inputs=[*inputs("good", "good", "bad"), wire.ScoreInput()])
        answer = await stub.Score(request, metadata=METADATA, timeout=60)
        [digest] = {score.model_digest for score in answer.scores}
        assert value("rows_total", model="watched", outcome="ok") == 3
        assert value("rows_total", model="watched", outcome="INVALID_ARGUMENT") == 1
        assert value("errors_total", model="watched", cause="invalid_input") == 1
        assert value("duplicate_rows_total", model="watched") == 1
        assert value("batch_rows_sum", model="watched") == 3
        for phase in ("tokenise", "queue", "model", "total"):
            assert value("phase_seconds_count", model="watched", phase=phase) == 1, phase
        assert value("queue_limit_rows", model="watched") == config.max_queued_rows
        assert value("model_info", model="watched", kind="model", digest=digest) == 1
        assert value("padding_tokens_total", model="watched") == 0
        await admin.SwapModel(wire.SwapModelRequest(name="watched", path="rule:length"), timeout=60)
        assert value("swaps_total", model="watched") == 1
        await admin.UnloadModel(wire.UnloadModelRequest(name="watched"), timeout=60)
        assert value("rows_total", model="watched", outcome="ok") == 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == ["good", "good", "bad"]
    assert [line["value"] for line in lines] == [score.value for score in answer.scores[:3]]
    assert {(line["request_id"], line["digest"]) for line in lines} == {("step-7", digest)}
    check_spans(spans)


def check_spans(spans: InMemorySpanExporter) -> None:
    of_trace = [span for span in spans.get_finished_spans() if f"{span.context.trace_id:032x}" == TRACE]
    found: dict[str, Any] = {span.name: span for span in of_trace}
    call = found.pop("trimtab.reward.v1.RewardService/Score")
    assert set(found) == {"tokenise", "queue", "model"}
    for phase in found.values():
        assert phase.parent.span_id == call.context.span_id
        assert call.start_time <= phase.start_time <= phase.end_time <= call.end_time
    # One after the other, to the clock's own step.
    assert found["queue"].start_time - found["tokenise"].end_time > -1_000_000
    assert abs(found["model"].start_time - found["queue"].end_time) < 1_000_000


def test_padding_is_counted_where_rows_are_padded(folder: Path) -> None:
    """A model that is not packed pads to the longest row of its batch, and that many tokens are counted."""
    model = load_reward_model(str(folder), dtype="float32", threads=1, device="cpu", name="padded")
    watch = Watch(DriftSpec(), RequestLogSpec(), limit_rows=10)
    with ThreadPoolExecutor(1) as tokenisers:
        limits = Limits(batch_tokens=10_000, queued_rows=100, queued_tokens=100_000)
        source = ModelReward(
            model, folder, limits=limits, tokenisers=Turns(tokenisers), computes=tokenisers, observer=watch
        )
        watch.opened("padded", source)
        rows = [ScoreRow(messages=(("user", "u"),), completion="x" * length) for length in (5, 20, 12)]
        source.submit(rows, Caller()).result(60)
        source.close()
    assert not model.packed
    assert value("padding_tokens_total", model="padded") == 15 + 0 + 8
    watch.closed("padded")


def test_the_stage_is_watched_too() -> None:
    """Completions that come by the queue count like those of calls."""
    config = RewardConfig.model_validate({"models": [{"name": "staged", "rule": "length:target=40"}]})
    application = RewardApplication(config)
    models: RewardModels = application._models
    models.add("staged", application._open(config.models[0], "staged"))
    processor = RewardProcessor(
        models,
        ShadowRunner(models),
        model="staged",
        stage="reward/staged",
        replica="r",
        observer=application._watch,
    )
    group = group_of("one", "two")
    [outcome] = processor.process([group], threading.Event())
    assert outcome.kind == "done"
    assert value("rows_total", model="staged", outcome="ok") == 2
    models.remove("staged").close()


def group_of(*answers: str) -> rollout.RolloutGroup:
    group = rollout.RolloutGroup(group_id="g", slip=["reward/staged", "learner"])
    group.prompt.text = "p"
    for answer in answers:
        group.completions.add(text=answer)
    return group
