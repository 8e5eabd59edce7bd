from .api import compose, export, import_weights, load, share, train
from .conditioners.labels import Label
from .diffusion import objectives, predictions, schedules, variances
from .diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from .diffusion.classifier_guidance import ClassifierGuidance
from .diffusion.conditioning import Condition, DataSpec
from .diffusion.denoiser import Denoiser
from .diffusion.ema_model import EMAModel
from .diffusion.guidance import Autoguidance, ClassifierFreeGuidance
from .diffusion.langevin import Langevin, PredictorCorrector
from .diffusion.ode_solvers import DPMSolver, Heun
from .diffusion.process import ForwardProcess
from .diffusion.samplers import DDIM, DDPM, Sampler
from .model import Model
from .networks.dit import DiT
from .networks.mlp import MLP
from .networks.unet import UNet
from .sampling.samples import Samples
from .utils.errors import (
    CLIError,
    CorruptFileError,
    DivergenceError,
    InterruptedRunError,
    ResourceError,
    UnsafeFileError,
    UserError,
)

__version__: str
__all__ = [
    "DDIM",
    "DDPM",
    "MLP",
    "Autoguidance",
    "CLIError",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Condition",
    "CorruptFileError",
    "DPMSolver",
    "DataSpec",
    "Denoiser",
    "DiT",
    "DivergenceError",
    "EMAModel",
    "ForwardProcess",
    "GaussianDenoiser",
    "Heun",
    "InterruptedRunError",
    "Label",
    "Langevin",
    "Mixture",
    "MixtureDenoiser",
    "Model",
    "PredictorCorrector",
    "ResourceError",
    "Sampler",
    "Samples",
    "UNet",
    "UnsafeFileError",
    "UserError",
    "compose",
    "export",
    "import_weights",
    "load",
    "objectives",
    "predictions",
    "schedules",
    "share",
    "train",
    "variances",
]
