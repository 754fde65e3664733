"""A wrong config is refused with a message that says what to write instead; a right one survives the round trip."""

import json
import subprocess
import sys

import pytest
from conftest import MODEL_CONFIGS, ROOT

from gan_spark import models, reference
from gan_spark.config import UserError, check_sections, differences, load, parse, resolved

BASE = {"run": "r", "dataset": "d"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": {"stepss": 5}}, r"^train\.stepss: unknown key; did you mean train\.steps\? \(known: steps, "),
        ({"train": {"zzz": 5}}, r"^train\.zzz: unknown key \(known: steps, "),
        ({"trian": {}}, r"^trian: unknown key; did you mean train\?"),
        ({"model": {"name": "dcgan", "widht": 8}}, r"^model\.widht: unknown key; did you mean model\.width\?"),
        ({"train": {"steps": "5"}}, r"^train\.steps = '5': expected int, got str"),
        ({"train": {"steps": 5.0}}, r"^train\.steps = 5\.0: expected int, got float"),
        ({"train": {"steps": True}}, r"^train\.steps = True: expected int, got bool"),
        ({"ingest": {"validation": False}}, r"^ingest\.validation = False: expected float, got bool"),
        ({"run": 7}, r"^run = 7: expected str, got int"),
        ({"train": 5}, r"^train = 5: expected a section \[train\]"),
        ({"ingest": {"classes": "cat"}}, r"^ingest\.classes = 'cat': expected a list of str"),
        ({"ingest": {"classes": ["cat", 3]}}, r"^ingest\.classes\[1\] = 3: expected str, got int"),
        ({"train": {"steps": 0}}, r"^train\.steps = 0: expected at least 1$"),
        ({"train": {"workers": 0}}, r"^train\.workers = 0: expected at least 1 and at most 4096"),
        ({"ingest": {"height": 5000}}, r"^ingest\.height = 5000: expected at least 4 and at most 4096"),
        (
            {"ingest": {"validation": float("nan")}},
            r"^ingest\.validation = nan: expected at least 0\.0 and at most 0\.9",
        ),
        (
            {"ingest": {"validation": float("inf")}},
            r"^ingest\.validation = inf: expected at least 0\.0 and at most 0\.9",
        ),
        (
            {"model": {"name": "dcgan", "generator_rate": float("nan")}},
            r"^model\.generator_rate = nan: expected at least 0\.0",
        ),
        (
            {"ingest": {"source": "fodler"}},
            r"^ingest\.source = 'fodler': expected one of 'digits', .*; did you mean 'folder'\?",
        ),
        ({"ingest": {"channels": 2}}, r"^ingest\.channels = 2: expected one of 1, 3"),
        ({"run": "../r"}, r"^run = '\.\./r': expected letters, digits"),
        ({"dataset": ""}, r"^dataset = '': expected letters, digits"),
        (
            {"lake": "/data/[prod]/a#b"},
            (
                r"^lake = '/data/\[prod\]/a#b': expected a path without any of # \? \* \[ \] \{ \}, .*; found # \[ \]"
                r" in /data/.*: use another folder"
            ),
        ),
        *(({"lake": f"s3a://bucket/a{odd}b"}, rf"^lake = .*; found [{odd}] in s3a://bucket") for odd in "#?*{}"),
        ({"dataset": "d\n"}, r"^dataset = 'd\\n': expected letters, digits"),
        ({"model": {"width": 8}}, r"^model\.name: expected the name of a model"),
        ({"model": {"name": 3}}, r"^model\.name: expected the name of a model"),
        ({"model": "dcgan"}, r"^model\.name: expected the name of a model"),
        (
            {"model": {"name": "dcgam"}},
            r"^model\.name = 'dcgam': no such model; did you mean 'dcgan'\? \(known: .*dcgan, ",
        ),
        ({"model": {"name": "zzz"}}, r"^model\.name = 'zzz': no such model \(known: .*dcgan, .*vae, "),
    ],
)
def test_a_wrong_value_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        parse({**BASE, **change}, models.config_class)


@pytest.mark.parametrize(
    "change, section, message",
    [
        (
            {"ingest": {"validation": 0.5, "test": 0.5}},
            "ingest",
            r"^ingest\.validation \+ ingest\.test = 1: expected less than 1",
        ),
        ({"train": {"workers": 3}}, "train", r"^train\.batch_size = 64 does not divide by train\.workers = 3"),
        (
            {"train": {"workers": 2}, "evaluate": {"classifier_batch": 63}},
            "evaluate",
            r"^evaluate\.classifier_batch = 63 does not divide by train\.workers = 2",
        ),
        (
            {"train": {"workers": 2, "launcher": "local"}},
            "train",
            r"^train\.workers = 2 with train\.launcher = 'local'.*use launcher 'spark'",
        ),
        ({"train": {"patience": 2}}, "train", r"^train\.patience = 2 with train\.validate_every = 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused_where_they_are_read(change, section, message):
    made = parse({**BASE, **change}, models.config_class)
    with pytest.raises(UserError, match=message):
        check_sections(made, section)
    check_sections(made, *({"ingest", "evaluate"} - {section} if section != "train" else {"ingest"}))


@pytest.mark.parametrize("key", ["run", "dataset"])
def test_a_missing_key_is_named(key):
    with pytest.raises(UserError, match=f"^{key}: missing; it has no default"):
        parse({name: value for name, value in BASE.items() if name != key})


@pytest.fixture
def written(tmp_path):
    def write(text: str = 'run = "r"\ndataset = "d"\n[model]\nname = "dcgan"\n') -> str:
        path = tmp_path / "run.toml"
        path.write_bytes(text.encode("latin-1"))
        return str(path)

    return write


@pytest.mark.parametrize("text", ["run = ", "run = 'a'\nrun = 'b'", "[train\n", "run = '\xff'"])
def test_bad_toml_is_refused(written, text):
    with pytest.raises(UserError, match=r"^config .*run\.toml: not valid TOML: "):
        load(written(text))


def test_toml_is_utf_8_whatever_the_locale(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes('run = "r"\ndataset = "d"\n[generate]\ncaptions = ["ein grünes Dreieck?"]\n'.encode())
    program = "import sys; from gan_spark.config import load; print(ascii(load(sys.argv[1]).generate.captions[0]))"
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)},
    )
    assert answer.stdout == "'ein gr\\xfcnes Dreieck?'\n", answer.stderr


@pytest.mark.parametrize("name, reason", [("missing.toml", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, reason):
    with pytest.raises(UserError, match=rf"^config .*{name}: cannot be read: {reason}"):
        load(str(tmp_path / name))


@pytest.mark.parametrize(
    "override, value",
    [
        ("train.steps=7", 7),
        ("ingest.validation=0.25", 0.25),
        ("ingest.validation=0", 0.0),
        ("run=other", "other"),
        ('run="other"', "other"),
        ("lake=s3a://bucket/lake", "s3a://bucket/lake"),
        ("ingest.path=/images/a=b", "/images/a=b"),
        ("ingest.path=", ""),
        ("run=20261125", "20261125"),
        ("run=2026-11-25", "2026-11-25"),
        ("generate.label=3", "3"),
        ("generate.label=true", "true"),
        ("ingest.classes=['a', 'b']", ("a", "b")),
        ("model.width=8", 8),
    ],
)
def test_an_override_reaches_its_key(written, override, value):
    found = load(written(), [override], models.config_class)
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins(written):
    assert load(written(), ["train.steps=7", "train.steps=8"], models.config_class).train.steps == 8


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.steps", r"^--set train\.steps: expected key=value, for instance"),
        ("=7", r"^--set =7: expected key=value"),
        ("run.x=7", r"^--set run\.x=7: run is a value, not a section"),
        ("train=7", r"^train = 7: expected a section"),
        ("train.stepz=7", r"^train\.stepz: unknown key; did you mean train\.steps\?"),
        ("trian.steps=7", r"^trian: unknown key; did you mean train\?"),
        ("train.steps=many", r"^train\.steps = 'many': expected int, got str"),
    ],
)
def test_a_wrong_override_is_refused(written, override, message):
    with pytest.raises(UserError, match=message):
        load(written(), [override], models.config_class)


def test_a_relative_lake_is_judged_with_the_folder_that_the_job_starts_in(written, tmp_path, monkeypatch):
    path, folder = written(), tmp_path / "[prod]"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"^lake = 'lake': .*; found \[ \] in /.*/\[prod\]/lake: use another folder"):
        load(path, model_config=models.config_class)
    assert load(path, ["lake=/data/lake"], models.config_class).lake == "/data/lake"
    assert parse(BASE).lake == "lake"  # as on a worker, whose folder is not the job's


@pytest.mark.parametrize("model", [None, *MODEL_CONFIGS])
def test_resolved_is_json_and_parses_back(model):
    table = {**BASE, "ingest": {"classes": ["a", "b"], "validation": 0}, "train": {"steps": 9}}
    config = parse({**table, "model": MODEL_CONFIGS[model]} if model else table, models.config_class)
    plain = json.loads(json.dumps(resolved(config)))
    assert parse(plain, models.config_class) == config
    assert plain["train"]["steps"] == 9
    assert plain["train"]["batch_size"] == 64
    assert differences(plain, resolved(config)) == []


def test_differences_name_each_leaf():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x", "e": {"f": 1}}, "gone": 0}
    new = {"a": 1, "b": {"c": (1, 3), "d": "y", "e": {"f": 2}}, "new": {"h": 1}}
    assert differences(old, new, ignore=["b.d"]) == [
        "b.c: was [1, 2], is [1, 3]",
        "b.e.f: was 1, is 2",
        "gone: was 0, is None",
        "new: was None, is {'h': 1}",
    ]
    assert differences(old, {**old, "b": {**old["b"], "c": (1, 2)}}) == []


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_configs_load(path):
    config = load(str(path), model_config=models.config_class)
    assert parse(resolved(config), models.config_class) == config


def test_the_reference_of_configs_is_that_of_the_code():
    assert reference.markdown() == (ROOT / "docs/config.md").read_text(), (
        "run: python -m gan_spark reference > docs/config.md"
    )


def test_the_reference_has_every_key_with_its_range():
    text = reference.markdown()
    assert "| `train.workers` | integer | `1` | 1 to 4,096 | Horovod ranks |" in text
    for name in MODEL_CONFIGS:
        keys = resolved(parse({**BASE, "model": {"name": name}}, models.config_class))
        keys["model"].pop("name")
        for section, value in keys.items():
            assert (
                all(f"| `{section}.{key}` |" in text for key in value)
                if isinstance(value, dict)
                else f"| `{section}` |" in text
            )


def test_a_range_is_a_word_or_two_numbers():
    assert parse({**BASE, "ingest": {"range": "file"}}).ingest.range == "file"
    assert parse({**BASE, "ingest": {"range": [0, 4095]}}).ingest.range == (0.0, 4095.0)


@pytest.mark.parametrize(
    "value, message",
    [
        ("fil", "^ingest.range = 'fil': expected one of 'type', 'file'; did you mean 'file'?"),
        ([0], r"^ingest.range = \[0.0\]: expected two numbers, the lower first"),
        ([9, 9], r"^ingest.range = \[9.0, 9.0\]: expected two numbers, the lower first"),
        ([0, "a"], r"^ingest.range\[1\] = 'a': expected float, got str"),
        (5, "^ingest.range = 5: expected str, got int"),
    ],
)
def test_another_range_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        check_sections(parse({**BASE, "ingest": {"range": value}}), "ingest")
