"""The batch script, with stand-ins for SLURM's commands: `srun` starts its tasks on this machine with SLURM's variables."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRUN = """#!/usr/bin/env bash
echo "$1" > "$LOGS/options"
for ((task = 0; task < TASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$TASKS SLURM_STEP_NUM_TASKS=$TASKS SLURM_STEP_NODELIST=localhost \
    "${@:2}" & pids+=($!)
done
echo "${pids[@]}" > "$LOGS/pids"
highest=0
for pid in "${pids[@]}"; do
  wait "$pid"; status=$?
  ((status > highest)) && highest=$status
done
exit "$highest"
"""
COMMANDS = {
    "srun": SRUN,
    "squeue": "#!/usr/bin/env bash\necho $STATE\n",
    "scontrol": '#!/usr/bin/env bash\necho "$@" >> "$LOGS/requests"\n',
    "task": '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$LOGS/task$SLURM_PROCID"\nexit "$STATUS"\n',
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script with the arguments given; keywords are environment variables."""
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*arguments, **variables):
        defaults = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_CPUS_PER_TASK": "3",
            "SCRATCH": str(tmp_path / "my scratch"),
        }
        defaults |= {"LOGS": str(tmp_path), "PYTHON": str(tmp_path / "task"), "TASKS": "2", "STATE": "RUNNING"}
        environment = os.environ | defaults | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", str(ROOT / "experiments/slurm.sh"), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [(0, "RUNNING", False), (2, "RUNNING", False), (143, "RUNNING", True), (143, "COMPLETING", False)],
)
def test_only_a_job_that_was_stopped_while_it_may_run_is_requeued(slurm, tmp_path, status, state, requeued):
    assert slurm("few_states", "--quick", STATUS=str(status), STATE=state, SLURM_JOB_ID="17").wait(20) == status
    log = tmp_path / "requests"
    assert (log.read_text() if log.exists() else "") == ("requeue 17\n" if requeued else "")


def test_every_task_gets_the_command(slurm, tmp_path):
    assert slurm("few_states", "--seeds=0,1", "--data=a b.npz", STATUS="0").wait(20) == 0
    workdir = f"--workdir={tmp_path}/my scratch/ldmjax/few_states"
    expected = ["-m", "experiments.few_states", workdir, "--seeds=0,1", "--data=a b.npz"]
    assert [(tmp_path / f"task{i}").read_text().splitlines() for i in (0, 1)] == [expected, expected]
    assert (tmp_path / "options").read_text() == "--cpus-per-task=3\n"


def test_a_missing_name_is_said(slurm, tmp_path):
    process = slurm(STATUS="0")
    assert "python -m experiments lists them" in process.communicate(timeout=20)[1] and process.returncode != 0
    assert not (tmp_path / "options").exists()


TINY = (
    "--seeds=0 --latent_dims=1,2 --linear_steps=4000 --mlp_steps=10 --hidden=4 --samples=128 --sampling_steps=10 --stops=5"
    " --n=30 --spectrum=power:1.5 --data_dim=4 --checkpoint_every=0"
).split()


@pytest.mark.slow
def test_two_processes_stopped_by_sigterm_go_on(slurm, tmp_path):
    """Two real processes; the second job is stopped in its training and submitted again: the same records."""
    for scratch, stop in (("whole", False), ("parts", True), ("parts", False)):
        process = slurm("optimal_stopping", *TINY, PYTHON=sys.executable, SCRATCH=str(tmp_path / scratch))
        if stop:
            assert any("linear: step" in line for line in process.stdout)
            for pid in (tmp_path / "pids").read_text().split():
                os.kill(int(pid), signal.SIGTERM)
        output, errors = process.communicate(timeout=240)
        assert process.returncode == (143 if stop else 0), output + errors
    assert (tmp_path / "requests").read_text() == f"requeue {os.getpid()}\n"
    whole, parts = (tmp_path / name / "ldmjax/optimal_stopping/records.jsonl" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
