"""A real HDFS, and on request a real YARN, in one JVM on loopback: Hadoop's own minicluster, by Maven.

`python tests/minicluster.py FOLDER` runs one with YARN until Ctrl-C; its client configuration is in FOLDER/conf.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyspark
from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
from py4j.protocol import Py4JError, Py4JJavaError

from gan_spark import job

POM = Path(__file__).resolve().parent / "hadoop" / "pom.xml"
_LOOPBACK = "127.0.0.1"
# Hadoop 3.3 on Java 17.
_JAVA = (
    *("-Xmx700m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),
    *("--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED"),
)
_HDFS = {"dfs.replication": "1", "dfs.namenode.acls.enabled": "true"}
_YARN = {
    "yarn.resourcemanager.hostname": _LOOPBACK,
    "yarn.resourcemanager.bind-host": _LOOPBACK,
    "yarn.nodemanager.hostname": _LOOPBACK,
    "yarn.nodemanager.bind-host": _LOOPBACK,
    "yarn.minicluster.yarn.nodemanager.resource.memory-mb": "12288",
    "yarn.scheduler.minimum-allocation-mb": "256",
    "yarn.nodemanager.vmem-check-enabled": "false",
    # A disk that is nearly full would be left out.
    "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": "99.9",
    # So that its containers' logs are there to be read once they have gone.
    "yarn.nodemanager.delete.debug-delay-sec": "3600",
}
# Under which a client finds YARN.
_ADDRESSES = ("yarn.resourcemanager.address", "yarn.resourcemanager.scheduler.address")


class Unavailable(Exception):
    """What a minicluster takes is not here."""


class Minicluster:
    """`url` is that of its HDFS, `conf` the folder of its client's configuration, `pid` that of its JVM.

    Raises `Unavailable` where Maven is missing or cannot fetch Hadoop. The JVM ends with the process that began it.
    """

    def __init__(self, folder: Path, yarn: bool = False):
        self.folder, self.conf = folder, folder / "conf"
        self.conf.mkdir(parents=True)
        self.java = home_of_java()
        self.log = (folder / "cluster.log").open("w")
        port, self.process = launch_gateway(
            jarpath=str(next(Path(pyspark.__file__).parent.glob("jars/py4j-*.jar"))),
            classpath=classpath(POM, folder),
            javaopts=list(_JAVA),
            java_path=str(self.java / "bin" / "java"),
            cwd=str(folder),  # where YARN's containers run
            die_on_exit=True,
            redirect_stdout=self.log,
            redirect_stderr=self.log,
            return_proc=True,
        )
        self.pid = self.process.pid
        self.yarn = None
        self.gateway = JavaGateway(gateway_parameters=GatewayParameters(address=_LOOPBACK, port=port))
        try:
            self._start(yarn)
        except Py4JJavaError as error:
            self.stop()
            raise RuntimeError(f"no minicluster: {error.java_exception}; see {self.log.name}") from error

    def _start(self, yarn: bool) -> None:
        apache = self.gateway.jvm.org.apache.hadoop
        settings = apache.hdfs.HdfsConfiguration()
        for name, value in {**_HDFS, "hdfs.minidfs.basedir": str(self.folder / "dfs")}.items():
            settings.set(name, value)
        self.dfs = apache.hdfs.MiniDFSCluster.Builder(settings).numDataNodes(1).build()
        self.dfs.waitActive()
        self.url = f"hdfs://{_LOOPBACK}:{self.dfs.getNameNodePort()}"
        self._write("core-site.xml", {"fs.defaultFS": self.url})
        if not yarn:
            return
        settings = apache.yarn.conf.YarnConfiguration(settings)
        # Where a node's containers find Java.
        java = {"yarn.nodemanager.admin-env": f"JAVA_HOME={self.java}"}
        for name, value in {**_YARN, **java, "fs.defaultFS": self.url}.items():
            settings.set(name, value)
        self.yarn = apache.yarn.server.MiniYARNCluster("yarn", 1, 1, 1)
        self.yarn.init(settings)
        self.yarn.start()
        settings = self.yarn.getConfig()
        self._write("yarn-site.xml", {name: settings.get(name) for name in _ADDRESSES})

    def _write(self, name: str, settings: dict[str, str]) -> None:
        properties = "".join(
            f"<property><name>{key}</name><value>{settings[key]}</value></property>" for key in settings
        )
        (self.conf / name).write_text(f"<configuration>{properties}</configuration>\n")

    def stop(self) -> None:
        with contextlib.suppress(Py4JError):
            if self.yarn is not None:
                self.yarn.stop()  # Its containers would outlive it.
        self.gateway.close()
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def __enter__(self) -> "Minicluster":
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def home_of_java() -> Path:
    if home := job.java_home() or os.environ.get("JAVA_HOME"):
        return Path(home)
    java = shutil.which("java")
    if java is None:
        raise Unavailable("this takes Java 11 or 17, and there is none")
    return Path(java).resolve().parent.parent


def classpath(pom: Path, folder: Path) -> str:
    """The jars of a pom, in Maven's cache, which are fetched once; `folder` takes the answer."""
    if not shutil.which("mvn"):
        raise Unavailable("this takes Maven (mvn), which is not here")
    answer = folder / "classpath"
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:build-classpath", f"-Dmdep.outputFile={answer}"]
    maven = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if maven.returncode:
        raise Unavailable(f"Maven cannot fetch what {pom.parent.name} takes: {maven.stdout[-300:]}")
    return answer.read_text().strip()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    with Minicluster(Path(sys.argv[1]).resolve(), yarn=True) as cluster:
        print(f"{cluster.url}, HADOOP_CONF_DIR={cluster.conf}, pid {cluster.pid}", flush=True)
        signal.pause()
