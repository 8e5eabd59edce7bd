"""python import.py SOURCE TARGET [key=value ...]"""

from pathlib import Path

from ddpm_lab.cli.script import run_script
from ddpm_lab.config.overrides import shell_value
from ddpm_lab.interop.conversion import import_weights
from ddpm_lab.interop.importing import FORMATS
from ddpm_lab.utils.errors import escape_control
from ddpm_lab.utils.shell import script_command

HELP = """Import published weights as a run:

    {program} SOURCE TARGET [weights=ema|raw] [attention_order=old|new] [KEY=VALUE ...]

SOURCE is a file or a folder, or the name of a model on the Hugging Face Hub. The formats are:
{formats}.
TARGET is a new directory, which is read like a run:

    {sample} run=TARGET

KEY=VALUE are overrides of train.py, for options that SOURCE does not determine, such as
model.heads=4 or schedule=cosine. Nothing in SOURCE is executed."""


def main() -> None:
    """Import the weights that the arguments name; end with a line for mistakes."""
    program, sample = script_command("import"), script_command("sample")
    run_script(HELP.format(program=program, sample=sample, formats=FORMATS), _import)


def _import(source: str, target: str, *words: str) -> None:
    network = import_weights(source, Path(target), words)
    size = network.parameters / 1e6
    print(f"{escape_control(target)}: {network.format}, {size:.2f} M parameters")
    if network.remark:
        print(f"  {network.remark}")
    place = escape_control(shell_value(target))
    sample = script_command("sample")
    match network.overrides.get("system"):
        case "autoencoder":
            command = f"{script_command('train')} codec=autoencoder codec.run={place}"
        case "classifier":
            command = (
                f"{sample} run=DIR guidance=classifier guidance.classifier.run={place} "
                "guidance.scale=1"
            )
        case _:
            command = f"{sample} run={place}"
    print(f"  next     {command}")
