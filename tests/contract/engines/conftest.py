"""The engines that the parity suite runs: each around the same tiny model, with a direct forward pass to hold against.

Real servers take part where there are some: `make test-vllm` starts vLLM, TGI_URL and TGI_MODEL name a TGI.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from services.common.spec.service import ModelSpec
from services.models.loading import LoadedModel, load_causal
from services.policy.config import PolicyConfig
from services.policy.engines.base import Engine
from services.policy.engines.choice import open_engine
from services.policy.engines.openai_engine import OpenaiEngine
from services.policy.engines.remote import JsonServer, RemoteModel
from services.policy.engines.tgi_engine import TgiEngine
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.engines.vllm_engine import VllmEngine
from services.policy.engines.weight_folders import WeightFolders
from tests.fakes.engine_servers import CompletionServer, TgiServer
from tests.fakes.http_server import HttpServer
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_gpt2

CONTEXT = 64
VLLM = Path(__file__).parents[3] / ".venv-peers" / "vllm" / "bin" / "python"
# What a server's log-probs may differ from a direct pass in float32.
BOUND, SERVER_BOUND = 2e-5, 2e-3


@dataclass(frozen=True)
class Subject:
    """An engine, the model to hold it against, its end tokens and the stated bound of its log-probs in nats."""

    engine: Engine
    direct: LoadedModel
    ends: frozenset[int]
    bound: float


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models: special tokens and some letters end a completion, so that some end early."""
    root = tmp_path_factory.mktemp("engine-models")
    made = {
        # A width of head that vLLM's kernels take.
        "llama": make_tiny_causal(root / "llama", context_length=CONTEXT, width=64),
        "gpt2": make_tiny_gpt2(root / "gpt2", context_length=CONTEXT),
    }
    for folder in made.values():
        ends = {"eos_token_id": [*range(7), *range(7, 263, 29)]}
        (folder / "generation_config.json").write_text(json.dumps(ends))
    return made


@pytest.fixture(
    scope="module",
    params=[
        "fused",
        "plain",
        "vllm",
        "tgi",
        "openai",
        pytest.param("real-vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)]),
        pytest.param("real-vllm-in-two", marks=[pytest.mark.vllm, pytest.mark.timeout(600)]),
        "real-tgi",
    ],
)
def subject(
    request: pytest.FixtureRequest,
    online: None,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Subject]:
    """Each engine in turn."""
    kind = str(request.param)
    with ExitStack() as stack:
        yield OPEN[kind](
            stack, folders["gpt2" if kind == "plain" else "llama"], tmp_path_factory.mktemp(kind)
        )


@pytest.fixture(scope="module", autouse=True)
def online() -> Iterator[None]:
    """The suite's hub is offline, and its client takes that for every server, TGI on loopback too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield


def _direct(folder: Path | str) -> LoadedModel:
    return load_causal(ModelSpec(path=str(folder), dtype="float32", threads=1))


def _remote(folder: Path | str) -> RemoteModel:
    return RemoteModel(ModelSpec(path=str(folder), dtype="float32"))


def _in_process(_: ExitStack, folder: Path, _shared: Path) -> Subject:
    loaded = _direct(folder)
    engine = TransformersEngine(loaded, max_rows=4)
    return Subject(engine, _direct(folder), frozenset(_remote(folder).ends), BOUND)


def _vllm(stack: ExitStack, folder: Path, shared: Path) -> Subject:
    model = _remote(folder)
    server = stack.enter_context(HttpServer(CompletionServer(_direct(folder), model.ends)))
    calls = JsonServer("vllm", server.url)
    own = _direct(folder)
    engine = VllmEngine(model, calls, max_rows=4, folders=WeightFolders(shared, own), loaded=own)
    return Subject(engine, _direct(folder), frozenset(model.ends), BOUND)


def _real_vllm(stack: ExitStack, folder: Path, shared: Path, *, parts: int = 1) -> Subject:
    if not VLLM.is_file():
        pytest.skip("vLLM is not installed: make peer-vllm")
    # Its compiled mode takes a minute to start, for a model of a few thousand weights.
    flags = ["--enforce-eager", "--max-model-len", str(CONTEXT), "--max-num-seqs", "8"]
    flags += ["--tensor-parallel-size", str(parts)]
    # One thread each: its threads wait for each other by spinning, which a busy machine does not forgive.
    bound = "|".join(map(str, range(parts)))
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": bound}
    config = PolicyConfig.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32", "threads": 1},
            "engine": {
                "kind": "vllm",
                "command": [str(VLLM), "-m", "vllm.entrypoints.openai.api_server"],
                "flags": flags,
                "weights_folder": str(shared),
            },
            "max_rows": 8,
        }
    )
    engine, _ = open_engine(config)
    stack.callback(engine.close)
    return Subject(engine, _direct(folder), frozenset(_remote(folder).ends), SERVER_BOUND)


def _tgi(stack: ExitStack, folder: Path, _shared: Path) -> Subject:
    model = _remote(folder)
    server = stack.enter_context(HttpServer(TgiServer(_direct(folder), model.ends)))
    return Subject(TgiEngine(model, server.url, max_rows=4), _direct(folder), frozenset(model.ends), BOUND)


def _real_tgi(_stack: ExitStack, _folder: Path, _shared: Path) -> Subject:
    url, path = os.environ.get("TGI_URL"), os.environ.get("TGI_MODEL")
    if not url or not path:
        pytest.skip("TGI_URL and TGI_MODEL (a folder or hub id, the same model in float32) name a real TGI")
    model = _remote(path)
    return Subject(TgiEngine(model, url, max_rows=8), _direct(path), frozenset(model.ends), 10 * SERVER_BOUND)


def _openai(stack: ExitStack, folder: Path, _shared: Path) -> Subject:
    model = _remote(folder)
    server = stack.enter_context(HttpServer(CompletionServer(_direct(folder), model.ends, text_only=True)))
    calls = JsonServer("openai", server.url)
    return Subject(OpenaiEngine(model, calls, max_rows=4), _direct(folder), frozenset(model.ends), BOUND)


OPEN: dict[str, Callable[[ExitStack, Path, Path], Subject]] = {
    "fused": _in_process,
    "plain": _in_process,
    "vllm": _vllm,
    "real-vllm": _real_vllm,
    "real-vllm-in-two": partial(_real_vllm, parts=2),
    "tgi": _tgi,
    "real-tgi": _real_tgi,
    "openai": _openai,
}


def prompt_of(subject: Subject, text: str) -> Any:
    """Ids of a text, [length] int32."""
    import numpy as np

    return np.array(subject.direct.tokenizer(text)["input_ids"], np.int32)
