"""The engine that a configuration names, and whether it can do what is asked of it: said at start."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from services.common.errors import ConfigError
from services.common.telemetry import replica_name
from services.models.loading import load_language_model
from services.policy.config import EngineSpec, PolicyConfig
from services.policy.engines.base import Capability, Engine

# What a rollout must carry for the learner.
_OF_A_STAGE: tuple[Capability, ...] = ("token_ids", "raw_logprobs", "sampled_logprobs")


def open_engine(config: PolicyConfig, opening: ExitStack | None = None) -> tuple[Engine, Any]:
    """The engine and its tokenizer. Raises ConfigError for one that cannot do what the configuration asks.

    opening: gets what has been started, for whoever cannot wait until there is an engine to close.
    """
    engine, tokenizer = _open(config, opening or ExitStack())
    try:
        check_capabilities(engine, needed(config))
    except ConfigError:
        engine.close()
        raise
    return engine, tokenizer


def needed(config: PolicyConfig) -> set[Capability]:
    """What the engine must be able to do: what is named, and what a stage and a learner's weights imply."""
    implied: tuple[Capability, ...] = _OF_A_STAGE if config.queue else ()
    updates: tuple[Capability, ...] = ("weight_updates",) if config.weights else ()
    changed: tuple[Capability, ...] = ("logits_processors",) if config.decoding.table else ()
    return {*config.engine.require, *implied, *updates, *changed}


def check_capabilities(engine: Engine, wanted: set[Capability]) -> None:
    """Raises ConfigError, naming all that is missing."""
    if missing := sorted(wanted - engine.capabilities):
        raise ConfigError(f"engine: {engine.name} cannot do what is asked of it: {', '.join(missing)}")


def _open(config: PolicyConfig, opening: ExitStack) -> tuple[Engine, Any]:
    spec, rows = config.engine, config.max_rows
    if spec.kind == "transformers":
        from services.policy.engines.decoding import decoding_of
        from services.policy.engines.transformers_engine import TransformersEngine

        loaded = load_language_model(config.model)
        decoding = decoding_of(loaded, config.decoding, follows=config.weights is not None)
        return TransformersEngine(loaded, max_rows=rows, decoding=decoding), loaded.tokenizer
    from services.policy.engines.remote import RemoteModel

    model = RemoteModel(config.model)
    if model.facts.architecture != "causal":
        raise ConfigError(
            f"engine.kind = {spec.kind}: {config.model.path} is an encoder-decoder; engine.kind = transformers runs it"
        )
    if spec.kind == "vllm":
        return _vllm(config, model, opening), model.tokenizer
    if spec.kind == "tgi":
        from services.policy.engines.tgi_engine import TgiEngine

        seconds = spec.timeout_seconds
        engine = TgiEngine(model, spec.url, max_rows=rows, api_key=_key(spec), timeout_seconds=seconds)
        return engine, model.tokenizer
    from services.policy.engines.openai_engine import OpenaiEngine

    server = _server(spec, spec.url)
    return OpenaiEngine(model, server, max_rows=rows, served=spec.served_model), model.tokenizer


def _vllm(config: PolicyConfig, model: Any, opening: ExitStack) -> Engine:
    from services.models.loading import load_causal
    from services.policy.engines.vllm_engine import VllmEngine
    from services.policy.engines.weight_folders import WeightFolders

    spec = config.engine
    loaded = load_causal(config.model) if spec.weights_folder else None
    # Several replicas, each with a server beside it, may share the folder.
    name = f"weights-{quote(replica_name(config), safe='')}"
    folders = WeightFolders(Path(spec.weights_folder), loaded, name) if loaded else None
    try:
        process = _started(spec, model, folders, loaded, opening) if spec.command else None
        server = _server(spec, process.url if process else spec.url)
        opening.callback(server.close)
        return VllmEngine(
            model, server, max_rows=config.max_rows, folders=folders, loaded=loaded, process=process
        )
    except BaseException:
        opening.close()
        raise


def _started(spec: EngineSpec, model: Any, folders: Any, loaded: Any, opening: ExitStack) -> Any:
    """The server, on the weights as a reload will bring them; it answers."""
    from services.policy.engines.vllm_engine import weights_of
    from services.policy.engines.vllm_server import VllmServer

    if folders is not None:
        opening.callback(folders.drop)
    folder = str(folders.write(weights_of(loaded))) if folders else model.folder
    process = VllmServer(spec.command, folder, dtype=model.dtype, flags=spec.flags)
    opening.callback(process.end)
    process.until_ready()
    if folders is not None:
        folders.drop()
    return process


def _server(spec: EngineSpec, url: str) -> Any:
    from services.policy.engines.remote import JsonServer

    return JsonServer(spec.kind, url, api_key=_key(spec), timeout_seconds=spec.timeout_seconds)


def _key(spec: EngineSpec) -> str:
    """The server's key; empty: none. Raises ConfigError for a file that cannot be read or says nothing."""
    if not spec.key_file:
        return spec.api_key.get_secret_value()
    try:
        key = Path(spec.key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"engine.key_file: {spec.key_file} cannot be read: {error}") from error
    if not key:
        raise ConfigError(f"engine.key_file: {spec.key_file} is empty")
    return key
