"""What the Python contestants share: a process that run.py talks to by lines, as worker.hpp has it."""

import statistics
import sys
import time

import numpy as np


class Case:
    """A case as it was asked for: sizes as numbers, the rest as text."""

    def __init__(self, words):
        self.folder = words[0]
        self.values = dict(word.split("=", 1) for word in words[1:])

    def __getitem__(self, name):
        return int(self.values[name])

    def text(self, name, otherwise=""):
        return self.values.get(name, otherwise)

    def input(self, name, *shape):
        return np.fromfile(f"{self.folder}/{name}.bin", dtype=np.float32).reshape(shape)


def median_ms(run, budget):
    """The median time of a run within a budget of seconds. Short runs are timed several at a time."""

    def seconds(runs):
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - start) / runs

    start = time.perf_counter()
    once = seconds(1)
    if once > budget:
        return 1e3 * once
    runs = max(1, min(1000, int(1e-3 / once)))
    times = []
    while len(times) < 3 or time.perf_counter() < start + budget:
        times.append(seconds(runs))
    return 1e3 * statistics.median(times)


def serve(prepare, version):
    """prepare(case) gives a function to time and one that turns its result into the output in numpy."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no reply
    run = None

    def reply(words):
        nonlocal run
        if words[0] == "ask":
            return version
        if words[0] == "time":
            return f"{median_ms(run, float(words[1])):.6f}"
        case = Case(words[1:])
        run, output = prepare(case)
        np.ascontiguousarray(output(run()), dtype=np.float32).tofile(f"{case.folder}/output.bin")
        return "ok"

    for line in sys.stdin:
        try:
            answer = reply(line.split())
        except Exception as failure:  # whatever a library throws is why it cannot take part
            answer = "no " + " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
        print(answer, file=replies, flush=True)
