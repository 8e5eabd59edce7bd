"""Registry of metrics: key, label, direction and rows. A new metric is one entry of `METRICS`."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Results = Mapping[str, Any]
Row = tuple[str, str, str]
"""Label, value, remark"""


class Metric(NamedTuple):
    """Description of a number in metrics.json."""

    key: str
    """Dotted key in metrics.json"""
    label: str
    better: Literal["lower", "higher"]
    rows: Callable[[Results], list[Row]] = lambda results: []
    """Terminal rows, from the mapping that holds the metric"""
    format: str = "{:.3g}"
    """Format of a table cell"""
    option: str | None = None
    """Item of `metrics=[...]` that requests it"""
    in_sweeps: bool = False
    """Whether it is a column of `sweep=`"""
    panel: str | None = None
    """Panel of the sweep's plot"""
    logged: bool = False
    """Whether FID during training logs it"""


def fid_rows(results: Results) -> list[Row]:
    """Return the rows of `evaluate_samples`."""
    rows = [row for metric in SAMPLE_METRICS for row in metric.rows(results)]
    return [*rows, _samples_row(results["protocol"])]


def sweep_cells(results: Results) -> list[str]:
    """Return a cell for each of `SWEEP_COLUMNS`; "-" for metrics that are missing."""
    return [
        REGISTRY[key].format.format(results[key]) if key in results else "-"
        for key in SWEEP_COLUMNS
    ]


def _too_few(protocol: Results) -> list[str]:
    return [
        f"{name} {protocol[key]} images"
        for name, key in (("only", "count"), ("compared with only", "data_count"))
        if protocol[key] <= protocol["features"]
    ]


def _fid(results: Results) -> list[Row]:
    real, noise, protocol = results["real"], results["noise"], results["protocol"]
    remark = (
        f"held-out images {real['fid']:.3g}, noise {noise['fid']:.3g} "
        f"(features: {protocol['extractor']})"
    )
    if few := _too_few(protocol):  # the covariance is singular, and FID mostly bias
        features = protocol["features"]
        remark = f"{' and '.join(few)}, for {features} features: not meaningful; {remark}"
    return [("FID", _with_error(results["fid"], results["standard_error"].get("fid")), remark)]


def _fid_infinity(results: Results) -> list[Row]:
    if "fid_infinity" not in results or _too_few(results["protocol"]):
        return []
    return [("FID, n -> inf", f"{results['fid_infinity']:.3g}", "extrapolated to infinite samples")]


def _intra_fid(results: Results) -> list[Row]:
    if "intra_fid" not in results:
        return []
    real = results["real"]
    held_out = f"held-out images {real['intra_fid']:.3g}; " if "intra_fid" in real else ""
    return [("intra FID", f"{results['intra_fid']:.3g}", f"{held_out}mean over classes")]


def _inception_score(results: Results) -> list[Row]:
    if not _comparable("inception_score", results):
        return []
    error = results["standard_error"].get("inception_score")
    remark = f"held-out images {results['real']['inception_score']:.3g}"
    return [("inception score", _with_error(results["inception_score"], error), remark)]


def _class_accuracy(results: Results) -> list[Row]:
    if "class_accuracy" not in results:
        return []
    remark = f"held-out images {100 * results['real']['class_accuracy']:.1f} %"
    return [("class accuracy", f"{100 * results['class_accuracy']:.1f} %", remark)]


def _kid(results: Results) -> list[Row]:
    if not _comparable("kid", results):
        return []
    value = _with_error(results["kid"], results["standard_error"]["kid"])
    held_out = results["real"]["kid"]
    return [("KID", value, f"standard deviation over subsets; held-out images {held_out:.3g}")]


def _precision_recall(results: Results) -> list[Row]:
    if not _comparable("precision", results):
        return []
    value, held_out = (
        f"{r['precision']:.3f}, {r['recall']:.3f}" for r in (results, results["real"])
    )
    return [("precision, recall", value, f"held-out images {held_out}")]


def _comparable(key: str, results: Results) -> bool:
    return key in results and key in results["real"]


def _samples_row(protocol: Results) -> Row:
    guidance = ", ".join(
        f"{key}={value}" for key, value in protocol["guidance"].items() if key != "name" and value
    )
    remark = (
        f"{protocol['sampler']['name']}, {protocol['steps']} steps, {protocol['weights']} weights"
    )
    return ("samples", f"{protocol['count']}", f"{remark}, {guidance}" if guidance else remark)


def _with_error(value: float, error: float | None) -> str:
    """Format to three significant digits; the standard error gets as many decimals."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def nll_rows(results: Results) -> list[Row]:
    """Return the rows of `evaluate_nll`."""
    protocol, L_0, L_T = results["protocol"], results["L_0"], results["L_T"]
    protocol_text = (
        f"{protocol['count']} images of {protocol['split']}, {protocol['weights']} weights, "
        f"{protocol['variance']}"
    )
    chain = f"{protocol['steps']} of {protocol['T']} steps, {protocol['spacing']}"
    between = results["bits_per_dim"] - L_T["bits"] - L_0["bits"]
    last_t = results["terms"][-1]["t"]
    return [
        (
            "NLL, bits/dim",
            f"<= {results['bits_per_dim']:.3f}",
            f"+- {results['standard_error']:.3f}; {protocol_text}",
        ),
        ("  L_T", f"{L_T['bits']:.4f}", "KL of x_T given the image from the prior"),
        ("  L_t", f"{between:.3f}", chain),
        (
            "  L_0",
            f"{L_0['bits']:.3f}",
            f"+- {L_0['standard_error']:.3f}; the pixels, given x_{last_t}",
        ),
    ]


def ode_nll_rows(results: Results) -> list[Row]:
    """Return the rows of `evaluate_ode_nll`."""
    protocol = results["protocol"]
    exact = f"; the law of the data itself: {results['data']:.3f}" if "data" in results else ""
    method = (
        f"{protocol['count']} points of {protocol['split']}, probability-flow ODE in "
        f"{protocol['steps']} {protocol['solver']} steps"
    )
    return [
        ("NLL, nats", f"{results['nll']:.3f}", f"+- {results['standard_error']:.3f}{exact}"),
        ("", "", method),
    ]


def reconstruction_mse_rows(results: Results) -> list[Row]:
    """Return the row of `evaluate_reconstruction`."""
    protocol = results["protocol"]
    remark = (
        f"on data in [0, 1]; {protocol['count']} of {protocol['split']} encoded and decoded, "
        f"{protocol['steps']} steps each way, {protocol['weights']} weights"
    )
    return [("round trip, MSE", f"{results['mse']:.2g}", remark)]


def accuracy_rows(results: Results) -> list[Row]:
    """Return the row of a classifier's last validation."""
    quarters = ", ".join(
        f"{100 * value:.1f} %"
        for name, value in sorted(results.items())
        if name.startswith("accuracy_q")
    )
    remark = f"on held-out images; by quarter of the times, from the data on: {quarters}"
    return [("accuracy", f"{100 * results['accuracy']:.1f} %", remark)]


def reconstruction_rows(results: Results) -> list[Row]:
    """Return the rows of an autoencoder's `Reconstructions`."""
    formats = {
        "psnr": ("PSNR", "{:.1f} dB", "of held-out images, the mean over images"),
        "ssim": ("SSIM", "{:.3f}", ""),
        "rfid": ("rFID", "{:.3g}", "of reconstructions, to the images themselves"),
        "codes_used": ("codes used", "{:.1%}", "of the codebook"),
    }
    return [
        (label, text.format(results[key]), remark)
        for key, (label, text, remark) in formats.items()
        if key in results
    ]


def analytic_case_rows(results: Results) -> list[Row]:
    """Return the rows of `evaluate_case`."""
    protocol = results["protocol"]
    method = (
        f"{protocol['sampler']['name']}, {protocol['steps']} of {protocol['T']} steps, "
        f"{protocol['variance']}"
    )
    rows = []
    if "wasserstein" in results:
        std, data_std = results["std"], results["std_of_data"]
        rows += [
            ("Wasserstein distance", f"{results['wasserstein']:.4f}", f"exact; {method}"),
            ("standard deviation", f"{std:.4f}", f"the data's {data_std:.4f}"),
        ]
    else:
        remark = (
            f"other points of the data {results['sliced_wasserstein_of_data']:.4f}; "
            f"{protocol['count']} samples, {method}"
        )
        rows.append(("sliced Wasserstein", f"{results['sliced_wasserstein']:.4f}", remark))
    if "class_accuracy" in results:
        accuracy = f"{100 * results['class_accuracy']:.1f} %"
        rows.append(("class accuracy", accuracy, "mean p(label of the condition | x_0)"))
    if "inception_score" in results:
        score = f"{results['inception_score']:.3f}"
        rows.append(("inception score", score, "by the exact p(y | x_0)"))
    if "nll" in results:
        nll = results["nll"]
        remark = (
            f"{nll['gap']:.4f} above the entropy {nll['entropy']:.4f}; {len(nll['terms'])} steps"
        )
        rows.append(("NLL, bits/dim", f"<= {nll['bits_per_dim']:.4f}", remark))
    if "reconstruction" in results:
        mse = f"{results['reconstruction']:.2g}"
        rows.append(("round trip, MSE", mse, "encoded and decoded, on data in [0, 1]"))
    return rows


SAMPLE_METRICS = (
    Metric("fid", "FID", "lower", _fid, option="fid", in_sweeps=True, panel="FID", logged=True),
    Metric("fid_infinity", "FID, n -> inf", "lower", _fid_infinity, option="fid", logged=True),
    Metric(
        "intra_fid",
        "intra FID",
        "lower",
        _intra_fid,
        option="fid",
        in_sweeps=True,
        panel="FID",
        logged=True,
    ),
    Metric("inception_score", "IS", "higher", _inception_score, option="fid", in_sweeps=True),
    Metric(
        "class_accuracy",
        "class accuracy",
        "higher",
        _class_accuracy,
        format="{:.1%}",
        option="fid",
        in_sweeps=True,
        panel="shares",
        logged=True,
    ),
    Metric("kid", "KID", "lower", _kid, option="kid"),
    Metric(
        "precision",
        "precision",
        "higher",
        _precision_recall,
        format="{:.3f}",
        option="prc",
        in_sweeps=True,
        panel="shares",
    ),
    Metric(
        "recall",
        "recall",
        "higher",  # its row is that of precision
        format="{:.3f}",
        option="prc",
        in_sweeps=True,
        panel="shares",
    ),
)
"""Metrics of `evaluate_samples`, in the order of their rows"""

METRICS = (
    *SAMPLE_METRICS,
    Metric("nll.bits_per_dim", "bits/dim", "lower", nll_rows, option="nll"),
    Metric("nll.gap", "bits/dim over entropy", "lower"),
    Metric("nll.L_T", "bits/dim", "lower"),
    Metric("nll.L_T.bits", "bits/dim", "lower"),
    Metric("nll.L_0", "bits/dim", "lower"),
    Metric("nll.L_0.bits", "bits/dim", "lower"),
    Metric("wasserstein", "W2 distance", "lower", analytic_case_rows),
    Metric("sliced_wasserstein", "sliced W2", "lower", analytic_case_rows),
    Metric("ode_nll.nll", "NLL, nats", "lower", ode_nll_rows, option="ode_nll"),
    Metric(
        "reconstruction.mse",
        "mean square error",
        "lower",
        reconstruction_mse_rows,
        option="reconstruction",
    ),
    Metric("reconstruction", "mean square error", "lower"),
    Metric("psnr", "PSNR, dB", "higher", reconstruction_rows),
    Metric("ssim", "SSIM", "higher"),
    Metric("rfid", "rFID", "lower"),
    Metric("training.val_loss", "validation loss", "lower"),
    Metric("accuracy", "accuracy", "higher", accuracy_rows),
)
REGISTRY = {metric.key: metric for metric in METRICS}
OPTIONS = tuple(dict.fromkeys(metric.option for metric in METRICS if metric.option))
"""Items of `metrics=[...]`"""
SWEEP_COLUMNS = {metric.key: metric.label for metric in METRICS if metric.in_sweeps}
SWEEP_PANELS = {
    title: tuple(metric.key for metric in METRICS if metric.panel == title)
    for title in ("FID", "shares")
}
LOGGED = tuple(metric.key for metric in METRICS if metric.logged)
"""Metrics that FID during training logs"""
