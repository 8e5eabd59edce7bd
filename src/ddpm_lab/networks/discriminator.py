"""What an autoencoder is told by an adversary."""

from torch import Tensor, nn

from ddpm_lab.networks.layers import norm


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) -> (B, 1, h, w), above 0 where a patch looks real (Isola et al., 2017)."""

    def __init__(self, inside: int, channels: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(inside, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for _ in range(halvings - 1):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
                norm(2 * channels),
                nn.LeakyReLU(0.2),
            ]
            channels *= 2
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
