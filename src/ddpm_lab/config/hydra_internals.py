"""Private parts of Hydra and argparse; tests/test_hydra_internals.py covers each."""

from argparse import Action

from hydra._internal.utils import get_args_parser


def hydra_flags() -> dict[str, Action]:
    """Return Hydra's own options by name, such as "--multirun".

    Hydra has no public list of its options, and argparse none of those of a parser.
    """
    return get_args_parser()._option_string_actions
