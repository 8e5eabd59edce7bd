"""Scripts in a shell without an active environment, and the commands that they print."""

import ast
import json
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
    """Return a Python without packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture
def checkout(tmp_path):
    """Return a checkout of one script, which ends with status 7."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for name in ("__init__.py", "_venv.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "train.py").write_text(SCRIPT)
    return root


def environment(root, packages=True):
    """Create `root/.venv`, with the packages of this environment."""
    venv.create(root / ".venv", symlinks=True)
    if packages:
        (site,) = (root / ".venv" / "lib").glob("*/site-packages")
        (site / "all.pth").write_text(sysconfig.get_path("purelib"))


def run(python, script, *arguments, cwd):
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    command = [python, script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, timeout=60)


def check_error(result, *parts):
    assert result.returncode == 2 and result.stdout == "", result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert all(part in result.stderr for part in parts), result.stderr


def test_bare_python_restarts_with_the_environment_of_the_checkout(bare, checkout, tmp_path):
    environment(checkout)
    (tmp_path / "link").symlink_to(checkout)
    for script, cwd in (
        ("train.py", checkout),
        (checkout / "train.py", tmp_path),
        ("link/train.py", tmp_path),
    ):
        result = run(bare, script, "a b=c", "--d", cwd=cwd)
        assert result.returncode == 7 and result.stdout == f"{checkout / '.venv'}|a b=c|--d\n", (
            result.stderr
        )


def test_missing_environment_prints_how_to_install(bare, checkout, tmp_path):
    check_error(
        run(bare, "train.py", cwd=checkout),
        "lacks hydra",
        "try `make install`",
        "pip install -e .",
    )
    check_error(
        run(bare, checkout / "train.py", cwd=tmp_path), f"try `make -C '{checkout}' install`"
    )


def test_unusable_environment_is_an_error_and_not_a_loop(bare, checkout):
    environment(checkout, packages=False)
    check_error(
        run(bare, "train.py", cwd=checkout), ".venv lacks hydra", "try `make clean install`"
    )
    (checkout / ".venv" / "pyvenv.cfg").unlink()  # now it is the bare Python
    check_error(run(bare, "train.py", cwd=checkout), "try `make clean install`")
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    check_error(
        run(bare, "train.py", cwd=checkout),
        "cannot be used (No such file",
        "try `make clean install`",
    )
    shutil.rmtree(checkout / ".venv")
    (checkout / ".venv").mkdir()
    check_error(run(bare, "train.py", cwd=checkout), "try `make clean install`")


def test_interrupted_installation_is_detected(bare, checkout):
    environment(checkout)
    (checkout / ".venv" / ".partial").touch()
    for python in (bare, checkout / ".venv" / "bin" / "python"):
        check_error(
            run(python, "train.py", cwd=checkout), "is incomplete", "try `make clean install`"
        )


def test_python_with_packages_runs_the_script_itself(checkout):
    (checkout / ".venv").mkdir()
    result = run(sys.executable, "train.py", cwd=checkout)
    assert result.returncode == 7 and result.stdout == f"{sys.prefix}\n", result.stderr


def test_required_packages_match_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {requirement.partition(">")[0].lower() for requirement in project["dependencies"]}
    distributions = packages_distributions()
    source = (ROOT / "scripts" / "_venv.py").read_text()
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "REQUIRED"
    )
    assert required == {distributions[name][0].lower().replace("_", "-") for name in names}


@pytest.mark.parametrize("file", SCRIPTS)
def test_every_script_imports_its_environment_first(file):
    # An old Python has to parse the script to print the error.
    tree = ast.parse((ROOT / file).read_text(), feature_version=(3, 8))
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    assert first.names[0].name == ("_venv" if file.startswith("scripts") else "scripts._venv")


@pytest.mark.parametrize(
    ("program", "name", "command"),
    [
        ("train.py", "sample", "python sample.py"),
        ("share.py", "sample", "python sample.py"),
        ("scripts/benchmark.py", "sample", "python sample.py"),
        ("{root}/train.py", "sample", "python {root}/sample.py"),
        ("{root}/scripts/benchmark.py", "sample", "python {root}/sample.py"),
        ("{root}/train.py", "prepare", "python {root}/prepare.py"),
        ("notebook.py", "sample", "python sample.py"),
        ("/opt/env/bin/ddpm-train", "sample", "/opt/env/bin/ddpm-sample"),
        ("ddpm-train", "share", "ddpm-share"),
    ],
)
def test_script_command_follows_the_current_command(monkeypatch, program, name, command):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [program.format(root=ROOT)])
    monkeypatch.setattr(shell, "_python", lambda: "python")
    assert shell.script_command(name) == command.format(root=ROOT)


def test_installed_package_names_its_commands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shell, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    monkeypatch.setattr(shutil, "which", str)
    assert shell.script_command("share") == "ddpm-share"
    monkeypatch.setattr(shutil, "which", {}.get)
    assert shell.script_command("share") == f"{os.path.dirname(sys.executable)}/ddpm-share"


def test_archive_as_image_folder_suggests_the_whole_command(tmp_path):
    file = tmp_path / "my images.zip"
    file.touch()
    with pytest.raises(ValueError, match=r"prepare.py '.*/my images.zip' '.*/my images-store'$"):
        image_folder(str(file))


@pytest.mark.nightly
@pytest.mark.parametrize(
    "section", ["step", "options", "profile", "sampling", "guidance", "evaluation"]
)
def test_every_section_of_the_benchmark_runs(section, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
import benchmark
benchmark.VISIT = 0.01
sys.argv = ["benchmark.py", {section!r}, "model.channels=4", "data.batch_size=8"]
benchmark.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "benchmark.json").read_text())[section]["rows"]
