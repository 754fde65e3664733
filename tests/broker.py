"""A real Kafka broker on loopback, by Maven: one process that is its own controller (KRaft), with no ZooKeeper."""

import socket
import subprocess
import time
from pathlib import Path

from minicluster import Unavailable, classpath, home_of_java

POM = Path(__file__).resolve().parent / "kafka" / "pom.xml"
_CLUSTER = "AAAAAAAAAAAAAAAAAAAAAQ"  # 16 bytes in base64
_JAVA = ("-Xmx300m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


class Broker:
    """`servers` is its address, `pid` its process. Raises `Unavailable` where Maven is missing or cannot fetch it."""

    def __init__(self, folder: Path):
        self.folder = folder
        ports = [socket.socket() for _ in range(2)]
        for port in ports:
            port.bind(("127.0.0.1", 0))
        self.servers, controller = (f"127.0.0.1:{port.getsockname()[1]}" for port in ports)
        for port in ports:
            port.close()
        self.settings = folder / "server.properties"
        self.settings.write_text(
            f"""
            process.roles=broker,controller
            node.id=1
            controller.quorum.voters=1@{controller}
            controller.listener.names=CONTROLLER
            listeners=PLAINTEXT://{self.servers},CONTROLLER://{controller}
            advertised.listeners=PLAINTEXT://{self.servers}
            listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
            log.dirs={folder / "logs"}
            num.partitions=3
            message.max.bytes=5000000
            """
        )
        self.java = [str(home_of_java() / "bin" / "java"), *_JAVA, "-cp", classpath(POM, folder)]
        form = [*self.java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self.settings)]
        subprocess.run(form, check=True, capture_output=True, timeout=60)
        self.log = (folder / "broker.log").open("w")
        self.start()

    def start(self) -> None:
        command = [*self.java, "kafka.Kafka", str(self.settings)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.pid = self.process.pid
        host, port = self.servers.split(":")
        deadline = time.time() + 60
        while socket.socket().connect_ex((host, int(port))):
            if self.process.poll() is not None or time.time() > deadline:
                self.stop()
                raise RuntimeError(f"no broker; see {self.log.name}")
            time.sleep(0.2)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def __enter__(self) -> "Broker":
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.log.close()


__all__ = ["Broker", "Unavailable"]
