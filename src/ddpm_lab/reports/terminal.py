"""What the verbs say on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def key_value_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Three columns: what, how much, and a remark."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [
        f"  {what:<{widths[0]}}  {value:>{widths[1]}}  {remark}".rstrip()
        for what, value, remark in rows
    ]
    rule = "  " + "─" * max(len(line) - 2 for line in lines)
    return "\n".join([rule, *lines, rule])


def format_grid(
    title: str, row_header: str, columns: Sequence[Any], rows: Mapping[str, Sequence[str]]
) -> str:
    """A named row of cells for each of `rows`, under a title and the heads of the columns."""
    width = max(map(len, [row_header, *rows]))
    widths = [
        max(10, *(2 + len(str(cells[i])) for cells in (columns, *rows.values())))
        for i in range(len(columns))
    ]
    lines = [
        f"  {name:<{width}}"
        + "".join(f"{cell:>{size}}" for size, cell in zip(widths, cells, strict=True))
        for name, cells in {row_header: columns, **rows}.items()
    ]
    head = lines.pop(0)
    rule = "  " + "─" * (len(head) - 2)
    return "\n".join([f"  {title}", rule, head, *lines, rule])


def fid_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `evaluation.quality.assess` found, with what it must be compared with."""
    real, noise, protocol = result["real"], result["noise"], result["protocol"]
    others = f"held-out images {real['fid']:.3g}, noise {noise['fid']:.3g} (features: {protocol['extractor']})"
    errors = result["standard_error"]
    few = [
        f"{name} {protocol[key]} images"
        for name, key in (("only", "count"), ("compared with only", "data_count"))
        if protocol[key] <= protocol["features"]
    ]
    if few:  # their covariance is singular, and FID mostly its bias
        others = f"{' and '.join(few)}, for {protocol['features']} features: too few to say much; {others}"
    rows = [("FID", _with(result["fid"], errors.get("fid")), others)]
    if "fid_infinity" in result and not few:
        rows.append(("FID, n -> inf", f"{result['fid_infinity']:.3g}", "of ever more samples"))
    if "intra_fid" in result:
        rows.append(
            (
                "intra FID",
                f"{result['intra_fid']:.3g}",
                (f"held-out images {real['intra_fid']:.3g}; " if "intra_fid" in real else "")
                + "mean over classes",
            )
        )
    if "precision" in result and "precision" in real:
        rows.append(
            (
                "precision, recall",
                f"{result['precision']:.3f}, {result['recall']:.3f}",
                f"held-out images {real['precision']:.3f}, {real['recall']:.3f}",
            )
        )
    if "kid" in result and "kid" in real:
        rows.append(
            (
                "KID",
                _with(result["kid"], errors["kid"]),
                f"standard deviation over subsets; held-out images {real['kid']:.3g}",
            )
        )
    if "inception_score" in result and "inception_score" in real:
        rows.append(
            (
                "inception score",
                _with(result["inception_score"], errors.get("inception_score")),
                f"held-out images {real['inception_score']:.3g}",
            )
        )
    if "class_accuracy" in result:
        rows.append(
            (
                "class accuracy",
                f"{100 * result['class_accuracy']:.1f} %",
                f"held-out images {100 * real['class_accuracy']:.1f} %",
            )
        )
    guided = ", ".join(
        f"{key}={value}" for key, value in protocol["guidance"].items() if key != "name" and value
    )
    how = (
        f"{protocol['sampler']['name']}, {protocol['steps']} steps, {protocol['weights']} weights"
        + (f", {guided}" if guided else "")
    )
    return [*rows, ("samples", f"{protocol['count']}", how)]


def _with(value: float, error: float | None) -> str:
    """To three digits, with its standard error, if that is known, to as many."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def accuracy_rows(found: dict[str, float]) -> list[tuple[str, str, str]]:
    """What a classifier's last validation found."""
    quarters = [
        f"{100 * value:.1f} %"
        for name, value in sorted(found.items())
        if name.startswith("accuracy_q")
    ]
    return [
        (
            "accuracy",
            f"{100 * found['accuracy']:.1f} %",
            f"on held-out images; by quarter of the times, from the data on: {', '.join(quarters)}",
        )
    ]


def reconstruction_rows(found: dict[str, float]) -> list[tuple[str, str, str]]:
    """What `callbacks.reconstructions` found."""
    known = {
        "psnr": ("PSNR", "{:.1f} dB", "of held-out images, the mean over images"),
        "ssim": ("SSIM", "{:.3f}", ""),
        "rfid": ("rFID", "{:.3g}", "of reconstructions, to the images themselves"),
        "codes_used": ("codes used", "{:.1%}", "of the codebook"),
    }
    return [
        (what, how.format(found[name]), remark)
        for name, (what, how, remark) in known.items()
        if name in found
    ]


def nll_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `evaluation.likelihood.assess_likelihood` found."""
    protocol = result["protocol"]
    how = f"{protocol['count']} images of {protocol['split']}, {protocol['weights']} weights, {protocol['variance']}"
    chain = f"{protocol['steps']} of {protocol['T']} steps, {protocol['spacing']}"
    between = result["bits_per_dim"] - result["L_T"]["bits"] - result["L_0"]["bits"]
    return [
        (
            "NLL, bits/dim",
            f"<= {result['bits_per_dim']:.3f}",
            f"+- {result['standard_error']:.3f}; {how}",
        ),
        ("  L_T", f"{result['L_T']['bits']:.4f}", "what the last x_t still says of the image"),
        ("  L_t", f"{between:.3f}", chain),
        (
            "  L_0",
            f"{result['L_0']['bits']:.3f}",
            f"+- {result['L_0']['standard_error']:.3f}; the pixels, given x_{result['terms'][-1]['t']}",
        ),
    ]


def reconstruction_mse_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `evaluation.reconstruction.assess_round_trip` found."""
    protocol = result["protocol"]
    how = f"{protocol['count']} of {protocol['split']} encoded and decoded, {protocol['steps']} steps each way"
    return [
        (
            "round trip, MSE",
            f"{result['mse']:.2g}",
            f"on data in [0, 1]; {how}, {protocol['weights']} weights",
        )
    ]


def ode_nll_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `evaluation.density.assess_density` found."""
    protocol = result["protocol"]
    known = f"; the law of the data itself: {result['data']:.3f}" if "data" in result else ""
    return [
        ("NLL, nats", f"{result['nll']:.3f}", f"+- {result['standard_error']:.3f}{known}"),
        (
            "",
            "",
            f"{protocol['count']} points of {protocol['split']}, probability-flow ODE in {protocol['steps']} "
            f"{protocol['solver']} steps",
        ),
    ]


def analytic_case_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `evaluation.case.assess_case` found."""
    protocol = found["protocol"]
    how = f"{protocol['sampler']['name']}, {protocol['steps']} of {protocol['T']} steps, {protocol['variance']}"
    rows = []
    if "wasserstein" in found:
        rows += [
            ("Wasserstein distance", f"{found['wasserstein']:.4f}", f"exactly; {how}"),
            ("standard deviation", f"{found['std']:.4f}", f"the data's {found['std_of_data']:.4f}"),
        ]
    else:
        rows.append(
            (
                "sliced Wasserstein",
                f"{found['sliced_wasserstein']:.4f}",
                f"other points of the data {found['sliced_wasserstein_of_data']:.4f}; {protocol['count']} "
                f"samples, {how}",
            )
        )
    if "class_accuracy" in found:
        rows.append(
            (
                "class accuracy",
                f"{100 * found['class_accuracy']:.1f} %",
                "mean p(label asked for | x_0)",
            )
        )
    if "inception_score" in found:
        rows.append(
            ("inception score", f"{found['inception_score']:.3f}", "by the exact p(y | x_0)")
        )
    if "nll" in found:
        nll = found["nll"]
        above = (
            f"{nll['gap']:.4f} above the entropy {nll['entropy']:.4f}; {len(nll['terms'])} steps"
        )
        rows.append(("NLL, bits/dim", f"<= {nll['bits_per_dim']:.4f}", above))
    if "reconstruction" in found:
        rows.append(
            (
                "round trip, MSE",
                f"{found['reconstruction']:.2g}",
                "encoded and decoded, on data in [0, 1]",
            )
        )
    return rows
