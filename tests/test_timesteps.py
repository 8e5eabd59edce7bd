"""Timestep samplers: their distributions, and importance sampling against a reference."""

import io

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import geometric
from ddpm_lab.diffusion.timestep_samplers import Importance, Stratified, Uniform

CPU = torch.device("cpu")
SAMPLERS = {
    name: instantiate(composed(f"timestep_sampler={name}").timestep_sampler)
    for name in options("timestep_sampler")
    if name not in ("log_normal", "logit_normal")  # test_noise_levels.py, test_flow.py
}


def process(steps):
    return ForwardProcess(geometric(steps))


class ReferenceImportance:
    """Importance sampling with one list per time."""

    def __init__(self, steps, history, uniform):
        self.steps, self.history, self.uniform = steps, history, uniform
        self.losses = [[] for _ in range(steps)]

    def update(self, t, losses):
        for time, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.losses[time - 1] = [*self.losses[time - 1], loss][-self.history :]

    def weights(self):
        if any(len(row) < self.history for row in self.losses):
            return np.full(self.steps, 1 / self.steps)
        size = np.array([np.sqrt(np.mean(np.square(row))) for row in self.losses])
        return (1 - self.uniform) * size / size.sum() + self.uniform / self.steps


def update(sampler, rounds, size=32, seed=0):
    """Update `sampler` with `rounds` batches of losses that grow with t, and return it."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        t = torch.randint(1, sampler.steps + 1, (size,), generator=generator)
        sampler.update(t, t * (1 + torch.rand(size, generator=generator)))
    return sampler


@pytest.mark.parametrize("name", SAMPLERS)
def test_initial_times_are_uniform_with_weight_1(name):
    sampler = SAMPLERS[name](process(7))
    t, weight = sampler(70_000, CPU)
    assert t.dtype == torch.int64 and (weight == 1).all()
    assert t.unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (t.bincount()[1:] / 10_000).tolist() == pytest.approx([1] * 7, abs=0.06)


@pytest.mark.parametrize("size", [1, 7, 10, 64])
def test_stratified_times_fill_the_strata_evenly(size):
    total = torch.zeros(11, dtype=torch.int64)
    for _ in range(2000):
        t, _ = Stratified(process(10))(size, CPU)
        counts = t.bincount(minlength=11)
        total += counts
        assert set(counts[1:].tolist()) <= {size // 10, -(-size // 10)}
    share = (total[1:] / (200 * size)).tolist()
    assert share == pytest.approx([1] * 10, abs=0.3 if size == 1 else 0.15)


def test_stratified_reduces_the_variance_of_batches():
    def std(sampler):
        means = [sampler(64, CPU)[0].double().square().mean() for _ in range(300)]
        return torch.stack(means).std().item()

    # Std of the mean t^2: sqrt(4 / 45) T^2 / 8 if independent, T^2 / (64 sqrt(12)) if stratified.
    assert std(Uniform(process(1000))) == pytest.approx(37_268, rel=0.15)
    assert std(Stratified(process(1000))) == pytest.approx(4_511, rel=0.15)


@pytest.mark.parametrize("size", [1, 3, 32, 500])
def test_importance_matches_the_reference(size):
    sampler, reference = (
        Importance(process(5), history=4, uniform=0.01),
        ReferenceImportance(5, 4, 0.01),
    )
    for seed in range(20):
        update(sampler, 2, size, seed), update(reference, 2, size, seed)
        np.testing.assert_allclose(sampler.weights().numpy(), reference.weights(), rtol=1e-12)
        for row, losses in zip(sampler.losses[1:], reference.losses, strict=True):
            assert sorted(row[row > 0].tolist()) == pytest.approx(sorted(losses))
    assert size < 32 or sampler.weights()[4] > 4 * sampler.weights()[0]


def test_importance_weights_are_unbiased():
    sampler = update(Importance(process(20)), 60)
    t, weight = sampler(400_000, CPU)
    p = sampler.weights()
    torch.testing.assert_close((t.bincount()[1:] / len(t)).double(), p, rtol=0.1, atol=1e-3)
    torch.testing.assert_close(weight, (1 / (20 * p[t - 1])).float())
    expected = torch.arange(1, 21).square().float().mean().item()
    assert (weight * t**2).mean().item() == pytest.approx(expected, rel=0.01)
    assert (t**2).float().mean().item() > 1.2 * expected, "biased without weights"


def test_importance_is_uniform_until_every_history_is_full():
    sampler = Importance(process(3), history=2)
    sampler.update(torch.tensor([1, 1, 1, 2, 2, 3]), torch.arange(1.0, 7.0))
    assert sampler.weights().tolist() == [1 / 3] * 3
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    assert sampler.weights()[1] > 0.38


def test_importance_is_uniform_for_zero_losses():
    sampler = Importance(process(3), history=1)
    sampler.update(torch.arange(1, 4), torch.zeros(3))
    assert sampler.weights().tolist() == [1 / 3] * 3


def test_importance_resumes_from_a_checkpoint():
    sampler, file = update(Importance(process(5), 4), 30, seed=1), io.BytesIO()
    torch.save(sampler.state_dict(), file)
    resumed = Importance(process(5), 4)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    update(sampler, 3, seed=2), update(resumed, 3, seed=2)
    assert torch.equal(sampler.losses, resumed.losses)
    assert torch.equal(sampler.weights(), resumed.weights())


def _rank(rank, batches, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    sampler = Importance(process(5), 4)
    for t, losses in batches[rank]:
        sampler.update(t, losses)
    torch.save(sampler.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_importance_gathers_losses_from_all_ranks(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def batch():
        return torch.randint(1, 6, (8,), generator=generator), torch.rand(8, generator=generator)

    batches = [[batch() for _ in range(6)] for _ in range(2)]
    multiprocessing.start_processes(_rank, (batches, tmp_path), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one["losses"], two["losses"]) and torch.equal(one["counts"], two["counts"])
    single = Importance(process(5), 4)
    for pair in zip(*batches, strict=True):
        single.update(*(torch.cat(both) for both in zip(*pair, strict=True)))
    assert torch.equal(single.losses, one["losses"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"history": 0}, "history must"),
        ({"uniform": 0.0}, "uniform must"),
        ({"uniform": 1.5}, "uniform must"),
    ],
)
def test_invalid_parameters_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Importance(process(10), **kwargs)
