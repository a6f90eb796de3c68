"""The command line: which commands and flags there are. Each imports what it needs when it runs.

So `trimtab --help` imports typer alone, and a mistyped flag is told before torch or gRPC is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import (
    certs_cli,
    cluster_cli,
    jobs_cli,
    planning_cli,
    queue_cli,
    tasks_cli,
    trl_cli,
)
from orchestrator.local.options import Format, RunOptions

if TYPE_CHECKING:
    from orchestrator.calls import Approach

app = typer.Typer(
    help="RLHF as independent gRPC services: train from human feedback, here or on Kubernetes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
planning_cli.register(app)
jobs_cli.register(app)
tasks_cli.register(app)
trl_cli.register(app)
cluster_cli.register(app)
certs_cli.register(app)
queue_cli.register(app)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run's spec.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="The run's folder.", show_default="runs/<name>")]
RunFolder = Annotated[
    Path | None,
    typer.Option("--out", help="The run's folder.", show_default="the one that runs, else the latest"),
]
Seed = Annotated[int | None, typer.Option(help="Random seed.", show_default="the spec's")]
Model = Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file.", show_default="the spec's")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps.", show_default="the spec's")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="One field of the spec.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in a used folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty a used run's folder first.")]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
OnCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="RUN",
        help="A TrainingRun instead.",
        show_default=False,
    ),
]
ClusterNamespace = Annotated[
    str | None, typer.Option("--namespace", help="Of --cluster's run.", show_default="the context's")
]
Tls = Annotated[
    bool, typer.Option("--tls", help="Services speak mTLS, with certificates in the run's folder.")
]
Address = Annotated[str, typer.Option(help="host:port of the service.", show_default=False)]
KeyFile = Annotated[
    Path | None, typer.Option(help="File with an API key; else $TRIMTAB_KEY.", show_default=False)
]
CaFile = Annotated[
    Path | None, typer.Option(help="Authorities to trust, PEM; turns TLS on.", show_default=False)
]
CertificateFile = Annotated[
    Path | None, typer.Option(help="Our own certificate, where one is asked for.", show_default=False)
]
PrivateKeyFile = Annotated[Path | None, typer.Option(help="Its key.", show_default=False)]
ServerName = Annotated[
    str, typer.Option(help="Name that its certificate must have.", show_default="the host of --address")
]


@app.command()
def demo(
    seed: Seed = 1,
    out: Out = Path("runs/demo"),
    model: Model = None,
    steps: Steps = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """All three steps of RLHF on a 135M-parameter model, on this machine, in minutes."""
    from orchestrator.demo.drive import run_demo

    options = RunOptions(
        seed=seed,
        out=out,
        model=model,
        steps=steps,
        overrides=tuple(overrides or ()),
        resume=resume,
        overwrite=overwrite,
    )
    raise typer.Exit(run_demo(options))


@app.command()
def train(
    run_file: RunFile,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="All stages in this process, deterministic, for a debugger.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Of the learner: one GPU each, the model is shared out.")
    ] = 1,
    tls: Tls = False,
    seed: Seed = None,
    out: Out = None,
    model: Model = None,
    steps: Steps = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train: bring the run's services up, show progress, end when the learner has."""
    options = RunOptions(
        seed=seed,
        out=out,
        model=model,
        steps=steps,
        overrides=tuple(overrides or ()),
        resume=resume,
        overwrite=overwrite,
        tls=tls,
    )
    from orchestrator.local import train as training

    if not in_process:
        raise typer.Exit(training.train(run_file, options, processes=processes))
    if processes > 1:
        raise typer.BadParameter(
            "--in-process is one process: leave one of the two out", param_hint="--processes"
        )
    raise typer.Exit(training.in_process(run_file, options))


@app.command()
def iterate(
    run_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN.TOML", help="A run with [iterate].", show_default="three rounds, 135M model"
        ),
    ] = None,
    seed: Seed = None,
    out: Out = None,
    model: Model = None,
    steps: Steps = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Rounds of RLHF: sample, compare, fit the reward model, reinforce, and again on the new policy."""
    from orchestrator.iterate.drive import RUN_FILE, run_iterate

    options = RunOptions(
        seed=seed,
        out=out,
        model=model,
        steps=steps,
        overrides=tuple(overrides or ()),
        resume=resume,
        overwrite=overwrite,
    )
    raise typer.Exit(run_iterate(run_file or RUN_FILE, options))


@app.command()
def up(
    run_file: RunFile,
    service: Annotated[
        list[str] | None, typer.Option(help="Only this service (again for more).", show_default="the run's")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it running and return when all serves.")
    ] = False,
    tls: Tls = False,
    out: Out = None,
    seed: Seed = None,
    model: Model = None,
    steps: Steps = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a run's queue server and services until Ctrl-C (or `trimtab down`)."""
    options = RunOptions(
        seed=seed,
        out=out,
        model=model,
        steps=steps,
        overrides=tuple(overrides or ()),
        resume=resume,
        overwrite=overwrite,
        tls=tls,
    )
    from orchestrator.local import foreground

    raise typer.Exit(foreground.up(run_file, options, service or [], detached=detach))


@app.command()
def down(out: RunFolder = None) -> None:
    """End a run that is up: its services drain and hand back what they hold."""
    from orchestrator.local.foreground import down as end
    from orchestrator.local.layout import find_run

    layout = find_run(out)
    end(layout)
    typer.echo(f"{layout.root} is down")


@app.command()
def status(
    out: RunFolder = None,
    output: Output = Format.TEXT,
    cluster: OnCluster = None,
    namespace: cluster_cli.Namespace = None,
    kubeconfig: cluster_cli.Kubeconfig = None,
    context: cluster_cli.Context = None,
) -> None:
    """Who runs, where it listens, how the run stands."""
    if cluster is not None:
        cluster_cli.runs(cluster, namespace, output=output, kubeconfig=kubeconfig, context=context)
        return
    cluster_cli.refuse_without_run(namespace=namespace, kubeconfig=kubeconfig, context=context)
    from orchestrator.local.layout import find_run
    from orchestrator.local.show import show_status

    show_status(find_run(out), output)


@app.command()
def replay(
    step: Annotated[int, typer.Argument(min=1, help="Of a run that keeps its rollouts.", show_default=False)],
    out: RunFolder = None,
) -> None:
    """Do a step again from its kept rollouts, and compare every figure with what the run told."""
    import subprocess
    import sys

    from orchestrator.local.layout import find_run

    folder = str(find_run(out).root)
    argv = [sys.executable, "-m", "services.learner.replay", folder, str(step)]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)  # noqa: S603 - our own program


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="A service, or all.", show_default="all")] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Lines to begin with.")] = 50,
    out: RunFolder = None,
    cluster: OnCluster = None,
    namespace: ClusterNamespace = None,
    kubeconfig: cluster_cli.Kubeconfig = None,
    context: cluster_cli.Context = None,
) -> None:
    """What the services logged."""
    service = "" if service == "all" else service
    if cluster is not None:
        at = cluster_cli.At(kubeconfig, context, namespace)
        cluster_cli.logs(cluster, service, lines, follow=follow, at=at)
        return
    cluster_cli.refuse_without_run(namespace=namespace, kubeconfig=kubeconfig, context=context)
    from orchestrator.local.layout import find_run
    from orchestrator.local.show import show_logs

    show_logs(find_run(out), service, lines=lines, follow=follow)


def _approach(
    address: str,
    key_file: Path | None,
    ca_file: Path | None,
    certificate_file: Path | None,
    private_key_file: Path | None,
    server_name: str,
) -> Approach:
    from orchestrator.calls import Approach

    return Approach.of(
        address,
        {
            "key_file": key_file,
            "ca_file": ca_file,
            "certificate_file": certificate_file,
            "private_key_file": private_key_file,
        },
        server_name,
    )


@app.command()
def generate(
    address: Address,
    prompt: Annotated[list[str], typer.Option(help="Text to continue (again for more).", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2**31 - 1)] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    n: Annotated[int, typer.Option("--n", min=1, max=2**31 - 1, help="Completions per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1)] = 0,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    private_key_file: PrivateKeyFile = None,
    server_name: ServerName = "",
    output: Output = Format.TEXT,
) -> None:
    """Ask a policy service for completions."""
    from orchestrator.local.show import show_generated

    show_generated(
        address,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        completions=n,
        seed=seed,
        by=_approach(address, key_file, ca_file, certificate_file, private_key_file, server_name),
        output=output,
    )


@app.command()
def score(
    address: Address,
    completion: Annotated[list[str], typer.Option(help="An answer (again for more).", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What was answered.")] = "",
    model: Annotated[str, typer.Option(help="A reward model or rule.", show_default="the only one")] = "",
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    private_key_file: PrivateKeyFile = None,
    server_name: ServerName = "",
    output: Output = Format.TEXT,
) -> None:
    """Ask a reward service for scores."""
    from orchestrator.local.show import show_scores

    by = _approach(address, key_file, ca_file, certificate_file, private_key_file, server_name)
    show_scores(address, model, prompt, completion, by=by, output=output)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)]) -> None:
    """Write report.html anew from what a run, or rounds of it, left."""
    from orchestrator.demo.report import write_report
    from orchestrator.iterate.report import write_report as write_rounds_report
    from orchestrator.iterate.state import rounds_of
    from orchestrator.local.layout import RunLayout

    folder = RunLayout.existing(run_folder).root
    rounds = rounds_of(folder)
    typer.echo(write_report(folder) if rounds is None else write_rounds_report(folder, rounds))


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
) -> None:
    """Write a run's model (of rounds the last one) as a plain Hugging Face folder with a model card."""
    from orchestrator.export.folder import export as write
    from orchestrator.local.layout import RunLayout

    typer.echo(write(RunLayout.existing(run_folder), out))
