"""Refuses to go on with a job whose user functions have changed since it began: no flag and no file would say so."""

from absl import flags

from experiments import flags as shared
from ldmjax.checkpoints import Store

FLAGS = flags.FLAGS


def check(flag: str, digest: str, *, store: Store) -> None:
    """`UsageError` if ``digest``, of what the functions that ``flag`` names give, is not that of the job's first start.

    Args:
      flag: its name.
      digest: of the functions' results on a few inputs.
      store: the job's.
    """
    if store.piece(f"digest of {flag}", lambda: digest) != digest:
        raise shared.bad(
            flag,
            FLAGS[flag].value,
            f"gives other numbers than when the job in --workdir={FLAGS.workdir} began: --overwrite starts anew, another "
            "--workdir keeps both",
        )
