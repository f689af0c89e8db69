"""``arraychest completion``: what makes a shell complete commands and options."""

from __future__ import annotations

import argparse
import itertools
import shlex
from typing import Any

import arraychest
from arraychest.cli.errors import CommandError
from arraychest.cli.guide import guide_names
from arraychest.cli.printing import key_text

# Commands whose arguments behind the chest are keys.
_KEYED = ("get", "info", "rm", "cp", "mv", "ls")

# More keys than these nobody looks through.
_MOST_KEYS = 1000

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
        case ${{COMP_WORDS[1]}} in
            guide) words={guides} ;;
            {keyed})
                if [ "$COMP_CWORD" -ge 3 ] && [ -z "$words" ]; then
                    local key
                    COMPREPLY=()
                    while IFS= read -r key; do
                        [[ $key == "$current"* ]] && COMPREPLY+=("$(printf %q "$key")")
                    done < <(arraychest completion --keys "${{COMP_WORDS[2]}}" 2>/dev/null)
                    return
                fi ;;
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
        help="print a completion script for a shell",
        description="Prints a script for a shell, which completes commands, options and paths.",
        epilog="Examples:\n"
        '  eval "$(arraychest completion bash)"                                    # ~/.bashrc\n'
        '  eval "$(arraychest completion zsh)"                                     # ~/.zshrc\n'
        "  arraychest completion fish > ~/.config/fish/completions/arraychest.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", nargs="?", choices=("bash", "zsh", "fish"))
    completion.add_argument("--keys", metavar="PATH", help="print the keys of a chest, a line each")
    completion.set_defaults(run=lambda arguments: _complete(arguments, commands))


def _complete(arguments: argparse.Namespace, commands: Any) -> int:
    if arguments.keys is not None:
        with arraychest.open(arguments.keys, "r") as chest:
            for key in itertools.islice(chest, _MOST_KEYS):
                print(key_text(key))
        return 0
    if arguments.shell is None:
        raise CommandError("expected bash, zsh or fish, or --keys PATH, found none")
    return _print(arguments.shell, commands)


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
        keys = "(arraychest completion --keys (commandline -opc)[3] 2>/dev/null)"
        print(_fish("-n", f"__fish_seen_subcommand_from {' '.join(_KEYED)}", "-a", keys))
        print(_fish("-n __fish_seen_subcommand_from guide -f -a", " ".join(guide_names())))
        return 0
    cases = "\n".join(
        f"            {name}) words={shlex.quote(' '.join(found))} ;;"
        for name, found in options.items()
    )
    bash = _BASH.format(
        commands=shlex.quote(" ".join(told)),
        cases=cases,
        guides=shlex.quote(" ".join(guide_names())),
        keyed="|".join(_KEYED),
    )
    print(bash if shell == "bash" else _ZSH.format(bash=bash), end="")
    return 0


def _fish(fixed: str, *words: str) -> str:
    return f"complete -c arraychest {fixed} {' '.join(map(shlex.quote, words))}"
