"""The U-Net: what it starts as, what it hears, and which shapes it takes."""

import pytest
import torch

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.networks.layers import Attention, Waves, norm
from ddpm_lab.networks.mlp import MLP
from ddpm_lab.networks.unet import UNet


def small(**kwargs):
    return UNet((1, 8, 8), **{"channels": 8, "multipliers": (1, 2), "blocks": 1, **kwargs})


def test_it_starts_as_nothing():
    network = small(classes=3)
    assert network(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 999.0]), Condition()).abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 16)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
def test_it_answers_in_the_shape_it_is_asked(shape, multipliers):
    network = UNet(shape, channels=8, multipliers=multipliers, blocks=2, heads=2)
    assert network(torch.randn(2, *shape), torch.tensor([1.0, 999.0]), Condition()).shape == (2, *shape)


def test_every_parameter_is_heard():
    network = small(classes=3, attention=(8, 4))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    cond = Condition(torch.tensor([0, 1, 2, 2]), torch.tensor([False, False, False, True]))
    network(torch.randn(4, 1, 8, 8), torch.tensor([1.0, 10, 100, 1000]), cond).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize(("channels", "groups"), [(2, 1), (9, 1), (18, 2), (32, 8), (96, 16), (128, 32), (256, 32)])
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
    torch.testing.assert_close(layer(x, torch.empty(0)), expected)


def test_waves_tell_neighbouring_times_apart():
    waves = Waves(32)(torch.arange(1001.0))
    assert (waves[1:] - waves[:-1]).norm(dim=1).min() > 0.1
    torch.testing.assert_close(waves.square().sum(1), torch.full((1001,), 16.0))


@pytest.mark.parametrize("octaves", [0, 2])
def test_an_mlp_starts_as_nothing_and_hears_every_parameter(octaves):
    network = MLP((2,), classes=3, channels=8, octaves=octaves)
    x, t, cond = torch.randn(4, 2), torch.tensor([1.0, 10, 100, 1000]), Condition(torch.tensor([0, 1, 2, 2]))
    assert network(x, t, cond).shape == (4, 2) and network(x, t, cond).abs().max() == 0
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(x, t, Condition(cond.label, torch.tensor([False, False, False, True]))).square().mean().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0] == []


def test_octaves_are_waves_of_the_places():
    network, x = MLP((2,), channels=8, octaves=2), torch.randn(4, 2)
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
    answers = [network(x, t, Condition(torch.tensor([label]))) for label in range(3)] + [network(x, t, Condition())]
    for i in range(4):
        for j in range(i):
            assert (answers[i] - answers[j]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "kwargs", "told"),
    [
        ((1, 28, 28), {"multipliers": (1, 2, 2, 2)}, "24 or 32"),
        ((1, 2, 2), {"multipliers": (1, 2, 2)}, "resolution of 4"),
        ((1, 8, 8), {"attention": (16,)}, r"attention=\[16\].*\[8, 4\]"),
        ((1, 8, 8), {"multipliers": ()}, "multipliers"),
        ((1, 8, 8), {"heads": 5}, "heads"),
        ((1, 8, 8), {"blocks": 0}, "blocks"),
        ((1, 8, 8), {"channels": 9}, "channels"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(shape, kwargs, told):
    with pytest.raises(ValueError, match=told):
        UNet(shape, **{"channels": 8, "multipliers": (1, 2), **kwargs})
