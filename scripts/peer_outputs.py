"""Outputs of the networks of other codebases, for tests/test_interop.py.

    python scripts/peer_outputs.py FOLDER

FOLDER has checkouts of openai/guided-diffusion, pesser/pytorch_diffusion, CompVis/latent-diffusion
and facebookresearch/DiT; timm and einops must be installed. Writes tests/peer_outputs.json: names
and shapes of the tensors, which `random_tensors` fills, and some numbers of the output.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import json
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TARGET = Path(__file__).parents[1] / "tests" / "peer_outputs.json"
UNET: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_heads": 2,
    "use_scale_shift_norm": True,
}
OPENAI: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "three levels": UNET
    | {
        "channel_mult": (1, 1, 2),
        "attention_resolutions": (1, 4),
        "num_res_blocks": 2,
        "use_scale_shift_norm": False,
        "num_heads": 4,
    },
    "new order": UNET
    | {
        "num_head_channels": 16,
        "use_new_attention_order": True,
        "resblock_updown": True,
        "num_classes": 5,
        "out_channels": 6,
    },
    "half channels": UNET
    | {
        "model_channels": 64,
        "channel_mult": (0.5, 1),
        "num_head_channels": 8,
        "resblock_updown": True,
    },
    "upsampler": UNET | {"num_classes": 4, "num_heads": 4, "out_channels": 6},
}
CLASSIFIER = UNET | {
    "num_head_channels": 16,
    "resblock_updown": True,
    "pool": "attention",
    "out_channels": 7,
    "channel_mult": (1, 1, 2),
    "attention_resolutions": (2, 4),
    "num_res_blocks": 2,
}
HO: dict[str, Any] = {
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (16,),
    "dropout": 0.0,
}
FIRST_STAGE: dict[str, Any] = {
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "dropout": 0.0,
    "z_channels": 4,
}
TIMES = [0, 17, 999]


def random_tensors(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return tensors with these shapes, random by their names, which keep activations small."""
    tensors = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        value = torch.randn(shape, generator=generator)
        size = max(1, value[0].numel()) if value.ndim > 1 else 25
        tensors[name] = value * (1.2 / size**0.5)
        if value.ndim == 1 and name.endswith("weight"):
            tensors[name] += 1  # norms
    return tensors


def fill(module: nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Fill the parameters of `module`, and return their shapes under names with `prefix`."""
    shapes = {name: list(value.shape) for name, value in module.named_parameters()}
    tensors = random_tensors({f"{prefix}{name}": shape for name, shape in shapes.items()})
    module.load_state_dict({name: tensors[f"{prefix}{name}"] for name in shapes}, strict=False)
    module.eval().requires_grad_(False)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def inputs(*shape: int, seed: int = 1) -> Tensor:
    """Return a random input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numbers(output: Tensor) -> dict[str, Any]:
    """Return every 37th number of an output, and its norm."""
    flat = output.double().flatten()
    return {"norm": flat.norm().item(), "values": flat[::37].tolist()}


def openai(root: Path) -> dict[str, Any]:
    sys.path.insert(0, str(root / "guided-diffusion"))
    from guided_diffusion.unet import EncoderUNetModel, SuperResModel, UNetModel

    times, labels, results = torch.tensor(TIMES), torch.tensor([1, 0, 3]), {}
    for name, options in OPENAI.items():
        upsampler = name == "upsampler"
        # SuperResModel doubles in_channels itself.
        network = (SuperResModel if upsampler else UNetModel)(**options)
        shapes = fill(network)
        more = {"low_res": inputs(3, 3, 4, 4, seed=2)} if upsampler else {}
        label = labels if "num_classes" in options else None
        output = network(inputs(3, 3, 16, 16), times, y=label, **more)
        results[name] = {"shapes": shapes, "output": numbers(output)}
    network = EncoderUNetModel(**CLASSIFIER)
    shapes = fill(network)
    results["classifier"] = {
        "shapes": shapes,
        "output": numbers(network(inputs(3, 3, 16, 16), times)),
    }
    return results


def ho(root: Path) -> dict[str, Any]:
    sys.path.insert(0, str(root / "pytorch_diffusion"))
    sys.modules["requests"] = types.ModuleType("requests")
    from pytorch_diffusion.model import Model

    network = Model(**HO)
    shapes = fill(network)
    output = network(inputs(3, 3, 32, 32), torch.tensor(TIMES))
    return {"pytorch_diffusion": {"shapes": shapes, "output": numbers(output)}}


def ldm(root: Path) -> dict[str, Any]:
    sys.path.insert(0, str(root / "latent-diffusion"))
    from ldm.modules.diffusionmodules.model import Decoder, Encoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    results = {}
    unet = UNET | {"in_channels": 4, "out_channels": 4, "num_heads": 2}
    network = UNetModel(**unet)
    shapes = fill(network, "model.diffusion_model.")
    output = network(inputs(3, 4, 16, 16), torch.tensor(TIMES))
    results["latent-diffusion"] = {"shapes": shapes, "output": numbers(output)}
    for kind in ("kl", "vq"):
        parts = {
            "encoder": Encoder(**FIRST_STAGE, double_z=kind == "kl"),
            "decoder": Decoder(**FIRST_STAGE),
            "quant_conv": nn.Conv2d(*((8, 8) if kind == "kl" else (4, 4)), 1),
            "post_quant_conv": nn.Conv2d(4, 4, 1),
        }
        shapes = {}
        for name, part in parts.items():
            shapes |= fill(part, f"first_stage_model.{name}.")
        if kind == "vq":
            shapes["first_stage_model.quantize.embedding.weight"] = [20, 4]
        encoding = parts["quant_conv"](parts["encoder"](inputs(2, 3, 32, 32)))
        decoding = parts["decoder"](parts["post_quant_conv"](inputs(2, 4, 16, 16)))
        results[f"first stage {kind}"] = {
            "shapes": shapes,
            "output": numbers(encoding),
            "decoded": numbers(decoding),
        }
    return results


def dit(root: Path) -> dict[str, Any]:
    sys.path.insert(0, str(root / "DiT"))
    from models import DiT

    network = DiT(input_size=8, hidden_size=48, depth=2, num_heads=4, num_classes=6)
    positions = network.pos_embed.clone()
    shapes = fill(network)
    network.pos_embed.data.copy_(positions)
    output = network(inputs(3, 4, 8, 8), torch.tensor(TIMES), torch.tensor([1, 6, 3]))
    return {"DiT": {"shapes": shapes, "output": numbers(output)}}


def main() -> None:
    root, results = Path(sys.argv[1]), {}
    for peer in (openai, ho, ldm, dit):
        results |= peer(root)
    TARGET.write_text(json.dumps(results) + "\n")
    print(f"{TARGET}: {len(results)} networks")


if __name__ == "__main__":
    main()
