"""Scripts typed in a shell in which no environment is activated, and the commands that they print."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

from ddpm_lab.data.image_folder import image_folder
from ddpm_lab.utils import shell

SCRIPT = (
    "import sys\nimport scripts._venv\nprint(sys.prefix, *sys.argv[1:], sep='|')\nsys.exit(7)\n"
)
SCRIPTS = [
    str(file.relative_to(ROOT)) for file in [*ROOT.glob("*.py"), *ROOT.glob("scripts/[a-z]*.py")]
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python without packages."""
    image_folder = tmp_path_factory.mktemp("bare")
    venv.create(image_folder, symlinks=True)
    return image_folder / "bin" / "python"


@pytest.fixture
def checkout(tmp_path):
    """A checkout of one script, which ends with status 7."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for name in ("__init__.py", "_venv.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "train.py").write_text(SCRIPT)
    return root


def environment(root, packages=True):
    """`root/.venv`, with the packages of this environment."""
    venv.create(root / ".venv", symlinks=True)
    if packages:
        (site,) = (root / ".venv" / "lib").glob("*/site-packages")
        (site / "all.pth").write_text(sysconfig.get_path("purelib"))


def typed(python, script, *overrides, cwd):
    clean = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.run(
        [python, script, *overrides], cwd=cwd, capture_output=True, text=True, env=clean, timeout=60
    )


def refused(done, *parts):
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_python_without_packages_restarts_with_the_checkouts_environment(bare, checkout, tmp_path):
    environment(checkout)
    (tmp_path / "link").symlink_to(checkout)
    for script, cwd in (
        ("train.py", checkout),
        (checkout / "train.py", tmp_path),
        ("link/train.py", tmp_path),
    ):
        done = typed(bare, script, "a b=c", "--d", cwd=cwd)
        assert done.returncode == 7 and done.stdout == f"{checkout / '.venv'}|a b=c|--d\n", (
            done.stderr
        )


def test_without_an_environment_one_line_says_how_to_install(bare, checkout, tmp_path):
    refused(
        typed(bare, "train.py", cwd=checkout),
        "lacks hydra",
        "try `make install`",
        "pip install -e .",
    )
    refused(typed(bare, checkout / "train.py", cwd=tmp_path), f"try `make -C '{checkout}' install`")


def test_an_unusable_environment_is_one_line_and_no_loop(bare, checkout):
    environment(checkout, packages=False)
    refused(typed(bare, "train.py", cwd=checkout), ".venv lacks hydra", "try `make clean install`")
    (checkout / ".venv" / "pyvenv.cfg").unlink()  # it is now the Python that it was made with
    refused(typed(bare, "train.py", cwd=checkout), "try `make clean install`")
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    refused(
        typed(bare, "train.py", cwd=checkout),
        "cannot be used (No such file",
        "try `make clean install`",
    )
    shutil.rmtree(checkout / ".venv")
    (checkout / ".venv").mkdir()
    refused(typed(bare, "train.py", cwd=checkout), "try `make clean install`")


def test_an_interrupted_installation_is_noticed(bare, checkout):
    environment(checkout)
    (checkout / ".venv" / ".partial").touch()
    for python in (bare, checkout / ".venv" / "bin" / "python"):
        refused(
            typed(python, "train.py", cwd=checkout), "is incomplete", "try `make clean install`"
        )


def test_python_with_packages_runs_the_script_itself(checkout):
    (checkout / ".venv").mkdir()
    done = typed(sys.executable, "train.py", cwd=checkout)
    assert done.returncode == 7 and done.stdout == f"{sys.prefix}\n", done.stderr


def test_all_requirements_are_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {requirement.partition(">")[0].lower() for requirement in project["dependencies"]}
    found = packages_distributions()
    source = (ROOT / "scripts" / "_venv.py").read_text()
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "REQUIRED"
    )
    assert required == {found[name][0].lower().replace("_", "-") for name in names}


@pytest.mark.parametrize("file", SCRIPTS)
def test_every_script_looks_for_its_environment_first(file):
    tree = ast.parse(
        (ROOT / file).read_text(), feature_version=(3, 8)
    )  # or an old Python could not say what is wrong
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    assert first.names[0].name == ("_venv" if file.startswith("scripts") else "scripts._venv")


@pytest.mark.parametrize(
    ("started", "name", "command"),
    [
        ("train.py", "sample", "python sample.py"),
        ("scripts/share.py", "sample", "python sample.py"),
        ("{root}/train.py", "sample", "python {root}/sample.py"),
        ("{root}/scripts/share.py", "sample", "python {root}/sample.py"),
        ("{root}/train.py", "scripts/prepare_data", "python {root}/scripts/prepare_data.py"),
        ("notebook.py", "sample", "python sample.py"),
        ("/opt/env/bin/ddpm-train", "sample", "/opt/env/bin/ddpm-sample"),
        ("ddpm-train", "scripts/share", "python scripts/share.py"),
    ],
)
def test_commands_are_printed_as_this_one_was_typed(monkeypatch, started, name, command):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [started.format(root=ROOT)])
    monkeypatch.setattr(shell, "_python", lambda: "python")
    assert shell.script_command(name) == command.format(root=ROOT)


def test_an_archive_in_place_of_a_folder_names_the_whole_command(tmp_path):
    file = tmp_path / "my images.zip"
    file.touch()
    with pytest.raises(
        ValueError, match=r"prepare_data.py '.*/my images.zip' '.*/my images-store'$"
    ):
        image_folder(str(file))
