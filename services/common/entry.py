"""How every service's program begins: parse flags, load the configuration, build, run, exit.

Owns exit codes: 0 drained (or what a service says of work that was cut off), 2 a user's mistake, 1 ours. Heavy things
are imported after the flags are parsed, so that --help is instant.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol, runtime_checkable

import typer

if TYPE_CHECKING:
    from services.common.spec.service import ServiceSpec


@runtime_checkable
class Program(Protocol):
    """What may be built in a service's place: something that serves nobody."""

    def run(self) -> int:
        """Run to its end in the main thread; the exit code."""
        ...


def service_main(name: str, config: str, build: str) -> None:
    """Run the service `name`; `config` and `build` are "module:attribute", imported late.

    `build(config) -> Application` wires the service (see services/common/server.py), or a Program in its place.
    """

    def command(
        config_file: Annotated[
            Path | None, typer.Option("--config", help="TOML file.", metavar="FILE", show_default=False)
        ] = None,
        overrides: Annotated[
            list[str] | None,
            typer.Option("--set", help="One field, for example server.port=50053.", metavar="A.B=C"),
        ] = None,
        variables: Annotated[
            list[str] | None,
            typer.Option(
                "--set-env", help="One field, from a variable of the environment.", metavar="A.B=VARIABLE"
            ),
        ] = None,
    ) -> None:
        _leave(_run(name, config, build, config_file, overrides or [], variables or []))

    command.__doc__ = f"Trimtab's {name} service. Its README says what the configuration holds."
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name=f"trimtab-{name}")(command)
    app()


def _run(
    name: str,
    config: str,
    build: str,
    config_file: Path | None,
    overrides: list[str],
    variables: list[str],
) -> int:
    from services.common.allocator import keep_freed_memory
    from services.common.errors import TrimtabError, UserError

    keep_freed_memory()
    try:
        from services.common.spec.load import load_toml

        spec: ServiceSpec = load_toml(config_file, _attribute(config), overrides, variables)
        return _serve(name, spec, build)
    except TrimtabError as error:
        print(f"trimtab-{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130


def _serve(name: str, spec: ServiceSpec, build: str) -> int:
    import asyncio

    import structlog

    from services.common import telemetry, tracing
    from services.common.access.safety import check_access
    from services.common.errors import TrimtabError
    from services.common.server import run_service

    check_access(spec)
    replica = telemetry.replica_name(spec)
    telemetry.configure_logging(spec.log, name, replica)
    tracing.configure(spec.tracing, name, replica)
    runner = asyncio.Runner()
    try:
        built = _attribute(build)(spec)
        if isinstance(built, Program):
            return built.run()
        # Not closed: that would wait for threads that are inside a model. See _leave.
        return runner.run(run_service(spec, built))
    except TrimtabError:
        raise
    except Exception:
        structlog.get_logger(__name__).exception("the service ended by an error of its own")
        return 1
    finally:
        tracing.close()


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _leave(code: int) -> NoReturn:
    """Exit at once: a thread inside a model cannot be interrupted, and what must be saved is saved."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
