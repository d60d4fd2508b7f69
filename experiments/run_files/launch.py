"""How many processes a run has and who started them, from its settings and the environment."""

import os

from experiments.command_line.run_config import RunConfig

STARTED = {
    "WORLD_SIZE": "torchrun",
    "SLURM_NTASKS": "srun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
}
"""Environment variables that hold the number of processes, and the launcher that sets each."""


def is_single_process(config: RunConfig) -> bool:
    """Return whether the run is one process, whatever a surrounding SLURM job or an old RANK variable says."""
    if config.nodes > 1 or config.devices not in ("1", "auto"):
        return False
    if config.devices == "1" or config.accelerator == "cpu":
        return True
    import torch  # grids do without

    return torch.cuda.device_count() <= 1


def started_together(config: RunConfig) -> bool:
    """Return whether a launcher starts all processes of the run, so that each must find the same folder by itself."""
    if is_single_process(config):
        return False
    return any(int(os.environ.get(name, "1")) > 1 for name in STARTED if name != "SLURM_NTASKS" or within_srun())


def within_srun() -> bool:
    """Return whether srun started this process; a batch script alone has SLURM's other variables too."""
    return "SLURM_STEP_ID" in os.environ


def slurm_problem(processes: int) -> str | None:
    """Return why a run of this many processes would wait for ever in a SLURM job, or None."""
    if (
        processes == 1
        or "SLURM_JOB_ID" not in os.environ
        or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    ):
        return None
    started = int(os.environ.get("SLURM_NTASKS", "1")) if within_srun() else 1
    if started == processes:
        return None
    how = f"srun started {started}" if within_srun() else "it was started once, without srun"
    return (
        f"this run has {processes} processes, but in this SLURM job {how}; put srun with --ntasks-per-node before the "
        f"command, one task per process, or queue it with submit.py"
    )
