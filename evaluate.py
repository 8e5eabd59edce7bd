"""See `python evaluate.py --help`."""

from ddpm_lab.commands.main import evaluate

if __name__ == "__main__":
    evaluate()
