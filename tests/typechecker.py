"""The run-time type checker of `conftest`: beartype that takes an int or a float where a complex number is allowed."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
