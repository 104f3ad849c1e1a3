"""A small experiment, for tests of how experiments are started."""

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from experiments import launch
from experiments.launch import Report, Results, setting

QUICK = {"n": (1,), "hidden": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.Settings):
    """What is computed."""

    n: tuple[int, ...] = setting((1, 2, 3), "Numbers.", low=1, high=100)
    rate: float = setting(0.5, "A rate.", low=0.0, low_open=True, high=2.0)
    cap: float = setting(np.inf, "A cap.", low=1.0, infinite=True)
    kind: str = setting("a", "A kind.", choices=("a", "b"))
    file: str | None = setting(None, "A file.", allowed="a path")
    states: tuple[int, int] | None = setting(None, "A range.")
    loud: bool = setting(False, "A switch.")
    hidden: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "b" and self.rate > 1:
            raise self.refuse("rate", "must be <= 1 with --kind=b")


def compute(config, data, job) -> Results:
    """Squares the numbers."""
    assert data is None
    rows = job.map(
        lambda places: map(lambda i: _square(config, i), places), [f"n{n}" for n in config.n], label="squares"
    )
    return Results(rows=rows, arrays={"n": np.array(config.n)}, metadata={"note": "hello", "hidden": config.hidden})


def _square(config, index):
    return {"n": config.n[index], "square": config.n[index] ** 2 * config.rate, "cap": config.cap}


def report(results) -> Report:
    """Shows them."""
    figure = Figure()
    figure.subplots().plot(results.arrays["n"], results.frame()["square"])
    return Report(
        text=f"{_sum(results):g}", figures={"squares": figure}, files={"toy.json": {"kind": results.config.kind}}
    )


def _sum(results):
    return results.frame()["square"].sum()


if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK)
