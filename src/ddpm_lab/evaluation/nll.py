"""The variational bound on -log p(x_0) of images, in bits/dim, and its terms."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import InMemorySplit, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.likelihood import prior_term, vlb_terms
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.evaluation.metrics import Results, Rows
from ddpm_lab.sampling.pipeline import SamplingPipeline, eval_mode
from ddpm_lab.utils.errors import UserError, choice_name


def evaluate_nll(
    pipeline: SamplingPipeline,
    data: DataModule,
    *,
    weights: str,
    split: str,
    count: int | None,
    steps: int | None,
    spacing: str | list[int],
    clip: float | None,
    seed: int,
    batch_size: int,
) -> Results:
    """Compute bits/dim of the first `count` images of a split (None: all), without guidance.

    Every term is computed at one x_t per image, given the image's label if the model takes labels.
    Standard errors are over images. Raises UserError for data that is not rounded to 8 bits.
    """
    if pipeline.codec.bin_width is None:
        is_points = pipeline.bin_width is None
        subject, metric = ("points", "ode_nll") if is_points else ("latents", "fid")
        raise UserError(
            "metrics=[nll] is in bits of 8-bit pixels: its last term is the probability of a bin, "
            f"and {subject} have no bins; try metrics=[{metric}]"
        )
    times = timesteps(pipeline.process.steps, steps, spacing)
    images = {"train": data.train, "test": data.test}[split].select(slice(count))
    images = images.to(pipeline.device)
    index = torch.arange(images.size).split(batch_size)
    total = len(index) * (len(times) - 1)
    with tqdm(total=total, desc="bits/dim", unit="step", disable=None, leave=False) as bar:
        batches = [
            _terms(pipeline, images.select(part), times, clip, _generator(seed, part), bar)
            for part in index
        ]
    prior, terms, errors = (torch.cat(part, dim=-1).cpu() for part in zip(*batches, strict=True))
    bits = prior + terms.sum(0)
    means = terms.mean(1)
    rate = prior.mean() + means.cumsum(0) - means  # bits spent when x_t is known
    rmse = 127.5 * errors.mean(1).sqrt()
    return {
        "bits_per_dim": bits.mean().item(),
        "standard_error": _standard_error(bits),
        "L_T": {"bits": prior.mean().item(), "standard_error": _standard_error(prior)},
        "L_0": {"bits": means[-1].item(), "standard_error": _standard_error(terms[-1])},
        "terms": [
            {
                "t": times[i],
                "s": times[i + 1],
                "bits": term.mean().item(),
                "standard_error": _standard_error(term),
                "rate": rate[i].item(),
                "rmse": rmse[i].item(),
            }
            for i, term in enumerate(terms)
        ],
        "protocol": {
            "weights": weights,
            "split": split,
            "count": bits.numel(),
            "seed": seed,
            "clip": clip,
            "steps": len(times) - 1,
            "spacing": spacing,
            "T": pipeline.process.steps,
            "variance": type(pipeline.denoiser.variance).__name__,
            "guidance": "none",
            "given": choice_name(pipeline.denoiser.conditioner),
            "labels": "none" if pipeline.denoiser.classes is None else "the images'",
            "bins": 256,
        },
    }


def nll_rows(results: Results) -> Rows:
    """Format the results of `evaluate_nll`."""
    protocol, prior, last = results["protocol"], results["L_T"], results["L_0"]
    images = f"{protocol['count']} images of {protocol['split']}"
    remark = f"{images}, {protocol['weights']} weights, {protocol['variance']}"
    chain = f"{protocol['steps']} of {protocol['T']} steps, {protocol['spacing']}"
    between = results["bits_per_dim"] - prior["bits"] - last["bits"]
    error = f"+- {results['standard_error']:.3f}"
    decoder = f"the pixels, given x_{results['terms'][-1]['t']}"
    return [
        ("NLL, bits/dim", f"<= {results['bits_per_dim']:.3f}", f"{error}; {remark}"),
        ("  L_T", f"{prior['bits']:.4f}", "the prior: information about the image in x_T"),
        ("  L_t", f"{between:.3f}", chain),
        ("  L_0", f"{last['bits']:.3f}", f"+- {last['standard_error']:.3f}; {decoder}"),
    ]


def _generator(seed: int, samples: Tensor) -> PerSampleGenerator:
    return PerSampleGenerator(seed, samples.tolist())


def _terms(
    pipeline: SamplingPipeline,
    images: InMemorySplit,
    times: list[int],
    clip: float | None,
    noise: PerSampleGenerator,
    bar: "tqdm[None]",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return L_T (B,), the terms (K, B) and mean square errors (K, B)."""
    terms = []
    with eval_mode(pipeline.denoiser):
        cond = pipeline.condition(to_batch(images), noise)
        for term in vlb_terms(
            pipeline.denoiser,
            images.x0,
            times,
            bin_width=pipeline.bin_width,
            cond=cond,
            noise=noise,
            clip=clip,
        ):
            terms.append(term)
            bar.update()
    first = torch.full((len(images.x0),), times[0], device=pipeline.device)
    prior = prior_term(pipeline.process, images.x0.double(), first)
    bits, errors = ([getattr(term, name) for term in terms] for name in ("bits", "square_error"))
    return prior, torch.stack(bits), torch.stack(errors)


def _standard_error(values: Tensor) -> float:
    return values.std().item() / len(values) ** 0.5
