// Scoring on the JVM, with the LeNet that Python trained. scala/sbt runs it: scala/sbt test, scala/sbt package.
// Spark and BigDL are the jars of the Python environment, so that both sides run the very same ones.

name := "gan-spark"
version := "0.1.0"
scalaVersion := "2.12.17"

Compile / scalaSource := baseDirectory.value / "scala" / "main"
Test / scalaSource := baseDirectory.value / "scala" / "test"

Compile / unmanagedJars := {
  val site = file(sys.env.getOrElse("GAN_SPARK_SITE_PACKAGES", (baseDirectory.value / ".venv" / "lib" / "python3.11" / "site-packages").getPath))
  val jars = (site / "pyspark" / "jars") ** "*.jar" +++ (site / "bigdl" / "share") ** "*.jar"
  if (jars.get.isEmpty) sys.error(s"no jars of Spark and BigDL under $site: run `uv sync` first, or set GAN_SPARK_SITE_PACKAGES")
  jars.classpath
}
libraryDependencies += "org.scalatest" %% "scalatest" % "3.2.18" % Test
scalacOptions ++= Seq("-deprecation", "-feature", "-Xlint", "-Xfatal-warnings")

// BigDL's jar carries an old ScalaTest; ours comes first.
Test / externalDependencyClasspath := {
  val all = (Test / externalDependencyClasspath).value
  val (tests, others) = all.partition(entry => entry.data.getName.matches("(scalatest|scalactic).*"))
  tests ++ others
}
Test / fork := true
Test / javaOptions ++= Seq(
  "-Xmx2g",
  s"-Dlog4j2.configurationFile=${baseDirectory.value / "conf" / "log4j2.properties"}",
  s"-Dgan_spark.root=${baseDirectory.value}",
  // What Spark's launcher opens on Java 17.
  "--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.lang.invoke=ALL-UNNAMED",
  "--add-opens=java.base/java.nio=ALL-UNNAMED", "--add-opens=java.base/java.net=ALL-UNNAMED",
  "--add-opens=java.base/java.util=ALL-UNNAMED", "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
  "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED", "--add-opens=java.base/sun.nio.cs=ALL-UNNAMED",
  "--add-opens=java.base/sun.security.action=ALL-UNNAMED", "--add-opens=java.base/sun.util.calendar=ALL-UNNAMED"
)
