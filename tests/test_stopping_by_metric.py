"""stopping_by_metric: agreement against hand counts, measures that must agree, the curves that are read, files, refusals."""

import dataclasses

import numpy as np
import pytest
from commands import run_commands
from interrupted import run_in_sessions
from scipy import stats

from experiments import image_models, pieces, stopping_by_metric
from experiments.stopping_by_metric import report
from ldmjax import data, features, records, stopping

EARLY, NONE, UNKNOWN = stopping.VERDICTS
A, B, C = ("pixels", "w2"), ("pixels", "mmd"), ("classifier", "w2")
LOGSNRS = np.array([0.0, 1.0, 3.0, 7.0])


def reading(low, best, high, verdict):
    values = dict.fromkeys(["end", "best", "gain", "gain_low", "gain_high"], 1.0)
    return stopping.StoppingResult(
        curve=np.ones(4), standard_error=np.ones(4), best_stop=best, best_stop_low=low, best_stop_high=high,
        verdict=verdict, **values,
    )  # fmt: skip


def made_run(seed, *readings):
    ones = dict.fromkeys((A, B, C), 1.0)
    return stopping_by_metric.Run(
        autoencoder="pca", latent_dim=2, seed=seed, failed_at=None, floors=ones, reconstructions=ones,
        readings=dict(zip((A, B, C), readings, strict=True)),
    )  # fmt: skip


RUNS = [
    made_run(0, reading(0, 1, 1, EARLY), reading(2, 3, 3, NONE), reading(1, 1, 2, EARLY)),
    made_run(1, reading(1, 2, 3, UNKNOWN), reading(3, 3, 3, NONE), reading(0, 0, 0, EARLY)),
    made_run(2, reading(0, 0, 1, EARLY), reading(1, 1, 1, EARLY), reading(1, 2, 2, UNKNOWN)),
]


def test_agreement_is_what_one_counts_by_hand():
    found = stopping_by_metric.compare(RUNS, LOGSNRS)
    assert found.measures == (A, B, C) and found.runs == 3
    np.testing.assert_allclose(found.overlap, np.array([[3, 2, 2], [2, 3, 2], [2, 2, 3]]) / 3)
    np.testing.assert_allclose(found.same, np.array([[3, 1, 1], [1, 3, 0], [1, 0, 3]]) / 3)
    np.testing.assert_allclose(found.opposed, np.array([[0, 1, 0], [1, 0, 2], [0, 2, 0]]) / 3)
    of_pair = np.array([1.0 - 7.0, 3.0 - 7.0, 0.0 - 1.0])  # A - B
    np.testing.assert_allclose(found.difference[0, 1], of_pair.mean())
    np.testing.assert_allclose(found.difference, -found.difference.T)
    low, high = stats.t.interval(0.9, 2, loc=of_pair.mean(), scale=stats.sem(of_pair))
    np.testing.assert_allclose(
        [found.difference[0, 1] - found.half_width[0, 1], (high - low) / 2], [low, found.half_width[0, 1]]
    )


def test_runs_without_a_stop_are_left_out_and_said():
    bad = dataclasses.replace(reading(0, 0, 0, UNKNOWN), best_stop=None, best_stop_low=None, best_stop_high=None)
    diverged = made_run(9, RUNS[0].readings[A], bad, RUNS[0].readings[C])
    with_it = stopping_by_metric.compare([*RUNS, diverged], LOGSNRS)
    np.testing.assert_array_equal(with_it.overlap, stopping_by_metric.compare(RUNS, LOGSNRS).overlap)
    assert with_it.runs == 3
    text = report.table([*RUNS, diverged], with_it, stopping_by_metric.Config(sampling=SAMPLING))
    assert "pca 2, seed 9" in text and "pixels MMD and classifier Fréchet" in text
    with pytest.raises(ValueError, match="no run has finite distances"):
        stopping_by_metric.compare([diverged], LOGSNRS)
    alone = stopping_by_metric.compare(RUNS[:1], LOGSNRS)
    assert np.isnan(alone.half_width).all() and alone.overlap[0, 1] == 0
    assert "nan" not in report.table(RUNS[:1], alone, stopping_by_metric.Config(sampling=SAMPLING))


# Four stops are read, as many as LOGSNRS has.
SAMPLING = image_models.SamplingConfig(steps=20, samples=256, stops=4, batch=256)


@pytest.fixture(scope="module")
def digits():
    return data.digits()


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A file with a map that turns and stretches pixels."""
    path = tmp_path_factory.mktemp("map") / "turned.npz"
    np.savez(path, weight=3.0 * np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0])
    return str(path)


@pytest.fixture(scope="module")
def spaces(digits, turned):
    return [features.load(word, digits) for word in ("pixels", turned)]


@pytest.fixture(scope="module")
def result(digits, spaces):
    config = stopping_by_metric.Config(
        autoencoders=("pca",), latent_dims=(2, 4), seeds=(0, 3), n=400, reference=200, training_steps=60, hidden=16,
        sampling=SAMPLING,
    )  # fmt: skip
    return stopping_by_metric.run(digits, spaces, config, lambda line: None), config


@pytest.mark.slow
def test_interrupted_job_ends_with_the_same_runs(result, digits, spaces, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "SECONDS_BETWEEN_LINES", 0.0)
    runs, config = result
    again, lines = run_in_sessions(
        lambda report, store: stopping_by_metric.run(digits, spaces, config, report, store),
        tmp_path, at=["step 60/60", "measured: 1/4", "measured: 2/4"],
    )  # fmt: skip
    assert ["measured: 3/4" in lines[0], "measured: 4/4" in lines[1], len(lines)] == [True, True, 2]
    for where, found in (("alone", runs), ("again", again)):
        (tmp_path / where).mkdir()
        agreement = stopping_by_metric.compare(found, config.logsnrs)
        records.write_records(tmp_path / where, report.make_records(found, agreement, config, spaces, digits))
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == (tmp_path / "alone" / "records.jsonl").read_bytes()


def test_stops_of_the_second_half_are_read(result):
    _, config = result
    np.testing.assert_array_equal(config.progress, SAMPLING.progress[-4:])
    assert config.progress[0] == 0.5 and SAMPLING.progress[-5] < 0.5
    t = 1.0 - config.progress
    np.testing.assert_allclose(config.logsnrs[:-1], 2 * np.log((1 - t[:-1]) / t[:-1]), atol=1e-5)
    np.testing.assert_allclose(config.logsnrs[-1], 2 * np.log(19.0), rtol=1e-5)  # the last of 20 steps starts at 1/20
    on_vp = dataclasses.replace(config, sampling=dataclasses.replace(SAMPLING, process="vp"))
    assert on_vp.logsnrs[-1] == pytest.approx(9.0, abs=1e-4)


def test_measures_that_are_the_same_up_to_rotation_and_scale_agree(result):
    """Fréchet distance and MMD do not change but in units; sliced W2 sees other random directions."""
    runs, config = result
    assert [(r.seed, r.latent_dim) for r in runs] == [(0, 2), (0, 4), (3, 2), (3, 4)]
    for run in runs:
        for metric, power in [("w2", 9.0), ("mmd", 1.0)]:
            plain, turned = run.readings["pixels", metric], run.readings["turned", metric]
            np.testing.assert_allclose(turned.curve, power * plain.curve, rtol=2e-3, atol=1e-5)
            np.testing.assert_allclose(
                run.floors["turned", metric], power * run.floors["pixels", metric], rtol=2e-2, atol=1e-4
            )
    found = stopping_by_metric.compare(runs, config.logsnrs)
    for metric in ("w2", "mmd"):
        i, j = (found.measures.index((space, metric)) for space in ("pixels", "turned"))
        assert found.overlap[i, j] == 1 and found.same[i, j] == 1 and abs(found.difference[i, j]) < 1e-9


def test_distances_beside_the_curves(result, digits, spaces):
    """PCA of rank d loses variance: its reconstructions are further from the reference than the images themselves."""
    runs, config = result
    split = image_models.split_images(digits, n=400, reference=200, seed=3)
    direct = image_models.distances_of(split.train, image_models.make_measures(spaces, split.reference))
    for run in runs:
        if run.seed == 3:
            assert run.floors == {key: p.mean() for key, p in direct.items()}
        assert run.reconstructions["pixels", "w2"] > run.floors["pixels", "w2"] + 5.0
    small, large = (r.reconstructions["pixels", "w2"] for r in runs[:2])
    assert large < small


@pytest.fixture(scope="module")
def commands(tmp_path_factory, turned):
    """The configuration of `result` by flags, and refusals."""
    where = tmp_path_factory.mktemp("commands")
    same = (
        f"--autoencoders=pca --latent_dims=2,4 --seeds=0,3 --n=400 --reference=200 --features=pixels,{turned} --hidden=16 "
        f"--training_steps=60 --samples=256 --sampling_steps=20 --stops=4 --workdir={where}/one"
    )
    cases = [
        same.split(),
        ["--n=1700"],
        ["--samples=1501"],
        ["--process=vp", "--readout=state"],
        ["--spectrum=power:1"],
        ["--features=pixels,inception"],
    ]
    return where, run_commands([("stopping_by_metric", case) for case in cases], where, optimised=True)


def test_command_writes_the_same_records_as_another_process(commands, result, digits, spaces):
    where, answers = commands
    status, out, err = answers[0]
    assert status == 0 and err == "" and "results in" in out, err
    files = ["agreement.png", "checkpoints", "curves.npz", "flags.txt", "metadata.json", "records.jsonl", "stops.png"]
    assert sorted(p.name for p in (where / "one").iterdir()) == files
    runs, config = result
    agreement = stopping_by_metric.compare(runs, config.logsnrs)
    records.write_records(where, report.make_records(runs, agreement, config, spaces, digits))
    assert (where / "one" / "records.jsonl").read_bytes() == (where / "records.jsonl").read_bytes()


def test_records_say_what_was_read(commands):
    where, _ = commands
    rows = records.load_records(where / "one")
    readings, pairs = ([r for r in rows if r["kind"] == kind] for kind in ("reading", "agreement"))
    assert len(readings) == 4 * 6 and len(pairs) == 15
    assert {row["precision"] for row in rows} == {"float32"}
    for row in readings:
        assert row["verdict"] in stopping.VERDICTS and row["reference"] == 200 and row["features_sha256"]
        assert 0.5 <= row["progress_best_low"] <= row["progress_best"] <= row["progress_best_high"] <= 1
        assert (row["logsnr_best"] is None) == (row["progress_best"] == 1)
    curves = np.load(where / "one" / "curves.npz")
    assert curves["curve"].shape == (4, 6, 4) and curves["progress"][-1] == 1


def test_refusals(commands):
    _, answers = commands
    messages = [
        "--n=1700: must be 2..1669",
        "--samples=1501",
        "--readout=state: must be rescaled with --process=vp",
        "has no images",
        "inception",
    ]
    for (status, out, err), message in zip(answers[1:], messages, strict=True):
        assert status == 2 and out == "" and message in err and err.count("\n") == 1, err
