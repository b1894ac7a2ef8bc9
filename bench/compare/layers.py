"""Whole layers: runs the programs bench_<family> and judges what they measure by the goals.

The layers of these programs are the ones that the conformance suite and the golden files test.
"""

import json
import math
import os
import re
import subprocess

FORWARD_OVER_FLOORS = 1.15  # forward of FORWARD_TOKENS over the floors of its kernels
FORWARD_TOKENS = 2048
COST = 1.05  # the time of 2 T over that of T, and of a late step over an early one, by their work
DOUBLED = {1 << bits for bits in range(10, 16)}  # the T that are doubled
NEARLY_LINEAR = 2.1  # how much more work 2 T are at most, for the goal to count
# Patterns of benchmarks with how they are run. Steps are compared with each other.
RUNS = [
    ("/(forward|prefill)/", ["--benchmark_min_time=0.3"]),
    (
        "/step/",
        [
            "--benchmark_repetitions=7",
            "--benchmark_enable_random_interleaving=true",
            "--benchmark_report_aggregates_only=true",
        ],
    ),
]
QUICK_RUNS = [
    ("/(forward/B:1/T:(512|1024|2048)|step/B:1/T:(0|10|128|2...))/", ["--benchmark_min_time=0.01"])
]
KEPT = ("tokens_per_second", "of_limit", "state_bytes", "scratch_bytes")


def measured(program, layer: str, runs: list) -> list:
    """The benchmarks of one layer, medians of their repetitions, on one core, in a process of their
    own: what other layers leave of the memory's pages is no matter."""
    rows, core = [], {min(os.sched_getaffinity(0))}
    for pattern, flags in runs:
        run = subprocess.run(
            [program, "--benchmark_format=json", f"--benchmark_filter=^{layer}{pattern}", *flags],
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, core),
        )
        if run.returncode != 0:
            print(f"{layer} failed: {run.stderr.strip()[-200:]}")
            continue
        for one in json.loads(run.stdout or '{"benchmarks": []}')["benchmarks"]:
            if one.get("aggregate_name", "median") == "median":
                _, verb, _, tokens, width = one["run_name"].split("/")[:5]
                row = {"layer": layer, "verb": verb, "T": int(tokens[2:]), "D": int(width[2:])}
                row |= {"ms": one["real_time"], **{key: one[key] for key in KEPT if key in one}}
                rows.append(row)
    return rows


def layers_of(program) -> list:
    """The names of the layers that a program measures."""
    listed = subprocess.run([program, "--benchmark_list_tests"], capture_output=True, text=True)
    return list(dict.fromkeys(line.split("/")[0] for line in listed.stdout.split()))


def judged(case: str, ours: float, floor: float, goal: float) -> dict:
    row = {"case": case, "threads": 1, "goal": goal, "error": {}, "refused": {}, "ours_ms": ours}
    row |= {"peers": {}, "over_peer": {}, "floor_ms": floor, "ratio_to_floor": ours / floor}
    return row | {"of_limit": floor / ours, "met": ours / floor <= goal}


def goals_of(layer: str, rows: list):
    """The rows of one layer in the table."""
    forward = {row["T"]: row for row in rows if row["verb"] == "forward"}
    step = {row["T"]: row for row in rows if row["verb"] == "step"}
    floor = {T: row["ms"] * row["of_limit"] for T, row in forward.items()}
    if FORWARD_TOKENS in forward:
        name, ours = f"{layer} forward T{FORWARD_TOKENS}", forward[FORWARD_TOKENS]["ms"]
        yield judged(name, ours, floor[FORWARD_TOKENS], FORWARD_OVER_FLOORS)
    early, late = min(step, default=0), max(step, default=0)
    if early < late and step[early]["state_bytes"] == step[late]["state_bytes"]:
        name = f"{layer} step at {late}, over that at {early}"
        yield judged(name, step[late]["ms"], step[early]["ms"], COST)
    doublings = []
    for T in DOUBLED.intersection(forward):
        growth = floor.get(2 * T, math.inf) / floor[T]
        if growth < NEARLY_LINEAR:
            name = f"{layer} forward T{2 * T}, over T{T} by its work: the worst doubling"
            doublings.append((name, forward[2 * T]["ms"], growth * forward[T]["ms"], COST))
    if doublings:
        yield judged(*max(doublings, key=lambda one: one[1] / one[2]))


def measure(options, about: dict) -> list:
    """Measures all layers, writes layers.json, and gives the rows that have goals."""
    by_layer = {}
    for program in sorted((options.build / "bin").glob("bench_*")):
        if program.name in ("bench_compare", "bench_roofline"):
            continue
        for layer in layers_of(program):
            if not re.search(options.only, layer):
                continue
            print(f"{layer} ...", flush=True)
            for row in measured(program, layer, QUICK_RUNS if options.quick else RUNS):
                by_layer.setdefault(f"{layer} D{row['D']}", []).append(row)
    kept = {key: about[key] for key in ("command", "date", "machine", "flags")}
    data = {**kept, "rows": [row for rows in by_layer.values() for row in rows]}
    (options.out / "layers.json").write_text(json.dumps(data, indent=1) + "\n")
    return [goal for layer, rows in sorted(by_layer.items()) for goal in goals_of(layer, rows)]
