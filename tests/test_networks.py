"""The U-Net: what it starts as, what it hears, and which shapes it takes."""

import pytest
import torch
import torch.nn.functional as F
from conftest import composed
from hydra.utils import instantiate

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.networks.classifier import EncoderClassifier
from ddpm_lab.networks.layers import Attention, ResBlock, Told, Waves, double, halve, norm
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
    cond = Condition(torch.tensor([0, 1, 2, 2]), dropped=torch.tensor([False, False, False, True]))
    network(torch.randn(4, 1, 8, 8), torch.tensor([1.0, 10, 100, 1000]), cond).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


TWO = {"channels": 256, "blocks": 2}
PUBLISHED = {
    # Ho et al.'s checkpoint; Nichol & Dhariwal, section 3.4; Dhariwal & Nichol, table 11, in millions
    "DDPM CIFAR-10": ("unet_large", {}, (3, 32, 32), 1, None, 35.746307, 0),
    "Improved DDPM ImageNet-64": ("iddpm", {}, (3, 64, 64), 2, None, 120, 1.5),
    "ADM ImageNet-64": ("adm", {}, (3, 64, 64), 2, 1000, 296, 0.5),
    "ADM ImageNet-128": ("adm", {**TWO, "multipliers": (1, 1, 2, 3, 4), "heads": 4, "head_channels": None},
                         (3, 128, 128), 2, 1000, 422, 0.5),
    "ADM ImageNet-256": ("adm", {**TWO, "multipliers": (1, 1, 2, 2, 4, 4)}, (3, 256, 256), 2, 1000, 554, 0.5),
    "ADM ImageNet-512": ("adm", {**TWO, "multipliers": (0.5, 1, 1, 2, 2, 4, 4)}, (3, 512, 512), 2, 1000, 559, 0.5),
    "ADM LSUN": ("adm", {**TWO, "multipliers": (1, 1, 2, 2, 4, 4)}, (3, 256, 256), 2, None, 552, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_number_of_parameters(name):
    model, changes, shape, outputs, classes, millions, error = PUBLISHED[name]
    with torch.device("meta"):
        network = instantiate(composed(f"model={model}").model)(shape, outputs=outputs, classes=classes, **changes)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=error or 1e-9)


def test_attention_is_where_it_is_asked_for():
    def attended(**kwargs):
        network, seen = small(attention=kwargs.get("attention")), set()
        for layer in network.modules():
            if isinstance(layer, Attention):
                layer.register_forward_hook(lambda _, inputs, output: seen.add(output.shape[2]))
        network(torch.randn(1, 1, 8, 8), torch.ones(1), Condition())
        return seen

    assert attended() == {4} and attended(attention=(8,)) == {8, 4}, "the middle, at 4, always has it"
    assert attended(attention=(32, 16, 8)) == {8, 4}, "above the picture's resolution there is nothing to attend to"


def test_biggan_blocks_change_both_branches():
    block = ResBlock(8, 8, 16, 0.0, resample=halve)
    x, told = torch.randn(2, 8, 6, 4), Told(torch.randn(2, 16))
    torch.testing.assert_close(block(x, told), halve(x))  # the last convolution starts as nothing
    torch.testing.assert_close(halve(double(x)), x)
    torch.nn.init.normal_(block.conv2.weight)
    assert block(x, told).shape == (2, 8, 3, 2) and (block(x, told) - halve(x)).abs().max() > 0.1


def test_an_embedding_that_is_added_moves_what_the_norm_sees():
    block = ResBlock(8, 8, 16, 0.0, scale_shift=False)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, emb = torch.randn(2, 8, 6, 4), torch.randn(2, 16)
    h = block.conv1(F.silu(block.norm1(x))) + block.emb(emb)[:, :, None, None]
    torch.testing.assert_close(block(x, Told(emb)), x + block.conv2(F.silu(block.norm2(h))))


def test_checkpointing_changes_neither_answers_nor_gradients():
    plain, thrifty = (small(dropout=0.5, checkpointing=checkpointing) for checkpointing in (False, True))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    thrifty.load_state_dict(plain.state_dict())
    x, found = torch.randn(2, 1, 8, 8), []
    for network in (plain, thrifty):
        torch.manual_seed(1)
        answer = network(x, torch.ones(2), Condition())
        answer.square().mean().backward()
        found.append([answer.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


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
    torch.testing.assert_close(layer(x, Told(torch.empty(0))), expected)


def test_waves_tell_neighbouring_times_apart():
    waves = Waves(32)(torch.arange(1001.0))
    assert (waves[1:] - waves[:-1]).norm(dim=1).min() > 0.1
    torch.testing.assert_close(waves.square().sum(1), torch.full((1001,), 16.0))


def test_a_classifier_names_and_hears_every_parameter():
    network = EncoderClassifier((1, 8, 8), classes=5, channels=8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    said = network(torch.randn(4, 1, 8, 8), torch.tensor([1.0, 10, 100, 1000]), Condition())
    assert said.shape == (4, 5)
    said.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("octaves", [0, 2])
def test_an_mlp_starts_as_nothing_and_hears_every_parameter(octaves):
    network = MLP((2,), classes=3, channels=8, octaves=octaves)
    x, t, cond = torch.randn(4, 2), torch.tensor([1.0, 10, 100, 1000]), Condition(torch.tensor([0, 1, 2, 2]))
    assert network(x, t, cond).shape == (4, 2) and network(x, t, cond).abs().max() == 0
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(x, t, Condition(cond.label, dropped=torch.tensor([False, False, False, True]))).square().mean().backward()
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
        ((1, 8, 8), {"attention": (5,)}, r"attention=\[5\].*\[8, 4\]"),
        ((1, 8, 8), {"multipliers": ()}, "multipliers"),
        ((1, 8, 8), {"heads": 5}, "heads=5 must divide the 16 channels.*try heads=16"),
        ((1, 8, 8), {"heads": None, "head_channels": 5}, "head_channels=5 must divide"),
        ((1, 8, 8), {"head_channels": 4}, "one must be given"),
        ((1, 8, 8), {"heads": None}, "one must be given"),
        ((1, 8, 8), {"dropout": 1.0}, "dropout"),
        ((1, 8, 8), {"blocks": 0}, "blocks"),
        ((1, 8, 8), {"channels": 9}, "channels"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(shape, kwargs, told):
    with pytest.raises(ValueError, match=told):
        UNet(shape, **{"channels": 8, "multipliers": (1, 2), **kwargs})
