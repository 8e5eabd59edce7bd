"""The U-Net: what it starts as, what it hears, and which shapes it takes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import composed
from hydra.utils import instantiate

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
    norm,
    upsample,
)
from ddpm_lab.networks.mlp import MLP
from ddpm_lab.networks.unet import UNet


def small(**kwargs):
    return UNet((1, 8, 8), **{"channels": 8, "multipliers": (1, 2), "blocks": 1, **kwargs})


def test_it_starts_as_nothing():
    network = small(classes=3)
    assert (
        network(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 999.0]), Condition()).abs().max() == 0
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 16)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
def test_it_answers_in_the_shape_it_is_asked(shape, multipliers):
    network = UNet(shape, channels=8, multipliers=multipliers, blocks=2, heads=2)
    assert network(torch.randn(2, *shape), torch.tensor([1.0, 999.0]), Condition()).shape == (
        2,
        *shape,
    )


def test_every_parameter_is_heard():
    network = small(classes=3, attention=(8, 4))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    cond = Condition(torch.tensor([0, 1, 2, 2]), dropped=torch.tensor([False, False, False, True]))
    network(
        torch.randn(4, 1, 8, 8), torch.tensor([1.0, 10, 100, 1000]), cond
    ).square().mean().backward()
    silent = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert silent == []


TWO = {"channels": 256, "blocks": 2}
PUBLISHED = {
    # Ho et al.'s checkpoint; Nichol & Dhariwal, section 3.4; Dhariwal & Nichol, table 11, in millions
    "DDPM CIFAR-10": ("unet_large", {}, (3, 32, 32), 1, None, 35.746307, 0),
    "Improved DDPM ImageNet-64": ("iddpm", {}, (3, 64, 64), 2, None, 120, 1.5),
    "ADM ImageNet-64": ("adm", {}, (3, 64, 64), 2, 1000, 296, 0.5),
    "ADM ImageNet-128": (
        "adm",
        {**TWO, "multipliers": (1, 1, 2, 3, 4), "heads": 4, "head_channels": None},
        (3, 128, 128),
        2,
        1000,
        422,
        0.5,
    ),
    "ADM ImageNet-256": (
        "adm",
        {**TWO, "multipliers": (1, 1, 2, 2, 4, 4)},
        (3, 256, 256),
        2,
        1000,
        554,
        0.5,
    ),
    "ADM ImageNet-512": (
        "adm",
        {**TWO, "multipliers": (0.5, 1, 1, 2, 2, 4, 4)},
        (3, 512, 512),
        2,
        1000,
        559,
        0.5,
    ),
    # Peebles & Xie (2023), table 1
    "DiT-S/2 ImageNet-256, latent": ("dit_s", {}, (4, 32, 32), 2, 1000, 33, 0.5),
    "ADM LSUN": ("adm", {**TWO, "multipliers": (1, 1, 2, 2, 4, 4)}, (3, 256, 256), 2, None, 552, 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_number_of_parameters(name):
    model, changes, shape, outputs, classes, millions, error = PUBLISHED[name]
    with torch.device("meta"):
        network = instantiate(composed(f"model={model}").model)(
            shape, outputs=outputs, classes=classes, **changes
        )
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(
        millions, abs=error or 1e-9
    )


def test_attention_is_where_it_is_asked_for():
    def attended(**kwargs):
        network, seen = small(attention=kwargs.get("attention")), set()
        for layer in network.modules():
            if isinstance(layer, Attention):
                layer.register_forward_hook(lambda _, inputs, output: seen.add(output.shape[2]))
        network(torch.randn(1, 1, 8, 8), torch.ones(1), Condition())
        return seen

    assert attended() == {4} and attended(attention=(8,)) == {8, 4}, (
        "the middle, at 4, always has it"
    )
    assert attended(attention=(32, 16, 8)) == {8, 4}, (
        "above the image's resolution there is nothing to attend to"
    )


def test_biggan_blocks_change_both_branches():
    block = ResBlock(8, 8, 16, 0.0, resample=downsample)
    x, told = torch.randn(2, 8, 6, 4), BlockConditioning(torch.randn(2, 16))
    torch.testing.assert_close(
        block(x, told), downsample(x)
    )  # the last convolution starts as nothing
    torch.testing.assert_close(downsample(upsample(x)), x)
    torch.nn.init.normal_(block.conv2.weight)
    assert (
        block(x, told).shape == (2, 8, 3, 2) and (block(x, told) - downsample(x)).abs().max() > 0.1
    )


def test_an_embedding_that_is_added_moves_what_the_norm_sees():
    block = ResBlock(8, 8, 16, 0.0, scale_shift=False)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, emb = torch.randn(2, 8, 6, 4), torch.randn(2, 16)
    h = block.conv1(F.silu(block.norm1(x))) + block.emb(emb)[:, :, None, None]
    torch.testing.assert_close(
        block(x, BlockConditioning(emb)), x + block.conv2(F.silu(block.norm2(h)))
    )


def test_checkpointing_changes_neither_answers_nor_gradients():
    plain, thrifty = (
        small(dropout=0.5, checkpointing=checkpointing) for checkpointing in (False, True)
    )
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    thrifty.load_state_dict(plain.state_dict())
    x, found = torch.randn(2, 1, 8, 8), []
    for network in (plain, thrifty):
        torch.manual_seed(1)
        output = network(x, torch.ones(2), Condition())
        output.square().mean().backward()
        found.append([output.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_channels_last_is_another_order_in_memory_and_no_other_network():
    torch.manual_seed(0)
    plain = small()
    torch.nn.init.normal_(plain.last[-1].weight)
    last = small(channels_last=True)
    last.load_state_dict(plain.state_dict())
    assert last.last[-1].weight.is_contiguous(memory_format=torch.channels_last)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    seen = []
    last.last[-1].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    torch.testing.assert_close(
        last(x, t, Condition()), plain(x, t, Condition()), atol=1e-4, rtol=1e-4
    )
    assert seen[0].is_contiguous(memory_format=torch.channels_last), "all the way through"


@pytest.mark.parametrize(
    ("channels", "groups"), [(2, 1), (9, 1), (18, 2), (32, 8), (96, 16), (128, 32), (256, 32)]
)
def test_norm_has_at_most_32_groups_of_at_least_4_channels(channels, groups):
    assert norm(channels).num_groups == groups


def test_attention_is_softmax_of_qk():
    layer = Attention(8, heads=2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 8, 2, 3)
    places = layer.norm(x).flatten(2).transpose(1, 2)[0]
    q, k, v = layer.qkv(places).chunk(3, dim=1)
    heads = [(q[:, h] @ k[:, h].T / 2).softmax(1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
    expected = x + layer.out(torch.cat(heads, 1)).T.reshape(1, 8, 2, 3)
    torch.testing.assert_close(layer(x, BlockConditioning(torch.empty(0))), expected)


def test_waves_tell_neighbouring_times_apart():
    waves = SinusoidalEmbedding(32)(torch.arange(1001.0))
    assert (waves[1:] - waves[:-1]).norm(dim=1).min() > 0.1
    torch.testing.assert_close(waves.square().sum(1), torch.full((1001,), 16.0))


def test_a_classifier_names_and_hears_every_parameter():
    network = EncoderClassifier((1, 8, 8), classes=5, channels=8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    said = network(torch.randn(4, 1, 8, 8), torch.tensor([1.0, 10, 100, 1000]), Condition())
    assert said.shape == (4, 5)
    said.square().mean().backward()
    silent = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert silent == []


@pytest.mark.parametrize("fourier_frequencies", [0, 2])
def test_an_mlp_starts_as_nothing_and_hears_every_parameter(fourier_frequencies):
    network = MLP((2,), classes=3, channels=8, fourier_frequencies=fourier_frequencies)
    x, t, cond = (
        torch.randn(4, 2),
        torch.tensor([1.0, 10, 100, 1000]),
        Condition(torch.tensor([0, 1, 2, 2])),
    )
    assert network(x, t, cond).shape == (4, 2) and network(x, t, cond).abs().max() == 0
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(
        x, t, Condition(cond.label, dropped=torch.tensor([False, False, False, True]))
    ).square().mean().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0] == []


def test_octaves_are_waves_of_the_places():
    network, x = MLP((2,), channels=8, fourier_frequencies=2), torch.randn(4, 2)
    heard = []
    network.first.register_forward_hook(lambda module, inputs, output: heard.append(inputs[0]))
    network(x, torch.ones(4), Condition())
    angles = torch.stack([torch.pi * x, 2 * torch.pi * x], dim=2).flatten(1)
    torch.testing.assert_close(heard[0], torch.cat([x, angles.sin(), angles.cos()], dim=1))


def test_a_label_out_of_many_changes_the_answer():
    network = small(classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([500.0])
    answers = [network(x, t, Condition(torch.tensor([label]))) for label in range(3)] + [
        network(x, t, Condition())
    ]
    for i in range(4):
        for j in range(i):
            assert (answers[i] - answers[j]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "kwargs", "told"),
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
def test_what_does_not_fit_is_refused_with_what_would(shape, kwargs, told):
    with pytest.raises(ValueError, match=told):
        UNet(shape, **{"channels": 8, "multipliers": (1, 2), **kwargs})


def unheard(network, shape, cond):
    """The names of parameters that change nothing."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(
        torch.randn(4, *shape), torch.tensor([1.0, 10, 100, 1000]), cond
    ).square().mean().backward()
    return [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]


def everything():
    return Condition(
        torch.tensor([0, 1, 2, 2]),
        context=torch.randn(4, 3, 5),
        image=torch.randn(4, 2, 8, 8),
        noise_level=torch.tensor([0.0, 10, 100, 500]),
        previous=torch.randn(4, 1, 8, 8),
        dropped=torch.tensor([False, False, False, True]),
    )


def test_every_door_is_heard():
    network = small(classes=3, context=5, image=2, self_conditioning=True)
    assert unheard(network, (1, 8, 8), everything()) == []
    cond, x, t = everything(), torch.randn(4, 1, 8, 8), torch.full((4,), 300.0)
    plain = network(x, t, cond)
    for name in ("label", "context", "image", "noise_level", "previous"):
        value = getattr(cond, name)
        other = (
            (value + 1) % 3 if name == "label" else value + 100 if name == "noise_level" else -value
        )
        moved = (network(x, t, replace(cond, **{name: other})) - plain).abs().flatten(1).amax(
            1
        ) > 1e-4
        # Where the condition is dropped, none is heard but the guess before, which is no condition.
        assert moved.tolist() == [True, True, True, name == "previous"], name


def test_what_is_dropped_is_what_was_never_said():
    network = small(classes=3, context=5, image=2)
    unheard(network, (1, 8, 8), everything())  # which also draws all parameters
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 300.0)
    silence = replace(everything(), previous=None).null()
    # One null token says what three do: softmax of equal scores is their mean.
    torch.testing.assert_close(
        network(x, t, silence), network(x, t, Condition()), atol=1e-4, rtol=1e-4
    )


def test_cross_attention_is_softmax_of_places_to_tokens():
    layer = CrossAttention(8, heads=2, width=5)
    x, context = torch.randn(1, 8, 2, 3), torch.randn(1, 4, 5)
    assert torch.equal(layer(x, BlockConditioning(torch.empty(0), context)), x), (
        "it starts as nothing"
    )
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    q = layer.q(layer.norm(x).flatten(2).transpose(1, 2)[0])
    k, v = layer.kv(context[0]).chunk(2, dim=1)
    heads = [(q[:, h] @ k[:, h].T / 2).softmax(1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
    expected = x + layer.out(torch.cat(heads, 1)).T.reshape(1, 8, 2, 3)
    torch.testing.assert_close(layer(x, BlockConditioning(torch.empty(0), context)), expected)


def test_attention_can_be_everywhere():
    def count(attention):
        return sum(isinstance(layer, Attention) for layer in small(attention=attention).modules())

    assert (count("all"), count((8, 4)), count(())) == (7, 7, 1)


def test_a_dit_starts_as_nothing_and_hears_every_parameter():
    network = DiT((1, 8, 6), classes=3, image=2, channels=16, blocks=2, heads=2)
    cond = replace(everything(), image=torch.randn(4, 2, 8, 6))
    x, t = torch.randn(4, 1, 8, 6), torch.full((4,), 300.0)
    assert network(x, t, cond).shape == x.shape and network(x, t, cond).abs().max() == 0
    # At first every block is shut: tokens go through unchanged.
    tokens, emb = torch.randn(2, 12, 16), torch.randn(2, 16)
    assert torch.equal(network.blocks[0](tokens, emb), tokens)
    assert unheard(network, (1, 8, 6), cond) == []


def test_a_dit_block_is_the_published_one():
    block = DiTBlock(8, heads=2)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, emb = torch.randn(1, 5, 8), torch.randn(1, 8)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.emb(emb)[0].split(8)
    h = F.layer_norm(x[0], (8,), eps=1e-6) * (1 + scale1) + shift1
    q, k, v = block.qkv(h).chunk(3, dim=1)
    heads = [
        (q[:, some] @ k[:, some].T / 2).softmax(1) @ v[:, some]
        for some in (slice(0, 4), slice(4, 8))
    ]
    y = x[0] + gate1 * block.out(torch.cat(heads, 1))
    h = F.layer_norm(y, (8,), eps=1e-6) * (1 + scale2) + shift2
    y = y + gate2 * block.second(F.gelu(block.first(h), approximate="tanh"))
    torch.testing.assert_close(block(x, emb)[0], y, atol=1e-5, rtol=1e-5)


def test_a_dit_puts_patches_back_where_they_were():
    network = DiT((2, 6, 4), channels=8, blocks=1, heads=1)
    with torch.no_grad():
        network.first.weight.copy_(torch.eye(8).reshape(8, 2, 2, 2))
        network.first.bias.zero_(), network.pos_embed.zero_()
        # Layer norm before the last layer loses the mean and the size of a patch; without it, a patch is its pixels.
        network.last.weight.copy_(torch.eye(8))
    x = torch.randn(1, 2, 6, 4)
    patches = F.unfold(x, 2, stride=2)  # (1, 8, 6)
    expected = F.fold(
        F.layer_norm(patches.transpose(1, 2), (8,), eps=1e-6).transpose(1, 2), (6, 4), 2, stride=2
    )
    torch.testing.assert_close(network(x, torch.ones(1), Condition()), expected)


def test_positions_tell_all_places_apart_and_know_axes():
    places = sincos_pos_embed(4, 5, 16).reshape(4, 5, 16)
    assert (torch.pdist(places.flatten(0, 1)) > 0.1).all()
    assert torch.equal(places[0, :, :8], places[3, :, :8]) and torch.equal(
        places[:, 0, 8:], places[:, 4, 8:]
    )


@pytest.mark.parametrize(
    ("shape", "kwargs", "told"),
    [
        ((1, 9, 8), {}, "patch=2 must be at least 1 and divide images of 9x8; try patch=1"),
        ((2,), {}, "model=mlp"),
        ((1, 8, 8), {"heads": 5}, "heads=5 must divide the 16 channels; try heads=2"),
        ((1, 8, 8), {"channels": 6}, "multiple of 4"),
        ((1, 8, 8), {"blocks": 0}, "blocks"),
    ],
)
def test_what_a_dit_cannot_be_is_refused(shape, kwargs, told):
    with pytest.raises(ValueError, match=told):
        DiT(shape, **{"channels": 16, "blocks": 1, "heads": 2, **kwargs})
