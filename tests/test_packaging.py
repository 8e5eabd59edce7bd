"""The package: one version, metadata, the project page, and the installed wheel."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
import yaml
from conftest import CONFIGS, FAST, ROOT

import ddpm_lab

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RELATIVE_LINK = re.compile(r'\]\((?!https?:|#)[^)]*\)|src="(?!https?:)[^"]*"')
PROGRAMS = (
    "train",
    "sample",
    "evaluate",
    "report",
    "prepare",
    "share",
    "import",
    "export",
    "explore",
)
USER_CODE = """
import torch
import ddpm_lab
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.predictions import Eps
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import cosine
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.networks.mlp import MLP

version: str = ddpm_lab.__version__
denoiser = Denoiser(MLP((2,)), ForwardProcess(cosine()), Eps(), BetaTilde(), shape=(2,))
sampler = DDIM(steps=25)
x_0 = sampler(denoiser, sampler.prior(denoiser.process, torch.randn(16, 2)))
reveal_type(DDIM)
reveal_type(x_0)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Return the wheel of this checkout."""
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason="builds the wheel; `make install` installs it")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


def test_version_is_the_same_everywhere():
    version = ddpm_lab.__version__
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/ddpm_lab/__init__.py"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.*?)\] - ", changes, re.M)[0] == version
    assert f"\n[{version}]: https://" in changes


def test_project_page_has_absolute_links():
    readme = (ROOT / "README.md").read_text()
    relative = RELATIVE_LINK.findall(readme)
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    page = readme
    for rule in hook["substitutions"]:
        page = re.sub(rule["pattern"], rule["replacement"], page)
    assert len(relative) > 10 and RELATIVE_LINK.findall(page) == []
    images = re.findall(r'(?:!\[[^\]]*\]\(|src=")([^)"]*)', page)
    source = "https://raw.githubusercontent.com/ddpm-lab/ddpm-lab/main/"
    assert images and all((ROOT / url.removeprefix(source)).is_file() for url in images)
    for path in re.findall(r"/ddpm-lab/ddpm-lab/blob/main/([^)#]*)", page):
        assert (ROOT / path).exists(), path


def test_readme_lists_every_extra():
    section = (ROOT / "README.md").read_text().partition("## Install\n")[2].partition("\n## ")[0]
    extras = PROJECT["project"]["optional-dependencies"]
    assert {*re.findall(r"^\| `(\w+)` \|", section, re.M)} == {*extras}


def test_wheel_holds_the_whole_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
        (folder,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        programs = archive.read(f"{folder}/entry_points.txt").decode()
    package = ROOT / "src"
    sources = {
        str(file.relative_to(package))
        for file in package.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    configs = {f"ddpm_lab/configs/{file.relative_to(CONFIGS)}" for file in CONFIGS.rglob("*.yaml")}
    assert "ddpm_lab/py.typed" in sources and len(configs) > 100
    assert {name for name in names if ".dist-info/" not in name} == sources | configs
    assert metadata["Version"] == ddpm_lab.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert RELATIVE_LINK.findall(metadata.get_payload()) == []
    assert {*re.findall(r"^ddpm-(\w+) = ", programs, re.M)} == {*PROGRAMS}


@pytest.mark.nightly
def test_installed_wheel_runs_every_program(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    python, work = environment / "bin" / "python", tmp_path / "work"
    work.mkdir()
    (site,) = (environment / "lib").glob("*/site-packages")
    # Packages of this environment, except ddpm-lab: its own .pth is not read from there.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"PATH": f"{environment / 'bin'}:{env['PATH']}", "WANDB_MODE": "offline"}

    def run(*command, status=0):
        process = subprocess.run(
            [*map(str, command)], cwd=work, env=env, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == status, f"{command}\n{process.stdout}{process.stderr}"
        return process.stdout + process.stderr

    install = ("install", "--no-deps", "--no-index", "--disable-pip-version-check", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install)
    code = (
        "import ddpm_lab, importlib.metadata as m; print(ddpm_lab.__file__, m.version('ddpm-lab'))"
    )
    file, version = run(python, "-c", code).split()
    assert file.startswith(str(site)) and version == ddpm_lab.__version__

    output = run("ddpm-train", *FAST, "trainer.max_steps=4", "hydra.run.dir=r")
    assert "next     ddpm-sample run=r" in output
    (environment_of_run,) = json.loads((work / "r" / "run.json").read_text())["environments"]
    assert environment_of_run["ddpm_lab"] == version and environment_of_run["commit"] is None
    run("ddpm-sample", "run=r", "count=2", "sampler.steps=2", "hydra.run.dir=s")
    run("ddpm-evaluate", "run=r", "metrics=[nll]", "nll.count=2", "nll.steps=2", "hydra.run.dir=e")
    assert "next     ddpm-sample run=t" in run("ddpm-share", "r", "t")
    run("ddpm-sample", "run=t", "count=2", "sampler.steps=2", "hydra.run.dir=u")
    for program in PROGRAMS:
        assert run(f"ddpm-{program}", "--help")
    assert "ddpm-train data=store" in run("ddpm-prepare", "--help")
    run("ddpm-share", status=2)

    (work / "user.py").write_text(USER_CODE)
    types = run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "user.py")
    revealed = re.findall(r'Revealed type is "(.*)"', types)
    assert "samplers.DDIM" in revealed[0] and "torch" in revealed[1], types
