"""See `python train.py --help`."""

from ddpm_lab.commands.main import train

if __name__ == "__main__":
    train()
