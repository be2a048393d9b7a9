"""``robustcompress``: the commands, and what becomes of errors."""

import json
import sys

import typer

from robustcompress.cli import (
    certifying,
    comparing,
    converting,
    fetching,
    importing,
    inspecting,
    judging,
    labelling,
    running,
    verifying,
)
from robustcompress.errors import RobustCompressError

EXIT_CODES = """
Exit codes: 0 done; 1 unexpected, or a claim refuted; 2 settings; 3 data; 4 network; 5 training diverged;
6 storage; 7 export; 8 run folder in use; 9 optional package missing; 10 another process was lost;
130 stopped, resume with --resume.
"""

app = typer.Typer(
    name="robustcompress",
    help="Compress adversarially robust networks, export them, and attack what was exported."
    "\n\nBegin with: robustcompress prune",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("prune")(running.prune)
app.command("pretrain")(running.pretrain)
app.command("finetune")(running.finetune)
app.command("run")(running.run_recipe)
app.command("export")(judging.export)
app.command("densify")(converting.densify)
app.command("import")(importing.import_)
app.command("state-dict")(importing.state_dict)
app.command("evaluate")(judging.evaluate)
app.command("certify")(certifying.certify)
app.command("verify")(verifying.verify)
app.command("compare")(comparing.compare)
app.command("report")(judging.report)
app.command("pseudo-label")(labelling.pseudo_label)
app.command("fetch")(fetching.fetch)
app.command("inspect")(inspecting.inspect)
app.command("recipes")(inspecting.recipes)


@app.callback(invoke_without_command=True)
def main(
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    """Show the version if asked."""
    if version:
        import robustcompress

        typer.echo(f"robustcompress {robustcompress.__version__}")
        raise typer.Exit


def run() -> None:
    """Entry point: run a command, and turn the library's errors into a message and an exit code."""
    try:
        app()
    except RobustCompressError as error:
        if "--json" in sys.argv:
            failure = {"error": {"kind": type(error).__name__, "message": str(error)}}
            typer.echo(json.dumps(failure))
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.secho("stopped.", fg="red", err=True)
        sys.exit(130)


if __name__ == "__main__":
    run()
