"""Repeats, exact and near: found where they were made, and not where there are none."""

import numpy as np
import pytest

from ldmjax import data, metrics
from ldmjax.recommendation.distinct import choose_distinct, choose_distinct_latents
from ldmjax.recommendation.inputs import split_sizes


@pytest.fixture(scope="module")
def digits():
    return data.digits().samples[:600]


def manifold(seed, count, dim):
    """Smooth images ``[count, 200]`` of ``dim`` intrinsic dimensions."""
    rng = np.random.default_rng([1, seed])
    u, a, b = (rng.uniform(size=(count, dim)), *rng.standard_normal((2, dim, 200)))
    return np.sin(2 * u @ a) + np.cos(u @ b)


def test_exact_repeats_are_all_but_the_first():
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    np.testing.assert_array_equal(
        metrics.exact_repeats(x[[0, 1, 0, 2, 1, 0, 4]]), [False, False, True, False, True, True, False]
    )
    assert metrics.exact_repeats(np.array([[0.0, 1.0], [-0.0, 1.0]])).tolist() == [False, True]
    assert not metrics.exact_repeats(x).any()


@pytest.mark.parametrize(
    "change",
    [
        lambda x, rng: x + 0.05 * rng.standard_normal(x.shape),
        lambda x, rng: np.round(x * 8) / 8 + rng.choice([-1, 1], x.shape) / 127.5,  # one grey level up or down
        lambda x, rng: 1.02 * x,
        lambda x, rng: x + 0.03,
    ],
)
def test_near_copies_are_found(digits, change):
    copies = change(digits, np.random.default_rng(2))
    kept, ratio = metrics.near_repeats(np.concatenate([digits, copies]))
    assert 0.2 < ratio <= 0.25 and np.count_nonzero(kept < 600) >= 590  # digits that are near each other are no copies
    assert 600 <= len(kept) <= 615
    # Every image is kept once: itself or, rarely, its copy.
    assert len(np.unique(kept % 600)) >= 595


def test_three_near_copies_of_some_images(digits):
    rng = np.random.default_rng(3)
    copies = [digits[:100] + 0.03 * rng.standard_normal((100, 64)) for _ in range(3)]
    kept, _ = metrics.near_repeats(np.concatenate([digits, *copies]))
    np.testing.assert_array_equal(kept, np.arange(600))


def test_few_near_copies_are_left(digits):
    """Chance may make a few; they cost little."""
    for copies, left_out in ((10, 0), (40, 40)):
        x = np.concatenate([digits, digits[:copies] + 1e-3])
        assert len(x) - len(metrics.near_repeats(x).kept) == left_out


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [256, 1500])
def test_smooth_images_are_no_repeats(dim, count):
    """Chance makes near pairs in few dimensions: no more than the share that the ratio is set for."""
    x = manifold(dim, count, dim)
    kept, ratio = metrics.near_repeats(x)
    np.testing.assert_array_equal(kept, np.arange(count))
    distances = np.sort(np.linalg.norm(x[:, None] - x[:1500], axis=2) if count < 500 else _distances(x), axis=1)
    share = np.mean(distances[:, 1] < ratio * distances[:, 10])
    assert share <= 0.005 + 4 * np.sqrt(0.005 / count)
    assert ratio == pytest.approx(min(0.25, (0.005 / 9) ** (1 / dim)), rel=0.5)


def _distances(x):
    squares = np.sum(x**2, axis=1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_copies_of_smooth_images_are_found_where_chance_makes_none(dim):
    x = manifold(9, 800, dim)
    rng = np.random.default_rng(4)
    kept, _ = metrics.near_repeats(np.concatenate([x, x + 1e-8 * rng.standard_normal(x.shape)]))
    assert 790 <= len(kept) <= 830 and len(np.unique(kept % 800)) >= 790


@pytest.mark.parametrize("law", ["normal", "uniform", "binary", "clusters"])
def test_other_laws_have_no_repeats(law):
    rng = np.random.default_rng(5)
    x = {
        "normal": lambda: rng.standard_normal((1000, 100)),
        "uniform": lambda: rng.uniform(size=(1000, 12)),
        "binary": lambda: (rng.uniform(size=(1000, 200)) < 0.3).astype(float),
        "clusters": lambda: (
            10 * rng.standard_normal((20, 30))[rng.integers(0, 20, 1000)] + rng.standard_normal((1000, 30))
        ),
    }[law]()
    assert len(metrics.near_repeats(x).kept) == 1000


def test_too_few_samples_to_tell():
    assert len(metrics.near_repeats(np.zeros((10, 3))).kept) == 10
    assert len(metrics.near_repeats(np.zeros((40, 3))).kept) == 40  # equal ones are the other function's business


# What recommend does with them.


def test_without_repeats_the_order_is_that_of_the_split(digits):
    order, lines = choose_distinct(digits, most=10_000, seed=3)
    dataset = data.from_samples("d", digits, (8, 8))
    assert lines == []
    np.testing.assert_array_equal(order, np.concatenate(dataset.split_indices(n=200, seed=3)))


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_no_image_is_in_both_sets(digits, noise):
    """Each image is there twice: half of the rows are left, and no training image is held out as well."""
    x = np.concatenate([digits, digits + noise * np.random.default_rng(6).standard_normal(digits.shape)])
    order, lines = choose_distinct(x, most=10_000, seed=0)
    assert len(order) == len(np.unique(order % 600)) == 600
    (line,) = lines
    assert line.startswith(
        "600 of 1200 images " + ("repeat another one exactly: each" if not noise else "nearly repeat")
    )
    training, held_out = x[order[:300]], x[order[300:600]]
    assert metrics.nearest_distances(training, held_out).min() > 0.5
    again, _ = choose_distinct(x, most=10_000, seed=0)
    np.testing.assert_array_equal(order, again)


def test_exact_and_near_repeats_at_once(digits):
    x = np.concatenate([digits, digits[:100], digits[:60] + 1e-3, digits[:7]])
    order, lines = choose_distinct(x, most=10_000, seed=1)
    assert len(order) == 600 and len(np.unique(x[order].round(1), axis=0)) == 600
    assert lines[0] == "107 of 767 images repeat another one exactly: each is used once"
    assert lines[1].startswith("60 of 660 images nearly repeat another one (the distance is below 0.25 of")


def test_near_repeats_are_sought_among_the_images_that_are_used(digits):
    x = np.concatenate([digits, digits + 1e-3])
    order, (line,) = choose_distinct(x, most=400, seed=0)
    left_out = 1200 - len(order)
    assert (
        line.startswith(f"{left_out} of {400 + left_out} images nearly") and 60 < left_out < 180
    )  # 400 / 6 and their heirs
    assert len(np.unique(order[:400] % 600)) > 380  # fewer than 5 % are left
    assert len(choose_distinct(np.concatenate([digits, digits[:20] + 1e-3]), most=400, seed=0)[0]) == 620


def test_latents_belong_together_row_by_row(digits):
    a, b = digits[:, :40], 1e3 * np.random.default_rng(7).standard_normal((600, 10, 2))
    same, lines = choose_distinct_latents({"a": a, "b": b}, most=1000, seed=0)
    assert lines == [] and same["a"] is a
    twice = {"a": np.concatenate([a, a]), "b": np.concatenate([b, b])}
    found, lines = choose_distinct_latents(twice, most=1000, seed=0)
    assert len(found["a"]) == len(found["b"]) == 600 and lines[0].startswith("600 of 1200 latents repeat")
    rows = [np.flatnonzero((a == row).all(axis=1))[0] for row in found["a"]]
    np.testing.assert_array_equal(found["b"], b[rows])
    other = {"a": np.concatenate([a, a]), "b": np.concatenate([b, b[::-1]])}  # no image twice: b differs
    assert choose_distinct_latents(other, most=2000, seed=0)[1] == []


def test_sizes_of_both_sets():
    why = ["300 of 600 images repeat another one exactly: each is used once"]
    how = {"n": None, "reference": None, "most": 5000, "noun": "images", "noticed": why}
    assert split_sizes(300, **how) == (150, 150) and split_sizes(20_000, **how) == (5000, 5000)
    assert split_sizes(300, **how | {"n": 64}) == (64, 236) and split_sizes(300, **how | {"reference": 130}) == (
        150,
        130,
    )
    for asked, count, text in (
        ({"n": 173}, 300, r"^n: must be 64..172: 300 images \(300 of 600 images repeat"),
        ({"n": 63}, 300, "^n: "),
        ({"reference": 151}, 300, "^reference: must be 128..150: 300 images .* 150 of them for training"),
        ({}, 255, "^images: needs at least 256 images, got 255 images"),
    ):
        with pytest.raises(ValueError, match=text):
            split_sizes(count, **how | asked)


def test_codes_that_are_equal_by_chance_stay():
    rng = np.random.default_rng(5)
    codes = np.round(rng.standard_normal((3000, 4)))
    assert metrics.exact_repeats(codes).sum() > 1500 and metrics.repeats_by_chance(codes) > 1500
    order, lines = choose_distinct(codes, most=3000, seed=0)
    assert len(order) == 3000 and lines == []
    # The same numbers twice over, in enough entries, are repeats.
    wide = np.round(rng.standard_normal((300, 40)))
    order, lines = choose_distinct(np.concatenate([wide, wide]), most=600, seed=0)
    assert len(order) == 300 and lines[0].startswith("300 of 600 images repeat")
    assert metrics.repeats_by_chance(wide) == 0.0
    assert metrics.repeats_by_chance(np.array([[0.0], [0.0], [1.0], [1.0]])) == 4.0  # 16 / 2 times 1/2


def test_others_take_the_place_of_near_repeats():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1000, 20))
    pairs = np.concatenate([x, x[:250] + 1e-3 * rng.standard_normal((250, 20))])
    order, lines = choose_distinct(pairs, most=500, seed=0)
    assert len(lines) == 1 and "nearly repeat" in lines[0] and len(order) > 900
    used = order[:500] % 1000
    assert len(np.unique(used)) >= 490  # fewer than 5 % of them may still be near another one
