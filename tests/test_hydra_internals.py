"""Private parts of Hydra and argparse that the package uses."""

from ddpm_lab.config.messages import hydra_flags


def test_hydra_flags_have_the_fields_of_argparse_actions():
    flags = hydra_flags()
    assert {"--multirun", "-m", "--cfg", "-c", "--config-dir", "-cd"} <= {*flags}
    assert flags["--multirun"].nargs == 0 and flags["--multirun"].dest == "multirun"
    assert flags["--config-dir"].nargs is None
    assert [*flags["--cfg"].choices] == ["job", "hydra", "all"]
    assert flags["-m"] is flags["--multirun"]
