"""Flags that experiments share (`parsers`), their checks (`checks`), and the one way to start an experiment (`launch`)."""

from experiments.flags.checks import (
    check_images,
    check_ladder_flags,
    check_latent_dims,
    check_n,
    check_states,
    load_dataset,
    load_features,
    make_ladder,
)
from experiments.flags.launch import (
    EXIT_USAGE,
    UsageError,
    apply_quick,
    bad,
    prepare_workdir,
    run,
)
from experiments.flags.parsers import (
    LADDERS,
    define_choices,
    define_common_flags,
    define_data_flags,
    define_feature_flags,
    define_integer,
    define_ladder_flags,
    define_list,
    define_states,
)

__all__ = [
    "EXIT_USAGE",
    "LADDERS",
    "UsageError",
    "apply_quick",
    "bad",
    "check_images",
    "check_ladder_flags",
    "check_latent_dims",
    "check_n",
    "check_states",
    "define_choices",
    "define_common_flags",
    "define_data_flags",
    "define_feature_flags",
    "define_integer",
    "define_ladder_flags",
    "define_list",
    "define_states",
    "load_dataset",
    "load_features",
    "make_ladder",
    "prepare_workdir",
    "run",
]
