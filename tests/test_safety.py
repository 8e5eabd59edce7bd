"""Untrusted files are rejected before use: attacks with status 5, damage with status 2."""

import importlib.util
import io
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import struct
import sys
import tarfile
import zipfile
from contextlib import chdir

import numpy as np
import pytest
import torch
import wandb
from conftest import CONFIGS, FAST, ROOT, composed, options
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ddpm_lab.callbacks import loggers
from ddpm_lab.cli import prepare
from ddpm_lab.cli.sample_io import read_array
from ddpm_lab.cli.share import share
from ddpm_lab.conditioners.text import _load_pretrained
from ddpm_lab.config.instantiate import original_text
from ddpm_lab.data import huggingface_rows
from ddpm_lab.data.datasets import Images, Splits
from ddpm_lab.data.image_folder import image_folder, read_images
from ddpm_lab.data.image_io import open_image
from ddpm_lab.data.module import Data
from ddpm_lab.data.shards import image_store
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.runs import resume, run_config, saved_config, trusted_paths
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import (
    CorruptFileError,
    EscapingFormatter,
    InterruptedRunError,
    UnsafeFileError,
    UserError,
    escape_control,
)
from ddpm_lab.utils.safe_load import list_checkpoints

SECRET = "hunter2-hunter2"
spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
assert spec is not None and spec.loader is not None
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)


@pytest.fixture(scope="module")
def trained(typed, tmp_path_factory):
    """Return a run of two steps whose configuration refers to a secret."""
    root = tmp_path_factory.mktemp("safety")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_TEST_SECRET", SECRET)
        overrides = [
            word for word in FAST if not word.startswith(("callbacks.fid", "callbacks.sample_grid"))
        ]
        overrides += [
            "trainer.max_steps=2",
            "callbacks.checkpoints.every=1",
            "trainer.val_check_interval=2",
            "~callbacks.fid",
            "~callbacks.sample_grid",
            "+token=${oc.env:DDPM_TEST_SECRET}",
            "+notes.of=${token}",
        ]
        status, out, error = typed("train", *overrides, f"hydra.run.dir={root}/r")
    assert status == 0, error
    (root / "r" / "output").write_text(out + error)
    return root / "r"


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run to modify."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Return a file that exists once `evil_package` is imported."""
    (tmp_path / "evil").mkdir()
    mark = tmp_path / "imported"
    (tmp_path / "evil" / "evil_package.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nclass Net: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "evil"))
    yield mark
    sys.modules.pop("evil_package", None)


@pytest.fixture(autouse=True)
def _timeout():
    """Fail instead of waiting forever."""

    def fail(*_):
        raise TimeoutError("no result within a minute")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def check_rejected(typed, run, expected=5, *overrides):
    """Return the message of sample.py, which must not write any files."""
    before = sorted(map(str, run.rglob("*")))
    status, _, error = typed("sample", f"run={run}", "count=2", *overrides)
    assert status == expected and error.startswith("error: "), error
    assert 1 <= error.count("\n") <= 3, error
    assert "Traceback" not in error and "\x1b" not in error
    assert sorted(map(str, run.rglob("*"))) == before
    return error


def last(run):
    return run / "checkpoints" / "step-000002.ckpt"


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


# Checkpoints


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickle_executes_nothing(legacy, suffix, run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = torch.load(last(run), weights_only=True) | {"extra": Payload(tmp_path / "ran")}
    file = tmp_path / f"a.{suffix}"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CorruptFileError if legacy else UnsafeFileError):
        safe_load.load_checkpoint(file)
    file.write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=0))
    with pytest.raises(CorruptFileError, match="is not a checkpoint"):
        safe_load.load_checkpoint(file)
    assert not (tmp_path / "ran").exists()


def change(run, **parts):
    """Replace `parts` of the newest checkpoint, and return the old content."""
    content = torch.load(last(run), weights_only=True)
    torch.save(content | parts, last(run))
    return content


def test_non_finite_weights_are_rejected(run, typed):
    name, value = next(iter(change(run)["state_dict"].items()))
    change(run, state_dict={name: torch.full_like(value, float("nan"))})
    with pytest.raises(CorruptFileError, match="non-finite"):
        safe_load.load_checkpoint(last(run))


@pytest.mark.parametrize(
    "wrong",
    [
        {"_instantiator": "builtins.open"},
        {"shape": [1, 8.0, 8]},
        {"shape": []},
        {"shape": {"_target_": "os.system"}},
        {"classes": True},
        {"bin_width": float("nan")},
        {"captions": [["a"]]},
        {"captions": [[]] * 10},
        {"captions": "words"},
    ],
)
def test_invalid_data_spec_is_rejected(wrong, run):
    assert {*safe_load.SPEC} == {*DataSpec._fields}
    fields = change(run)["hyper_parameters"]
    change(run, hyper_parameters=fields | wrong)
    with pytest.raises(UnsafeFileError, match="hyper_parameters must be the valid shape, classes"):
        safe_load.load_checkpoint(last(run))


@pytest.mark.parametrize(
    "valid",
    [
        {"classes": None, "captions": None},
        {"classes": None, "captions": []},
        {"shape": [3, 8192, 8192]},
        {"classes": 2, "captions": [["long " * 1000, "b"], ["${x}", "???"]]},
        {"classes": 10**7, "captions": None},
        {"shape": [2], "bin_width": None, "classes": None, "captions": None},
    ],
    ids=lambda valid: str(valid)[:40],
)
def test_valid_data_spec_is_accepted(valid, run):
    fields = change(run)["hyper_parameters"]
    change(run, hyper_parameters=fields | valid)
    assert safe_load.load_checkpoint(last(run))["hyper_parameters"] == fields | valid


def test_checkpoint_of_another_program_is_rejected(run):
    for foreign in ({"model": torch.ones(3)}, [1], nn.Linear(2, 2).state_dict(), torch.ones(2)):
        torch.save(foreign, last(run))
        with pytest.raises(CorruptFileError, match="not a checkpoint of ddpm-lab"):
            safe_load.load_checkpoint(last(run))


@pytest.mark.parametrize("kind", faults.DAMAGE)
def test_damage_is_detected_or_harmless(kind, trained, tmp_path):
    bench = faults.Bench(tmp_path / "bench")
    newest, older = list_checkpoints(trained / "checkpoints")
    config = run_config.load_config(str(trained))
    share(str(trained), tmp_path / "s")
    for _ in range(4):
        assert faults._recovers(bench, newest, older, faults.DAMAGE[kind], config) == ""
        shared = tmp_path / "s" / "weights.safetensors"
        assert faults._noticed(bench, shared, faults.DAMAGE[kind], safe_load.load_checkpoint) == ""


def test_newest_intact_checkpoint_is_read_without_writing(run, typed, tmp_path):
    newest, older = list_checkpoints(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = sorted(map(str, run.rglob("*")))
    status, out, error = typed(
        "sample", f"run={run}", "count=1", "sampler.steps=1", f"hydra.run.dir={tmp_path}/s"
    )
    assert status == 0, error
    assert f"using {older.name} instead" in out and out.count(newest.name) == 1
    share(str(run), tmp_path / "shared")
    assert sorted(map(str, run.rglob("*"))) == before
    older.write_bytes(b"")
    status, _, error = typed("sample", f"run={run}", "count=1")
    assert status == 2 and "none of 2 checkpoints is intact" in error and error.count("\n") == 1


def test_out_of_memory_is_not_reported_as_damage(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match="allocate"):
        safe_load.load_checkpoint(last(run))


def test_sealed_json_has_a_checksum(tmp_path):
    file = tmp_path / "a.json"
    safe_load.write_sealed_json({"fid": 1.5}, file)
    assert safe_load.read_sealed_json(file) == {"fid": 1.5}
    file.write_text(file.read_text().replace("1.5", "1.7"))
    with pytest.raises(CorruptFileError, match="checksum"):
        safe_load.read_sealed_json(file)


def test_checkpoint_must_be_a_regular_file(run, typed, tmp_path):
    shutil.copy(last(run), tmp_path / "elsewhere.ckpt")
    for target in ("/dev/zero", tmp_path / "elsewhere.ckpt"):
        last(run).unlink()
        last(run).symlink_to(target)
        assert f"is a link to {target}" in check_rejected(typed, run)
    last(run).unlink()
    os.mkfifo(last(run))
    assert "not a regular file" in check_rejected(typed, run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(tmp_path)
    assert "is a link to" in check_rejected(typed, run)


def test_links_and_pipes_are_rejected_in_a_run(run, typed, tmp_path):
    (tmp_path / "link").symlink_to(run)
    for name in ("link", "link/"):
        status, _, error = typed("sample", f"run={tmp_path}/{name}")
        assert status == 5 and f"is a link to {run}" in error, error
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    assert "not a regular file" in check_rejected(typed, run)


def remove_secret(config):
    del config["token"], config["notes"]


def test_optimizer_state_must_have_the_shapes_of_the_weights(run, typed, tmp_path):
    """Fused AdamW checks neither shapes nor memory formats: it would write out of bounds."""
    spoil(run, remove_secret)
    shutil.copytree(run, tmp_path / "other")
    strides, weights = [], []
    for folder, copy in ((run, torch.clone), (tmp_path / "other", torch.Tensor.contiguous)):
        (state,) = change(folder)["optimizer_states"]
        moments = {
            i: {name: copy(value) for name, value in values.items()}
            for i, values in state["state"].items()
        }
        strides.append([value.stride() for values in moments.values() for value in values.values()])
        change(folder, optimizer_states=[state | {"state": moments}])
        status, _, error = typed("train", f"resume={folder}", "trainer.max_steps=4")
        assert status == 0, error
        content = safe_load.load_checkpoint(folder / "checkpoints" / "step-000004.ckpt")
        weights.append(content["state_dict"])
    assert strides[0] != strides[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    file = run / "checkpoints" / "step-000004.ckpt"
    content = torch.load(file, weights_only=True)
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(content, file)
    status, _, error = typed("train", f"resume={run}", "trainer.max_steps=6")
    assert status == 2 and "exp_avg of shape (3,) for a weight of shape" in error, error


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer_states": [7]},
        {"optimizer_states": []},
        {"loops": {"fit_loop": {}}},
        {"lr_schedulers": "x"},
        {"callbacks": {"Losses": 3}},
        {"optimizer_states": [{"state": {0: {"exp_avg": 7}}}]},
    ],
)
def test_invalid_training_state_is_reported(wrong, run, typed):
    spoil(run, remove_secret)
    change(run, **wrong)
    status, _, error = typed("train", f"resume={run}", "trainer.max_steps=4")
    assert status == 2 and f"{last(run)} cannot be resumed" in error, error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "hparams.yaml",
        "metrics.csv",
        "images",
        "images/losses.png",
        "checkpoints/step-000001.ckpt",
        "wandb/id.txt",
    ],
)
def test_resumed_run_does_not_write_through_links(name, run, typed, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir() if name == "images" else victim.write_text("mine")
    (run / name).parent.mkdir(exist_ok=True)
    if (run / name).exists():
        (run / name).rename(tmp_path / "aside")
    (run / name).symlink_to(victim)
    status, _, error = typed("train", f"resume={run}", "trainer.max_steps=4")
    assert status == 5 and "is a link" in error and error.count("\n") == 1, error
    assert [*victim.iterdir()] == [] if name == "images" else victim.read_text() == "mine"


def test_resumed_run_writes_only_to_its_directory(run, typed, tmp_path):
    spoil(run, remove_secret)
    spoil(
        run, lambda config: config["trainer"].update(default_root_dir=str(tmp_path / "elsewhere"))
    )
    assert typed("train", f"resume={run}", "trainer.max_steps=4")[0] == 0
    assert (run / "checkpoints" / "step-000004.ckpt").is_file()
    assert not (tmp_path / "elsewhere").exists()
    for key, value in {"name": "../../elsewhere", "save_dir": str(tmp_path / "elsewhere")}.items():
        fields = {"name": "", key: value}
        spoil(run, lambda config, fields=fields: config["logger"]["csv"].update(fields))
        status, _, error = typed("train", f"resume={run}", "trainer.max_steps=6")
        assert status == 5 and f"logger.csv.{key}=" in error and error.count("\n") == 1, error


def test_metrics_of_a_shorter_run_are_removed(run):
    (run / "metrics.json").write_text("{}")
    resume.save_config(run_config.load_config(str(run)), run, [])
    assert not (run / "metrics.json").exists()


def test_pretrained_encoder_executes_no_code(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    own = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="cannot be read by transformers"):
        _load_pretrained.__wrapped__(str(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_hub_row_cannot_reference_local_files():
    with pytest.raises(UnsafeFileError, match="reference is not one of hf, zip, tar, gzip"):
        entry = {"bytes": None, "path": "zip://x::reference://k::/etc/passwd"}
        with huggingface_rows.open_stream(entry, "row 1"):
            pass


# Configurations

NAMES = [
    "evil_package.Net",
    "torch.hub.load",
    "numpy.load",
    "builtins.open",
    "omegaconf.OmegaConf.load",
    "os.system",
    "torch.utils.collect_env.run",
    "joblib.load",
    "subprocess.run",
    "ddpm_lab.runs.load.os.system",
    "ddpm_lab.callbacks.loggers.wandb",
    "lightning.Trainer",
    "ddpm_lab.networks.unet.UNet ",
    " ddpm_lab.networks.unet.UNet",
    "ddpm_lab.networks.unet.UN\u0435t",
    "ddpm\uff3flab.networks.unet.UNet",
    "ddpm_lab.networks.unet.UNet\n",
    "${conditioner._target_}",
    "${data.path}",
    "hydra.utils.get_method",
    "ddpm_lab.networks.unet.torch.hub.load",
    "torch.nn.Linear",
    "torch.load",
    "",
]


def spoil(run, modify):
    """Apply `modify` to the configuration of `run`."""
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
    modify(config)
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_targets_are_rejected(name, run, evil):
    spoil(run, lambda config: config["model"].update(_target_=name))
    with pytest.raises(UnsafeFileError, match=r"config\.yaml has model\._target_="):
        run_config.load_config(str(run))
    assert not evil.exists() and "evil_package" not in sys.modules


PLACES = {
    "nested": lambda config: config["model"].update(
        inner={"deep": {"_target_": "evil_package.Net"}}
    ),
    "list": lambda config: config["model"].update(
        attention=[1, [{"_target_": "evil_package.Net"}]]
    ),
    "partial": lambda config: config["sampler"].update(_target_="evil_package.Net", _partial_=True),
    "no text": lambda config: config["sampler"].update(_target_=["evil_package", "Net"]),
    "unused group": lambda config: config.update(notes={"_target_": "evil_package.Net"}),
    "arguments": lambda config: config["sampler"].update(_args_=[1]),
    "conversion": lambda config: config["sampler"].update(_convert_="all"),
    "no truth value": lambda config: config["sampler"].update(_partial_="${oc.env:HOME}"),
    "logging": lambda config: config.update(
        hydra={"job_logging": {"handlers": {"x": {"class": "evil_package.Net"}}}}
    ),
    "defaults": lambda config: config["sampler"].update(defaults=["/hydra/launcher: slurm"]),
    "odd key": lambda config: config["sampler"].update({"a\x1b[31m": 1}),
    "another group": lambda config: config["system"].update(network="${logger.csv}"),
    "environment": lambda config: config["sampler"].update(spacing="${oc.env:HOME}"),
    "nested reference": lambda config: config["sampler"].update(spacing="${a.${b}}"),
    "creation": lambda config: config["sampler"].update(
        spacing="${oc.create:{_target_:evil_package.Net}}"
    ),
    "hydra": lambda config: config["sampler"].update(spacing="${hydra:job.env_set}"),
}


@pytest.mark.parametrize("place", PLACES)
def test_targets_and_interpolations_are_rejected_everywhere(place, run, evil):
    spoil(run, PLACES[place])
    with pytest.raises(UnsafeFileError):
        run_config.load_config(str(run))
    assert not evil.exists()


def test_references_to_secrets_are_not_resolved(run, typed):
    spoil(run, lambda config: config.update(notes="${logger.csv}"))
    spoil(run, lambda config: config["system"].update(network="${notes}"))
    check_rejected(typed, run, 2)
    spoil(run, lambda config: config["system"].update(network="${token}"))
    check_rejected(typed, run, 2)


def test_interpolations_of_the_environment_are_rejected(run):
    for value in ("${oc.decode:${oc.env:SLURM_JWT,1}}", "${seed}${oc.env:HOME}"):
        spoil(run, lambda config, value=value: config["sampler"].update(spacing=value))
        with pytest.raises(UnsafeFileError, match="refers to a value that a run must not read"):
            run_config.load_config(str(run))


@pytest.mark.parametrize(
    "overrides",
    [
        {"trainer": {"max_steps": 2 * 10**7}},
        {"hang_timeout": 10**9},
        {"model": {"multipliers": [1] * 2000}},
        {"data": {"name": "${seed}-${data.batch_size}"}},
        {"trainer": {"limit_val_batches": float("inf")}},
    ],
    ids=lambda overrides: str(overrides)[:40],
)
def test_unusual_values_are_accepted(overrides, run):
    config = OmegaConf.merge(OmegaConf.load(run / "config.yaml"), overrides)
    OmegaConf.save(config, run / "config.yaml")
    assert saved_config.load_saved_config(run / "config.yaml").trainer.max_steps


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("x: !!python/object/apply:os.system [touch imported]\n", 5),
        ("x: !evil 1\n", 5),
        (BOMB, 5),
        ("x: &a\n  _target_: evil_package.Net\nmodel: *a\n", 5),
        ("model:\n  <<: *a\n", 5),
        ("x: !!binary aGk=\n", 5),
        ("a: 1\na: 2\n", 2),
        ("[" * 500 + "]" * 500 + "\n", 2),
        ("- 1\n", 2),
        ("%", 2),
        ("", 2),
        ("a: 1\n---\nb: 1\n", 2),
        ("\xff", 2),
        ("7: 1\n", 2),
        ("system: 1\n", 2),
    ],
)
def test_yaml_with_tags_or_aliases_is_rejected(text, status, run, evil):
    (run / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml") as raised:
        run_config.load_config(str(run))
    assert raised.value.status == status and not evil.exists()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_truncated_configuration_is_reported(fraction, run, typed):
    text = (run / "config.yaml").read_bytes()
    (run / "config.yaml").write_bytes(text[: int(fraction * len(text))])
    assert "config.yaml is truncated" in check_rejected(typed, run, 2)


@pytest.mark.parametrize("text", [b"a: \xff\n", b"a: [1\n", b"a: \0\n"])
def test_broken_configuration_of_the_user_is_reported(text, typed, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_bytes(text)
    overrides = ("--config-dir", f"{tmp_path}/conf", "experiment=mine")
    status, _, error = typed("train", *overrides, f"hydra.run.dir={tmp_path}/r")
    assert status == 2 and "mine.yaml is not" in error and error.count("\n") == 1, error


@pytest.mark.parametrize("fields", [{"channels": 10**6}, {"multipliers": [10**4]}])
def test_model_must_have_the_shapes_of_the_weights(fields, run, typed):
    spoil(run, lambda config: config["model"].update(fields))
    error = check_rejected(typed, run, 2)
    assert "do not fit the model that config.yaml describes: denoiser.network." in error


def test_trust_allows_named_packages_only(run, typed, evil):
    spoil(run, lambda config: config["sampler"].update(_target_="evil_package.Net"))
    assert "trust=[evil_package]" in check_rejected(typed, run, 5, "trust=[evil]")
    assert check_rejected(typed, run, 2, "trust=[os/system]").startswith("error: trust=")
    spoil(run, lambda config: config["sampler"].update(_target_="os.system"))
    assert "trust=[PACKAGE]" in check_rejected(typed, run, 5)  # a library is not proposed
    spoil(run, lambda config: config["sampler"].update(_target_="evil_package.Net"))
    assert not evil.exists()
    status, _, _ = typed("sample", f"run={run}", "trust=[evil_package]", "sampler.steps=null")
    assert status == 2 and evil.exists()
    check_rejected(typed, run)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"experiment={name}"] for name in options("experiment")),
        ["trainer=slurm", "logger=tensorboard"],
        ["trainer=ddp", "logger=wandb"],
        ["trainer=fsdp"],
        ["guidance=classifier", "variance=analytic", "timestep_sampler=importance"],
        ["guidance=autoguidance", "conditioner=pretrained_text", "model=unet_cross"],
        ["data=hub"],
        ["data=toy"],
        *([f"sampler={name}"] for name in options("sampler")),
        *([f"schedule={name}"] for name in options("schedule")),
    ],
    ids=" ".join,
)
def test_saved_configurations_are_accepted(overrides, tmp_path):
    file = tmp_path / "config.yaml"
    OmegaConf.save(composed(*overrides), file)
    assert saved_config.load_saved_config(file) == OmegaConf.load(file)


def test_allowed_targets_are_separate_by_group(trained):
    config = run_config.load_config(str(trained))
    assert config.system.network._target_ == "ddpm_lab.networks.unet.UNet"
    allowed = {group: allowed.targets for group, allowed in saved_config._allowed().items()}
    for group, targets in allowed.items():
        assert all(not name.startswith(("builtins", "os.")) for name in targets), group
    assert "torch.optim.AdamW" in allowed["optimizer"] - allowed["model"]


# What is shared


def test_shared_run_samples_like_the_original(trained, typed, tmp_path):
    for weights in ("ema", "raw"):
        share(str(trained), tmp_path / weights, weights)
        samples = []
        for folder in (trained, tmp_path / weights):
            out = f"{tmp_path}/{weights}-{folder.name}"
            overrides = (f"run={folder}", f"weights={weights}", "count=4", f"hydra.run.dir={out}")
            status, _, error = typed("sample", *overrides)
            assert status == 0, error
            with np.load(f"{out}/samples.npz") as arrays:
                samples.append(arrays["images"])
        assert np.array_equal(*samples)
        names = {file.name for file in (tmp_path / weights).iterdir()}
        assert names == {"config.yaml", "run.json", "weights.safetensors"}
    for weights, missing in (("ema", "raw"), ("raw", "ema")):
        status, _, error = typed("sample", f"run={tmp_path}/{weights}", f"weights={missing}")
        assert status == 2 and f"weights={missing}: run=" in error
    with pytest.raises(UserError, match="nothing is overwritten"):
        share(str(trained), tmp_path / "ema")


def test_inconsistent_safetensors_are_rejected(trained, tmp_path):
    share(str(trained), tmp_path / "s")
    file = tmp_path / "s" / "weights.safetensors"
    good = file.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")

    def with_header(**parts):
        text = json.dumps(header | {name: header[name] | parts}).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + size :]

    for damaged in (
        good[:-1],
        good + b"x",
        b"",
        b"x" * 100,
        struct.pack("<Q", 2**60) + good[8:],
        with_header(shape=[10**12]),
        with_header(data_offsets=[0, 2**50]),
        with_header(dtype="I8"),
        with_header(shape=[2**62, 4]),
    ):
        file.write_bytes(damaged)
        with pytest.raises(CorruptFileError):
            safe_load.load_checkpoint(file)
    for metadata in (None, {"ddpm_lab": "["}, {"ddpm_lab": "{}"}, {"ddpm_lab": "[" * 10**5}):
        save_file({"denoiser.x": torch.ones(1)}, file, metadata)
        with pytest.raises(CorruptFileError):
            safe_load.load_checkpoint(file)
    metadata = json.loads(header["__metadata__"]["ddpm_lab"])
    metadata["hyper_parameters"]["_instantiator"] = "builtins.open"
    safe_load.save_tensors({"denoiser.x": torch.ones(1)}, file, {"ddpm_lab": json.dumps(metadata)})
    with pytest.raises(UnsafeFileError, match="hyper_parameters"):
        safe_load.load_checkpoint(file)
    safe_load.save_tensors({"denoiser.x": torch.full((2,), torch.inf)}, file, {"ddpm_lab": "{}"})
    with pytest.raises(CorruptFileError, match="non-finite"):
        safe_load.load_checkpoint(file)


# Arrays, metrics, sweeps


def npy(shape, kind="<f4", content=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + content


def test_inconsistent_arrays_are_rejected(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "objects.npz", x_T=np.array([Payload(mark)], dtype=object))
    for name, content in {
        "lying": npy((10**12,)),
        "negative": npy((-1, -1), content=bytes(4)),
    }.items():
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("x_T.npy", content)
    np.savez(tmp_path / "whole.npz", x_T=np.zeros((2**10, 1), np.float32))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-9])
    (tmp_path / "text.npz").write_text("hello")
    for name in ("objects", "lying", "negative", "single", "pipe", "broken", "text"):
        with pytest.raises(UserError) as raised:
            read_array(f"{tmp_path}/{name}.npz", "x_T", (1, 8, 8), None)
        assert raised.value.status == (5 if name in ("objects", "pipe") else 2)
    assert not mark.exists()


def sweep(root, job="a", **entry):
    root.mkdir(exist_ok=True)
    entry = {"name": "a", "config": "0", "command": "python train.py"} | entry
    (root / "sweep.json").write_text(json.dumps({job: entry}))
    return root


def make_job(root, name="a", **metrics):
    (root / name).mkdir(parents=True)
    (root / name / "job.json").write_text(json.dumps({"status": 0, "config": "0"}))
    (root / name / "metrics.json").write_text(json.dumps({"fid": 1.0} | metrics))
    return root / name


def report(typed, root, tmp_path):
    status, out, error = typed("report", f"dir={root}", f"out={tmp_path}/report")
    assert "Traceback" not in error and "\x1b" not in out + error and error.count("\n") <= 3
    return status, error


def test_report_escapes_html(typed, tmp_path):
    root = sweep(tmp_path / "sweep", name="<script>x</script>\x1b[2J", command="<b>")
    make_job(root)
    assert report(typed, root, tmp_path) == (0, "")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>x" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("job", ["../outside", "/etc", "..", "a/b", "a\x1b[2J"])
def test_jobs_outside_of_a_sweep_are_rejected(job, typed, tmp_path):
    root = sweep(tmp_path / "sweep", job)
    make_job(tmp_path, "outside")
    status, error = report(typed, root, tmp_path)
    assert status == 5 and "not a folder in it" in error


def test_invalid_files_of_a_sweep_are_skipped_or_rejected(typed, tmp_path):
    root = sweep(tmp_path / "sweep")
    job = make_job(root)
    invalid = {"fid": 10**200, "kid": [], "class_accuracy": "x"}
    (job / "metrics.json").write_text(json.dumps(invalid))
    assert report(typed, root, tmp_path)[0] == 0
    for text in ("[" * 10**6, '{"fid": ' + "1" * 10**5 + "}", "[]", "{", '{"fid": NaN}'):
        (job / "metrics.json").write_text(text)
        assert report(typed, root, tmp_path)[0] == 0
    (job / "metrics.json").unlink()
    os.mkfifo(job / "metrics.json")
    assert report(typed, root, tmp_path)[0] == 5
    (job / "metrics.json").unlink()
    (job / "metrics.json").symlink_to("/dev/zero")
    assert report(typed, root, tmp_path)[0] == 5
    (job / "metrics.json").unlink()
    (job / "metrics.csv").write_text("step,train/loss\nx,y\n")
    assert report(typed, root, tmp_path)[0] == 2
    (job / "metrics.csv").unlink()
    (job / "images").mkdir()
    (job / "images" / "samples-1.png").symlink_to("/etc/passwd")
    assert report(typed, root, tmp_path)[0] == 5
    shutil.rmtree(job)
    job.symlink_to(tmp_path)
    assert report(typed, root, tmp_path)[0] == 5


# Data without classes, and places


@pytest.fixture(scope="module")
def flat(typed, tmp_path_factory):
    """Return a run of a folder of images without classes."""
    root = tmp_path_factory.mktemp("flat")
    overrides = (
        "data=folder",
        f"data.path={noise(root / 'images')}",
        "data.batch_size=2",
        "data.held_out=0.4",
        "extractor=none",
        "callbacks=none",
        "logger=csv",
        "model.channels=8",
        "trainer.max_steps=2",
    )
    status, _, error = typed("train", *overrides, f"hydra.run.dir={root}/r")
    assert status == 0, error
    return root / "r"


def test_run_without_classes_supports_all_verbs(flat, typed, tmp_path):
    small = ("weights=raw", "count=2", "sampler.steps=2")
    assert typed("sample", f"run={flat}", *small, f"hydra.run.dir={tmp_path}/a")[0] == 0
    nll = ("weights=raw", "metrics=[nll]", "nll.steps=2")
    assert typed("evaluate", f"run={flat}", *nll, f"out={tmp_path}/b")[0] == 0
    share(str(flat), tmp_path / "s")
    assert typed("sample", f"run={tmp_path}/s", *small, f"hydra.run.dir={tmp_path}/c")[0] == 0
    for name in ("grid.png", "samples.npz"):
        contents = [(tmp_path / folder / name).read_bytes()[-999:] for folder in "ac"]
        assert contents[0] == contents[1]
    content = torch.load(last(flat), weights_only=True)
    assert content["hyper_parameters"]["captions"] is None
    # Older versions saved [].
    change(flat, hyper_parameters=content["hyper_parameters"] | {"captions": []})
    status, _, error = typed("train", f"resume={flat}", "trainer.max_steps=3")
    assert status == 0, error


def test_data_without_classes_has_no_captions():
    images = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), None)
    for captions in ([], None):
        data = Data(Splits("", images, images, captions), batch_size=1)
        assert data.spec["captions"] is None and data.spec["classes"] is None


def test_class_names_are_not_interpreted(typed, tmp_path):
    for name in ("???", "${x}", "a,b: [c]", "it's"):
        noise(tmp_path / "images" / name)
    overrides = (
        "data=folder",
        f"data.path={tmp_path}/images",
        "data.batch_size=2",
        "conditioner=label",
        "extractor=none",
        "callbacks=none",
        "logger=csv",
        "model.channels=8",
        "trainer.max_steps=1",
    )
    status, _, error = typed("train", *overrides, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    overrides = ("weights=raw", "count=2", "sampler.steps=1", f"hydra.run.dir={tmp_path}/s")
    status, _, error = typed("sample", f"run={tmp_path}/r", *overrides)
    assert status == 0, error


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (
            {
                "_target_": "ddpm_lab.data.torchvision_datasets.cifar10",
                "path": "there",
                "download": True,
                "resolution": 32,
                "flip": False,
                "batch_size": 4,
                "seed": 0,
            },
            "data.path",
        ),
        (
            {"_target_": "ddpm_lab.data.huggingface.hub", "name": "someone/else", "batch_size": 4},
            "data.name",
        ),
        (
            {
                "_target_": "ddpm_lab.data.image_folder.image_folder",
                "path": "/proc",
                "batch_size": 4,
            },
            "data.path",
        ),
        *(
            (
                {"_target_": "ddpm_lab.data.image_array.image_array", "path": None, key: "there"},
                f"data.{key}",
            )
            for key in ("val_path", "labels")
        ),
    ],
)
def test_data_of_a_foreign_run_must_be_named_by_the_user(
    data, key, run, typed, tmp_path, monkeypatch
):
    spoil(run, lambda config: (remove_secret(config), config.update(data=data)))
    monkeypatch.chdir(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    value = data[key.partition(".")[2]]
    for verb, *overrides in (
        ("evaluate", f"run={run}", "metrics=[nll]"),
        ("train", f"resume={run}", "trainer.max_steps=9"),
        ("sample", f"run={run}", "mode=encode", "count=1"),
    ):
        status, _, error = typed(verb, *overrides)
        assert status == 5 and f"reads {key}={value}" in error and f"add {key}=" in error, error
        assert error.count("\n") == 1 and sorted(map(str, tmp_path.rglob("*"))) == before
    config = OmegaConf.create({"data": data})
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"{key}={value}"])
    trusted_paths.require_named(config, "a run", trusted_paths.DATA)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"{key}=/elsewhere"])
    with pytest.raises(UnsafeFileError):
        trusted_paths.require_named(config, "a run", trusted_paths.DATA)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    trusted_paths.add_trusted_paths(config)
    trusted_paths.require_named(config, "a run", trusted_paths.DATA)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")  # cannot be written
    trusted_paths.add_trusted_paths(config)


# Loggers, and what libraries read where they are started


def test_wandb_settings_of_the_current_directory_are_ignored(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(
        "[default]\nbase_url = http://127.0.0.1:9\nmode = offline\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    calls = []

    def init(**options):
        calls.append(
            (wandb.setup().settings.base_url, options["settings"].git_root, options["mode"])
        )

    wandb.teardown()
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])
    loggers.start_wandb(dir="run")
    ((address, repository, mode),) = calls
    assert "127.0.0.1" not in address and repository == str(ROOT) and mode == "offline"
    assert os.getcwd() == str(tmp_path)
    for content in (b"\xff", b"mode", b"[default]\nmode = online\n"):
        (tmp_path / "wandb" / "settings").write_bytes(content)
        assert loggers._local_mode() is None


def test_failing_logger_is_disabled(monkeypatch, tmp_path, caplog):
    def fail(*args, **kwargs):
        raise OSError(30, "Read-only\nfile system")

    monkeypatch.setattr(loggers, "start_wandb", fail)
    assert loggers.wandb(str(tmp_path)) is None
    assert caplog.messages == ["W&B: [Errno 30] Read-only file system; continuing without it"]
    caplog.clear()
    board = TensorBoardLogger(str(tmp_path))
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", fail)
    board = loggers.make_optional(board)
    for _ in range(3):
        board.log_metrics({"a": 1.0}, step=1)
    assert loggers.has_failed(board) and len(caplog.messages) == 1
    assert caplog.messages[0].startswith("TensorBoard: ")
    monkeypatch.setattr(wandb, "run", object())
    monkeypatch.setattr(wandb, "finish", fail)
    loggers.finish()
    with pytest.raises(InterruptedRunError), loggers.optional(board):
        raise InterruptedRunError("stopped", 15)


# Secrets


def test_secrets_are_not_stored(trained):
    for file in trained.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    assert "oc.env:DDPM_TEST_SECRET" in (trained / "config.yaml").read_text()
    assert "oc.env:DDPM_TEST_SECRET" in (trained / "hparams.yaml").read_text()


def test_redact_keeps_references_to_the_environment(monkeypatch):
    monkeypatch.setenv("DDPM_TEST_SECRET", SECRET)
    monkeypatch.setenv("SLURM_N", "2")
    config = OmegaConf.create(
        {
            "a": 1,
            "b": "${a}",
            "key": "${oc.env:DDPM_TEST_SECRET}",
            "of": "${key}",
            "in": {"text": "x ${of} ${a}"},
            "all": "${in}",
            "list": ["${a}", "${key}"],
            "n": "${oc.decode:${oc.env:SLURM_N,1}}",
            "m": "???",
            "other": "${oc.env:DDPM_TEST_ABSENT}",
            "ref": {"x": "${list}"},
        }
    )
    assert saved_config.redact(config) == {
        "a": 1,
        "b": 1,
        "key": "${oc.env:DDPM_TEST_SECRET}",
        "of": "${key}",
        "in": {"text": "x ${of} ${a}"},
        "all": {"text": "x ${of} ${a}"},
        "list": [1, "${key}"],
        "n": "${oc.decode:${oc.env:SLURM_N,1}}",
        "m": "???",
        "other": "${oc.env:DDPM_TEST_ABSENT}",
        "ref": {"x": [1, "${key}"]},
    }
    assert config.key == SECRET and config.n == 2
    assert SECRET not in str(original_text(config, "of"))


def test_messages_do_not_contain_secrets(typed, monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_TEST_SECRET", SECRET)
    for word in ("optimizer.lr", "seed", "model.channels", "schedule.steps"):
        secret = f"{word}=${{oc.env:DDPM_TEST_SECRET}}"
        status, out, error = typed("train", *FAST, secret, f"hydra.run.dir={tmp_path}/r")
        assert status == 2 and SECRET not in out + error and "DDPM_TEST_SECRET" in error, error


# Names


@pytest.mark.parametrize(
    "word",
    [
        "experiment=../../x",
        "schedule=/etc/x",
        "model=~/x",
        "experiment=a/../../b",
        "schedule=" + "x" * 301,
        "schedule=a\0b",
        "schedule=a\nb",
        "schedule=linear,../x",
        "schedule=[/etc/x]",
        "schedule='/etc/x'",
        "+experiment@schedule=../x",
        "hydra/launcher=../../x",
        "--experimental-rerun=x",
        "hydra.run.dir=a\nb",
        "hydra.run.dir=a\0b",
        "out=a\0b",
    ],
)
def test_choices_outside_of_configs_are_rejected(word, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, error = typed("train", word)
    assert status == 5 and error.startswith("error: ") and error.count("\n") == 1, error
    assert not [*tmp_path.iterdir()]


def test_too_long_folder_name_is_reported(typed, tmp_path):
    status, _, error = typed("train", *FAST, f"hydra.run.dir={tmp_path}/{'x' * 300}")
    assert status == 3 and error.count("\n") == 1, error


def test_control_characters_are_escaped(typed):
    assert escape_control("a\x1b[2Jb\u202ec\r\nd") == "a\\x1b[2Jb\\u202ec\\r\\nd"
    assert escape_control("a\nb\x9b", lines=True) == "a\nb\\x9b"
    for name in ("job_logging", "hydra_logging"):
        config = OmegaConf.load(CONFIGS / "hydra" / name / "plain.yaml")
        name = f"{EscapingFormatter.__module__}.{EscapingFormatter.__qualname__}"
        assert config.formatters.plain["class"] == name
    status, _, error = typed("sample", "run=a\x1b[2J")
    assert status == 2 and "\x1b" not in error and "a\\x1b[2J" in error


# Images and archives


def noise(folder):
    """Create six images in `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(6):
        Image.effect_noise((8, 8), 50 + i).convert("RGB").save(folder / f"{i}.png")
    return folder


def make_special_file(folder, kind):
    if kind == "link out":
        (folder / "z.png").symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(folder / "z.png")
    elif kind == "socket":
        # The path of a socket must be short.
        with chdir(folder), socket.socket(socket.AF_UNIX) as unix:
            unix.bind("z.png")
    else:
        (folder / "z\x1b[2J.png").symlink_to("/etc/passwd")


@pytest.mark.parametrize("kind", ["link out", "fifo", "socket", "escapes"])
def test_special_files_among_images_are_rejected(kind, typed, tmp_path):
    make_special_file(noise(tmp_path / "data"), kind)
    # Links are followed, and must lead to an image.
    linked = kind in ("link out", "escapes")
    expected = ValueError if linked else UnsafeFileError
    message = "cannot be read as an image" if linked else ""
    with pytest.raises(expected, match=message):
        image_folder(str(tmp_path / "data"))
    with pytest.raises(expected, match=message):
        read_images(tmp_path / "data", (3, 8, 8))
    overrides = ("data=folder", f"data.path={tmp_path}/data", "data.batch_size=2")
    status, _, error = typed("train", *FAST, *overrides, f"hydra.run.dir={tmp_path}/r")
    assert status == (2 if linked else 5) and error.count("\n") == 1 and "\x1b" not in error
    assert not (tmp_path / "r").exists()


def test_decompression_bombs_are_rejected(tmp_path):
    def chunk(kind, content):
        checksum = struct.pack(">I", zipfile.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    tags = [
        (256, 4, 100_000),
        (257, 4, 100_000),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 100_000),
        (279, 4, 10),
    ]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (tmp_path / "a.tiff").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4))
    for name in ("a.png", "a.tiff"):
        with pytest.raises(ValueError, match=r"pixels\) exceeds|over \d+ pixels"):
            open_image(tmp_path / name)


def make_archive(kind, source, file, name, member):
    """Write an archive of `source` and a special `member`."""
    if kind == "zip":
        modes = {"link": stat.S_IFLNK, "device": stat.S_IFCHR, "file": stat.S_IFREG}
        with zipfile.ZipFile(file, "w") as archive:
            for image in sorted(source.iterdir()):
                archive.write(image, f"top/{image.name}")
            info = zipfile.ZipInfo(name)
            info.external_attr = modes[member] << 16
            archive.writestr(info, b"/etc/passwd")
        return
    types = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE, "file": tarfile.REGTYPE}
    with tarfile.open(file, "w") as archive:
        for image in sorted(source.iterdir()):
            archive.add(image, f"top/{image.name}")
        info = tarfile.TarInfo(name)
        info.type = types[member]
        info.linkname = "/etc/passwd" if member == "link" else ""
        archive.addfile(info)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("../evil.png", "file"),
        ("/tmp/evil.png", "file"),
        ("top/evil.png", "link"),
        ("top/evil.png", "device"),
        ("../\x1b[2J.png", "file"),
    ],
)
def test_archive_members_outside_of_the_target_are_rejected(
    kind, name, member, tmp_path, monkeypatch, capsys
):
    make_archive(kind, noise(tmp_path / "source"), tmp_path / "a.archive", name, member)
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"{tmp_path}/a.archive", f"{tmp_path}/target"])
    with pytest.raises(SystemExit) as stop:
        prepare.main()
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 5 and error.startswith("error: ") and "\x1b[2J" not in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.archive", "source"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_bomb_is_rejected(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "UNPACKED", (0.01, 10))
    make_archive(kind, noise(tmp_path / "source"), tmp_path / "a.archive", "top/x.png", "file")
    with pytest.raises(UnsafeFileError, match="times its size"):
        prepare.prepare(tmp_path / "a.archive", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_archive_header_bomb_is_rejected(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("top/x.png")
        info.pax_headers = {"comment": "x" * 2**21}
        archive.addfile(info)
    with pytest.raises(UnsafeFileError, match="a header of 2097"):
        prepare.prepare(tmp_path / "a.tar.gz", tmp_path / "target")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shards": []}, "its shards hold 0"),
        ({"classes": ["a"]}, "labels outside its 1 classes"),
    ],
)
def test_inconsistent_store_index_is_rejected(fields, message, tmp_path):
    from ddpm_lab.data import shards as stores

    for name in "ab":
        noise(tmp_path / "source" / name)
    prepare.prepare(tmp_path / "source", tmp_path / "store")
    file = tmp_path / "store" / stores.INDEX
    index = json.loads(file.read_text()) | fields
    index["sha256"] = stores._content(index)
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        image_store(str(tmp_path / "store"), batch_size=1)


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/passwd", "a\x1b.npy"])
def test_store_index_cannot_name_other_files(name, tmp_path):
    from ddpm_lab.data import shards as stores

    prepare.prepare(noise(tmp_path / "source"), tmp_path / "store")
    file = tmp_path / "store" / stores.INDEX
    index = json.loads(file.read_text())
    index["shards"][0]["name"] = name
    index["sha256"] = stores._content(index)
    file.write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError, match="not a file name of a store"):
        image_store(str(tmp_path / "store"), batch_size=1)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        image_store(str(tmp_path / "store"), batch_size=1)
