"""Write docs/cli.md from the commands themselves.

    python tools/write_cli_reference.py

A test compares the page with the commands, so that neither goes out of date.
"""

import re
import sys
from pathlib import Path
from typing import Any

import typer

from robustcompress.cli.main import app

HEAD = """# Command line

`robustcompress COMMAND --help` shows the same in a terminal; `robustcompress --version` shows the version and
`robustcompress --install-completion` teaches the shell to complete. Results go to stdout, everything else to
stderr. `--json` makes stdout one JSON value, the library's errors included:
`{"error": {"kind": ..., "message": ...}}`. A command that cannot be parsed leaves it empty.

"""

TAIL = """## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected |
| 2 | a setting is wrong, unknown, or contradicts another |
| 3 | images or labels are missing or not what they must be |
| 4 | the network cannot be used as asked |
| 5 | training diverged (the last good state is kept), or memory does not suffice |
| 6 | a file or folder cannot be read, written or trusted |
| 7 | an exported file is not the network |
| 8 | another process works in the run's folder |
| 9 | an optional package is not installed |
| 10 | another process of the run ended or stopped answering |
| 130 | stopped by Ctrl-C or SIGTERM; `--resume` goes on |
"""


def page() -> str:
    """Return the page."""
    group: Any = typer.main.get_command(app)
    return HEAD + "".join(section(name, command) for name, command in group.commands.items()) + TAIL


def section(name: str, command: Any) -> str:
    """Return one command: what it does, examples, options."""
    text = command.help
    what = re.split(r"\n\s*Examples?:", text)[0].strip()
    examples = re.findall(r"^\s+(robustcompress .*(?:\n\s+--.*)*)", text, re.MULTILINE)
    lines = [f"## robustcompress {name}", "", re.sub(r"\n[ ]+", "\n", what), "", "```sh"]
    lines += [re.sub(r"\n\s+", " \\\n    ", example.rstrip()) for example in examples]
    lines += ["```", "", "| option | meaning |", "|---|---|"]
    for option in command.params:
        named = option.opts if option.param_type_name == "option" else [option.name.upper()]
        shown = ", ".join(f"`{part}`" for part in named)
        needed = " Required." if option.required else ""
        lines.append(f"| {shown} | {(option.help or '').replace('|', '/')}{needed} |")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """Write the page."""
    Path(__file__).parents[1].joinpath("docs", "cli.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
