"""`.. commands::` says of every command what its `--help` says, read off its parser."""

import argparse

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ferrum_numba.cli.app import parser


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command."""
    (found,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def called(action: argparse.Action) -> str:
    """Return how an argument is written."""
    value = action.metavar or action.dest.upper()
    value = value if isinstance(value, str) else " ".join(value)
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return value
    value = "" if action.nargs == 0 else f"[{value}]" if action.nargs == "?" else value
    return f"{', '.join(action.option_strings)} {value}".rstrip()


def described(command: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Return every argument of a command, and what it is for."""
    form = command._get_formatter()
    return [
        (called(action), form._expand_help(action) if action.help else "")
        for action in command._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]


class Commands(SphinxDirective):
    """A section a command."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return [self.section(name, command) for name, command in commands().items()]

    def section(self, name: str, command: argparse.ArgumentParser) -> nodes.section:
        """Return a command's purpose, how it is called, and its arguments."""
        section = nodes.section(ids=[name])
        section += nodes.title("", "", nodes.literal("", name))
        section += nodes.paragraph("", f"{command.description}.")
        usage = command.format_usage().removeprefix("usage: ")
        section += nodes.literal_block(usage, usage, language="none")
        items = [
            nodes.definition_list_item(
                "",
                nodes.term("", "", nodes.literal("", argument)),
                nodes.definition("", nodes.paragraph("", text)),
            )
            for argument, text in described(command)
        ]
        section += nodes.definition_list("", *items, classes=["names"])
        self.state.document.note_implicit_target(section)
        return section


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("commands", Commands)
