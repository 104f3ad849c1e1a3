"""The command."""

import sys

from experiments import on_device  # first: it looks for wheels of what is missing

if __name__ == "__main__":
    import jax

    from experiments import launch
    from experiments.on_device.report import report

    # The accelerator belongs to the children; they do not inherit this.
    jax.config.update("jax_platforms", "cpu")
    shown = launch.main(on_device.Config, on_device.compute, report, quick=on_device.QUICK, plan=on_device.plan)
    if shown is not None and any(row["status"] == "failed" for row in shown.rows):
        sys.exit(1)
