"""The carried folder: images, a CPU's results to compare with, wheels, and a manifest. Made whole or not at all."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.flags import bad
from experiments.on_device import manifest, plan, reading
from experiments.on_device.steps import Step, must_run
from ldmjax import devices, records

MIB = 2**20
LARGEST = 60 * MIB  # what travels
SEED = 0  # chooses the images


def choose_images(cifar: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[count, 32, 32, 3]`` and labels ``[count]``, as many of each class, in an order that mixes them.

    Args:
      cifar: an .npz file with ``images`` and ``labels``.
      count: of images; what the classes cannot share evenly is left out.

    Raises:
      UsageError: if the file holds anything else, or too few.
    """
    try:
        with np.load(cifar, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except Exception as error:  # zipfile, zlib and numpy each have their own for a file that is damaged
        raise bad("cifar", cifar, f"must be an .npz file with images and labels ({error})") from error
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != images.shape[:1]:
        got = f"{images.dtype} {list(images.shape)} and labels {list(labels.shape)}"
        raise bad("cifar", cifar, f"must hold images [N, 32, 32, 3] of uint8 and labels [N], got {got}")
    classes, members = np.unique(labels, return_counts=True)
    each = count // len(classes)
    if each == 0 or members.min() < each:
        raise bad("images", count, f"must be {len(classes)}..{members.min() * len(classes)} with --cifar={cifar}")
    rng = np.random.default_rng(SEED)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:each] for c in classes])
    chosen = rng.permutation(chosen)
    return images[chosen], labels[chosen]


def prepare(
    folder: Path, *, cifar: str, images: int, wheels: str | None, places: plan.Places, code: str,
    report: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Makes the folder, on a CPU.

    Args:
      folder: to make. One that was prepared before is replaced.
      cifar: as in `choose_images`.
      images: as in `choose_images`.
      wheels: a folder of wheels, or None.
      places: where the reference is computed.
      code: digest of ldmjax's code.
      report: receives a line for each step.

    Raises:
      UsageError: if the folder holds something else, an input is not what it must be, or all would be too large.
      NotDoneError: if a reference cannot be computed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / manifest.NAME).is_file()):
        raise bad("prepare", folder, "must be a new folder, or one that was prepared before: it holds something else")
    chosen, labels = choose_images(cifar, images)
    made = folder.with_name(folder.name + ".partial")
    shutil.rmtree(made, ignore_errors=True)
    (made / "wheels").mkdir(parents=True)
    try:
        np.savez_compressed(made / "cifar10.npz", images=chosen, labels=labels)
        for wheel in sorted(Path(wheels).glob("*.whl")) if wheels else ():
            shutil.copy(wheel, made / "wheels")
        _check_size(folder, made)
        for step, files in reference_steps(places):
            _compute(step, files, made, report)
        facts = {"code": code, "quick": places.quick, "versions": records.versions()}
        manifest.write(made, **facts, cores=devices.host_threads())
        _check_size(folder, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(places.scratch, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    report(f"{folder}: {len(chosen)} images, {size / MIB:.1f} MiB in all")


def reference_steps(places: plan.Places) -> list[tuple[Step, dict[str, str]]]:
    """What a CPU computes to compare with: steps, and where the files that each leaves go."""
    runs = plan.QUICK_RUNS[0] if places.quick else plan.CPU_RUNS
    job = {name: f"main_job/{name}" for name in ("records.jsonl", "curves.npz", "metadata.json")}
    rates = plan.rate_step(places, "benchmark", runs)
    # Of the others nothing is read: there is nothing to compare with yet.
    found = [
        (rates, partial(reading.read_reference_rates, rates.folder), {"metadata.json": "rates.json"}),
        *((step, dict, {"agreement.npz": "agreement.npz"}) for step in plan.agreement_steps(places, times=1)),
        *((step, dict, job) for step in plan.main_job_steps(places)),
    ]
    return [
        (dataclasses.replace(step, read=read, environment={**step.environment, "JAX_PLATFORMS": "cpu"}), files)
        for step, read, files in found
    ]


def _compute(step: Step, files: dict[str, str], made: Path, report: Callable[[str], None]) -> None:
    outcome = must_run(step)
    for name, target in files.items():
        (made / target).parent.mkdir(exist_ok=True)
        shutil.copy(step.folder / name, made / target)
    report(f"{step.stage}, {step.name}: {outcome['seconds']:.1f} s")


def _check_size(folder: Path, made: Path) -> None:
    parts = {
        path.name: sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file()) for path in made.iterdir()
    }
    if sum(parts.values()) > LARGEST:
        sizes = ", ".join(f"{name} {size / MIB:.1f}" for name, size in parts.items() if size)
        raise bad(
            "prepare",
            folder,
            f"must stay within {LARGEST / MIB:.0f} MiB, would hold {sizes}: fewer --images or --wheels",
        )


def check(folder: Path, *, code: str, quick: bool) -> None:
    """The folder is whole, and of this code.

    Raises:
      UsageError: with a line that says what is wrong.
    """
    try:
        held: dict[str, Any] = manifest.read(folder)
    except (ValueError, OSError) as error:
        raise bad("carried", folder, f"must be a folder made by --prepare: {error}") from error
    if held.get("code") != code:
        raise bad("carried", folder, "was prepared with another state of ldmjax's code: prepare it anew")
    if held.get("quick") != quick:
        raise bad("carried", folder, f"was prepared with{'' if held.get('quick') else 'out'} --quick: start it so, too")


def cpu_rates(folder: Path) -> dict[str, Any]:
    """What the benchmark measured on the CPU that prepared the folder, with its "cores"."""
    return {
        **reading.read_json(folder / "rates.json")["measured"],
        "cores": json.loads((folder / manifest.NAME).read_text())["cores"],
    }
