"""The plots of a run as SVG, from results.json and layers.json beside them."""

import json

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

import report

STYLE = {"svg.hashsalt": "seqmix", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}
NO_DATE = {"Date": None}  # the same numbers give the same file


def caption(data):
    machine = data["machine"]
    return f"{machine['processor']}, one thread unless said, {data['date']}"


def save(figure, folder, name, data):
    figure.text(0.01, 0.005, caption(data), fontsize=6, color="gray")
    figure.savefig(folder / f"{name}.svg", metadata=NO_DATE, bbox_inches="tight")
    plt.close(figure)


def bars(results, folder):
    """Our time over the best peer's."""
    rows = [row for row in results["rows"] if report.best_peer(row)]
    figure, axes = plt.subplots(figsize=(8, 0.22 * len(rows) + 1))
    names = [f"{row['case']} ({report.best_peer(row)})" for row in rows]
    ratios = [row["over_peer"][report.best_peer(row)] for row in rows]
    medians = [ratio["median"] for ratio in ratios]
    spread = [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]
    axes.barh(
        names, medians, xerr=spread, color=["tab:green" if m <= 1 else "tab:red" for m in medians]
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="our time / the best peer's (less is better)")
    axes.invert_yaxis()
    save(figure, folder, "peers", results)


def by_layer(rows, verb):
    """(T, row) of each layer, by T."""
    lines = {}
    for row in rows:
        if row["verb"] == verb:
            lines.setdefault(f"{row['layer']} D{row['D']}", []).append((row["T"], row))
    return {name: sorted(line, key=lambda point: point[0]) for name, line in sorted(lines.items())}


def styles(rows):
    """A colour and a marker for each layer, the same in all plots."""
    names = sorted({f"{row['layer']} D{row['D']}" for row in rows})
    return {
        name: {"color": f"C{number % 10}", "marker": "os^vD<>p"[number // 10 % 8]}
        for number, name in enumerate(names)
    }


def curves(axes, lines, value, style):
    for name, line in lines.items():
        tokens = [max(T, 1) for T, _ in line]  # a logarithm has no 0
        values = [value(row) for _, row in line]
        axes.plot(tokens, values, label=name, linewidth=1, markersize=3, **style[name])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")


def times(layers, folder):
    """Time a token against T: the parallel form, and steps at their position."""
    rows, style = layers["rows"], styles(layers["rows"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 7), sharey=True)
    curves(left, by_layer(rows, "forward"), lambda row: 1e3 * row["ms"] / row["T"], style)
    curves(right, by_layer(rows, "step"), lambda row: 1e3 * row["ms"], style)
    left.set(title="forward", xlabel="T", ylabel="microseconds a token")
    right.set(title="step", xlabel="tokens before it")
    handles, labels = left.get_legend_handles_labels()
    right.legend(handles, labels, loc="upper left", bbox_to_anchor=(1, 1), fontsize=6)
    save(figure, folder, "time_per_token", layers)


def states(layers, folder):
    """State bytes against context length."""
    figure, axes = plt.subplots(figsize=(9, 6))
    lines = {
        name: line
        for name, line in by_layer(layers["rows"], "forward").items()
        if line[0][1]["state_bytes"]
    }
    curves(axes, lines, lambda row: row["state_bytes"], styles(layers["rows"]))
    axes.set(xlabel="tokens in the state", ylabel="bytes a stream")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=6)
    save(figure, folder, "state_bytes", layers)


def write(folder):
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        bars(json.loads((folder / "results.json").read_text()), plots)
        if (folder / "layers.json").exists():
            layers = json.loads((folder / "layers.json").read_text())
            times(layers, plots), states(layers, plots)
