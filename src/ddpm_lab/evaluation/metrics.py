"""Metrics: their keys in metrics.json, labels and directions.

A metric is one module of this package. It declares its `Number`s, computes a dict of results and
formats it as rows. A new one is added to `NUMBERS` here and to `MEASUREMENTS` of cli/evaluate.py.
"""

from typing import Any, Literal, NamedTuple

Results = dict[str, Any]
"""Results of a metric, as in metrics.json"""
Rows = list[tuple[str, str, str]]
"""Label, value and remark of each row on the terminal"""


class Number(NamedTuple):
    """A number of metrics.json."""

    key: str
    """Key, with dots between the levels"""
    label: str
    better: Literal["lower", "higher"]
    format: str = "{:.3g}"


SAMPLE_NUMBERS = (
    Number("fid", "FID", "lower"),
    Number("intra_fid", "intra FID", "lower"),
    Number("inception_score", "IS", "higher"),
    Number("class_accuracy", "class accuracy", "higher", "{:.1%}"),
    Number("precision", "precision", "higher", "{:.3f}"),
    Number("recall", "recall", "higher", "{:.3f}"),
)
"""Numbers of samples, in the order of columns"""
NUMBERS = {
    number.key: number
    for number in (
        *SAMPLE_NUMBERS,
        Number("nll.bits_per_dim", "bits/dim", "lower"),
        Number("nll.gap", "bits/dim above the entropy", "lower"),
        Number("nll.L_T", "bits/dim", "lower"),
        Number("nll.L_T.bits", "bits/dim", "lower"),
        Number("nll.L_0", "bits/dim", "lower"),
        Number("nll.L_0.bits", "bits/dim", "lower"),
        Number("wasserstein", "W2 distance", "lower"),
        Number("sliced_wasserstein", "sliced W2", "lower"),
        Number("reconstruction.mse", "mean squared error", "lower"),
        Number("reconstruction", "mean squared error", "lower"),
        Number("ode_nll.nll", "NLL, nats", "lower"),
        Number("psnr", "PSNR, dB", "higher"),
        Number("ssim", "SSIM", "higher"),
        Number("rfid", "rFID", "lower"),
        Number("training.val_loss", "validation loss", "lower"),
        Number("accuracy", "accuracy", "higher"),
    )
}
"""Numbers by key"""
