"""The mathematics, torch only. Read the modules in this order:

gaussian, schedules, process, condition, predictions, variances, denoiser, guidance, classifier, noise, spacings,
samplers, solvers, langevin, likelihood, objectives, timesteps, exact.

Time runs t = 1..T; t = 0 is the data, where signal is 1 and noise is 0.
"""
