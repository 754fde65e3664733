"""From a bare machine to a running job: looks for a compiler, brings uv, and runs it with the arguments given.

    python3 bootstrap.py run jobs/pipeline.py --config conf/quickstart.toml

is `uv run ...` with all that it needs; without arguments it is `uv sync`. The script needs the standard library alone;
pip brings uv to Python 3.8 and later.
"""

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import sysconfig


def missing_tools():
    """What Horovod's build lacks here, by name."""
    compilers = [os.environ.get("CXX", "").partition(" ")[0], "g++", "c++"]
    has_compiler = any(shutil.which(name) for name in compilers if name)
    tools = {"a C++ compiler": has_compiler, "make": shutil.which("make")}
    return [name for name, is_here in tools.items() if not is_here]


def find_uv():
    """The path of uv, on PATH or where pip puts scripts: beside this Python, or in the user's folder; None without."""
    folders = [os.path.dirname(os.path.abspath(sys.executable)), os.path.join(site.getuserbase(), "bin")]
    return shutil.which("uv") or shutil.which("uv", path=os.pathsep.join(folders))


def install_uv():
    """Installs uv by pip: into the virtual environment that this Python is of, else for the user."""
    command = [sys.executable, "-m", "pip", "install", "uv"]
    if sys.prefix == sys.base_prefix:
        command.append("--user")
        if os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")):
            command.append("--break-system-packages")
    print("uv is not here; pip installs it.", file=sys.stderr, flush=True)
    return subprocess.call(command, stdout=sys.stderr) == 0


def main():
    missing = missing_tools()
    if missing:
        print(
            f"error: {' and '.join(missing)} cannot be found, with which Horovod is compiled on this machine;"
            " `apt-get install g++ make` (Debian, Ubuntu) or `dnf install gcc-c++ make` (Fedora, RHEL) brings both.",
            file=sys.stderr,
        )
        return 2
    if not find_uv() and importlib.util.find_spec("pip") is None:
        message = "error: neither uv is here nor pip, which would install it; `apt-get install python3-pip` brings pip."
        print(message, file=sys.stderr)
        return 2
    if not find_uv() and not install_uv():
        print(
            "error: pip did not install uv, as it says above; https://docs.astral.sh/uv/ has it too.", file=sys.stderr
        )
        return 1
    uv = find_uv()
    if not shutil.which("uv"):
        print(f"uv is {uv}; put {os.path.dirname(uv)} on PATH to call it yourself.", file=sys.stderr)
    sys.stderr.flush()
    os.execv(uv, [uv] + (sys.argv[1:] or ["sync"]))


if __name__ == "__main__":
    sys.exit(main())
