"""``arraychest completion``: what makes a shell complete commands and options."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

_BASH = """\
_arraychest() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
        case $current in
            -*) ;;
            *) words= ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _arraychest arraychest
"""

_ZSH = """\
#compdef arraychest
autoload -U +X bashcompinit && bashcompinit
{bash}"""


def add_commands(commands: Any) -> None:
    """Add the parser to the subparsers of the command line."""
    completion = commands.add_parser(
        "completion",
        help="print what makes a shell complete arraychest's commands",
        description="Prints a script for a shell, which completes commands, options and paths.",
        epilog="Examples:\n"
        '  eval "$(arraychest completion bash)"                                    # ~/.bashrc\n'
        '  eval "$(arraychest completion zsh)"                                     # ~/.zshrc\n'
        "  arraychest completion fish > ~/.config/fish/completions/arraychest.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=lambda arguments: _print(arguments.shell, commands))


def _print(shell: str, commands: Any) -> int:
    told = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    options = {
        name: [each for action in parser._actions for each in action.option_strings]
        for name, parser in commands.choices.items()
    }
    if shell == "fish":
        for name, text in told.items():
            print(_fish("-n __fish_use_subcommand -f -a", name, "-d", text))
            for option in options[name]:
                flag = "-l" if option.startswith("--") else "-s"
                seen = f"__fish_seen_subcommand_from {name}"
                print(_fish("-n", seen, flag, option.lstrip("-")))
        return 0
    cases = "\n".join(
        f"            {name}) words={shlex.quote(' '.join(found))} ;;"
        for name, found in options.items()
    )
    bash = _BASH.format(commands=shlex.quote(" ".join(told)), cases=cases)
    print(bash if shell == "bash" else _ZSH.format(bash=bash), end="")
    return 0


def _fish(fixed: str, *words: str) -> str:
    return f"complete -c arraychest {fixed} {' '.join(map(shlex.quote, words))}"
