"""The command gan-spark: subcommands, examples, what it imports; the wheel; Horovod's build; bootstrap.py."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import types

import horovod
import pytest
from conftest import ROOT, make_config, write_config
from horovod.common.basics import HorovodBasics

import gan_spark
from gan_spark import __main__ as command_line
from gan_spark import config, job, models
from gan_spark.config import Train, UserError
from gan_spark.training import ranks

EXAMPLES = sorted(path.stem for path in (ROOT / "conf").glob("*.toml"))


def say(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command."""
    try:
        code = command_line.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- jobs ------------------------------------------------------------------------------


def test_every_script_is_a_job_and_every_job_a_subcommand(capsys):
    scripts = {path.stem: path for path in ROOT.glob("jobs/*.py")}
    assert scripts.keys() == job.JOBS.keys()
    for name, path in scripts.items():
        assert f'job.script("{name}")' in path.read_text()
        assert ast.get_docstring(ast.parse(path.read_text())) == job.JOBS[name].description
        code, out, _ = say(capsys, name, *(["--config", "x"] if name == "promote" else []), "--help")
        assert code == 0 and f"gan-spark {name}" in out
        assert all(option in out for option in ("--config", "--set", "--dry-run", "--verbose"))
    code, out, _ = say(capsys, "--help")
    assert code == 0 and all(re.search(rf"^    {name}\b", out, re.MULTILINE) for name in job.JOBS)


@pytest.mark.parametrize("name", job.JOBS)
def test_a_job_is_a_function_that_exists(name):
    for path in filter(None, (job.JOBS[name].step, job.JOBS[name].jars)):
        assert callable(job.pkgutil.resolve_name(path))


@pytest.mark.slow
def test_a_job_runs_as_a_subcommand(capsys, spark, tmp_path):
    toml = write_config(tmp_path, make_config(str(tmp_path / "lake")))
    code, out, _ = say(capsys, "ingest", "--config", toml, "--dry-run")
    assert code == 0 and json.loads(out)["ingest"]["source"] == "digits"
    code, out, _ = say(capsys, "ingest", "--config", toml)
    assert code == 0 and json.loads(out.splitlines()[-1])["rows"] == 1797
    code, _, errors = say(capsys, "train", "--config", toml, "--set", "train.stepz=1")
    assert code == 2 and "error: train.stepz: unknown key" in errors


def test_promote_is_a_job_with_a_config_and_a_command_with_a_run(capsys, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("gan_spark.quality.promote.promote_run", lambda spark, config: calls.append(config.run) or {})
    monkeypatch.setattr("gan_spark.runs.registry.promote", lambda *arguments: calls.append(arguments) or {"version": 1})
    monkeypatch.setattr(job, "session", lambda name, jars: types.SimpleNamespace(stop=lambda: None))
    toml = write_config(tmp_path, make_config(str(tmp_path / "lake"), run="good"))
    assert say(capsys, "promote", "--config", toml)[0] == 0
    assert say(capsys, "promote", f"--config={toml}", "--set", "run=other")[0] == 0
    assert say(capsys, "promote", "good", "--if-better", "--lake", "/lake", "--json")[0] == 0
    assert calls == ["good", "other", ("/lake", "good", "default", True)]
    assert say(capsys, "promote")[0] == 2
    assert say(capsys, "promote", "good", "--config", toml)[0] == 2
    assert say(capsys, "promote", "--config", toml, "--if-better")[0] == 2
    code, out, _ = say(capsys, "promote", "--help")
    assert code == 0 and "--config FILE" in out and "--if-better" in out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["init"], ["runs", "--lake", "nothing"], ["java-home"]]
)
def test_what_needs_neither_tensorflow_nor_spark_imports_neither(tmp_path, arguments):
    look = (
        "import sys\nfrom gan_spark.__main__ import main\n"
        "try:\n    code = main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'tensorflow', 'pyspark', 'horovod'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", look, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout


def test_a_failure_of_a_command_is_told_as_of_a_job(capsys, monkeypatch):
    assert say(capsys, "nothing")[0] == 2 and say(capsys)[0] == 2
    code, _, errors = say(capsys, "models", "dcgam")
    assert code == 2 and errors.startswith("error: model.name = 'dcgam'") and "Traceback" not in errors

    def breaks(lake):
        raise OSError("the disk is on fire")

    monkeypatch.setattr("gan_spark.runs.catalogue.runs", breaks)
    code, _, errors = say(capsys, "runs")
    assert code == 1 and "in breaks" in errors and errors.endswith("error: OSError: the disk is on fire\n")


def test_check_tells_each_check_and_the_one_that_fails(capsys, monkeypatch):
    from gan_spark import check

    def passes(name):
        yield f"passed: {name}"

    def fails(name):
        yield "passed: this"
        try:
            raise KeyError("width")
        except KeyError as error:
            raise check.CheckFailed(f"{name}: that: expected no error, found KeyError") from error

    monkeypatch.setattr(check, "check", passes)
    assert say(capsys, "check", "gan") == (0, "passed: gan\n", "")
    monkeypatch.setattr(check, "check", fails)
    code, out, errors = say(capsys, "check", "mine")
    assert (code, out) == (1, "passed: this\n") and "in fails" in errors  # where the user's own code failed
    assert errors.endswith("error: mine: that: expected no error, found KeyError\n")
    monkeypatch.undo()
    assert say(capsys, "check", "gam")[0] == 2


# --- examples --------------------------------------------------------------------------


def test_init_lists_the_examples_by_their_first_line(capsys):
    code, out, _ = say(capsys, "init")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == EXAMPLES
    assert re.search(r"^quickstart +From scikit-learn's 1,797 handwritten digits", out, re.MULTILINE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_init_writes_an_example_and_says_what_is_next(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    code, out, _ = say(capsys, "init", name)
    assert code == 0 and os.listdir(tmp_path) == [f"{name}.toml"]
    commands = re.findall(rf"^  gan-spark (\w+) --config {name}\.toml(?: --set \S+)*$", out, re.MULTILINE)
    assert commands and set(commands) <= job.JOBS.keys()
    assert config.load(f"{name}.toml", (), models.config_class).run
    if name == "quickstart":
        assert "gan-spark pipeline --config quickstart.toml\n" in out


def test_init_overwrites_nothing_and_knows_its_examples(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.toml").write_text("mine")
    code, _, errors = say(capsys, "init", "quickstart")
    assert code == 2 and f"error: {tmp_path}/quickstart.toml is there already" in errors
    assert (tmp_path / "quickstart.toml").read_text() == "mine"
    code, _, errors = say(capsys, "init", "quickstar")
    assert code == 2 and "no example 'quickstar'; did you mean 'quickstart'?" in errors
    assert say(capsys, "init", "../conf/quickstart")[0] == 2


# --- the package -----------------------------------------------------------------------


def test_defaults_are_those_of_the_wheel_or_else_of_the_checkout(monkeypatch, tmp_path):
    assert job.conf_folder() == ROOT / "conf"
    (tmp_path / "gan_spark/conf").mkdir(parents=True)
    monkeypatch.setattr(job, "__file__", str(tmp_path / "gan_spark/job.py"))
    assert job.conf_folder() == tmp_path / "gan_spark/conf"


def test_defaults_are_in_force(spark):
    assert os.path.samefile(os.environ["SPARK_CONF_DIR"], job.conf_folder())
    defaults = re.findall(r"^(spark\S+)\s+(\S+)", (ROOT / "conf/spark-defaults.conf").read_text(), re.MULTILINE)
    assert len(defaults) > 5 and all(spark.sparkContext.getConf().get(key) == value for key, value in defaults)


def test_the_version_stands_in_one_place_and_conf_goes_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "gan_spark/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", gan_spark.__version__)
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["gan_spark", "conf"] and wheel["sources"] == {"conf": "gan_spark/conf"}
    assert (ROOT / "gan_spark/py.typed").is_file()


# --- Horovod ---------------------------------------------------------------------------


class Session:
    """A session with slots enough."""

    class sparkContext:
        master = "spark://host:7077"
        defaultParallelism = 4

        class getConf:
            get = staticmethod(lambda key, default=None: default)


def test_horovod_as_it_is_here_will_do():
    ranks.check(Session, Train(workers=2))


def test_a_horovod_without_tensorflow_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise ImportError('Extension has not been built')")
    monkeypatch.setattr(horovod, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "horovod.tensorflow", raising=False)
    with pytest.raises(UserError) as refused:
        ranks.check(Session, Train(workers=2))
    assert f"the Horovod in {tmp_path} was built without TensorFlow; build it anew: " in str(refused.value)
    assert "HOROVOD_WITH_GLOO=1" in str(refused.value) and "horovod==0.28.1" in str(refused.value)
    ranks.check(Session, Train(launcher="local"))


def test_a_horovod_without_gloo_or_for_another_tensorflow_is_refused(monkeypatch):
    monkeypatch.setattr(HorovodBasics, "gloo_built", lambda self: False)
    with pytest.raises(UserError, match='train.launcher = "spark": Horovod was built without Gloo; build it anew: HOR'):
        ranks.check(Session, Train(workers=2))

    def cannot_load(self, *path):
        raise OSError("undefined symbol: _ZN10tensorflow8OpKernel")

    monkeypatch.setattr(HorovodBasics, "__init__", cannot_load)
    with pytest.raises(UserError, match="cannot be loaded .undefined symbol: .*: it was built for another TensorFlow"):
        ranks.check(Session, Train(workers=2))


def test_no_horovod_at_all_is_told_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.common.basics", None)
    with pytest.raises(UserError, match="Horovod cannot be imported .*; build it anew: HOROVOD_WITH_TENSORFLOW=1"):
        ranks.check(Session, Train(workers=2))


def test_horovod_is_built_alike_everywhere():
    words = ranks.BUILD.split()
    version = next(word for word in words if word.startswith("horovod=="))
    variables = {word for word in words if word.startswith("HOROVOD_")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert version in project["project"]["dependencies"]
    built = project["tool"]["uv"]["extra-build-variables"]["horovod"]
    assert variables == {f"{name}={value}" for name, value in built.items()}
    assert variables | {version} <= set((ROOT / "docs/install.md").read_text().split())


# --- bootstrap.py ----------------------------------------------------------------------


def bootstrap(tmp_path, *arguments: str, tools: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """bootstrap.py where PATH is a folder of these tools alone; each says its name and arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in tools:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit 3\n')
        (folder / name).chmod(0o755)
    return subprocess.run(
        [sys.executable, str(ROOT / "bootstrap.py"), *arguments],
        capture_output=True,
        text=True,
        env={"PATH": str(folder), "PYTHONUSERBASE": str(tmp_path / "user")},
    )


@pytest.mark.parametrize(
    "tools, missing", [((), "a C++ compiler and make"), (("c++", "uv"), "make"), (("make", "uv"), "a C++ compiler")]
)
def test_a_missing_compiler_is_one_sentence_before_anything_is_downloaded(tmp_path, tools, missing):
    answer = bootstrap(tmp_path, "run", "jobs/pipeline.py", tools=tools)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: {missing} cannot be found, with which Horovod is compiled")
    assert "apt-get install g++ make" in line and "dnf install gcc-c++ make" in line
    assert not (tmp_path / "user").exists()


@pytest.mark.parametrize(
    "arguments, command",
    [(("run", "jobs/pipeline.py", "--config", "a b"), "uv run jobs/pipeline.py --config a b"), ((), "uv sync")],
)
def test_bootstrap_runs_uv_with_its_arguments(tmp_path, arguments, command):
    answer = bootstrap(tmp_path, *arguments, tools=("g++", "make", "uv"))
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, f"{command}\n", "")


def test_bootstrap_takes_the_compiler_that_cxx_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import bootstrap as script

    compiler = tmp_path / "my-compiler"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.missing_tools() == ["a C++ compiler", "make"]
    monkeypatch.setenv("CXX", "my-compiler -O2")
    assert script.missing_tools() == ["make"]


@pytest.mark.parametrize("is_venv, is_managed", [(True, True), (False, False), (False, True)])
def test_bootstrap_installs_uv_where_pip_may(tmp_path, monkeypatch, is_venv, is_managed):
    monkeypatch.syspath_prepend(str(ROOT))
    import bootstrap as script

    commands = []
    monkeypatch.setattr(script.subprocess, "call", lambda command, **_: commands.append(command) or 0)
    monkeypatch.setattr(script.sys, "prefix", "/venv" if is_venv else sys.base_prefix)
    monkeypatch.setattr(script.sysconfig, "get_path", lambda name: str(tmp_path))
    if is_managed:
        (tmp_path / "EXTERNALLY-MANAGED").write_text("")
    assert script.install_uv()
    options = [] if is_venv else ["--user", "--break-system-packages"] if is_managed else ["--user"]
    assert commands == [[sys.executable, "-m", "pip", "install", "uv", *options]]


def test_bootstrap_is_for_any_python_3():
    ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 7))
    assert len((ROOT / "bootstrap.py").read_text().splitlines()) < 80
