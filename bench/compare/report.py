"""Results as text: a line while running, results.json, results.md, and the project's README."""

import json
import pathlib
import re

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
MARKERS = re.compile(r"(<!-- comparison -->\n).*(<!-- /comparison -->)", re.S)


def best_peer(row: dict):
    """The name of the fastest peer, or None."""
    return min(row.get("peers", {}), key=row.get("peers", {}).get, default=None)


def goal(row: dict) -> str:
    if row["goal"] is None:
        return ""
    return f"{row['goal']:g}: {'met' if row['met'] else 'not met'}"


def number(value) -> str:
    return "" if value is None else f"{value:.4g}"


def two_digits(value) -> str:
    return "" if value is None else f"{value:.2f}"


def wrong(row: dict, name: str) -> bool:
    return row["refused"].get(name, "").startswith("WRONG")


def line(row: dict) -> str:
    """What a run prints."""
    words = [row["case"] + ":"]
    if "ours_ms" in row:
        words.append(f"{number(row['ours_ms'])} ms,")
        if row["ratio_to_floor"] is not None:
            words.append(f"{row['ratio_to_floor']:.2f} x floor, goal {goal(row)};")
        words += [f"{name} {number(ms)}" for name, ms in row["peers"].items()]
    else:
        words += [f"{name} {error:.1e}" for name, error in row["error"].items()]
    failed = {
        name: why for name, why in row["refused"].items() if wrong(row, name) or name == "seqmix"
    }
    return " ".join(words + [f"[{name}: {why}]" for name, why in failed.items()])


def markdown_table(head: list, rows: list) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def full_row(row: dict, names: list) -> list:
    if "ours_ms" not in row:
        return [row["case"], row["refused"].get("seqmix", ""), *[""] * (len(names) + 4)]
    peers = ["WRONG" if wrong(row, name) else number(row["peers"].get(name)) for name in names]
    ratio = row["over_peer"].get(best_peer(row))
    spread = f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})" if ratio else ""
    ends = [spread, two_digits(row["ratio_to_floor"]), two_digits(row["of_limit"]), goal(row)]
    return [row["case"], number(row["ours_ms"]), *peers, *ends]


def about(results: dict) -> str:
    machine = results["machine"]
    flags = ", ".join(f"{key} {value}" for key, value in results["flags"].items() if value)
    peers = ", ".join(dict.fromkeys(results["peers"].values())) or "none"
    missing = ", ".join(results["missing"])
    return (
        f"Made by `{results['command']}` on {results['date']}: {machine['processor']}, "
        f"{machine['cores']} cores; a thread does {machine['fma_flops'] / 1e9:.0f} GF/s and "
        f"{machine['exps'] / 1e9:.1f} G exp/s ({flags}). Peers: {peers}"
        + (f"; not installed: {missing}." if missing else ".")
    )


def markdown(results: dict) -> str:
    names, goals = list(results["peers"]), [
        row for row in results["rows"] if row.get("met") is not None
    ]
    head = ["case", "seqmix ms", *[f"{name} ms" for name in names]]
    head += ["seqmix / best peer", "seqmix / floor", "of limit", "goal"]
    text = (
        "Times are medians of alternating rounds on pinned cores, one thread unless said, of outputs "
        "that agree with a float64 reference; ratios are medians of the rounds with the extremes. "
        "cases.json says what a floor counts; a goal is a ratio to it. "
        f"{sum(row['met'] for row in goals)} of {len(goals)} goals are met."
    )
    table = markdown_table(head, [full_row(row, names) for row in results["rows"]])
    return "\n\n".join(["# Comparison", about(results), text, table]) + "\n"


def summary(results: dict) -> str:
    """The rows that a peer has too, for the project's README."""
    rows = []
    for row in results["rows"]:
        best = best_peer(row)
        if best is not None:
            times = [number(row["ours_ms"]), f"{number(row['peers'][best])} ({best})"]
            faster = f"{1 / row['over_peer'][best]['median']:.1f}"
            rows.append([row["case"], *times, faster, two_digits(row["ratio_to_floor"])])
    head = ["case", "seqmix ms", "best peer ms", "times faster", "seqmix / floor"]
    return about(results) + "\n\n" + markdown_table(head, rows) + "\n"


def write(results: dict, folder: pathlib.Path):
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))
    if folder == pathlib.Path(__file__).resolve().parent:
        readme = README.read_text()
        README.write_text(MARKERS.sub(lambda m: m[1] + summary(results) + m[2], readme))
    try:
        import plots
    except ImportError:
        return print("matplotlib is missing: no plots")
    plots.write(folder)
