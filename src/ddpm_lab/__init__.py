"""Denoising diffusion experiments, checked against exact mathematics.

`load` a run, `compose` and `train` a configuration, or build a `Denoiser` for a loop of your own.
The names below are imported on first use, so that `import ddpm_lab` takes no time.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
