"""Files of others are refused before anything in them is used: attacks with status 5, damage with 2."""

import importlib.util
import io
import json
import os
import pickle
import runpy
import shutil
import signal
import socket
import stat
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import CONFIGS, FAST, ROOT, composed, options
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ddpm_lab.callbacks import loggers
from ddpm_lab.callbacks.checkpoints import list_checkpoints
from ddpm_lab.cli.sample_io import read_array
from ddpm_lab.conditioners import base
from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.config.instantiate import as_typed
from ddpm_lab.data import huggingface_rows
from ddpm_lab.data.datasets import Images
from ddpm_lab.data.image_folder import image_folder, read_images
from ddpm_lab.data.image_io import open_image
from ddpm_lab.data.module import DataModule
from ddpm_lab.data.shards import image_store
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

SECRET = "hunter2-hunter2"
spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
assert spec is not None and spec.loader is not None
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)
share = faults.share


@pytest.fixture(scope="module")
def trained(typed, tmp_path_factory):
    """A run of two steps, in whose configuration stands a secret."""
    where = tmp_path_factory.mktemp("safety")
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
        status, out, error = typed("train", *overrides, f"hydra.run.dir={where}/r")
    assert status == 0, error
    (where / "r" / "said").write_text(out + error)
    return where / "r"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that may be spoilt."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """The file that exists once the package `evil_package` was imported."""
    (tmp_path / "evil").mkdir()
    mark = tmp_path / "imported"
    (tmp_path / "evil" / "evil_package.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nclass Net: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "evil"))
    yield mark
    sys.modules.pop("evil_package", None)


@pytest.fixture(autouse=True)
def _hurry():
    """What waits for ever fails."""

    def late(*_):
        raise TimeoutError("it waits for something that never comes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(typed, run, status=5, *overrides):
    """What `sample.py` says, which leaves nothing behind."""
    before = sorted(map(str, run.rglob("*")))
    ended, _, error = typed("sample", f"run={run}", "count=2", *overrides)
    assert ended == status and error.startswith("error: ") and 1 <= error.count("\n") <= 3, error
    assert "Traceback" not in error and "\x1b" not in error
    assert sorted(map(str, run.rglob("*"))) == before
    return error


def last(run):
    """Its place, also where no file is."""
    return run / "checkpoints" / "step-000002.ckpt"


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


# Checkpoints


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_runs_nothing(legacy, suffix, run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = torch.load(last(run), weights_only=True) | {"extra": Payload(tmp_path / "ran")}
    file = tmp_path / f"a.{suffix}"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CorruptFileError if legacy else UnsafeFileError):
        safe_load.load_checkpoint(file)
    file.write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=0))
    with pytest.raises(CorruptFileError, match="not a checkpoint"):
        safe_load.load_checkpoint(file)
    assert not (tmp_path / "ran").exists()


def changed(run, **parts):
    content = torch.load(last(run), weights_only=True)
    torch.save(content | parts, last(run))
    return content


def test_weights_are_finite(run, typed):
    name, value = next(iter(changed(run)["state_dict"].items()))
    changed(run, state_dict={name: torch.full_like(value, float("nan"))})
    with pytest.raises(CorruptFileError, match="not finite"):
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
def test_a_checkpoint_says_of_its_data_what_data_may_be(wrong, run):
    assert {*safe_load.SPEC} == {*DataSpec._fields}
    said = changed(run)["hyper_parameters"]
    changed(run, hyper_parameters=said | wrong)
    with pytest.raises(
        UnsafeFileError, match="hyper_parameters must be shape, classes, bin_width, captions"
    ):
        safe_load.load_checkpoint(last(run))


@pytest.mark.parametrize(
    "honest",
    [
        {"classes": None, "captions": None},
        {"classes": None, "captions": []},
        {"shape": [3, 8192, 8192]},
        {"classes": 2, "captions": [["long " * 1000, "b"], ["${x}", "???"]]},
        {"classes": 10**7, "captions": None},
        {"shape": [2], "bin_width": None, "classes": None, "captions": None},
    ],
    ids=lambda honest: str(honest)[:40],
)
def test_honest_data_of_any_kind_is_accepted(honest, run):
    said = changed(run)["hyper_parameters"]
    changed(run, hyper_parameters=said | honest)
    assert safe_load.load_checkpoint(last(run))["hyper_parameters"] == said | honest


def test_a_checkpoint_of_another_program_is_none(run):
    for foreign in ({"model": torch.ones(3)}, [1], nn.Linear(2, 2).state_dict(), torch.ones(2)):
        torch.save(foreign, last(run))
        with pytest.raises(CorruptFileError, match="no checkpoint of ddpm-lab"):
            safe_load.load_checkpoint(last(run))


@pytest.mark.parametrize("kind", faults.DAMAGE)
def test_damage_is_noticed_or_changes_no_number(kind, trained, tmp_path):
    bench = faults.Bench(tmp_path / "bench")
    newest, older = list_checkpoints(trained / "checkpoints")
    config = run_config.load_config(str(trained))
    share(str(trained), tmp_path / "s")
    for _ in range(4):
        assert faults._recovers(bench, newest, older, faults.DAMAGE[kind], config) == ""
        shared = tmp_path / "s" / "weights.safetensors"
        assert faults._noticed(bench, shared, faults.DAMAGE[kind], safe_load.load_checkpoint) == ""


def test_the_newest_whole_checkpoint_is_taken_in_a_folder_that_cannot_be_written(
    run, typed, tmp_path
):
    newest, older = list_checkpoints(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = sorted(map(str, run.rglob("*")))
    status, out, error = typed(
        "sample", f"run={run}", "count=1", "sampler.steps=1", f"hydra.run.dir={tmp_path}/s"
    )
    assert (
        status == 0 and f"{older.name} is taken instead" in out and out.count(newest.name) == 1
    ), error
    share(str(run), tmp_path / "shared")
    assert sorted(map(str, run.rglob("*"))) == before
    older.write_bytes(b"")
    status, _, error = typed("sample", f"run={run}", "count=1")
    assert status == 2 and "no other checkpoint of 2 is whole" in error and error.count("\n") == 1


def test_lack_of_memory_is_not_damage(run, monkeypatch):
    def full(*_, **__):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="allocate"):
        safe_load.load_checkpoint(last(run))


def test_numbers_that_a_cache_keeps_have_a_checksum(tmp_path):
    file = tmp_path / "a.json"
    safe_load.write_sealed_json({"fid": 1.5}, file)
    assert safe_load.read_sealed_json(file) == {"fid": 1.5}
    file.write_text(file.read_text().replace("1.5", "1.7"))
    with pytest.raises(CorruptFileError, match="checksum"):
        safe_load.read_sealed_json(file)


def test_a_checkpoint_is_a_regular_file(run, typed, tmp_path):
    shutil.copy(last(run), tmp_path / "elsewhere.ckpt")
    for target in ("/dev/zero", tmp_path / "elsewhere.ckpt"):
        last(run).unlink()
        last(run).symlink_to(target)
        assert f"is a link to {target}" in refused(typed, run)
    last(run).unlink()
    os.mkfifo(last(run))
    assert "no regular file" in refused(typed, run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(tmp_path)
    assert "is a link to" in refused(typed, run)


def test_a_run_is_no_link_and_its_configuration_a_file(run, typed, tmp_path):
    (tmp_path / "link").symlink_to(run)
    for name in ("link", "link/"):
        status, _, error = typed("sample", f"run={tmp_path}/{name}")
        assert status == 5 and f"is a link to {run}" in error, error
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    assert "no regular file" in refused(typed, run)


def without_secret(config):
    """Of another's there would have to be one anew."""
    del config["token"], config["notes"]


def test_the_state_of_the_optimizer_is_like_its_weights(run, typed, tmp_path):
    """A fused AdamW asks for neither shapes nor order: it would write beside the memory, or mix numbers up."""
    spoil(run, without_secret)
    shutil.copytree(run, tmp_path / "other")
    ends = []
    for place, order in ((run, torch.clone), (tmp_path / "other", torch.Tensor.contiguous)):
        (state,) = changed(place)["optimizer_states"]
        kept = {
            i: {name: order(value) for name, value in of.items()}
            for i, of in state["state"].items()
        }
        list_checkpoints = [value.stride() for of in kept.values() for value in of.values()]
        changed(place, optimizer_states=[state | {"state": kept}])
        status, _, error = typed("train", f"resume={place}", "trainer.max_steps=4")
        assert status == 0, error
        ends.append(
            (
                list_checkpoints,
                safe_load.load_checkpoint(place / "checkpoints" / "step-000004.ckpt")["state_dict"],
            )
        )
    (one, weights), (other, alike) = ends
    assert one != other and all(torch.equal(value, alike[name]) for name, value in weights.items())
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
def test_a_state_that_is_none_is_named(wrong, run, typed):
    spoil(run, without_secret)
    changed(run, **wrong)
    status, _, error = typed("train", f"resume={run}", "trainer.max_steps=4")
    assert status == 2 and f"{last(run)} holds no state" in error and "Traceback" not in error, (
        error
    )


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
def test_a_run_that_goes_on_writes_through_no_link(name, run, typed, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir() if name == "images" else victim.write_text("mine")
    (run / name).parent.mkdir(exist_ok=True)
    if (run / name).exists():
        (run / name).rename(tmp_path / "aside")
    (run / name).symlink_to(victim)
    status, _, error = typed("train", f"resume={run}", "trainer.max_steps=4")
    assert status == 5 and "is a link" in error and error.count("\n") == 1, error
    assert [*victim.iterdir()] == [] if name == "images" else victim.read_text() == "mine"


def test_a_run_that_goes_on_stays_in_its_folder(run, typed, tmp_path):
    spoil(run, without_secret)
    spoil(
        run, lambda config: config["trainer"].update(default_root_dir=str(tmp_path / "elsewhere"))
    )
    assert typed("train", f"resume={run}", "trainer.max_steps=4")[0] == 0
    assert (run / "checkpoints" / "step-000004.ckpt").is_file() and not (
        tmp_path / "elsewhere"
    ).exists()
    for key, value in {"name": "../../elsewhere", "save_dir": str(tmp_path / "elsewhere")}.items():
        spoil(
            run,
            lambda config, key=key, value=value: config["logger"]["csv"].update(
                {"name": "", key: value}
            ),
        )
        status, _, error = typed("train", f"resume={run}", "trainer.max_steps=6")
        assert status == 5 and f"logger.csv.{key}=" in error and error.count("\n") == 1, error


def test_what_a_longer_run_has_not_come_to_yet_is_not_said(run):
    (run / "metrics.json").write_text("{}")
    resume.save_config(run_config.load_config(str(run)), run, [])
    assert not (run / "metrics.json").exists()


def test_a_pretrained_encoder_brings_no_code(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    own = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    monkeypatch.setattr("builtins.input", lambda *conditions: "y")
    with pytest.raises(ValueError, match="cannot be read by transformers"):
        base._pretrained.__wrapped__(str(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_a_row_says_where_its_image_is_and_not_more():
    with pytest.raises(UnsafeFileError, match="reference is none of hf, zip, tar, gzip"):
        huggingface_rows.open_image(
            {"bytes": None, "path": "zip://x::reference://k::/etc/passwd"}, "row 1"
        )


def test_a_file_may_be_too_large(run, typed):
    with (run / "config.yaml").open("a") as file:
        file.write("#" * saved_config.LARGEST)
    assert "a configuration has at most" in refused(typed, run, 2)


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


def spoil(run, change):
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
    change(config)
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_builds_only_what_is_known(name, run, evil):
    spoil(run, lambda config: config["model"].update(_target_=name))
    with pytest.raises(UnsafeFileError, match=r"config\.yaml: model\._target_="):
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
def test_a_configuration_is_data_everywhere(place, run, evil):
    spoil(run, PLACES[place])
    with pytest.raises(UnsafeFileError):
        run_config.load_config(str(run))
    assert not evil.exists()


def test_what_a_run_kept_of_a_secret_is_not_resolved(run, typed):
    spoil(
        run,
        lambda config: (
            config.update(notes="${logger.csv}"),
            config["system"].update(network="${notes}"),
        ),
    )
    refused(typed, run, 2)
    spoil(run, lambda config: config["system"].update(network="${token}"))
    refused(typed, run, 2)


def test_references_name_no_secret(run):
    for value in ("${oc.decode:${oc.env:SLURM_JWT,1}}", "${seed}${oc.env:HOME}"):
        spoil(run, lambda config, value=value: config["sampler"].update(spacing=value))
        with pytest.raises(UnsafeFileError, match="refers to what it must not"):
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
def test_honest_configurations_are_accepted(overrides, run):
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
def test_yaml_without_tags_and_aliases(text, status, run, evil):
    (run / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml") as told:
        run_config.load_config(str(run))
    assert told.value.status == status and not evil.exists()


@pytest.mark.parametrize("share_of", [0.1, 0.5, 0.9, 0.999])
def test_a_configuration_that_is_cut_is_named(share_of, run, typed):
    text = (run / "config.yaml").read_bytes()
    (run / "config.yaml").write_bytes(text[: int(share_of * len(text))])
    assert "config.yaml is cut short" in refused(typed, run, 2)


@pytest.mark.parametrize("text", [b"a: \xff\n", b"a: [1\n", b"a: \0\n"])
def test_a_configuration_of_the_user_that_is_broken_is_named(text, typed, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_bytes(text)
    overrides = (
        "--config-dir",
        f"{tmp_path}/conf",
        "experiment=mine",
        f"hydra.run.dir={tmp_path}/r",
    )
    status, _, error = typed("train", *overrides)
    assert status == 2 and "mine.yaml is not" in error and error.count("\n") == 1, error


@pytest.mark.parametrize("change", [{"channels": 10**6}, {"multipliers": [10**4]}])
def test_a_model_is_as_large_as_its_weights(change, run, typed):
    spoil(run, lambda config: config["model"].update(change))
    assert "do not fit the model that config.yaml describes" in refused(typed, run, 2)


def test_packages_that_are_named_are_trusted(run, typed, evil):
    spoil(run, lambda config: config["sampler"].update(_target_="evil_package.Net"))
    assert "trust=[PACKAGE]" in refused(typed, run, 5, "trust=[evil]")
    assert refused(typed, run, 2, "trust=[os/system]").startswith("error: trust=")
    assert not evil.exists()
    status, _, _ = typed("sample", f"run={run}", "trust=[evil_package]", "sampler.steps=null")
    assert status == 2 and evil.exists()
    refused(typed, run)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"experiment={name}"] for name in options("experiment")),
        ["trainer=slurm", "logger=tensorboard"],
        ["trainer=ddp", "logger=wandb"],
        ["guidance=classifier", "variance=analytic", "timestep_sampler=importance"],
        ["guidance=autoguidance", "conditioner=pretrained_text", "model=unet_cross"],
        ["data=hub"],
        ["data=toy"],
        *([f"sampler={name}"] for name in options("sampler")),
        *([f"schedule={name}"] for name in options("schedule")),
    ],
    ids=" ".join,
)
def test_what_train_keeps_is_known(overrides, tmp_path):
    OmegaConf.save(composed(*overrides), tmp_path / "config.yaml")
    assert saved_config.load_saved_config(tmp_path / "config.yaml") == OmegaConf.load(
        tmp_path / "config.yaml"
    )


def test_own_configurations_are_all_known(trained):
    config = run_config.load_config(str(trained))
    assert config.system.network._target_ == "ddpm_lab.networks.unet.UNet"
    for group, (targets, _) in saved_config._own().items():
        assert all(not name.startswith(("builtins", "os.")) for name in targets), group
    assert (
        "torch.optim.AdamW" in saved_config._own()["optimizer"][0]
        and "torch.optim.AdamW" not in saved_config._own()["model"][0]
    )


# What is shared


def test_what_was_shared_is_read_as_the_run_is(trained, typed, tmp_path):
    for weights in ("ema", "raw"):
        share(str(trained), tmp_path / weights, weights)
        drawn = []
        for which in (trained, tmp_path / weights):
            out = f"{tmp_path}/{weights}-{which.name}"
            status, _, error = typed(
                "sample", f"run={which}", f"weights={weights}", "count=4", f"hydra.run.dir={out}"
            )
            assert status == 0, error
            with np.load(f"{out}/samples.npz") as made:
                drawn.append(made["images"])
        assert np.array_equal(*drawn)
        assert {file.name for file in (tmp_path / weights).iterdir()} == {
            "config.yaml",
            "run.json",
            "weights.safetensors",
        }
    for has, conditions in (("ema", "raw"), ("raw", "ema")):
        status, _, error = typed("sample", f"run={tmp_path}/{has}", f"weights={conditions}")
        assert status == 2 and f"weights={conditions} are not in run=" in error
    with pytest.raises(UserError, match="nothing is overwritten"):
        share(str(trained), tmp_path / "ema")


def test_safetensors_that_lie(trained, tmp_path):
    share(str(trained), tmp_path / "s")
    file = tmp_path / "s" / "weights.safetensors"
    good = file.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")

    def lying(**parts):
        text = json.dumps(header | {name: header[name] | parts}).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + size :]

    for spoilt in (
        good[:-1],
        good + b"x",
        b"",
        b"x" * 100,
        struct.pack("<Q", 2**60) + good[8:],
        lying(shape=[10**12]),
        lying(data_offsets=[0, 2**50]),
        lying(dtype="I8"),
        lying(shape=[2**62, 4]),
    ):
        file.write_bytes(spoilt)
        with pytest.raises(CorruptFileError):
            safe_load.load_checkpoint(file)
    for metadata in (None, {"ddpm_lab": "["}, {"ddpm_lab": "{}"}, {"ddpm_lab": "[" * 10**5}):
        save_file({"denoiser.x": torch.ones(1)}, file, metadata)
        with pytest.raises(CorruptFileError):
            safe_load.load_checkpoint(file)
    said = json.loads(header["__metadata__"]["ddpm_lab"])
    said["hyper_parameters"]["_instantiator"] = "builtins.open"
    safe_load.save_tensors({"denoiser.x": torch.ones(1)}, file, {"ddpm_lab": json.dumps(said)})
    with pytest.raises(UnsafeFileError, match="hyper_parameters"):
        safe_load.load_checkpoint(file)
    safe_load.save_tensors({"denoiser.x": torch.full((2,), torch.inf)}, file, {"ddpm_lab": "{}"})
    with pytest.raises(CorruptFileError, match="not finite"):
        safe_load.load_checkpoint(file)


# Arrays, metrics, sweeps


def npy(shape, kind="<f4", content=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + content


def test_arrays_are_numbers_and_as_large_as_they_say(tmp_path):
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
        with pytest.raises(UserError) as told:
            read_array(f"{tmp_path}/{name}.npz", "x_T", (1, 8, 8), None)
        assert told.value.status == (5 if name in ("objects", "pipe") else 2)
    assert not mark.exists()


def sweep(root, cell="a", **entry):
    root.mkdir(exist_ok=True)
    entry = {"name": "a", "config": "0", "command": "python train.py"} | entry
    (root / "sweep.json").write_text(json.dumps({cell: entry}))
    return root


def a_cell(root, name="a", **metrics):
    (root / name).mkdir(parents=True)
    (root / name / "job.json").write_text(json.dumps({"status": 0, "config": "0"}))
    (root / name / "metrics.json").write_text(json.dumps({"fid": 1.0} | metrics))
    return root / name


def reported(typed, root, tmp_path):
    status, out, error = typed("report", f"dir={root}", f"out={tmp_path}/report")
    assert "Traceback" not in error and "\x1b" not in out + error and error.count("\n") <= 3
    return status, error


def test_a_report_escapes_what_it_is_told(typed, tmp_path):
    root = sweep(tmp_path / "sweep", name="<script>x</script>\x1b[2J", command="<b>")
    a_cell(root)
    assert reported(typed, root, tmp_path) == (0, "")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>x" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("cell", ["../outside", "/etc", "..", "a/b", "a\x1b[2J"])
def test_a_sweep_has_its_cells_in_its_folder(cell, typed, tmp_path):
    root = sweep(tmp_path / "sweep", cell)
    a_cell(tmp_path, "outside")
    status, error = reported(typed, root, tmp_path)
    assert status == 5 and "no folder in it" in error


def test_files_of_a_sweep_are_files_of_their_kind(typed, tmp_path):
    root = sweep(tmp_path / "sweep")
    cell = a_cell(root)
    spoilt = {"fid": 10**400, "kid": [], "class_accuracy": "x"}
    (cell / "metrics.json").write_text(json.dumps(spoilt | {"fid": 10**200}))
    assert reported(typed, root, tmp_path)[0] == 0
    for text in ("[" * 10**6, '{"fid": ' + "1" * 10**5 + "}", "[]", "{", '{"fid": NaN}'):
        (cell / "metrics.json").write_text(text)
        assert reported(typed, root, tmp_path)[0] == 0
    (cell / "metrics.json").unlink()
    os.mkfifo(cell / "metrics.json")
    assert reported(typed, root, tmp_path)[0] == 5
    (cell / "metrics.json").unlink()
    (cell / "metrics.json").symlink_to("/dev/zero")
    assert reported(typed, root, tmp_path)[0] == 5
    (cell / "metrics.json").unlink()
    (cell / "metrics.csv").write_text("step,train/loss\nx,y\n")
    assert reported(typed, root, tmp_path)[0] == 2
    (cell / "metrics.csv").unlink()
    (cell / "images").mkdir()
    (cell / "images" / "samples-1.png").symlink_to("/etc/passwd")
    assert reported(typed, root, tmp_path)[0] == 5
    shutil.rmtree(cell)
    cell.symlink_to(tmp_path)
    assert reported(typed, root, tmp_path)[0] == 5


# Data without classes, and places


@pytest.fixture(scope="module")
def flat(typed, tmp_path_factory):
    """A run of a flat folder of images, which have no classes."""
    where = tmp_path_factory.mktemp("flat")
    overrides = (
        "data=folder",
        f"data.path={noise(where / 'images')}",
        "data.batch_size=2",
        "data.held_out=0.4",
        "extractor=none",
        "callbacks=none",
        "logger=csv",
        "model.channels=8",
        "trainer.max_steps=2",
    )
    status, _, error = typed("train", *overrides, f"hydra.run.dir={where}/r")
    assert status == 0, error
    return where / "r"


def test_a_run_of_a_flat_folder_is_sampled_measured_shared_and_resumed(flat, typed, tmp_path):
    small = ("weights=raw", "count=2", "sampler.steps=2")
    assert typed("sample", f"run={flat}", *small, f"hydra.run.dir={tmp_path}/a")[0] == 0
    assert (
        typed(
            "evaluate",
            f"run={flat}",
            "weights=raw",
            "metrics=[nll]",
            "nll.steps=2",
            f"out={tmp_path}/b",
        )[0]
        == 0
    )
    share(str(flat), tmp_path / "s")
    assert typed("sample", f"run={tmp_path}/s", *small, f"hydra.run.dir={tmp_path}/c")[0] == 0
    for name in ("grid.png", "samples.npz"):
        assert (tmp_path / "a" / name).read_bytes()[-999:] == (tmp_path / "c" / name).read_bytes()[
            -999:
        ]
    content = torch.load(last(flat), weights_only=True)
    assert content["hyper_parameters"]["captions"] is None
    torch.save(
        content | {"hyper_parameters": content["hyper_parameters"] | {"captions": []}}, last(flat)
    )  # was so once
    status, _, error = typed("train", f"resume={flat}", "trainer.max_steps=3")
    assert status == 0, error


def test_data_without_classes_have_no_captions():
    images = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), None)
    for classes, captions in ((None, []), (None, None), (None, [["a"]]), (2, []), (2, None)):
        data = DataModule("", images, images, classes=classes, batch_size=1, captions=captions)
        assert data.spec["captions"] == (None if classes is None else [["0"], ["1"]])


def test_names_of_classes_are_only_names(typed, tmp_path):
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
    overrides = (
        f"run={tmp_path}/r",
        "weights=raw",
        "count=2",
        "sampler.steps=1",
        f"hydra.run.dir={tmp_path}/s",
    )
    status, _, error = typed("sample", *overrides)
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
    ],
)
def test_data_of_a_foreign_run_are_read_only_once_the_user_named_them(
    data, key, run, typed, tmp_path, monkeypatch
):
    spoil(run, lambda config: (without_secret(config), config.update(data=data)))
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
    trusted_paths.remember_paths(config)
    trusted_paths.require_named(config, "a run", trusted_paths.DATA)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")  # cannot be written
    trusted_paths.remember_paths(config)


# Loggers, and what libraries read where they are started


def test_settings_of_wandb_in_a_folder_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(
        "[default]\nbase_url = http://127.0.0.1:9\nmode = offline\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    seen = []

    def init(**options):
        seen.append(
            (loggers.wb.setup().settings.base_url, options["settings"].git_root, options["mode"])
        )

    loggers.wb.teardown()
    monkeypatch.setattr(loggers.wb, "init", init)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])
    loggers.start_wandb(dir="run")
    ((address, repository, mode),) = seen
    assert "127.0.0.1" not in address and repository == str(ROOT) and mode == "offline"
    assert os.getcwd() == str(tmp_path)
    for content in (b"\xff", b"mode", b"[default]\nmode = online\n"):
        (tmp_path / "wandb" / "settings").write_bytes(content)
        assert loggers._local_mode() is None


def test_a_run_goes_on_without_a_logger_that_fails(monkeypatch, tmp_path, caplog):
    def fail(*args, **kwargs):
        raise OSError(30, "Read-only\nfile system")

    monkeypatch.setattr(loggers, "start_wandb", fail)
    assert loggers.wandb(str(tmp_path)) is None
    assert caplog.messages == ["W&B: [Errno 30] Read-only file system; the run goes on without it"]
    caplog.clear()
    board = TensorBoardLogger(str(tmp_path))
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", fail)
    board = loggers.make_optional(board)
    for _ in range(3):
        board.log_metrics({"a": 1.0}, step=1)
    assert (
        loggers.has_failed(board)
        and len(caplog.messages) == 1
        and caplog.messages[0].startswith("TensorBoard: ")
    )
    monkeypatch.setattr(loggers.wb, "run", object())
    monkeypatch.setattr(loggers.wb, "finish", fail)
    loggers.finish()
    with pytest.raises(InterruptedRunError), loggers.optional(board):
        raise InterruptedRunError("stopped", 15)


def test_a_matplotlibrc_of_the_current_folder_is_undone(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    (tmp_path / "matplotlibrc").write_text("backend: module://evil_package\ntext.usetex: True\n")
    with matplotlib.rc_context(fname="matplotlibrc"):
        safe_load.default_plot_style()
        assert not matplotlib.rcParams["text.usetex"] and matplotlib.get_backend() == "agg"


# Secrets


def test_a_secret_stays_where_it_was(trained):
    for file in trained.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    assert "oc.env:DDPM_TEST_SECRET" in (trained / "config.yaml").read_text()
    assert "oc.env:DDPM_TEST_SECRET" in (trained / "hparams.yaml").read_text()


def test_what_is_public_names_secrets_and_resolves_the_rest(monkeypatch):
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
    assert SECRET not in str(as_typed(config, "of"))


def test_a_complaint_does_not_tell_a_secret(typed, monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_TEST_SECRET", SECRET)
    for word in ("optimizer.lr", "seed", "model.channels", "schedule.steps"):
        status, out, error = typed(
            "train", *FAST, f"{word}=${{oc.env:DDPM_TEST_SECRET}}", f"hydra.run.dir={tmp_path}/r"
        )
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
def test_names_lead_nowhere_else(word, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, error = typed("train", word)
    assert status == 5 and error.startswith("error: ") and error.count("\n") == 1, error
    assert not [*tmp_path.iterdir()]


def test_a_name_that_no_folder_can_have_is_told_in_a_line(typed, tmp_path):
    status, _, error = typed("train", *FAST, f"hydra.run.dir={tmp_path}/{'x' * 300}")
    assert status == 3 and error.count("\n") == 1, error


def test_the_terminal_is_told_nothing_that_it_would_obey(typed):
    assert escape_control("a\x1b[2Jb\u202ec\r\nd") == "a\\x1b[2Jb\\u202ec\\r\\nd"
    assert escape_control("a\nb\x9b", lines=True) == "a\nb\\x9b"
    for name in ("job_logging", "hydra_logging"):
        config = OmegaConf.load(CONFIGS / "hydra" / name / "plain.yaml")
        assert (
            config.formatters.plain["class"]
            == f"{EscapingFormatter.__module__}.{EscapingFormatter.__qualname__}"
        )
    status, _, error = typed("sample", "run=a\x1b[2J")
    assert status == 2 and "\x1b" not in error and "a\\x1b[2J" in error


# Images and archives


def noise(where, names=("0", "1", "2", "3", "4", "5")):
    where.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.effect_noise((8, 8), 50 + i).convert("RGB").save(where / f"{name}.png")
    return where


def odd_ones(where, kind):
    if kind == "link out":
        (where / "z.png").symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(where / "z.png")
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(where)  # the name of a socket must be short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("z.png")
        finally:
            os.chdir(here)
    else:
        (where / "z\x1b[2J.png").symlink_to("/etc/passwd")


@pytest.mark.parametrize("kind", ["link out", "fifo", "socket", "escapes"])
def test_a_folder_holds_images_of_its_own(kind, typed, tmp_path):
    odd_ones(noise(tmp_path / "data"), kind)
    linked = kind in (
        "link out",
        "escapes",
    )  # links are followed, and what they lead to must be an image
    for look in (
        lambda: image_folder(str(tmp_path / "data")),
        lambda: read_images(tmp_path / "data", (3, 8, 8)),
    ):
        with pytest.raises(
            ValueError if linked else UnsafeFileError,
            match="cannot be read as an image" if linked else "",
        ):
            look()
    where = f"hydra.run.dir={tmp_path}/r"
    status, _, error = typed(
        "train", *FAST, "data=folder", f"data.path={tmp_path}/data", "data.batch_size=2", where
    )
    assert status == (2 if linked else 5) and error.count("\n") == 1 and "\x1b" not in error
    assert not (tmp_path / "r").exists()


def test_images_that_are_bombs(tmp_path):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zipfile.crc32(kind + content))
        )

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


def packed(kind, source, archive, name, odd):
    """An archive of `source` and an odd member."""
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as made:
            for file in sorted(source.iterdir()):
                made.write(file, f"top/{file.name}")
            info = zipfile.ZipInfo(name)
            info.external_attr = {
                "link": stat.S_IFLNK,
                "device": stat.S_IFCHR,
                "file": stat.S_IFREG,
            }[odd] << 16
            made.writestr(info, b"/etc/passwd")
        return
    with tarfile.open(archive, "w") as made:
        for file in sorted(source.iterdir()):
            made.add(file, f"top/{file.name}")
        info = tarfile.TarInfo(name)
        info.type = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE, "file": tarfile.REGTYPE}[
            odd
        ]
        info.linkname = "/etc/passwd" if odd == "link" else ""
        made.addfile(info)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("../evil.png", "file"),
        ("/tmp/evil.png", "file"),
        ("top/evil.png", "link"),
        ("top/evil.png", "device"),
        ("../\x1b[2J.png", "file"),
    ],
)
def test_an_archive_is_unpacked_where_it_should_be(kind, name, odd, tmp_path, monkeypatch, capsys):
    packed(kind, noise(tmp_path / "source"), tmp_path / "a.archive", name, odd)
    script = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))
    monkeypatch.setattr(
        sys, "argv", ["prepare_data.py", f"{tmp_path}/a.archive", f"{tmp_path}/target"]
    )
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 5 and error.startswith("error: ") and "\x1b[2J" not in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.archive", "source"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_is_a_bomb(kind, tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))
    monkeypatch.setitem(script["unzip"].__globals__, "UNPACKED", (0.01, 10))
    packed(kind, noise(tmp_path / "source"), tmp_path / "a.archive", "top/x.png", "file")
    with pytest.raises(UnsafeFileError, match="times its size"):
        script["prepare"](tmp_path / "a.archive", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_archive_whose_headers_are_a_bomb(tmp_path):
    script = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("top/x.png")
        info.pax_headers = {"comment": "x" * 2**21}
        made.addfile(info)
    with pytest.raises(UnsafeFileError, match="a header of 2097"):
        script["prepare"](tmp_path / "a.tar.gz", tmp_path / "target")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shards": []}, "its shards hold 0"),
        ({"classes": ["a"]}, "labels of other than its 1 classes"),
    ],
)
def test_a_store_holds_what_its_index_says(change, told, tmp_path):
    from ddpm_lab.data import shards as stores

    script = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))
    for name in "ab":
        noise(tmp_path / "source" / name)
    script["prepare"](tmp_path / "source", tmp_path / "store")
    file = tmp_path / "store" / stores.INDEX
    index = json.loads(file.read_text()) | change
    index["sha256"] = stores._content(index)
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=told):
        image_store(str(tmp_path / "store"), batch_size=1)


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/passwd", "a\x1b.npy"])
def test_a_store_holds_files_of_its_own(name, tmp_path):
    from ddpm_lab.data import shards as stores

    script = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))
    script["prepare"](noise(tmp_path / "source"), tmp_path / "store")
    file = tmp_path / "store" / stores.INDEX
    index = json.loads(file.read_text())
    index["shards"][0]["name"] = name
    index["sha256"] = stores._content(index)
    file.write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError, match="no file of a store"):
        image_store(str(tmp_path / "store"), batch_size=1)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UnsafeFileError, match="no regular file"):
        image_store(str(tmp_path / "store"), batch_size=1)
