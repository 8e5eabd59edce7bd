"""See `python sample.py --help`."""

from ddpm_lab.commands.main import sample

if __name__ == "__main__":
    sample()
