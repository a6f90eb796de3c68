"""The distribution `trimtab` on whatever grpcio and protobuf are installed: `make test-oldest` runs the oldest.

Imports nothing but grpcio, protobuf and pytest, as a trainer's environment would.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from trimtab.common.v1 import common_pb2 as common
from trimtab.learner.v1 import learner_pb2 as learner
from trimtab.learner.v1 import learner_pb2_grpc as learner_grpc
from trimtab.policy.v1 import policy_pb2 as policy
from trimtab.policy.v1 import policy_pb2_grpc as policy_grpc
from trimtab.reference.v1 import reference_pb2 as reference
from trimtab.reference.v1 import reference_pb2_grpc as reference_grpc
from trimtab.reward.v1 import reward_pb2 as reward
from trimtab.reward.v1 import reward_pb2_grpc as reward_grpc
from trimtab.rollout.v1 import rollout_pb2 as rollout


class Everything(
    reward_grpc.RewardServiceServicer,
    reference_grpc.ReferenceServiceServicer,
    policy_grpc.PolicyServiceServicer,
    learner_grpc.LearnerServiceServicer,
):
    """Answers that a test can foretell."""

    def Score(self, request: reward.ScoreRequest, context: grpc.ServicerContext) -> reward.ScoreResponse:
        if request.model == "missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no reward model missing")
        scores = [common.Score(value=float(len(row.completion)), model="length") for row in request.inputs]
        return reward.ScoreResponse(scores=scores)

    def ComputeLogProbs(
        self, request: reference.ComputeLogProbsRequest, context: grpc.ServicerContext
    ) -> reference.ComputeLogProbsResponse:
        result = reference.SequenceLogProbs()
        for sequence in request.sequences:
            result.logprobs.dtype = common.DTYPE_FLOAT32
            result.logprobs.shape.append(sequence.completion_ids.shape[0])
            result.logprobs.data = bytes(4 * sequence.completion_ids.shape[0])
        return reference.ComputeLogProbsResponse(results=[result])

    def Generate(
        self, request: policy.GenerateRequest, context: grpc.ServicerContext
    ) -> policy.GenerateResponse:
        completion = rollout.Completion(text="fine", finish_reason=common.FINISH_REASON_STOP)
        return policy.GenerateResponse(results=[policy.GeneratedCompletions(completions=[completion])])

    def GetRunStatus(
        self, request: learner.GetRunStatusRequest, context: grpc.ServicerContext
    ) -> learner.GetRunStatusResponse:
        return learner.GetRunStatusResponse(step=3, phase=learner.RUN_PHASE_TRAINING)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    everything = Everything()
    reward_grpc.add_RewardServiceServicer_to_server(everything, server)
    reference_grpc.add_ReferenceServiceServicer_to_server(everything, server)
    policy_grpc.add_PolicyServiceServicer_to_server(everything, server)
    learner_grpc.add_LearnerServiceServicer_to_server(everything, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_importing_warns_of_nothing() -> None:
    """Stubs of the oldest generator import on every supported runtime without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from trimtab import PolicyClient, PreferenceClient, ReferenceClient, RewardClient

        assert all((PolicyClient, PreferenceClient, ReferenceClient, RewardClient))


def test_scores_come_back_in_order(address: str) -> None:
    """The blocking reward client gives one value for each row, in order."""
    from trimtab import RewardClient

    with RewardClient(address) as client:
        assert client.values(["a", "b"], ["one", "three"], model="length") == [3.0, 5.0]


def test_an_error_is_typed(address: str) -> None:
    """A status of the server becomes one exception with code and message."""
    from trimtab import RewardClient, TrimtabClientError

    with RewardClient(address) as client, pytest.raises(TrimtabClientError) as caught:
        client.values(["a"], ["b"], model="missing")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND
    assert "no reward model missing" in str(caught.value)


def test_the_other_clients_speak_too(address: str) -> None:
    """Policy, reference and learner clients make their calls and read the answers."""
    from trimtab import LearnerClient, PolicyClient, ReferenceClient

    with (
        PolicyClient(address) as policies,
        ReferenceClient(address) as references,
        LearnerClient(address) as learners,
    ):
        assert policies.generate(["Hi"])[0].completions[0].text == "fine"
        assert list(references.logprobs([([1, 2], [3, 4])])[0]) == [0.0, 0.0]
        assert learners.status().step == 3


def test_fields_of_a_newer_contract_survive() -> None:
    """A message that is read and written again keeps what this runtime's contract does not know."""
    newer = common.ChatMessage(role="user", content="Hi").SerializeToString() + b"\xfa\x01\x03new"
    again = common.ChatMessage.FromString(newer)
    again.content = "Ho"
    assert b"\xfa\x01\x03new" in again.SerializeToString()
