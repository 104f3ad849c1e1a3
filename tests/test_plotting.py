"""Figures hold the numbers they were given (minima, ridges, points); files are whole and reproducible."""

import numpy as np
import pytest

from ldmjax import oracle, plotting, schedules

VARIANCES = 0.5 ** np.arange(5.0)
ESTIMATED = VARIANCES * np.array([0.8, 1.3, 0.6, 1.1, 0.7])
NOISE_VAR = np.append(np.geomspace(0.9, 1e-4, 40), 0.0)


def curves():
    return oracle.w2_squared_curve(VARIANCES, ESTIMATED, NOISE_VAR)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_percent_above_counts_a_tie_as_zero():
    assert plotting.percent_above([3.0, 2.0], 2.0).tolist() == [50.0, 0.0]
    assert plotting.percent_above([0.0, 1.0], 0.0).tolist() == [0.0, np.inf]


def test_phase_diagram_draws_best_dimension_and_best_stop():
    axes = plotting.phase_diagram(curves(), NOISE_VAR, schedule=schedules.LinearVP(), caption="A caption.").axes
    ridge = lines(axes[0])["best latent dimension"]
    assert ridge.get_ydata().tolist() == oracle.best_latent_dim(VARIANCES, ESTIMATED, NOISE_VAR).tolist()
    np.testing.assert_allclose(ridge.get_xdata()[:-1], schedules.logsnr_from_noise_var(NOISE_VAR[:-1]))
    dots, best = lines(axes[1])["best stop"], np.argmin(curves(), axis=1)
    assert dots.get_ydata().tolist() == [1, 2, 3, 4, 5]
    right = axes[1].get_xlim()[1]
    for x, k in zip(dots.get_xdata(), best, strict=True):
        if NOISE_VAR[k] > 0:
            assert x == pytest.approx(schedules.logsnr_from_noise_var(NOISE_VAR[k]))
        else:
            assert schedules.logsnr_from_noise_var(NOISE_VAR[-2]) < x < right


def test_heat_map_holds_the_values_in_order_of_logsnr():
    figure, axes = plotting.new_figure(1, 1, width=4, height=3, caption="")
    percent = np.arange(1.0, 13.0).reshape(3, 4)
    mesh = plotting.draw_heat_map(axes[0, 0], percent, [0.0, 0.1, 0.5, 0.01])
    del mesh
    moving, end = axes[0, 0].collections
    np.testing.assert_array_equal(np.asarray(moving.get_array()).reshape(3, 3), percent[:, [2, 1, 3]])
    np.testing.assert_array_equal(np.asarray(end.get_array()).ravel(), percent[:, 0])
    assert axes[0, 0].get_xticklabels()[-1].get_text() == "end"


def test_stopping_curves_mark_the_minimum_and_draw_points():
    x = np.linspace(0, 1, NOISE_VAR.size)
    points = [
        plotting.Points(latent_dim=d, x=x[[3, 9]], w2_squared=np.array([1.0, 2.0]), standard_error=np.array([0.1, 0.2]))
        for d in (2, 3)
    ]
    axes = plotting.stopping_curves(curves(), NOISE_VAR, x=x, points=points).axes[0]
    for d in range(1, 6):
        line = lines(axes)[f"d = {d}"]
        np.testing.assert_array_equal(line.get_ydata(), curves()[d - 1])
        assert curves()[d - 1, line.get_markevery()[0]] == curves()[d - 1].min()
    bars = axes.containers
    assert len(bars) == 2
    np.testing.assert_array_equal(bars[0].lines[0].get_ydata(), [1.0, 2.0])
    np.testing.assert_allclose([s[:, 1] for s in bars[0].lines[2][0].get_segments()], [[0.8, 1.2], [1.6, 2.4]])
    assert [t.get_text() for t in axes.figure.legends[0].get_texts()].count("learned score (± 2 standard errors)") == 1


def test_lines_are_told_apart_without_colour():
    styles = [plotting.line_style(i, markevery=1) for i in range(8)]
    assert len({str(s["linestyle"]) for s in styles}) == len({s["marker"] for s in styles}) == 8


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_save_is_whole_and_reproducible(tmp_path, suffix):
    for name in ("a", "b"):
        plotting.save(plotting.phase_diagram(curves(), NOISE_VAR), tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in ("a", "b"))
    assert first == second and len(first) > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


def test_save_leaves_nothing_behind_when_drawing_fails(tmp_path):
    figure = plotting.phase_diagram(curves(), NOISE_VAR)
    figure.axes[0].set_title("$\\unknown{$")
    with pytest.raises(ValueError, match="unknown"):
        plotting.save(figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_refusals_say_what_was_got(tmp_path):
    with pytest.raises(ValueError, match=r"\.png or \.pdf, got .*a\.gif"):
        plotting.save(plotting.phase_diagram(curves(), NOISE_VAR), tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"K = 3\], got \[5, 41\]"):
        plotting.phase_diagram(curves(), [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"one entry per row, 5, got \[2\]"):
        plotting.stopping_curves(curves(), NOISE_VAR, latent_dims=[1, 2])
    points = plotting.Points(latent_dim=9, x=np.zeros(1), w2_squared=np.ones(1), standard_error=np.ones(1))
    with pytest.raises(ValueError, match="latent_dim 9"):
        plotting.stopping_curves(curves(), NOISE_VAR, points=[points])
