"""Options of released files that their tensors do not determine, by file name.

Sources: the READMEs of improved-diffusion, guided-diffusion and pytorch_diffusion.
"""

from typing import Any

COSINE_4000 = {"schedule": "cosine", "schedule.steps": 4000}
LINEAR = {"schedule": "linear", "schedule.steps": 1000, "model.time_shift": -1}
RESCALED = {"model.time_scale": 1, "model.time_shift": -0.25}
NOT_RESCALED = {"model.time_scale": 4, "model.time_shift": -1}
FOUR_HEADS: dict[str, Any] = {"model.heads": 4, "model.head_channels": None}
HEADS_OF_64: dict[str, Any] = {"model.heads": None, "model.head_channels": 64}
SMALL = {**COSINE_4000, **RESCALED, **FOUR_HEADS}
CIFAR10 = {**SMALL, "data": "cifar10", "data.resolution": 32, "model.dropout": 0.3}
LSUN = {**LINEAR, "data.resolution": 256, "model.heads": 1}


DROPOUT, UPSAMPLER = {"model.dropout": 0.1}, {"conditioner.factor": 4}


def _adm(resolution: int, heads: dict[str, Any] = HEADS_OF_64) -> dict[str, Any]:
    return {**LINEAR, **heads, "data.resolution": resolution}


RELEASED: dict[str, dict[str, Any]] = {
    # improved-diffusion
    "imagenet64_uncond_100M_1500K": {**SMALL, "data.resolution": 64},
    "imagenet64_uncond_vlb_100M_1500K": {**SMALL, "data.resolution": 64},
    "imagenet64_cond_270M_250K": {
        **COSINE_4000,
        **NOT_RESCALED,
        **FOUR_HEADS,
        "data.resolution": 64,
    },
    "upsample_cond_500K": {
        "schedule": "linear",
        "schedule.steps": 4000,
        **NOT_RESCALED,
        **FOUR_HEADS,
        "data.resolution": 256,
        "conditioner.factor": 4,
    },
    "cifar10_uncond_50M_500K": CIFAR10,
    "cifar10_uncond_vlb_50M_500K": CIFAR10,
    "lsun_uncond_100M_1200K_bs128": LSUN,
    "lsun_uncond_100M_2400K_bs64": LSUN,
    # guided-diffusion
    "64x64_diffusion": {
        **HEADS_OF_64,
        "schedule": "cosine",
        "schedule.steps": 1000,
        "model.time_shift": -1,
        "data.resolution": 64,
        "attention_order": "new",
    },
    "128x128_diffusion": _adm(128, FOUR_HEADS),
    "256x256_diffusion": _adm(256),
    "256x256_diffusion_uncond": _adm(256),
    "512x512_diffusion": _adm(512),
    "lsun_bedroom": _adm(256) | DROPOUT,
    "lsun_cat": _adm(256) | DROPOUT,
    "lsun_horse": _adm(256) | DROPOUT,
    "lsun_horse_nodropout": _adm(256),
    "64_256_upsampler": _adm(256, FOUR_HEADS) | UPSAMPLER,
    "128_512_upsampler": _adm(512) | UPSAMPLER,
    "64x64_classifier": {
        **HEADS_OF_64,
        "schedule": "cosine",
        "schedule.steps": 1000,
        "model.time_shift": -1,
    },
    "128x128_classifier": {**LINEAR, **HEADS_OF_64},
    "256x256_classifier": {**LINEAR, **HEADS_OF_64},
    "512x512_classifier": {**LINEAR, **HEADS_OF_64},
}
"""Overrides by the name of the file without its suffix"""
MD5 = {
    "diffusion_cifar10_model-model-790000": "82ed3067fd1002f5cf4c339fb80c4669",
    "ema_diffusion_cifar10_model-model-790000": "1fa350b952534ae442b1d5235cce5cd3",
    "diffusion_lsun_bedroom_model-model-2388000": "f70280ac0e08b8e696f42cb8e948ff1c",
    "ema_diffusion_lsun_bedroom_model-model-2388000": "1921fa46b66a3665e450e42f36c2720f",
    "diffusion_lsun_cat_model-model-1761000": "bbee0e7c3d7abfb6e2539eaf2fb9987b",
    "ema_diffusion_lsun_cat_model-model-1761000": "646f23f4821f2459b8bafc57fd824558",
    "diffusion_lsun_church_model-model-4432000": "eb619b8a5ab95ef80f94ce8a5488dae3",
    "ema_diffusion_lsun_church_model-model-4432000": "fdc68a23938c2397caba4a260bc2445f",
}
"""MD5 of the files of pytorch_diffusion, by folder and name joined by a hyphen"""
