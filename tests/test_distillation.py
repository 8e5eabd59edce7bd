"""Progressive distillation: a perfect student equals its teacher, and chains that do not fit."""

import re

import pytest
import torch
from conftest import FAST, composed

import ddpm_lab
from ddpm_lab.diffusion import distillation
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Estimate
from ddpm_lab.diffusion.distillation import Distillation
from ddpm_lab.diffusion.objectives import NoisedBatch, Simple
from ddpm_lab.diffusion.process import ForwardProcess, per_sample
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import cosine, flow, linear
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.runs.distillation import distillation as build_objective
from ddpm_lab.utils.errors import UserError


class Student(BaseDenoiser):
    """The function that minimizes the loss of `objective`."""

    def __init__(self, objective):
        super().__init__(objective.teacher.process, BetaTilde(), supports_cfg=True)
        self.objective = objective
        chain = objective.chain.tolist()
        self.steps = dict(
            zip(chain[2::2], zip(chain[1::2], chain[0::2], strict=False), strict=False)
        )

    def forward(self, x_t, t, cond=Condition()):
        t = per_sample(t, x_t)
        assert set(t.tolist()) <= {*self.steps}, "times of the student's chain"
        middle, s = torch.tensor([self.steps[time] for time in t.tolist()]).T
        return Estimate(self.objective.target(x_t, t, middle, s, cond))


def teachers():
    for process in map(ForwardProcess, (linear(), cosine(100), flow(96))):
        mean = torch.tensor([0.2, -0.1], dtype=torch.float64)
        covariance = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
        yield GaussianDenoiser(process, BetaTilde(), mean, covariance)
        means = torch.tensor([[0.5, 0.0], [-0.3, 0.4]], dtype=torch.float64)
        weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
        yield MixtureDenoiser(process, BetaTilde(), Mixture(means, weights, 0.1, None))


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("teacher", teachers())
def test_a_perfect_student_makes_the_samples_of_its_teacher(teacher, steps):
    x = torch.randn(20, 2, dtype=torch.float64)
    student = Student(Distillation(teacher, steps, clip=None))
    halved = DDIM(clip=None, steps=steps, spacing="trailing")
    theirs = DDIM(clip=None, steps=2 * steps, spacing="trailing")
    torch.testing.assert_close(halved(student, x), theirs(teacher, x), rtol=0, atol=1e-10)


def test_the_loss_of_a_perfect_student_is_zero():
    teacher = next(teachers())
    objective = Distillation(teacher, 8, clip=None)
    x0, eps = torch.randn(2, 200, 2, dtype=torch.float64)
    t = torch.randint(1, 1001, (200,))
    batch = NoisedBatch(x0, eps, teacher.process.diffuse(x0, eps, t), t, Condition(), None)
    assert objective(Student(objective), batch).max() < 1e-20
    assert objective(teacher, batch).mean() > 1e-4


def test_halved_chains_are_those_of_the_sampler():
    teacher = next(teachers())
    for steps in (16, 8, 4, 2, 1):
        chain = Distillation(teacher, steps).chain.tolist()
        assert chain[::-1] == timesteps(1000, 2 * steps, "trailing")
        assert chain[::2][::-1] == timesteps(1000, steps, "trailing")


def test_steps_above_half_of_the_schedule_are_refused():
    with pytest.raises(ValueError, match=r"steps=501 must be at most T / 2 = 500.*try steps=500"):
        Distillation(next(teachers()), 501)


def test_steps_whose_times_are_not_a_part_of_twice_as_many_are_refused():
    assert timesteps(1000, 96, "trailing")[::2] != timesteps(1000, 48, "trailing")
    with pytest.raises(ValueError, match=r"steps=48 .*try steps=47"):
        Distillation(next(teachers()), 48)


@pytest.fixture(scope="module")
def runs(typed, tmp_path_factory):
    """Return a teacher, its student of one step, and a run that cannot be a teacher."""
    folder = tmp_path_factory.mktemp("distillation")
    fast = [word for word in FAST if not word.startswith("sampler.steps")]
    teacher, student, eps = (f"{folder}/{name}" for name in ("teacher", "student", "eps"))
    commands = (
        ["prediction=v", "sampler.steps=2", f"hydra.run.dir={teacher}"],
        ["experiment=distill", f"init={teacher}", "sampler.steps=1", f"hydra.run.dir={student}"],
        ["sampler.steps=2", f"hydra.run.dir={eps}"],
    )
    for command in commands:
        status, out, err = typed("train", *fast, *command)
        assert status == 0, out + err
    return {"TEACHER": teacher, "STUDENT": student, "EPS": eps}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "objective=distillation needs a teacher, a finished run; try init=DIR"),
        (["init=STUDENT", "sampler.steps=1"], "samples in one step already"),
        (["init=TEACHER", "sampler.steps=null"], "sampler.steps=null, but a student has few steps"),
        (
            ["init=TEACHER", "prediction=x0"],
            "was trained with prediction=v, but this run has x0; try prediction=v, or",
        ),
        (["init=EPS"], "was trained with prediction=eps, which does not determine x_0 where"),
        (["init=TEACHER", "schedule=linear"], "try schedule=cosine schedule.steps=1000 schedule.o"),
        (["init=TEACHER", "data.resolution=4"], "try the same data= for both, as in TEACHER (ema)"),
        (
            ["init=TEACHER", "sampler.steps=600"],
            "error: sampler.steps=600 must be at most T / 2 = 500, with times that are a part of "
            "those of twice the steps; try sampler.steps=500",
        ),
        (["init=TEACHER", "sampler.steps=x"], "error: sampler.steps=x has the wrong type"),
        (["init=TEACHER", "variance=learned_range"], "does not contain; try variance=beta_tilde"),
        (
            ["init=TEACHER", "sampler=ancestral"],
            "sampler=ddim sampler.eta=1.0 sampler.steps=3 sampler.spacing=trailing is not the "
            "chain that objective=distillation trains, DDIM without noise; try sampler=ddim "
            "sampler.eta=0 sampler.steps=3 sampler.spacing=trailing",
        ),
        (["init=TEACHER", "sampler.spacing=uniform"], "sampler.spacing=uniform is not the chain"),
        (["init=TEACHER", "sampler=heun"], "sampler=heun sampler.steps=3"),
    ],
)
def test_distillation_without_a_fitting_teacher_is_refused(
    runs, typed, tmp_path, overrides, message
):
    def insert_runs(text):
        return re.sub("|".join(runs), lambda match: runs[match[0]], text)

    words = [*map(insert_runs, overrides), f"hydra.run.dir={tmp_path}/run"]
    status, _, err = typed("train", *FAST, "experiment=distill", *words)
    assert status == 2 and insert_runs(message) in err, err


def test_the_weights_of_the_teacher_are_those_of_the_start(runs):
    teachers = [build_objective(runs["TEACHER"], 1, weights=kind).teacher for kind in (None, "raw")]
    assert [teacher.origin for teacher in teachers] == [
        f"{runs['TEACHER']} ({kind})" for kind in ("ema", "raw")
    ]
    first, second = (next(iter(teacher.parameters())) for teacher in teachers)
    assert not first.equal(second)
    with pytest.raises(UserError, match=r"init_weights=x: init=\S+ does not have them"):
        build_objective(runs["TEACHER"], 1, weights="x")


def test_a_student_halves_its_own_steps(runs, typed):
    status, out, err = typed("sample", f"run={runs['STUDENT']}", "count=2")
    assert status == 0 and "warning" not in out, out + err
    status, out, err = typed("evaluate", f"run={runs['STUDENT']}", "count=20")
    assert status == 0 and "DDIM, 1 step, ema weights" in out, out + err


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler.steps=2"],
        ["sampler.eta=1"],
        ["sampler.spacing=[900,0]", "sampler.steps=1"],
        ["sampler=ddpm"],
        ["sampler=heun", "sampler.steps=1"],
    ],
)
def test_another_chain_than_that_of_the_student_logs_a_warning(runs, typed, overrides):
    status, out, err = typed("sample", f"run={runs['STUDENT']}", "count=1", *overrides)
    message = "distilled for sampler=ddim sampler.eta=0 sampler.steps=1 sampler.spacing=trailing;"
    assert status == 0 and out.count(message) == 1, out + err
    status, out, err = typed("sample", f"run={runs['TEACHER']}", "count=1", *overrides)
    assert status == 0 and message not in out, out + err


def test_a_sweep_and_python_warn_of_another_chain_once(runs, typed, monkeypatch):
    sweep = ("sweep=sampler.steps", "values=[1,2,3]", "count=20")
    status, out, err = typed("evaluate", f"run={runs['STUDENT']}", *sweep)
    assert status == 0 and out.count("this model was distilled for") == 1, out + err
    warnings = []
    monkeypatch.setattr(distillation.LOG, "warning", warnings.append)
    model = ddpm_lab.load(runs["STUDENT"])
    model.sample(1)
    assert not warnings
    model.sample(1, steps=2)
    (warning,) = warnings
    assert "this model was distilled for" in warning


def test_the_teacher_is_clipped_as_the_student_is(runs):
    assert build_objective(runs["TEACHER"], 1, None).sampler.clip is None
    assert composed("experiment=distill", "sampler.clip=2").objective.clip == 2


def test_a_student_is_evaluated_on_its_own_chain(runs):
    objective = Distillation(next(teachers()), 8)
    assert objective.fits_sampler and not Simple().fits_sampler
