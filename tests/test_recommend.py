"""The command recommend: its kinds of input, what it writes, what it refuses; and the example of its guide."""

import dataclasses
import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from commands import run_named_commands

from experiments import launch, recommend
from experiments.launch.results import read_results
from ldmjax import data, records
from ldmjax.job import Job

GUIDE = Path(__file__).parent.parent / "docs" / "recommend.md"
MODULE = """
import numpy as np

BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]


class Own:
    def __init__(self, d=3):
        self.basis = BASIS[:, :d]

    def encode(self, images):
        return images.reshape(len(images), 64) @ self.basis

    def decode(self, z):
        return (z @ self.basis.T).reshape(-1, 8, 8)


def factory():
    return Own()


def decode(z):
    return Own().decode(z)


def broken():
    raise RuntimeError("no weights\\nfound")


class Halved(Own):
    def decode(self, z):
        return super().decode(z)[:, :4]


def equal(images):
    return np.ones((len(images), 3))


class Late:
    calls = 0

    def __call__(self, images):
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("out of memory")
        return images.reshape(len(images), 64)[:, 20:25]


late = Late()


class Colours:
    '''For images in [-1, 1] whose colours are those functions of one grey, which it smooths.'''

    first = False
    slope, offset = np.array([1.0, 0.7, -0.5], np.float32), np.array([-0.1, 0.1, 0.3], np.float32)
    keep = np.linalg.qr(np.cos(np.outer(np.arange(8) + 0.5, np.arange(5)) * np.pi / 8))[0].astype(np.float32)

    def encode(self, images):
        assert images.shape[1:] == ((3, 8, 8) if self.first else (8, 8, 3)), images.shape
        x = np.moveaxis(images, 1, -1) if self.first else images
        return np.einsum("bhw,hi,wj->bij", ((x - self.offset) / self.slope).mean(axis=-1), self.keep, self.keep)

    def decode(self, z):
        grey = np.einsum("bij,hi,wj->bhw", z, self.keep, self.keep)
        x = np.clip(grey[..., None] * self.slope + self.offset, -1, 1)
        return np.moveaxis(x, -1, 1) if self.first else x


class First(Colours):
    first = True


def decode_colours(z):
    return Colours().decode(z)


def reds(images):
    assert images.shape[1:] == (3, 8, 8), images.shape
    return images[:, 0].reshape(len(images), 64)
"""
OWN = {}
exec(MODULE, OWN)


def coloured(count):
    """Images ``[count, 8, 8, 3]`` in [-1, 1]: digits, each colour another function of the grey, smoothed."""
    dataset = data.digits()
    grey = dataset.images(dataset.samples[:count])
    grey = (grey + np.roll(grey, 1, 1) + np.roll(grey, 1, 2)) / 3
    return np.clip(np.stack([grey - 0.1, 0.7 * grey + 0.1, -0.5 * grey + 0.3], axis=-1), -1, 1).astype(np.float32)


FAST = ["--samples=300", "--stops=4"]
SMALL = ["--n=150", "--reference=128", *FAST]
SUITE = [*FAST, "--autoencoders=pca", "--latent_dims=4"]
COLOURS = [*FAST, "--autoencoder=mine_of_test:Colours"]
REDS = "--features=pixels,mine_of_test:reds"
Z, D, C = "--latents={where}/z.npz", "--data=digits", "--latents={where}/colours.npz"
TWICE = "300 of 600 images repeat another one exactly: each is used once"
# Arguments, status, and what stdout (0) or the one line of stderr (2) must say.
COMMANDS = {
    "quick": (["--quick", "--autoencoders=pca"], 0, ""),
    "factory": ([*SMALL, "--autoencoder=mine_of_test:factory", "--decode_batch=64"], 0, ""),
    "dimensions": ([*SMALL, "--autoencoder=mine_of_test:Own", "--latent_dims=2,70"], 0, ""),
    "quick factory": (["--quick", "--stops=3", "--autoencoder=mine_of_test:factory"], 0, ""),
    "latents, decoder": ([*SMALL, Z, D, "--decoder=mine_of_test:decode", "--latent_scale=0.2"], 0, ""),
    "alone": (
        [*SMALL, "--latents={where}/two.npz", "--sampler=linear_vp"],
        0,
        "'labels' are taken for labels and not used",
    ),
    "alone, wide": ([*SMALL, "--latents={where}/wide.npy"], 0, "128 latents for 200 latents features"),
    "alone, steps": ([*SMALL, "--latents={where}/bfloat16.npy", "--sampling_steps=5"], 0, "read as bfloat16"),
    "alone, twice": ([*FAST, C], 0, "300 of 600 latents repeat another one exactly"),
    "alone, dry": ([*SMALL, "--latents={where}/two.npz", "--dry_run"], 0, "noisy autoencoder"),
    "once": (["--data={where}/once.npz", *SUITE], 0, ""),
    "twice": (["--data={where}/twice.npz", *SUITE], 0, TWICE),
    "twice, decoder": (["--data={where}/twice.npz", *FAST, C, "--decoder=mine_of_test:decode_colours"], 0, TWICE),
    "last": (["--data={where}/once.npz", *COLOURS], 0, ""),
    "first": (["--data={where}/first.npz", *FAST, "--autoencoder=mine_of_test:First", REDS], 0, ""),
    "first, suite": (["--data={where}/first.npz", *SUITE], 0, ""),
    "broken": (["--autoencoder=mine_of_test:broken"], 2, "factory(): RuntimeError: no weights found"),
    "no object": (
        ["--autoencoder=mine_of_test:equal", "--latent_dims=2"],
        2,
        "--autoencoder=mine_of_test:equal: factory(2)",
    ),
    "halved": (["--autoencoder=mine_of_test:Halved"], 2, "own: decode: images must have shape [8, 8], got [4, 8]"),
    "no module": (["--autoencoder=nowhere:x"], 2, "module 'nowhere' does not load"),
    "no decoder": ([*SMALL, Z, D, "--decoder=mine_of_test:nothing"], 2, "has no 'nothing'"),
    "rows": (
        ["--latents={where}/few.npy", D, "--decoder=mine_of_test:decode"],
        2,
        "one row for each of 1797 images, got",
    ),
    "too few": (["--latents={where}/few.npy"], 2, "few.npy: needs at least 256 latents, got 200"),
    "n": (["--data={where}/twice.npz", *SUITE, "--n=200"], 2, f"must be 64..172: 300 images ({TWICE}), 128 held out"),
    "reference": (
        ["--latents={where}/wide.npy", "--n=100", "--reference=201"],
        2,
        "128..200: 300 latents, 100 of them",
    ),
    "both": ([Z, "--autoencoder=mine_of_test:factory"], 2, "factory: allowed only without --latents"),
    "suite of own": (["--autoencoders=pca", "--autoencoder=mine_of_test:factory"], 2, "=pca: allowed only without"),
    "decoder only": (["--decoder=mine_of_test:decode"], 2, "allowed only with --latents"),
    "decoder, no data": ([Z, "--decoder=mine_of_test:decode"], 2, "needs --data"),
    "data, no decoder": ([Z, D], 2, "not used with --latents alone"),
    "channels alone": ([Z, "--channels=first"], 2, "--channels=first: not used with --latents alone"),
    "latent_dims": ([Z, "--latent_dims=3"], 2, "allowed only without --latents"),
    "spectrum": (["--spectrum=power:1"], 2, "images are needed"),
    "no shift": (
        ["--sampler=flow_matching", "--shift=dynamic:x"],
        2,
        "must be a number from 0.01 to 100 or dynamic:TOKENS",
    ),
    "shift of another": (["--shift=3"], 2, "--shift=3: allowed only with"),
    "steps": (["--sampler=scaled_linear_ddim", "--sampling_steps=1001"], 2, "steps=1001: scaled_linear_ddim takes"),
    "factors": ([*SUITE, "--latent_dims=2,4", "--latent_scale=1,2"], 2, "--latent_scale=1,2: must hold one"),
    "divisor": ([*SMALL, "--latents={where}/scaled.npy", "--latent_scale=5"], 2, "=5: multiplies, as in diffusers"),
    "large d": (["--latent_dims=65"], 2, "must be 1..64, the dimension of digits"),
    "constant": ([*SMALL, "--latents={where}/constant.npy"], 2, "--latents="),
    "coincide": ([*SMALL, "--latents={where}/coincide.npy"], 2, "--latents="),
    "suffix": (["--latents={where}/z.pt"], 2, "an .npz or .npy file"),
    "offset": ([*SMALL, "--latents={where}/offset.npy"], 2, "around 1e+08, where float32 has steps of 8"),
    "features": ([*SUITE, "--features=mine_of_test:equal"], 2, "--features=mine_of_test:equal"),
    "late features": ([*SUITE, "--features=mine_of_test:late"], 2, "test:late: RuntimeError: out of memory"),
    "unit": (
        ["--data={where}/unit.npz", *COLOURS],
        2,
        "Colours: own reconstructs images as they are, values 0 to 1, with an",
    ),
    "unit, decoder": (
        ["--data={where}/unit2.npz", *FAST, C, "--decoder=mine_of_test:decode_colours"],
        2,
        "--decoder=mine_of_test:decode_colours: of z the decoder gives images as they are",
    ),
    "reversed": (
        ["--data={where}/reversed.npz", *COLOURS],
        2,
        "but images with colours in reverse order (BGR for RGB) with",
    ),
    "last given": (["--data={where}/first.npz", *COLOURS, "--channels=last"], 2, "AssertionError"),
}
ENDS_WELL = [name for name, (_, status, _) in COMMANDS.items() if status == 0]
ALONE = [name for name in COMMANDS if name.startswith(("alone", "too few", "reference"))]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    where = tmp_path_factory.mktemp("recommend")
    (where / "mine_of_test.py").write_text(MODULE)
    (where / "z.pt").write_bytes(b"PK")
    rng = np.random.default_rng(13)
    z, x = rng.standard_normal((1797, 3)).astype(np.float32), coloured(300)
    twice = np.concatenate([x, x])
    images = {
        "once": x,
        "twice": twice,
        "first": np.moveaxis(x, -1, 1),
        "reversed": x[..., ::-1],
        "unit2": (twice + 1) / 2,
        "unit": (x - x.min()) / (x.max() - x.min()),
    }
    for name, array in images.items():
        np.savez(where / f"{name}.npz", images=array)
    np.savez(where / "z.npz", latents=z)
    np.savez(where / "two.npz", a=z[:300], b=z[:300, :2] * 5 + 1, labels=np.arange(300) % 10)
    np.savez(where / "colours.npz", z=OWN["Colours"]().encode(twice))
    few = np.where(np.arange(300)[:, None] % 10 == 0, z[:300], 0.0)
    alone = {
        "few": z[:200],
        "constant": np.ones((300, 3)),
        "coincide": few,
        "wide": rng.standard_normal((300, 10, 20)).astype(np.float16),
        "bfloat16": z[:300].astype(ml_dtypes.bfloat16),
        "scaled": 5 * z[:300],
        "offset": z[:300].astype(np.float64) + 1e8,
    }
    for name, array in alone.items():
        np.save(where / f"{name}.npy", array)
    return run_named_commands("recommend", {name: own for name, (own, *_) in COMMANDS.items()}, where, drawn=("quick",))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_command_ends_well_or_with_one_line(commands, name):
    workdir, status, out, err = commands[name]
    _, expected, text = COMMANDS[name]
    assert status == expected, err
    if expected:
        assert err.count("\n") == 1 and text in err, err
        assert not (workdir / "recommend.json").exists() and (out == "" or name == "late features")
    else:
        assert err == "" and text in out
    if name in ENDS_WELL and name != "alone, dry":
        assert {p.name for p in workdir.iterdir()} >= {"recommend.json", "records.jsonl", "curves.npz", "metadata.json"}
        noticed = json.loads((workdir / "recommend.json").read_text())["noticed"]
        assert noticed == json.loads((workdir / "metadata.json").read_text())["noticed"]
        assert all(line in out for line in noticed) and ("repeat another" in " ".join(noticed)) == (
            "repeat another" in out
        )


def test_files_say_the_same_as_the_table(commands):
    workdir, _, out, _ = commands["quick"]
    summary, rows = json.loads((workdir / "recommend.json").read_text()), records.load_records(workdir)
    assert (
        len(rows) == 2 * 3 and len(summary["recommendations"]) == 3 and (workdir / "recommend.png").stat().st_size > 0
    )
    asked = {
        "metric",
        "latent_dim",
        "logsnr",
        "rf_time",
        "vp_alpha",
        "denoising_end",
        "low",
        "high",
        "gain",
        "gain_low",
        "gain_high",
        "verdict",
    }
    for row in summary["recommendations"]:
        assert asked <= set(row) and row["advice"] in out
        (best,) = [r for r in rows if r["metric"] == row["metric"] and r["choice"] == "best"]
        assert (
            row["best"] == min(r["best"] for r in rows if r["metric"] == row["metric"])
            and row.items()
            >= {
                **{k: v for k, v in best.items() if k not in ("schema_version", "float32_products", "choice", "levels")}
            }.items()
        )
    curves = np.load(workdir / "curves.npz")
    for r in rows:
        curve, levels = curves[f"{r['name']}/{r['features']}/{r['metric']}"], curves[f"{r['name']}/logsnr"]
        index = int(curve.argmin())
        assert r["best"] == curve.min() and r["end"] == curve[-1] and r["precision"] == "float32"
        assert len(levels) == len(curve) and 10 <= len(curve) <= 15 and np.isin(levels, curves["logsnr"]).all()
        assert r["logsnr"] == (None if index == len(levels) - 1 else levels[index])
        assert r["levels"] == [*levels[:-1], None]
        # 3 x 2 x 400 >= 2048
        assert [r[f"{kind}_images"] for kind in ("training", "reference", "decoded")] == [400, 400, 2400]
    assert all(finding in out for finding in summary["latents"]) and len(summary["latents"]) == 4


@pytest.mark.parametrize("name", ["quick", "alone"])
def test_the_report_is_made_again_from_the_files(commands, name):
    workdir, _, out, _ = commands[name]
    where = workdir.parent
    config = (
        recommend.Config(**recommend.QUICK)
        if name == "quick"
        else recommend.Config(
            latents=f"{where}/two.npz", n=150, reference=128, samples=300, stops=4, sampler="linear_vp"
        )
    )
    made = recommend.report(read_results(workdir, config))
    assert made.text in out and list(made.figures) == ["recommend"]
    assert made.files["recommend.json"] == json.loads((workdir / "recommend.json").read_text())


def test_kinds_of_input_say_what_they_know(commands):
    summaries = {
        n: json.loads((commands[n][0] / "recommend.json").read_text())
        for n in ("factory", "dimensions", "alone", "latents, decoder")
    }
    names = {n: sorted({r["name"] for r in s["recommendations"]}) for n, s in summaries.items()}
    assert (
        names["factory"] == ["own"] and set(names["dimensions"]) <= {"own 2", "own 70"} and names["alone"] == ["a", "b"]
    )
    assert {r["latent_dim"] for r in records.load_records(commands["dimensions"][0])} == {2, 64}
    assert "Without a decoder" in " ".join(summaries["alone"]["unknown"])
    assert [r["features"] for r in summaries["alone"]["recommendations"]] == ["latents"] * 6
    assert {r["precision"] for r in records.load_records(commands["latents, decoder"][0])} == {
        None
    }  # a user's: not known
    assert all(r["floor"] is not None for r in summaries["alone"]["recommendations"])
    assert "other latent dimensions" in " ".join(summaries["latents, decoder"]["unknown"])
    assert "and a deviation of 0.213" in summaries["latents, decoder"]["latents"][0]
    assert summaries["latents, decoder"]["recommendations"][0]["features"] == "pixels"


@pytest.mark.parametrize("name", ALONE)
def test_latents_alone_speak_of_latents(commands, name):
    workdir, _, out, err = commands[name]
    assert "image" not in out + err
    if name in ENDS_WELL and name != "alone, dry":
        assert "held-out latents" in out
        for file in ("recommend.json", "records.jsonl", "metadata.json"):
            text = (workdir / file).read_text()
            assert "image" not in re.sub(r'"\w+_images"|"images_\w+"', "", text)  # names of fields stay


def test_the_order_of_axes_changes_nothing(commands):
    """The suite's autoencoders, the metrics and a user's functions get the same images, whichever way they were stored."""
    for first, last in (("first, suite", "once"), ("first", "last")):
        theirs, ours = (records.load_records(commands[name][0]) for name in (first, last))
        for a, b in zip([row for row in theirs if row["features"] == "pixels"], ours, strict=True):
            assert a["feature_dim"] == b["feature_dim"] == 192
            for key in ("best", "end", "gain", "latent_dim", "rf_time"):
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4 * b["end"]), key
    reds = [r for r in records.load_records(commands["first"][0]) if r["features"] == "mine_of_test:reds"]
    assert [r["feature_dim"] for r in reds] == [64] * 3


def test_error_of_the_form_that_fits_is_the_error_of_the_right_images(commands):
    err = commands["reversed"][3]
    got, fits = (
        float(part.split(" %")[0]) for part in (err.split("an error of ")[1], err.split("BGR for RGB) with ")[1])
    )
    autoencoder, x = OWN["Colours"](), coloured(300)
    order = np.random.default_rng(0).permutation(300)[:64]
    for said, images in ((got, x[order, :, :, ::-1]), (fits, x[order])):
        error = np.mean((autoencoder.decode(autoencoder.encode(images)) - images) ** 2)
        assert said == pytest.approx(100 * error / np.mean((images - images.mean(axis=0)) ** 2), rel=0.01)
    assert fits < 0.5 * got


def test_a_plan_counts_the_second_pass():
    known = recommend.Inputs(make=lambda job: [], name="points", n=70, shapes=[(1,)] * 3, noticed=[])
    (stage,) = recommend.plan(recommend.Config(), known)
    assert (stage.runs, stage.evaluations) == (3 * 30, 3 * 30 * 8260)  # 59 x 2 x 70 >= 8192


def test_functions_that_changed_since_the_job_began_are_refused(tmp_path):
    known = recommend.Inputs(
        make=lambda job: 1 / 0, name="points", n=70, shapes=[], noticed=[], digests={"features": "one"}
    )
    with pytest.raises(ZeroDivisionError):
        recommend.compute(recommend.Config(), known, Job(tmp_path))
    other = dataclasses.replace(known, digests={"features": "two"})
    with pytest.raises(launch.SettingError, match="gives other numbers than when the job began"):
        recommend.compute(recommend.Config(), other, Job(tmp_path))


def test_the_example_of_the_guide():
    (example,) = [
        code for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S) if "ldmjax.recommend(" in code
    ]
    names = {}
    exec(compile(example, str(GUIDE), "exec"), names)
    assert names["found"].recommendations[0]["verdict"] in names["found"].answer
