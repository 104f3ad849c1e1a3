"""Streams have the numbers that they always had."""

import jax
import numpy as np
import pytest

from ldmjax import random


def test_a_stream_is_its_number_folded_in():
    key = random.key(3)
    numbers = {"initialisation": 0, "training": 1, "score errors": 2, "sampling": 3, "starts": 7, "chains": 11}
    assert numbers == random.STREAMS
    for name, number in numbers.items():
        np.testing.assert_array_equal(
            *map(jax.random.key_data, (random.stream(key, name), jax.random.fold_in(key, number)))
        )


def test_a_named_key_is_one_of_many():
    one, many = random.named_key(5, "conv/4"), random.named_keys([1, 5], ["x", "conv/4"])
    np.testing.assert_array_equal(jax.random.key_data(one), jax.random.key_data(many)[1])


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="stream must be one of initialisation, .* got 'nose'"):
        random.stream(random.key(0), "nose")
