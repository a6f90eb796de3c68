"""One-off calls of the CLI to a service, with gRPC's errors turned back into the error tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from services.common.errors import (
    AlreadyExists,
    ConfigError,
    Expired,
    Forbidden,
    InvalidInput,
    Mismatch,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
    TrimtabError,
    Unauthenticated,
    Unavailable,
)
from trimtab.clients.access import Access, AccessOptions, Metadata
from trimtab.clients.channel import make_sync_channel
from trimtab.common.v1 import common_pb2 as common
from trimtab.learner.v1 import learner_pb2 as learner
from trimtab.learner.v1 import learner_pb2_grpc as learner_grpc
from trimtab.policy.v1 import policy_pb2 as policy
from trimtab.policy.v1 import policy_pb2_grpc as policy_grpc
from trimtab.reward.v1 import reward_pb2 as reward
from trimtab.reward.v1 import reward_pb2_grpc as reward_grpc
from trimtab.rollout.v1 import rollout_pb2 as rollout


@dataclass(frozen=True, slots=True)
class Approach:
    """How a service is reached: None of credentials is plaintext; metadata goes along with each call."""

    credentials: grpc.ChannelCredentials | None = None
    server_name: str = ""
    """That its certificate must have; empty: the host of its address."""
    metadata: Metadata = field(default=(), repr=False)

    @classmethod
    def of(cls, address: str, options: AccessOptions, server_name: str = "") -> Approach:
        """As clients reach it, by files and the environment's key. Raises ConfigError where that cannot be."""
        try:
            access = Access(**options)
            access.check_target(address, secure=access.tls.wanted)
            credentials = access.tls.credentials() if access.tls.wanted else None
            return cls(credentials, server_name, access.metadata())
        except OSError as error:
            raise ConfigError(f"{error.filename}: {(error.strerror or 'cannot be read').lower()}") from None
        except ValueError as error:
            raise ConfigError(f"{address}: {error}") from None


PLAIN = Approach()
_CONNECT_SECONDS = 3.0
_ERRORS: Mapping[grpc.StatusCode, type[TrimtabError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: Mismatch,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Expired,
}


def generate(
    address: str,
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float,
    completions: int = 1,
    seed: int = 0,
    timeout_seconds: float = 300,
    by: Approach = PLAIN,
) -> policy.GenerateResponse:
    """Completions of text prompts by a policy service. Raises the error tree."""
    with _sendable():
        request = policy.GenerateRequest(
            prompts=[rollout.Prompt(prompt_id=str(i), text=text) for i, text in enumerate(prompts)],
            sampling=common.SamplingOptions(
                temperature=temperature,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
                seed=seed,
                num_completions=completions,
            ),
        )
    with _connected(address, "policy", by) as channel:
        stub = policy_grpc.PolicyServiceStub(channel)
        return stub.Generate(request, timeout=timeout_seconds, metadata=by.metadata)


def score(
    address: str,
    model: str,
    pairs: list[tuple[str, str]],
    *,
    timeout_seconds: float = 300,
    by: Approach = PLAIN,
) -> list[common.Score]:
    """Scores of (prompt, completion) by a reward service; without a model's name, its only one."""
    with _sendable():
        inputs = [reward.ScoreInput(prompt=prompt, completion=completion) for prompt, completion in pairs]
        wanted = reward.ScoreRequest(model=model, inputs=inputs)
    with _connected(address, "reward", by) as channel:
        stub = reward_grpc.RewardServiceStub(channel)
        wanted.model = model or _only_model(stub, timeout_seconds, by)
        answer = stub.Score(wanted, timeout=timeout_seconds, metadata=by.metadata)
        return list(answer.scores)


def run_status(
    address: str, *, timeout_seconds: float = 5, by: Approach = PLAIN
) -> learner.GetRunStatusResponse:
    """Where a learner stands."""
    with _connected(address, "learner", by) as channel:
        stub = learner_grpc.LearnerServiceStub(channel)
        wanted = learner.GetRunStatusRequest()
        return stub.GetRunStatus(wanted, timeout=timeout_seconds, metadata=by.metadata)


def checkpoint(address: str, *, timeout_seconds: float, by: Approach = PLAIN) -> str:
    """Path of the checkpoint that a learner writes at its next step boundary."""
    with _connected(address, "learner", by) as channel:
        stub = learner_grpc.LearnerServiceStub(channel)
        wanted = learner.CheckpointRequest()
        return str(stub.Checkpoint(wanted, timeout=timeout_seconds, metadata=by.metadata).path)


@contextmanager
def _sendable() -> Iterator[None]:
    """What a message cannot hold, such as bytes that are no UTF-8, is a mistake of who gave it."""
    try:
        yield
    except UnicodeError as error:
        raise InvalidInput(f"a text is no UTF-8: {error}") from None
    except ValueError as error:
        raise InvalidInput(f"a number does not fit: {error}") from None


def _only_model(stub: reward_grpc.RewardServiceStub, timeout_seconds: float, by: Approach) -> str:
    wanted = reward.ListModelsRequest()
    models = stub.ListModels(wanted, timeout=timeout_seconds, metadata=by.metadata).models
    if len(models) != 1:
        names = ", ".join(sorted(model.name for model in models)) or "none"
        raise InvalidInput(f"--model: expected one of the service's models: {names}")
    return models[0].name


@contextmanager
def _connected(address: str, what: str, by: Approach = PLAIN) -> Iterator[grpc.Channel]:
    channel = make_sync_channel(address, credentials=by.credentials, server_name=by.server_name)
    try:
        grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        yield channel
    except grpc.FutureTimeoutError:
        raise Unavailable(f"no {what} service answers at {address}") from None
    except grpc.RpcError as error:
        raise from_rpc_error(error, f"{what} at {address}") from None
    finally:
        channel.close()


def from_rpc_error(error: grpc.RpcError, where: str) -> TrimtabError:
    """The error of the tree that a gRPC error stands for."""
    if not isinstance(error, grpc.Call):
        return ServiceError(f"{where}: {error}")
    code, details = error.code(), " ".join((error.details() or "").split())
    text = f"{where}: {details or code.name}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(text) if "larger than max" in details else Overloaded(text)
    return _ERRORS.get(code, ServiceError)(text)
