"""Inverse problems on Gaussian images, whose posterior is exact: operators and guidances."""

import runpy

import pytest
import torch
from conftest import ROOT

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.analytic_propagation import propagate_affine
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.inverse_guidance import DPS, Inpainting, InverseProblem, PiGDM
from ddpm_lab.diffusion.operators import OPERATORS, Mask, Saturation, blur, box, downsample, gray
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.samplers import DDIM, DDPM, RePaint
from ddpm_lab.diffusion.schedules import cosine, flow, geometric, linear
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde

SHAPE = (3, 4, 4)
SIZE = 48
LINEAR = [name for name in OPERATORS if name != "saturation"]
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric, flow)}
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "compare_inverse.py"))
T = torch.tensor([1, 30, 300, 600, 999])


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def matrix(operator, shape=SHAPE):
    """Return the matrix of a linear operator, (M, d)."""
    size = torch.Size(shape).numel()
    return operator.forward(torch.eye(size, dtype=torch.float64).view(-1, *shape)).flatten(1).T


def denoiser(covariance, process=PROCESSES["linear"], variance=BetaTilde(), size=SIZE):
    torch.manual_seed(1)
    return GaussianDenoiser(process, variance, 0.3 * normal(size), covariance)


def isotropic(variance=0.25, **kwargs):
    return denoiser(torch.full((SIZE,), variance, dtype=torch.float64), **kwargs)


def problem(operator, count=5, noise=0.0):
    return InverseProblem(operator, operator.forward(normal(count, *SHAPE)), noise)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_inverses_are_those_of_the_matrix(name, ratio):
    operator = OPERATORS[name](SHAPE)
    a, y = matrix(operator), operator.forward(normal(5, *SHAPE))
    expected = y.flatten(1) @ torch.linalg.pinv(a @ a.T + ratio * torch.eye(len(a)).double()) @ a
    x = operator.inverse(y, torch.full((5, 1, 1, 1), ratio, dtype=torch.float64))
    torch.testing.assert_close(x.flatten(1), expected, rtol=0, atol=1e-7)
    if ratio == 0:
        torch.testing.assert_close(operator.forward(x), y, rtol=0, atol=1e-7)


def test_operators_are_their_definitions():
    x = normal(2, *SHAPE)
    means = torch.nn.functional.avg_pool2d(x, 2)
    for amount in (2, 2.0):
        torch.testing.assert_close(downsample(SHAPE, amount).forward(x), means)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    torch.testing.assert_close(
        gray(SHAPE).forward(x), torch.einsum("c,bchw->bhw", weights, x)[:, None]
    )
    assert (box((1, 8, 6), 0.5).keep == 0).sum() == 4 * 3
    assert torch.equal(Saturation(2.0).forward(x), (2 * x).clamp(-1, 1))
    flat = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(blur((1, 16, 16), 2.0).forward(flat), flat)
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[0, 0, 20, 20] = 1
    image, place = blur((1, 41, 41), 3.0).forward(point)[0, 0], torch.arange(41) - 20.0
    assert (image.sum(0) * place**2).sum().item() == pytest.approx(9, rel=0.02)
    edge = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).view(1, 1, 1, 4)
    assert blur((1, 1, 4), 0.5).forward(edge)[0, 0, 0].tolist() == pytest.approx(
        [0.8926, 0.1069, 0.0003, 0], abs=2e-3
    ), "the border is mirrored"


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("name", LINEAR)
def test_pigdm_is_the_exact_posterior_mean_of_isotropic_data(name, noise, process):
    exact, measured = isotropic(process=process), problem(OPERATORS[name](SHAPE), noise=noise)
    x_t, a = process.scale(T).view(-1, 1, 1, 1) * normal(5, *SHAPE), matrix(measured.operator)
    x0 = PiGDM(exact, measured, data_std=0.5)(x_t, T).x0
    identity = torch.eye(SIZE, dtype=torch.float64)
    for i, (alpha, sigma) in enumerate(process.table[T, :2].tolist()):
        prior = exact.mean, 0.25 * identity
        given_x = SCRIPT["condition"](*prior, alpha * identity, x_t[i].flatten(), sigma)
        mean, _ = SCRIPT["condition"](*given_x, a, measured.y[i].flatten(), noise)
        torch.testing.assert_close(x0[i].flatten(), mean, rtol=0, atol=1e-7)
    assert (x0 - exact(x_t, T).x0).abs().max() > 0.1


@pytest.mark.parametrize("name", ["half", "mean"])
def test_pigdm_samples_the_exact_posterior_of_isotropic_data(name):
    of = SCRIPT["case"](name, 0.25 * torch.eye(16, dtype=torch.float64))
    guided = PiGDM(of.denoiser, of.problem, data_std=0.5)
    errors = []
    for steps in (250, 500, 1000):
        moments = propagate_affine(DDIM(steps=steps, clip=None), guided, SCRIPT["SHAPE"])
        errors.append(SCRIPT["errors"](moments, of.posterior))
    assert errors[-1][0] < 2e-3 and errors[-1][1] < 1e-2
    assert errors[0][1] > 1.5 * errors[1][1] > 2.2 * errors[2][1], "first order in the step"
    wrong = PiGDM(of.denoiser, of.problem, data_std=1.0)
    moments = propagate_affine(DDIM(clip=None), wrong, SCRIPT["SHAPE"])
    mean, _ = SCRIPT["errors"](moments, of.posterior)
    assert mean > 0.05 or name == "half", "without noise, r_t cancels if J is a number"


def test_pigdm_begins_at_pure_noise():
    of = SCRIPT["case"]("mean", 0.25 * torch.eye(16, dtype=torch.float64))
    exact = denoiser(torch.full((16,), 0.25).double(), PROCESSES["flow"], size=16)
    exact.mean = of.denoiser.mean
    guided = PiGDM(exact, of.problem, data_std=0.5)
    moments = propagate_affine(DDIM(clip=None), guided, SCRIPT["SHAPE"])
    assert max(SCRIPT["errors"](moments, of.posterior)) < 0.01, "alpha is 0 at T"


def test_propagated_moments_are_those_of_samples():
    of = SCRIPT["case"]("mean", SCRIPT["correlated"]())
    guided, sampler = PiGDM(of.denoiser, of.problem, data_std=0.5), DDPM(steps=20, clip=None)
    mean, covariance = propagate_affine(sampler, guided, SCRIPT["SHAPE"])
    x = sampler(guided, normal(20_000, *SCRIPT["SHAPE"])).flatten(1)
    size = covariance.diagonal().max().item()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * (size / 20_000) ** 0.5)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=5 * size * (2 / 20_000) ** 0.5)


def test_pigdm_needs_a_linear_operator():
    with pytest.raises(ValueError, match=r"operator=saturation is not linear.*guidance=dps"):
        PiGDM(isotropic(), problem(Saturation(2.0)))
    with pytest.raises(NotImplementedError):
        Saturation(2.0).inverse(normal(1, *SHAPE))


def test_dps_shifts_the_mean_by_the_gradient_of_the_norm():
    exact, measured = isotropic(), problem(downsample(SHAPE))
    t, s, x_t = torch.full((5,), 300), torch.full((5,), 290), normal(5, *SHAPE)
    estimate = exact(x_t, t)
    plain = exact.reverse(estimate, x_t, t, s)
    for zeta in (0.0, 0.7):
        step = DPS(exact, measured, zeta=zeta, clip=None).reverse(estimate, x_t, t, s)
        # x_0 is affine in x_t with this slope, so grad |r| = -slope A^T r / |r|, of length <= slope
        alpha, sigma = exact.process.table[300, :2].tolist()
        slope = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        a = matrix(measured.operator)
        residual = measured.y.flatten(1) - estimate.x0.flatten(1) @ a.T
        direction = residual @ a / residual.norm(dim=1, keepdim=True)
        shift = (step.mean - plain.mean).flatten(1)
        torch.testing.assert_close(shift, zeta * slope * direction)
        assert torch.equal(step.log_var, plain.log_var)


def test_dps_of_a_sample_does_not_depend_on_its_batch():
    measured = problem(downsample(SHAPE), count=2)
    guided, t, x_t = DPS(isotropic(), measured, clip=None), torch.full((2,), 300), normal(2, *SHAPE)
    both = guided.gradient(x_t, t, Condition())
    alone = guided.gradient(x_t[1:], t[1:], Condition(index=torch.tensor([1])))
    torch.testing.assert_close(both[1:], alone)


def test_dps_clips_inside_the_norm():
    measured, t, x_t = problem(downsample(SHAPE)), torch.full((5,), 300), 3 * normal(5, *SHAPE)
    exact, zeros = isotropic(), 0
    saturated = exact(x_t, t).x0.abs() > 0.5
    gradient = DPS(exact, measured, clip=0.5).gradient(x_t, t, Condition())
    assert (gradient[saturated] == zeros).all() and (gradient[~saturated] != 0).any()


def test_dps_approaches_the_posterior_without_reaching_it():
    of = SCRIPT["case"]("mean", SCRIPT["correlated"]())
    errors = []
    for zeta in (0.0, 0.3):
        guided, sampler = DPS(of.denoiser, of.problem, zeta=zeta, clip=None), DDPM(clip=None)
        errors.append(SCRIPT["errors"](SCRIPT["sampled"](sampler, guided, 400), of.posterior))
    assert errors[0][0] > 1 and 0.05 < errors[1][0] < 0.3, "the mean, in standard deviations"


def test_inpainting_keeps_known_pixels():
    of = SCRIPT["case"]("half", SCRIPT["correlated"]())
    guided, known = Inpainting(of.denoiser, of.problem), of.problem.operator.keep.bool()
    x_t, t = normal(3, *SCRIPT["SHAPE"]), torch.tensor([1, 500, 1000])
    x0, free = guided(x_t, t).x0, of.denoiser(x_t, t).x0
    y = of.problem.y.expand_as(x0)
    assert torch.equal(x0[known.expand_as(x0)], y[known.expand_as(x0)])
    assert torch.equal(x0[~known.expand_as(x0)], free[~known.expand_as(x0)])
    inverted = Inpainting(of.denoiser, of.problem._replace(operator=Mask(1 - known.double())))
    assert (inverted(x_t, t).x0 - x0).abs().max() > 0.1
    for sampler in (DDIM(steps=10, clip=None), DDPM(steps=10, clip=None)):
        samples = sampler(guided, normal(4, *SCRIPT["SHAPE"]))
        expected = of.problem.y.expand_as(samples)[known.expand_as(samples)]
        torch.testing.assert_close(samples[known.expand_as(samples)], expected)


@pytest.mark.parametrize("variance", [BetaTilde(), Beta()])
def test_known_pixels_follow_the_forward_process(variance):
    of = SCRIPT["case"]("half", SCRIPT["correlated"]())
    of.denoiser.variance = variance
    guided, process = Inpainting(of.denoiser, of.problem), of.denoiser.process
    x, noise = normal(20_000, *SCRIPT["SHAPE"]), torch.randn_like
    for t, x_t in DDPM(steps=10, clip=None).trajectory(guided, x, noise=noise, t_end=112):
        alpha, sigma = process.table[t, :2].tolist()
        pixel, y = x_t[:, 0, 0, 0], of.problem.y[0, 0, 0, 0]
        assert pixel.mean().item() == pytest.approx((alpha * y).item(), abs=5 * sigma / 141)
        assert pixel.std().item() == pytest.approx(sigma, rel=0.03)


def test_replacement_is_exact_for_independent_pixels_only():
    independent = SCRIPT["case"]("half", 0.25 * torch.eye(16, dtype=torch.float64))
    correlated = SCRIPT["case"]("half", SCRIPT["correlated"]())
    errors = [
        SCRIPT["errors"](
            propagate_affine(DDPM(clip=None), Inpainting(of.denoiser, of.problem), SCRIPT["SHAPE"]),
            of.posterior,
        )
        for of in (independent, correlated)
    ]
    assert max(errors[0]) < 1e-3 and min(errors[1]) > 0.1


def test_resampling_converges_to_the_posterior():
    of = SCRIPT["case"]("half", SCRIPT["correlated"]())
    guided, errors = Inpainting(of.denoiser, of.problem), []
    for resamples in (1, 5, 25):
        sampler = RePaint(steps=50, resamples=resamples, jump=5, clip=None)
        moments = propagate_affine(sampler, guided, SCRIPT["SHAPE"])
        errors.append(SCRIPT["errors"](moments, of.posterior)[0])
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_repaint_visits_each_block_several_times():
    process = ForwardProcess(linear(100))
    times = RePaint(spacing=[9, 7, 5, 3, 1, 0], resamples=2, jump=2).timesteps(process)
    assert times == [9, 7, 5, 9, 7, 5, 3, 1, 5, 3, 1, 0]
    assert RePaint(steps=5, resamples=1).timesteps(process) == DDPM(steps=5).timesteps(process)


def test_repaint_without_resampling_is_ddpm():
    exact, x = isotropic(), normal(3, *SHAPE)
    samples = [
        sampler(exact, x, noise=PerSampleGenerator(0, range(3)))
        for sampler in (RePaint(steps=9, resamples=1, clip=None), DDPM(steps=9, clip=None))
    ]
    assert torch.equal(*samples)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_repaint_without_guidance_samples_the_data(process):
    exact = isotropic(process=process)
    exact.variance = Analytic(exact.mse())
    sampler = RePaint(steps=50, resamples=4, jump=3, clip=None)
    _, covariance = propagate_affine(sampler, exact, SHAPE)
    _, once = propagate_affine(DDPM(steps=50, clip=None), exact, SHAPE)
    torch.testing.assert_close(covariance, once, rtol=0, atol=1e-3)


def test_each_sample_has_its_own_measurement():
    measured = problem(downsample(SHAPE), count=3)
    guided, x_t, t = PiGDM(isotropic(), measured), normal(2, *SHAPE), torch.tensor([300, 300])
    rows = guided(x_t, t, Condition(index=torch.tensor([4, 2]))).x0
    for row, i in enumerate((1, 2)):
        alone = PiGDM(isotropic(), measured._replace(y=measured.y[i : i + 1]))
        torch.testing.assert_close(rows[row : row + 1], alone(x_t[row : row + 1], t[:1]).x0)


@pytest.mark.parametrize("kind", [Inpainting, DPS, PiGDM])
def test_classifier_free_guidance_inside(kind):
    means = torch.stack([torch.full((SIZE,), -0.5), torch.full((SIZE,), 0.5)]).double()
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    exact = MixtureDenoiser(
        PROCESSES["linear"], BetaTilde(), Mixture(means, weights, 0.5, torch.tensor([0, 1]))
    )
    measured, x_t, t = problem(box(SHAPE)), normal(5, *SHAPE), torch.full((5,), 300)
    cond = Condition(torch.tensor([0, 1, 0, 1, 0]))

    def step(guided):
        estimate = guided(x_t, t, cond)
        return guided.reverse(estimate, x_t, t, t - 10, cond).mean

    inside = step(kind(exact, measured, w=2.0))
    torch.testing.assert_close(inside, step(kind(ClassifierFreeGuidance(exact, 2.0), measured)))
    assert (inside - step(kind(exact, measured))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [DPS, PiGDM])
def test_gradients_in_inference_mode(kind):
    exact, measured = isotropic(), problem(blur(SHAPE), noise=0.1)
    guided, sampler, x = kind(exact, measured), DDPM(steps=5), normal(5, *SHAPE)
    noises = [PerSampleGenerator(0, range(5)) for _ in range(2)]
    expected = sampler(guided, x, noise=noises[0]).detach()
    with torch.inference_mode():
        assert torch.equal(sampler(guided, x.clone(), noise=noises[1]), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: downsample(SHAPE, 3), "amount=3 must divide the sides.*4 and 4"),
        (lambda: downsample(SHAPE, 1), "amount must be at least 2"),
        (lambda: downsample(SHAPE, 2.5), "amount=2.5 must divide the sides"),
        (lambda: blur(SHAPE, 1e9), "amount must be above 0 and at most 1000"),
        (lambda: box(SHAPE, 1.0), "amount must be above 0 and below 1"),
        (lambda: blur(SHAPE, 0.0), "amount must be above 0"),
        (lambda: gray((1, 4, 4)), "operator=gray needs RGB images"),
        (lambda: gray(SHAPE, 2), "amount=2 is not for operator=gray"),
        (lambda: DPS(isotropic(), problem(box(SHAPE)), zeta=-1.0), "zeta must be"),
        (lambda: PiGDM(isotropic(), problem(box(SHAPE)), data_std=0.0), "data_std must be"),
        (lambda: Inpainting(isotropic(), problem(Saturation(2.0))), "hides no pixels"),
    ],
)
def test_invalid_options_raise(build, message):
    with pytest.raises(ValueError, match=message):
        build()
