#!/usr/bin/env python3
"""seqmix beside what people use today: every case of cases.json, ours and each peer in turn.

    cmake --build build/release          (or of it bench_compare, and peer_ggml where ggml is found)
    python3 bench/compare/run.py [--only PATTERN] [--quick | --check] [--layers]

A row has times only of contestants whose output agrees with reference.py. Writes results.json and
results.md, the plots where matplotlib is installed, and the part of the project's README between
its markers. README.md, beside this file, says how to install the peers.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy as np

import layers
import report
from reference import inputs_of, reference

HERE = pathlib.Path(__file__).resolve().parent
OURS, BASE = "seqmix", "base"  # BASE: ours again, on the case that another one is measured by
NOT_ASKED = ("goal", "relative_to", "factor")  # what a contestant need not know of a case


def name_of(case: dict) -> str:
    words = [case["op"]]
    for key, value in case.items():
        if key in ("precision", "cache", "form", "mask", "score"):
            words.append(value)
        elif key == "threads":
            words.append(f"{value} threads")
        elif key == "worst":
            words.append("worst step")
        elif key not in ("op", *NOT_ASKED):
            words.append(f"{key}{value}")
    return " ".join(words)


class Contestant:
    """A worker process on as many cores as it has threads. After a crash it is started again."""

    def __init__(self, name: str, command: list, threads: int):
        self.name, self.command, self.threads, self.process = name, command, threads, None

    def ask(self, line: str, timeout: float = 300) -> str:
        """The reply, or "no <reason>"."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return "no the process ended"
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.stop()
            return f"no reply within {timeout:g} s"
        return self.process.stdout.readline().strip() or "no the process ended"

    def start(self):
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ, OMP_NUM_THREADS=str(self.threads)),
            cwd=HERE,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Contestants:
    """All that can run here. Those of one number of threads are alive at a time."""

    def __init__(self, build: pathlib.Path, python: str):
        self.build, self.alive, self.versions, self.missing = build, {}, {}, []
        programs = {
            OURS: [str(build / "bin/bench_compare"), "{threads}"],
            "PyTorch": [python, "peer_torch.py"],
            "PyTorch compiled": [python, "peer_torch.py", "--compile"],
            "ONNX Runtime": [python, "peer_onnxruntime.py"],
            "ggml": [str(build / "bin/peer_ggml"), "{threads}"],
        }
        self.programs = {**programs, BASE: programs[OURS]}
        if not pathlib.Path(programs[OURS][0]).exists():
            raise SystemExit(f"there is no bench_compare in {build}: build it first")
        for name in list(programs)[1:]:
            found = pathlib.Path(programs[name][0]).exists()
            answer = self.get(name).ask("ask version") if found else "no such program"
            if answer.startswith("no "):
                self.missing.append(name)
            else:
                self.versions[name] = answer

    def get(self, name: str, threads: int = 1) -> Contestant:
        if (name, threads) not in self.alive:
            command = [word.format(threads=threads) for word in self.programs[name]]
            self.alive[name, threads] = Contestant(name, command, threads)
        return self.alive[name, threads]

    def all(self, threads: int) -> list:
        self.stop(except_threads=threads)
        return [self.get(name, threads) for name in (OURS, *self.versions)]

    def stop(self, except_threads: int = 0):
        for name, threads in list(self.alive):
            if threads != except_threads:
                self.alive.pop((name, threads)).stop()


class Limits:
    """What the machine can do, as bench/support/roofline measures it, and floors made of it."""

    def __init__(self, contestants: Contestants, bf16_speed: float):
        self.process = Contestant("limits", contestants.get(OURS).command, 1)
        self.bf16_speed, self.bandwidths = bf16_speed, {}
        self.fma, self.exp = self.best("fma"), self.best("exp")

    def best(self, question: str) -> float:
        """Of three processes: what disturbs one of them is no limit."""
        answers = []
        for _ in range(3):
            answers.append(float(self.process.ask(f"ask {question}")))
            self.process.stop()
        return max(answers)

    def bandwidth(self, size: float) -> float:
        if size not in self.bandwidths:
            self.bandwidths[size] = self.best(f"bandwidth {size:.0f}")
        return self.bandwidths[size]

    def floor_ms(self, case: dict, op: dict) -> float:
        T = case.get("T", 0)
        window = min(case.get("window", T), T)
        names = dict(case, log2=math.log2, min=min, pairs=T * window - window * (window - 1) / 2)
        names["cache_bytes"] = {"bf16": 2, "f16": 2, "int8": 1}.get(case.get("cache"), 4)
        flops, exps, size = (
            eval(op.get(key, "0"), {}, names) for key in ("flops", "exps", "bytes")
        )
        speed = self.bf16_speed if case.get("precision") == "bf16" else 1
        compute = flops / (self.fma * speed) + exps / self.exp
        return 1e3 * max(compute, size / self.bandwidth(size) if size else 0)


def prepare(contestant: Contestant, case: dict, inputs: dict) -> tuple:
    """Why the contestant cannot run the case, or None; and its output."""
    with tempfile.TemporaryDirectory() as folder:
        for name, numbers in inputs.items():
            numbers.tofile(f"{folder}/{name}.bin")
        values = [f"{key}={value}" for key, value in case.items() if key not in NOT_ASKED]
        answer = contestant.ask(" ".join(["prepare", folder, *values]))
        if answer != "ok":
            return answer.removeprefix("no "), None
        return None, np.fromfile(f"{folder}/output.bin", np.float32).astype(np.float64)


def error_of(output: np.ndarray, expected: tuple) -> float:
    """Norm of the difference over the norm of what is expected; infinite for another shape."""
    rows, values = expected
    width = values[0].size
    if output.size % width or (isinstance(rows, slice) and output.size != values.size):
        return math.inf
    got = output.reshape(-1, *values.shape[1:])[rows]
    return float(np.linalg.norm(got - values) / np.linalg.norm(values))


def take_part(row: dict, case: dict, inputs: dict, tolerance: float, all_contestants: list) -> list:
    """Those whose output is right; the row says why others are not among them."""
    expected, ready = reference(case, inputs), []
    for contestant in all_contestants:
        reason, output = prepare(contestant, case, inputs)
        if reason is None:
            error = error_of(output, expected)
            if math.isfinite(error):
                row["error"][contestant.name] = error
            if not error <= tolerance:  # NaN is wrong too
                reason = f"WRONG: error {error:.1e}, allowed {tolerance:.0e}"
        if reason is None:
            ready.append(contestant)
        else:
            row["refused"][contestant.name] = reason
    return ready


def time_in_turn(row: dict, ready: list, options) -> dict:
    """The times in ms of each contestant, one a round."""
    times = {contestant.name: [] for contestant in ready}
    for _ in range(options.rounds):
        for contestant in ready:
            answer = contestant.ask(f"time {options.seconds}")
            if answer.startswith("no "):
                row["refused"][contestant.name] = answer.removeprefix("no ")
            else:
                times[contestant.name].append(float(answer))
    return {name: rounds for name, rounds in times.items() if name not in row["refused"]}


def ratio(ours: list, theirs: list) -> dict:
    """Ours over theirs in each round: the median and the extremes."""
    values = [a / b for a, b in zip(ours, theirs)]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def factor_of(case: dict, inputs: dict) -> float:
    """The share of the other case's time that is the floor of this one."""
    if case["factor"] != "tile_share":
        return float(eval(case["factor"], {}))
    n = len(inputs["layout"])
    return float(inputs["layout"].sum() / (n * (n + 1) / 2))


def run_case(case: dict, table: dict, contestants: Contestants, limits: Limits, options) -> dict:
    op, threads = table["ops"][case["op"]], case.get("threads", 1)
    row = {"case": name_of(case), "threads": threads, "goal": case.get("goal")}
    row |= {"error": {}, "refused": {}}
    inputs = inputs_of(case, op)
    tolerance = table["tolerance"][case.get("precision") or case.get("cache") or "fp32"]
    ready = take_part(row, case, inputs, tolerance, contestants.all(threads))
    if options.check or OURS in row["refused"]:
        return row
    if "relative_to" in case:
        other = next(one for one in table["cases"] if name_of(one) == case["relative_to"])
        ready.append(contestants.get(BASE, other.get("threads", 1)))
        prepare(ready[-1], other, inputs_of(other, table["ops"][other["op"]]))

    times = time_in_turn(row, ready, options)
    if not {OURS, BASE}.isdisjoint(row["refused"]):
        return row
    medians = {name: statistics.median(rounds) for name, rounds in times.items()}
    row["ours_ms"] = medians[OURS]
    row["peers"] = {name: ms for name, ms in medians.items() if name not in (OURS, BASE)}
    row["over_peer"] = {name: ratio(times[OURS], times[name]) for name in row["peers"]}
    if "relative_to" in case:
        factor = factor_of(case, inputs)
        row["relative_to"], row["floor_ms"] = case["relative_to"], factor * medians[BASE]
        row["ratio_to_floor"] = ratio(times[OURS], times[BASE])["median"] / factor
    else:
        row["floor_ms"] = limits.floor_ms(case, op) or None
        row["ratio_to_floor"] = row["floor_ms"] and row["ours_ms"] / row["floor_ms"]
    row["of_limit"] = row["ratio_to_floor"] and 1 / row["ratio_to_floor"]
    row["met"] = None if row["goal"] is None else row["ratio_to_floor"] <= row["goal"]
    return row


def machine(limits: Limits) -> dict:
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "processor": model.group(1) if model else "unknown",
        "cores": os.cpu_count(),
        "fma_flops": limits.fma,
        "exps": limits.exp,
        "read_bandwidth": {
            str(1 << bits): limits.bandwidth(1 << bits) for bits in (15, 20, 24, 28)
        },
    }


def flags_of(contestants: Contestants) -> dict:
    """How our side was compiled."""
    cache = (contestants.build / "CMakeCache.txt").read_text()
    names = ("CMAKE_BUILD_TYPE", "CMAKE_CXX_FLAGS", "CMAKE_CXX_FLAGS_RELEASE", "SEQMIX_NATIVE")
    flags = {name: re.search(rf"^{name}:\w+=(.*)$", cache, re.M).group(1) for name in names}
    return {"compiler": contestants.get(OURS).ask("ask compiler"), **flags}


def command(options) -> str:
    """What was run, without the folders of this machine."""
    words = ["python3 bench/compare/run.py"]
    words += [f"--{flag}" for flag in ("quick", "layers") if getattr(options, flag)]
    return " ".join(words + ([f"--only '{options.only}'"] if options.only else []))


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--build", type=pathlib.Path, default=HERE.parents[1] / "build/release")
    add("--python", default=sys.executable, help="the interpreter that has the Python peers")
    add("--only", default="", help="a regular expression for the names of cases and layers")
    add("--quick", action="store_true", help="one short round: a smoke run")
    add("--check", action="store_true", help="correctness only: nothing is timed or written")
    add("--layers", action="store_true", help="whole layers too, with the programs bench_<family>")
    add("--out", type=pathlib.Path, default=HERE, help="the folder of the results")
    options = parser.parse_args()
    options.build = options.build.resolve()
    options.python = shutil.which(options.python) or options.python
    options.rounds, options.seconds = (1, 0.02) if options.quick else (7, 0.15)
    return options


def main() -> int:
    options = parse_options()
    table = json.loads((HERE / "cases.json").read_text())
    contestants = Contestants(options.build, options.python)
    for name in contestants.missing:
        print(f"{name} is missing: README.md says how to install it")
    limits = Limits(contestants, table["bf16_flops_over_fma_peak"])
    results = {"command": command(options), "date": datetime.date.today().isoformat()}
    results |= {"machine": machine(limits), "flags": flags_of(contestants)}
    results |= {"peers": contestants.versions, "missing": contestants.missing}
    rows = []
    for case in table["cases"]:
        if not re.search(options.only, name_of(case)):
            continue
        if case.get("threads", 1) > len(os.sched_getaffinity(0)):
            print(f"{name_of(case)}: needs as many cores")
        else:
            rows.append(run_case(case, table, contestants, limits, options))
            print(report.line(rows[-1]), flush=True)
    contestants.stop()
    if not options.check:
        options.out.mkdir(parents=True, exist_ok=True)
        report.write({**results, "rows": rows}, options.out)  # not lost if a layer's program fails
        if options.layers:
            rows += layers.measure(options, results)
            report.write({**results, "rows": rows}, options.out)
    return 1 if any(OURS in row["refused"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
