"""Progressive distillation: a perfect student equals its teacher, and chains that do not fit."""

import pytest
import torch
from conftest import FAST

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Estimate
from ddpm_lab.diffusion.distillation import Distillation
from ddpm_lab.diffusion.objectives import NoisedBatch, Simple
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import cosine, flow, linear
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import BetaTilde


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
    with pytest.raises(ValueError, match="steps=501 must be at most T / 2 = 500"):
        Distillation(next(teachers()), 501)


@pytest.fixture(scope="module")
def runs(typed, tmp_path_factory):
    """Return a teacher and its student of one step."""
    folder = tmp_path_factory.mktemp("distillation")
    fast = [word for word in FAST if not word.startswith("sampler.steps")]
    teacher, student = f"{folder}/teacher", f"{folder}/student"
    commands = (
        ["prediction=v", "sampler.steps=2", f"hydra.run.dir={teacher}"],
        ["experiment=distill", f"init={teacher}", "sampler.steps=1", f"hydra.run.dir={student}"],
    )
    for command in commands:
        status, out, err = typed("train", *fast, *command)
        assert status == 0, out + err
    return teacher, student


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "objective=distillation needs a teacher, a finished run; try init=DIR"),
        (["init=STUDENT", "sampler.steps=1"], "samples in one step already"),
        (["init=TEACHER", "sampler.steps=null"], "sampler.steps=null, but a student has few steps"),
        (["init=TEACHER", "prediction=eps"], "was trained with prediction=V"),
        (["init=TEACHER", "schedule=linear"], "another schedule"),
    ],
)
def test_distillation_without_a_fitting_teacher_is_refused(
    runs, typed, tmp_path, overrides, message
):
    words = [word.replace("TEACHER", runs[0]).replace("STUDENT", runs[1]) for word in overrides]
    folder = f"hydra.run.dir={tmp_path}/run"
    status, _, err = typed("train", *FAST, "experiment=distill", *words, folder)
    assert status == 2 and message in err, err


def test_a_student_halves_its_own_steps(runs, typed):
    status, out, err = typed("sample", f"run={runs[1]}", "count=2")
    assert status == 0, out + err


def test_a_student_is_evaluated_on_its_own_chain(runs):
    objective = Distillation(next(teachers()), 8)
    assert objective.fits_sampler and not Simple().fits_sampler
