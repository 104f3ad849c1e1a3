"""recommend on stored latents: every file that is read or refused by its own name, and latents alone in every sentence."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from commands import run_named_commands

from experiments import recommend
from experiments.recommend import candidates, choice, report

Z = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)


def load(path, **arrays):
    """(what is read, the lines on it), of one array for an .npy file."""
    lines = []
    if path.suffix == ".npy":
        np.save(path, arrays["z"], allow_pickle=True)
    else:
        np.savez(path, **arrays)
    return candidates.load_latents(str(path), report=lines.append), lines


# Read.


@pytest.mark.parametrize(
    "array",
    [Z, Z.astype(np.float64), np.asfortranarray(Z), Z.astype(">f4"), Z.reshape(300, 2, 2)[::-1]],
    ids=["float32", "float64", "fortran", "big-endian", "strided"],
)
def test_an_npy_file_is_one_candidate_with_the_files_name(tmp_path, array):
    found, lines = load(tmp_path / "vae f8.npy", z=array)
    assert list(found) == ["vae f8"] and lines == []
    assert found["vae f8"].dtype == np.float32 and found["vae f8"].dtype.isnative
    np.testing.assert_array_equal(found["vae f8"], array)


@pytest.mark.parametrize("name", ["z.npy", "z.npz"])
@pytest.mark.parametrize("shape", [(300, 4), (300, 2, 2, 1)])
def test_bfloat16_is_read_as_that(tmp_path, name, shape):
    array = Z.reshape(shape).astype(ml_dtypes.bfloat16)
    found, lines = load(tmp_path / name, z=array)
    np.testing.assert_array_equal(found["z"], array.astype(np.float32))
    assert len(lines) == 1 and "'z'" in lines[0] and "read as bfloat16" in lines[0]
    np.testing.assert_array_equal(load(tmp_path / f"f{name}", z=np.asfortranarray(array))[0].popitem()[1], found["z"])


@pytest.mark.parametrize("kind", [np.float16, np.int16, np.uint8, np.int64])
def test_other_numbers_are_read_and_integers_named(tmp_path, kind):
    array = (20 * np.abs(Z)).astype(kind)
    found, lines = load(tmp_path / "z.npz", z=array)
    np.testing.assert_array_equal(found["z"], array)
    assert [("'z' holds integers" in line and "codebook" in line) for line in lines] == [True] * (
        array.dtype.kind in "iu"
    )


@pytest.mark.parametrize("key", ["labels", "y"])
@pytest.mark.parametrize(
    "labels", [np.arange(300) % 10, (np.arange(300) % 10).astype(np.uint8), np.full(300, "cat"), Z[:, 0] > 0]
)
def test_labels_beside_latents_are_left_out_with_one_line(tmp_path, key, labels):
    found, lines = load(tmp_path / "z.npz", **{"a": Z, key: labels, "b": Z[:, :2]})
    assert list(found) == ["a", "b"] and len(lines) == 1 and repr(key) in lines[0]
    np.testing.assert_array_equal(found["a"], Z)


# Refused by their own name.


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("z.npz", {"z": Z, "labels": np.arange(299)}, r"one of 'labels' for each latent, got z \[300, 4\], labels \[299\]"),
        ("z.npz", {"z": Z, "labels": np.eye(300)}, r"'labels' must hold a label for each latent, .* got float64 \[300, 300\]"),
        ("z.npz", {"z": Z, "y": Z[:, 0]}, r"a label for each latent, integers \[N\], got float32 \[300\]: give"),
        ("z.npz", {"labels": np.arange(300)}, r"'labels' must hold numbers \[N, ...\], got int64 \[300\]"),
        ("z.npz", {"z": Z, "classes": np.arange(300)}, r"'classes' must hold numbers \[N, ...\], got int64 \[300\]"),
        ("z.npz", {"z": Z, "extra": np.array([["a", None]])}, r"'extra' must hold numbers \[N, ...\], got Python objects"),
        ("z.npy", {"z": np.array([["a", None]])}, r"'z' must hold numbers \[N, ...\], got Python objects"),
        ("z.npy", {"z": np.array({"latents": Z})}, "got Python objects"),
        ("z.npy", {"z": Z[:, 0]}, r"'z' must hold numbers \[N, ...\], got float32 \[300\]"),
        ("z.npy", {"z": np.float32(3.0)}, r"'z' must hold numbers \[N, ...\], got float32 \[\]"),
        ("z.npy", {"z": Z > 0}, "'z' must hold numbers .* got bool"),
        ("z.npy", {"z": Z.astype(ml_dtypes.float8_e4m3fn)}, r"'z' has a type that numpy does not store, got \|V1: save it as"),
        ("z.npz", {"z": Z, "w": Z.astype(ml_dtypes.float8_e5m2)}, r"'w' has a type that numpy does not store"),
        ("z.npy", {"z": np.zeros((300, 2), [("mean", "f4"), ("std", "f4")])}, r"'z' must hold numbers .* got \[\('mean'"),
        ("z.npy", {"z": np.where(Z > 2, np.nan, Z).astype(ml_dtypes.bfloat16)}, "'z' holds NaN, infinity"),
        ("z.npy", {"z": np.where(Z > 2, np.inf, Z).astype(np.float16)}, "'z' holds NaN, infinity"),
        ("z.npy", {"z": Z.astype("datetime64[s]")}, "'z' must hold numbers"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_latents(tmp_path, name, arrays, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / name, **arrays)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


# Latents alone, as a command.

SMALL = ["--n=150", "--reference=128", "--samples=300", "--stops=5"]
COMMANDS = {
    "wide": ([*SMALL, "--latents={where}/wide.npy"], None),
    "two": ([*SMALL, "--latents={where}/two.npz"], None),
    "scaled": ([*SMALL, "--latents={where}/two.npz", "--latent_scale=300"], None),
    "steps": ([*SMALL, "--latents={where}/bfloat16.npy", "--sampling_steps=5"], None),
    "dry": ([*SMALL, "--latents={where}/two.npz", "--dry_run"], None),
    "few": (["--latents={where}/few.npy"], "few.npy: needs at least 256 latents, got 200"),
    "n": (["--latents={where}/wide.npy", "--n=200"], "--n=200: must be 64..172: 300 latents, 128 held out at least"),
    "reference": (["--latents={where}/wide.npy", "--n=100", "--reference=201"], "128..200: 300 latents, 100 of them"),
    "suffix": (["--latents={where}/z.pt"], "an .npz or .npy file"),
    "pickle": (["--latents={where}/pickle.npy"], "'pickle' must hold numbers [N, ...], got Python objects"),
}  # fmt: skip


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    where = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(1)
    np.save(where / "wide.npy", rng.standard_normal((300, 10, 20)).astype(np.float16))  # more features than rows
    np.savez(where / "two.npz", a=Z, b=Z[:, :2] * 5 + 1, labels=np.arange(300) % 10)
    np.save(where / "bfloat16.npy", Z.astype(ml_dtypes.bfloat16))
    np.save(where / "few.npy", Z[:200])
    np.save(where / "pickle.npy", np.array([[None]]), allow_pickle=True)
    (where / "z.pt").write_bytes(b"PK")
    arguments = {name: own for name, (own, _) in COMMANDS.items()}
    return run_named_commands("recommend", arguments, where, drawn=("two",))


def without_names(text):
    """The text without the names of fields and figures' files, which stay as they are."""
    return re.sub(r'"\w+_images"|"images_\w+"', "", text)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_latents_alone_speak_of_latents(commands, name):
    workdir, status, out, err = commands[name]
    expected = COMMANDS[name][1]
    assert "image" not in out + err
    if expected is None:
        assert (status, err) == (0, "")
    else:
        assert status == 2 and err.count("\n") == 1 and expected in err, err
    if expected is None and name != "dry":
        assert "held-out latents" in out
        for file in ("recommend.json", "records.jsonl"):
            assert "image" not in without_names((workdir / file).read_text())
        about = json.loads((workdir / "metadata.json").read_text())
        assert "image" not in json.dumps(about)


def test_what_is_not_taken_as_it_is_has_a_line(commands):
    assert commands["two"][2].count("'labels' are taken for labels and not used") == 1
    assert commands["steps"][2].count("read as bfloat16") == 1
    names = {r["name"] for r in json.loads((commands["two"][0] / "recommend.json").read_text())["recommendations"]}
    assert names == {"a", "b"}
    assert (
        "Directions that no held-out latent shows: there are 128 latents for 200 latents features"
        in commands["wide"][2]
    )


@pytest.mark.parametrize("comparable", [True, False])
def test_the_figure_speaks_of_what_is_compared(comparable):
    found = candidates.of_latents_alone({"z": Z}, n=150, reference=128, seed=0)
    config = recommend.Config(stops=4, samples=300)
    outcome = recommend.run(found, config, comparable=comparable, report=lambda line: None)
    for record in outcome.records:
        record["floor"] = 0.01
    figure = report.draw(outcome, config)
    texts = [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert any("image" in text for text in texts) == comparable
    assert any("held-out latents" in text for text in texts) != comparable
    assert any(text == ("training images" if comparable else "training latents") for text in texts)


def test_no_advice_on_latents_speaks_of_images():
    record = {"verdict": "cannot tell", "end": 1.0, "end_standard_error": 0.1, "gain": 0.1, "images_needed": (300, 900),
              "edge": None, "reference_images": 150}  # fmt: skip
    assert (
        choice.advice(record, compared="latents")
        == "cannot tell: run to the end; about 3e+02 to 9e+02 held-out latents would let it"
    )
    assert "held-out latents would" in choice.advice(record | {"end_standard_error": 1.0}, compared="latents")
