"""The command line. Packages that are missing come from the carried wheels, so they are looked for before all imports."""

import shutil
import sys
from pathlib import Path

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
    shared.define_integer("images", 15_000, "For --prepare: how many, as many of each class.", low=1000, high=100_000)
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
    code = jobs.describe_job()["code"]
    scratch = (Path(FLAGS.scratch) if FLAGS.scratch else Path(FLAGS.workdir) / "stages").absolute() / code[:12]
    if FLAGS.prepare:
        prepare(scratch / "prepare", code)
        return
    for name in ("cifar", "wheels"):
        if FLAGS[name].value is not None:
            raise shared.bad(name, FLAGS[name].value, "allowed only with --prepare")
    compared = [stage for stage in FLAGS.only if stage in plan.COMPARED]
    if FLAGS.carried is None and compared:
        raise shared.bad("only", compared, "needs --carried=FOLDER, which --prepare makes")
    if FLAGS.carried is not None:
        carrying.check(Path(FLAGS.carried), code=code, quick=FLAGS.quick)
    carried = Path(FLAGS.carried).absolute() if FLAGS.carried else None
    places = plan.Places(scratch=scratch, carried=carried, quick=FLAGS.quick)
    measure(plan.make_steps(tuple(FLAGS.only), places), places, code)


def prepare(scratch: Path, code: str) -> None:
    """With --prepare: makes the carried folder."""
    if FLAGS.cifar is None:
        raise shared.bad("prepare", FLAGS.prepare, "needs --cifar=FILE.npz, the images to carry")
    places = plan.Places(scratch=scratch, carried=None, quick=FLAGS.quick)
    if FLAGS.dry_run:
        print(f"Would make {FLAGS.prepare} from {FLAGS.cifar}; nothing was written.")
        return
    carrying.prepare(
        Path(FLAGS.prepare), cifar=FLAGS.cifar, images=FLAGS.images, wheels=FLAGS.wheels, places=places, code=code,
        report=jobs.Job.report,
    )  # fmt: skip


def measure(chosen: list[steps.Step], places: plan.Places, code: str) -> None:
    """Runs the steps and prints what all of them measured; ends with status 1 if one of them failed."""
    if FLAGS.dry_run:
        rows = [
            ("stage", "step", "needs", "at most"),
            *((s.stage, s.name, f"{s.needs:.0f}", f"{s.limit:.0f}") for s in chosen),
        ]
        print("\n".join(align(rows, left=2)), "\nSeconds. Nothing was written.")
        return
    try:
        workdir = records.prepare_workdir(FLAGS.workdir)
        facts = {"code": code, "quick": FLAGS.quick}
        results = steps.Results.in_workdir(workdir, facts, overwrite=FLAGS.overwrite)
    except ValueError as error:
        raise shared.bad(
            "workdir", FLAGS.workdir, f"{error}: --overwrite starts anew, another --workdir keeps both"
        ) from error
    for step in chosen if FLAGS.overwrite else ():
        shutil.rmtree(step.folder, ignore_errors=True)
    steps.run_all(chosen, results, seconds=FLAGS.seconds, shares=plan.SHARES, report=jobs.Job.report)
    print(report.table(results.steps, carrying.cpu_rates(places.carried) if places.carried else None))
    print(f"results are in {workdir}")
    failed = [
        step.name for step in chosen if results.steps.get(step.stage, {}).get(step.name, {}).get("status") == "failed"
    ]
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    # The accelerator belongs to the children; they do not inherit this.
    jax.config.update("jax_platforms", "cpu")
    define_flags()
    shared.run(main)
