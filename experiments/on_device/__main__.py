"""The command line. Packages that are missing come from the carried wheels, so they are looked for before all imports."""

import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.on_device import wheels

wheels.offer(sys.argv)

import jax  # noqa: E402 - after the wheels
from absl import flags  # noqa: E402

from experiments import flags as shared  # noqa: E402
from experiments.flags import jobs  # noqa: E402
from experiments.on_device import carrying, plan, report, steps  # noqa: E402
from experiments.tables import align  # noqa: E402
from ldmjax import records  # noqa: E402

FLAGS = flags.FLAGS
QUICK = {"images": 1000}
LEAST_IMAGES = plan.TRAINED_ON + plan.COMPARED_WITH
MEASURING, PREPARING = ("carried", "only", "seconds"), ("cifar", "images", "wheels")  # flags without, with --prepare


def define_flags() -> None:
    shared.define_common_flags("on_device")
    shared.define_choices("only", ",".join(plan.STAGES), "Stages, done in this order.", plan.STAGES)
    shared.define_float("seconds", 560.0, "For all of it.", low=1.0, high=1e6)
    shared.define_word(
        "carried", None, "The folder that --prepare made.", allowed="a folder made by --prepare", check=_check_folder
    )
    shared.define_word(
        "scratch", None, "Where steps work until they are done; default: stages/ in --workdir.",
        allowed="a directory that can be written, or made", check=shared.check_writable,
    )  # fmt: skip
    shared.define_word(
        "prepare", None, "Makes this folder, on a CPU, instead of measuring; needs --cifar.",
        allowed="a directory that can be written, or made", check=shared.check_writable,
    )  # fmt: skip
    shared.define_word(
        "cifar", None, "For --prepare: images [N, 32, 32, 3] of uint8 and labels [N].", allowed="an .npz file",
        check=shared.check_npz,
    )  # fmt: skip
    shared.define_integer(
        "images", 15_000, f"For --prepare: how many, as many of each class; at least {LEAST_IMAGES}, with --quick 1000.",
        low=1000, high=100_000,
    )  # fmt: skip
    shared.define_word(
        "wheels", None, "For --prepare: wheels (*.whl) of what the device's machine may lack.", allowed="a folder",
        check=_check_folder,
    )  # fmt: skip


def _check_folder(path: str) -> None:
    if not Path(path).is_dir():
        raise ValueError(f"no folder {path!r}")


def main() -> None:
    shared.apply_quick(QUICK)
    if jax.process_count() > 1:
        raise shared.bad("num_processes", jax.process_count(), "must be 1: the steps are processes of this one")
    refuse_unused()
    code = jobs.describe_job()["code"]
    try:
        prepare(code) if FLAGS.prepare else measure(code)
    except steps.NotDoneError as error:
        sys.exit(f"error: {error}")


def refuse_unused() -> None:
    """Refuses flags that would change nothing."""
    reasons = dict.fromkeys(("checkpoint_every", "keep_checkpoints"), "must not be given: steps have their own")
    if FLAGS.prepare:
        reasons |= dict.fromkeys(MEASURING, "allowed only without --prepare")
    else:
        reasons |= dict.fromkeys(PREPARING, "allowed only with --prepare")
    for name, reason in reasons.items():
        if FLAGS[name].present:
            raise shared.bad(name, FLAGS[name].value, reason)


def scratch_of(facts: Mapping[str, Any]) -> Path:
    """Where steps work: never where those of other facts left something."""
    base = Path(FLAGS.scratch) if FLAGS.scratch else Path(FLAGS.workdir) / "stages"
    return base.absolute() / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def prepare(code: str) -> None:
    """With --prepare: makes the carried folder."""
    if not FLAGS.quick and FLAGS.images < LEAST_IMAGES:
        needed = f"the stage science trains on {plan.TRAINED_ON} and compares with {plan.COMPARED_WITH} others"
        raise shared.bad("images", FLAGS.images, f"must be >= {LEAST_IMAGES} without --quick: {needed}")
    if FLAGS.cifar is None:
        raise shared.bad("prepare", FLAGS.prepare, "needs --cifar=FILE.npz, the images to carry")
    scratch = scratch_of({"code": code, "quick": FLAGS.quick})
    places = plan.Places(scratch=scratch, carried=None, quick=FLAGS.quick)
    if FLAGS.dry_run:
        print(f"Would make {FLAGS.prepare} from {FLAGS.cifar}; nothing was written.")
        return
    carrying.prepare(
        Path(FLAGS.prepare), cifar=FLAGS.cifar, images=FLAGS.images, wheels=FLAGS.wheels, places=places, code=code,
        report=jobs.Job.report,
    )  # fmt: skip


def measure(code: str) -> None:
    """Runs the steps and prints what all of them measured; ends with status 1 if one of them failed."""
    begin = time.monotonic()
    compared = [stage for stage in FLAGS.only if stage in plan.COMPARED]
    if FLAGS.carried is None and compared:
        raise shared.bad("only", compared, "needs --carried=FOLDER, which --prepare makes")
    if FLAGS.carried is not None:
        carrying.check(Path(FLAGS.carried), code=code, quick=FLAGS.quick)
    carried = Path(FLAGS.carried).absolute() if FLAGS.carried else None
    facts = {"code": code, "quick": FLAGS.quick, "deterministic": FLAGS.deterministic}
    places = plan.Places(scratch=scratch_of(facts), carried=carried, quick=FLAGS.quick)
    left_out = plan.left_out(FLAGS.only)
    for stage, reason in left_out.items():
        print(f"{stage}: left out, {reason}")
    if FLAGS.dry_run:
        rows = [
            ("stage", "step", "needs", "at most"),
            *((s.stage, s.name, f"{s.needs:.0f}", f"{s.limit:.0f}") for s in plan.make_steps(FLAGS.only, places)),
        ]
        print("\n".join(align(rows, left=2)), "\nSeconds. Nothing was written.")
        return
    try:
        workdir = records.prepare_workdir(FLAGS.workdir)
        facts["device"] = ask_device(places)
        results = steps.Results.in_workdir(workdir, facts, overwrite=FLAGS.overwrite)
    except ValueError as error:
        raise shared.bad(
            "workdir", FLAGS.workdir, f"{error}: --overwrite starts anew, another --workdir keeps both"
        ) from error
    chosen = plan.make_steps(FLAGS.only, dataclasses.replace(places, scratch=scratch_of(facts)))
    for step in chosen if FLAGS.overwrite else ():
        shutil.rmtree(step.folder, ignore_errors=True)
    seconds = FLAGS.seconds - (time.monotonic() - begin)
    steps.run_all(chosen, results, seconds=seconds, kept=plan.KEPT, report=jobs.Job.report)
    cpu = carrying.cpu_rates(carried) if carried else None
    print(report.table(results.steps, cpu, facts, left_out))
    print(f"results are in {workdir}")
    failed = [
        step.name for step in chosen if results.steps.get(step.stage, {}).get(step.name, {}).get("status") == "failed"
    ]
    if failed:
        sys.exit(1)


def ask_device(places: plan.Places) -> str:
    """The devices that the steps will run on."""
    step = plan.device_step(places)
    found = steps.must_run(step, seconds=step.limit)["result"]
    shutil.rmtree(places.scratch)
    return f"{found['devices']} x {found['device']} ({found['platform']})"


if __name__ == "__main__":
    # The accelerator belongs to the children; they do not inherit this.
    jax.config.update("jax_platforms", "cpu")
    define_flags()
    shared.run(main)
