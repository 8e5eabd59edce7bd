"""Networks: initial output, use of parameters and conditions, sizes, layers against formulas."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from conftest import composed
from hydra.utils import instantiate
from torch.utils.checkpoint import checkpoint

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.classifier import EncoderClassifier
from ddpm_lab.networks.dit import DiT, DiTBlock, sincos_pos_embed
from ddpm_lab.networks.layers import (
    Attention,
    BlockConditioning,
    CrossAttention,
    ResBlock,
    SinusoidalEmbedding,
    downsample,
    group_norm,
    upsample,
)
from ddpm_lab.networks.mlp import MLP
from ddpm_lab.networks.unet import UNet

TIMES = torch.tensor([1.0, 10, 100, 1000])
LABELS = Condition(torch.tensor([0, 1, 2, 2]), dropped=torch.tensor([False, False, False, True]))


def small_unet(**options):
    return UNet((1, 8, 8), **{"channels": 8, "multipliers": (1, 2), "blocks": 1, **options})


def full_condition(size=(8, 8)):
    return Condition(
        torch.tensor([0, 1, 2, 2]),
        context=torch.randn(4, 3, 5),
        image=torch.randn(4, 2, *size),
        noise_level=torch.tensor([0.0, 10, 100, 500]),
        previous_x0=torch.randn(4, 1, *size),
        dropped=torch.tensor([False, False, False, True]),
    )


def randomize(module, std=0.2):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)


def unused_parameters(network, x, cond):
    """Return the names of parameters without a gradient, after randomizing all parameters."""
    randomize(network)
    network(x, TIMES, cond).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return [name for name, grad in gradients.items() if grad is None or not grad.abs().max() > 0]


def test_unet_starts_as_zero():
    output = small_unet(classes=3)(torch.randn(4, 1, 8, 8), TIMES, Condition())
    assert output.abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 16)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
def test_unet_preserves_the_shape(shape, multipliers):
    network = UNet(shape, channels=8, multipliers=multipliers, blocks=2, heads=2)
    x = torch.randn(2, *shape)
    assert network(x, torch.tensor([1.0, 999.0]), Condition()).shape == x.shape


def test_unet_uses_every_parameter():
    network = small_unet(classes=3, attention=(8, 4))
    assert unused_parameters(network, torch.randn(4, 1, 8, 8), LABELS) == []


@cache
def network_of(model):
    return instantiate(composed(f"model={model}").model)


def adm(*multipliers, **options):
    return {"channels": 256, "blocks": 2, "multipliers": multipliers, **options}


PUBLISHED = {  # model, options, shape, outputs, classes, parameters in millions, tolerance
    # The checkpoint of Ho et al.
    "DDPM CIFAR-10": ("unet_large", {}, (3, 32, 32), 1, None, 35.746307, 1e-9),
    # Nichol & Dhariwal (2021), section 3.4
    "Improved DDPM ImageNet-64": ("iddpm", {}, (3, 64, 64), 2, None, 120, 1.5),
    # Dhariwal & Nichol (2021), table 11
    "ADM ImageNet-64": ("adm", {}, (3, 64, 64), 2, 1000, 296, 0.5),
    "ADM ImageNet-128": (
        "adm",
        adm(1, 1, 2, 3, 4, heads=4, head_channels=None),
        (3, 128, 128),
        2,
        1000,
        422,
        0.5,
    ),
    "ADM ImageNet-256": ("adm", adm(1, 1, 2, 2, 4, 4), (3, 256, 256), 2, 1000, 554, 0.5),
    "ADM ImageNet-512": ("adm", adm(0.5, 1, 1, 2, 2, 4, 4), (3, 512, 512), 2, 1000, 559, 0.5),
    "ADM LSUN": ("adm", adm(1, 1, 2, 2, 4, 4), (3, 256, 256), 2, None, 552, 1),
    # Peebles & Xie (2023), table 1
    "DiT-S/2 ImageNet-256, latent": ("dit_s", {}, (4, 32, 32), 2, 1000, 33, 0.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_match_the_papers(name):
    model, options, shape, outputs, classes, millions, tolerance = PUBLISHED[name]
    with torch.device("meta"):
        network = network_of(model)(shape, outputs=outputs, classes=classes, **options)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=tolerance)


def test_attention_is_at_the_configured_resolutions():
    def resolutions(attention):
        network, sizes = small_unet(attention=attention), set()
        for layer in network.modules():
            if isinstance(layer, Attention):
                layer.register_forward_hook(lambda _, inputs, output: sizes.add(output.shape[2]))
        network(torch.randn(1, 1, 8, 8), torch.ones(1), Condition())
        return sizes

    assert resolutions(None) == {4}
    assert resolutions((8,)) == {8, 4}, "the middle, at 4, always has attention"
    assert resolutions((32, 16, 8)) == {8, 4}, "resolutions above the image's are ignored"


def test_number_of_attention_layers():
    def count(attention):
        modules = small_unet(attention=attention).modules()
        return sum(isinstance(layer, Attention) for layer in modules)

    assert (count("all"), count((8, 4)), count(())) == (7, 7, 1)


def test_biggan_blocks_resample_both_branches():
    block = ResBlock(8, 8, 16, 0.0, resample=downsample)
    x, conditioning = torch.randn(2, 8, 6, 4), BlockConditioning(torch.randn(2, 16))
    torch.testing.assert_close(block(x, conditioning), downsample(x))  # the residual starts as 0
    torch.testing.assert_close(downsample(upsample(x)), x)
    torch.nn.init.normal_(block.conv2.weight)
    output = block(x, conditioning)
    assert output.shape == (2, 8, 3, 2) and (output - downsample(x)).abs().max() > 0.1


def test_added_embedding_comes_before_the_norm():
    block = ResBlock(8, 8, 16, 0.0, scale_shift=False)
    randomize(block, 0.5)
    x, emb = torch.randn(2, 8, 6, 4), torch.randn(2, 16)
    h = block.conv1(F.silu(block.norm1(x))) + block.emb(emb)[:, :, None, None]
    expected = x + block.conv2(F.silu(block.norm2(h)))
    torch.testing.assert_close(block(x, BlockConditioning(emb)), expected)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_checkpointing_changes_neither_outputs_nor_gradients(name, monkeypatch):
    runs = []
    monkeypatch.setattr(
        "ddpm_lab.networks.layers.checkpoint",
        lambda layer, *inputs, **kwargs: runs.append(layer) or checkpoint(layer, *inputs, **kwargs),
    )
    build = {
        "unet": lambda option: small_unet(dropout=0.5, checkpointing=option),
        "dit": lambda option: DiT((1, 8, 8), channels=16, blocks=3, heads=2, checkpointing=option),
    }[name]
    networks = [build(option) for option in (False, True)]
    randomize(networks[0])
    networks[1].load_state_dict(networks[0].state_dict())
    x, results = torch.randn(2, 1, 8, 8), []
    for network in networks:
        torch.manual_seed(1)
        output = network(x, torch.ones(2), Condition())
        output.square().mean().backward()
        results.append([output.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    assert len(runs) >= 3


def test_channels_last_changes_the_memory_format_only():
    torch.manual_seed(0)
    contiguous, channels_last = small_unet(), small_unet(channels_last=True)
    torch.nn.init.normal_(contiguous.last[-1].weight)
    channels_last.load_state_dict(contiguous.state_dict())
    conv = channels_last.last[-1]
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    activations = []
    conv.register_forward_hook(lambda module, inputs, output: activations.append(inputs[0]))
    arguments = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0]), Condition()
    expected = contiguous(*arguments)
    torch.testing.assert_close(channels_last(*arguments), expected, atol=1e-4, rtol=1e-4)
    assert activations[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "groups"), [(2, 1), (9, 1), (18, 2), (32, 8), (96, 16), (128, 32), (256, 32)]
)
def test_norm_has_at_most_32_groups_of_at_least_4_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


HEADS = (slice(0, 4), slice(4, 8))


def attention_formula(q, k, v):
    """Return softmax(q k^T / sqrt(4)) v for two heads of 4 channels, (N, 8), (M, 8), (M, 8)."""
    outputs = [(q[:, head] @ k[:, head].T / 2).softmax(1) @ v[:, head] for head in HEADS]
    return torch.cat(outputs, 1)


def test_attention_matches_the_formula():
    layer = Attention(8, heads=2)
    randomize(layer, 0.5)
    x = torch.randn(1, 8, 2, 3)
    pixels = layer.norm(x).flatten(2).transpose(1, 2)[0]
    output = layer.out(attention_formula(*layer.qkv(pixels).chunk(3, dim=1)))
    expected = x + output.T.reshape(1, 8, 2, 3)
    torch.testing.assert_close(layer(x, BlockConditioning(torch.empty(0))), expected)


def test_cross_attention_matches_the_formula():
    layer = CrossAttention(8, heads=2, width=5)
    x, context = torch.randn(1, 8, 2, 3), torch.randn(1, 4, 5)
    conditioning = BlockConditioning(torch.empty(0), context)
    assert torch.equal(layer(x, conditioning), x), "the residual starts as 0"
    randomize(layer, 0.5)
    q = layer.q(layer.norm(x).flatten(2).transpose(1, 2)[0])
    output = layer.out(attention_formula(q, *layer.kv(context[0]).chunk(2, dim=1)))
    torch.testing.assert_close(layer(x, conditioning), x + output.T.reshape(1, 8, 2, 3))


def test_sinusoidal_embedding_separates_neighboring_times():
    emb = SinusoidalEmbedding(32)(torch.arange(1001.0))
    assert (emb[1:] - emb[:-1]).norm(dim=1).min() > 0.1
    torch.testing.assert_close(emb.square().sum(1), torch.full((1001,), 16.0))


def test_classifier_shape_and_parameters():
    network, x = EncoderClassifier((1, 8, 8), classes=5, channels=8), torch.randn(4, 1, 8, 8)
    assert network(x, TIMES, Condition()).shape == (4, 5)
    assert unused_parameters(network, x, Condition()) == []


@pytest.mark.parametrize("fourier_frequencies", [0, 2])
def test_mlp_starts_as_zero_and_uses_every_parameter(fourier_frequencies):
    network = MLP((2,), classes=3, channels=8, fourier_frequencies=fourier_frequencies)
    x = torch.randn(4, 2)
    output = network(x, TIMES, Condition(LABELS.label))
    assert output.shape == (4, 2) and output.abs().max() == 0
    assert unused_parameters(network, x, LABELS) == []


def test_mlp_takes_fourier_features():
    network, x = MLP((2,), channels=8, fourier_frequencies=2), torch.randn(4, 2)
    features = []
    network.first.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    network(x, torch.ones(4), Condition())
    angles = torch.stack([torch.pi * x, 2 * torch.pi * x], dim=2).flatten(1)
    torch.testing.assert_close(features[0], torch.cat([x, angles.sin(), angles.cos()], dim=1))


def test_outputs_differ_between_labels():
    network = small_unet(classes=3)
    randomize(network)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([500.0])
    conditions = [Condition(torch.tensor([label])) for label in range(3)] + [Condition()]
    outputs = torch.stack([network(x, t, cond).flatten() for cond in conditions])
    assert torch.pdist(outputs, float("inf")).min() > 1e-4


def test_every_condition_changes_the_output():
    network = small_unet(classes=3, context=5, image=2, self_conditioning=True)
    x = torch.randn(4, 1, 8, 8)
    assert unused_parameters(network, x, full_condition()) == []
    cond, t = full_condition(), torch.full((4,), 300.0)
    others = {
        "label": (cond.label + 1) % 3,
        "context": -cond.context,
        "image": -cond.image,
        "noise_level": cond.noise_level + 100,
        "previous_x0": -cond.previous_x0,
    }
    output = network(x, t, cond)
    for name, value in others.items():
        difference = (network(x, t, replace(cond, **{name: value})) - output).abs()
        # The previous estimate is not a condition, and so is not dropped in the last row.
        expected = [True, True, True, name == "previous_x0"]
        assert (difference.flatten(1).amax(1) > 1e-4).tolist() == expected, name


def test_dropped_conditions_equal_absent_ones():
    network = small_unet(classes=3, context=5, image=2)
    randomize(network)
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 300.0)
    dropped = network(x, t, replace(full_condition(), previous_x0=None).null())
    # Three null tokens have the effect of one: softmax of equal scores is a mean.
    torch.testing.assert_close(dropped, network(x, t, Condition()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 28, 28), {"multipliers": (1, 2, 2, 2)}, "24 or 32"),
        ((1, 2, 2), {"multipliers": (1, 2, 2)}, "resolution of 4"),
        ((1, 8, 8), {"attention": (5,)}, r"attention=\[5\].*\[8, 4\]"),
        ((1, 8, 8), {"multipliers": ()}, "multipliers"),
        ((1, 8, 8), {"heads": 5}, "heads=5 must divide the 16 channels.*try heads=16"),
        ((1, 8, 8), {"heads": None, "head_channels": 5}, "head_channels=5 must divide"),
        ((1, 8, 8), {"head_channels": 4}, "one must be a number"),
        ((1, 8, 8), {"heads": None}, "one must be a number"),
        ((1, 8, 8), {"dropout": 1.0}, "dropout"),
        ((1, 8, 8), {"blocks": 0}, "blocks"),
        ((1, 8, 8), {"channels": 9}, "channels"),
    ],
)
def test_unet_rejects_invalid_options(shape, options, message):
    with pytest.raises(ValueError, match=message):
        UNet(shape, **{"channels": 8, "multipliers": (1, 2), **options})


def test_dit_starts_as_zero_and_uses_every_parameter():
    network = DiT((1, 8, 6), classes=3, image=2, channels=16, blocks=2, heads=2)
    cond, x = full_condition((8, 6)), torch.randn(4, 1, 8, 6)
    output = network(x, TIMES, cond)
    assert output.shape == x.shape and output.abs().max() == 0
    tokens, emb = torch.randn(2, 12, 16), torch.randn(2, 16)
    assert torch.equal(network.blocks[0](tokens, emb), tokens), "gates start as 0"
    assert unused_parameters(network, x, cond) == []


def test_dit_block_matches_the_paper():
    block = DiTBlock(8, heads=2)
    randomize(block, 0.3)
    x, emb = torch.randn(1, 5, 8), torch.randn(1, 8)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.emb(emb)[0].split(8)
    h = F.layer_norm(x[0], (8,), eps=1e-6) * (1 + scale1) + shift1
    y = x[0] + gate1 * block.out(attention_formula(*block.qkv(h).chunk(3, dim=1)))
    h = F.layer_norm(y, (8,), eps=1e-6) * (1 + scale2) + shift2
    y = y + gate2 * block.second(F.gelu(block.first(h), approximate="tanh"))
    torch.testing.assert_close(block(x, emb)[0], y, atol=1e-5, rtol=1e-5)


def test_dit_returns_patches_to_their_positions():
    network = DiT((2, 6, 4), channels=8, blocks=1, heads=1)
    with torch.no_grad():
        network.first.weight.copy_(torch.eye(8).reshape(8, 2, 2, 2))
        network.first.bias.zero_(), network.pos_embed.zero_()
        # The token of a patch is its pixels, up to the layer norm before the last layer.
        network.last.weight.copy_(torch.eye(8))
    x = torch.randn(1, 2, 6, 4)
    patches = F.unfold(x, 2, stride=2).transpose(1, 2)  # (1, 6, 8)
    normalized = F.layer_norm(patches, (8,), eps=1e-6).transpose(1, 2)
    expected = F.fold(normalized, (6, 4), 2, stride=2)
    torch.testing.assert_close(network(x, torch.ones(1), Condition()), expected)


def test_position_embeddings_are_distinct_and_separate_the_axes():
    emb = sincos_pos_embed(4, 5, 16).reshape(4, 5, 16)
    assert (torch.pdist(emb.flatten(0, 1)) > 0.1).all()
    assert torch.equal(emb[0, :, :8], emb[3, :, :8])
    assert torch.equal(emb[:, 0, 8:], emb[:, 4, 8:])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 9, 8), {}, "patch=2 must divide images of 9x8; try patch=1"),
        ((2,), {}, "for points, try model=mlp"),
        ((1, 8, 8), {"heads": 5}, "heads=5 must divide the 16 channels; try heads=2"),
        ((1, 8, 8), {"channels": 6}, "multiple of 4"),
        ((1, 8, 8), {"blocks": 0}, "blocks"),
    ],
)
def test_dit_rejects_invalid_options(shape, options, message):
    with pytest.raises(ValueError, match=message):
        DiT(shape, **{"channels": 16, "blocks": 1, "heads": 2, **options})
