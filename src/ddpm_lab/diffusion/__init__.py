"""The mathematics of diffusion models, in torch only.

Reading order:

1. The forward process: gaussian, schedules, process.
2. The model: predictions, variances, rng, conditioning, denoiser, guidance, classifier_guidance.
3. Sampling: timestep_spacing, samplers, ode_solvers, multistep_solvers, langevin.
4. Training and evaluation: likelihood, ode_likelihood, objectives, timestep_samplers.
5. Closed forms: analytic_denoisers, analytic_propagation.

x_t = alpha_t x_0 + sigma_t eps for t = 1..T. t = 0 is the data, with alpha 1 and sigma 0.
alpha_t is sqrt(alpha-bar_t) of Ho et al. (2020).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["objectives", "predictions", "schedules", "variances"]
)
