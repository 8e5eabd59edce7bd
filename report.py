"""See `python report.py --help`."""

from ddpm_lab.commands.main import report

if __name__ == "__main__":
    report()
