package ganspark

import java.nio.file.{Files, Path => LocalPath, Paths}
import java.util.Base64

import org.apache.spark.sql.{Row, SparkSession}
import org.scalatest.BeforeAndAfterAll
import org.scalatest.funsuite.AnyFunSuite

/** A row of tests/golden/lenet.json: an image, and what Python's BigDL gave for it. */
final case class Golden(id: String, image: Array[Byte], prediction: Int, logProbabilities: Seq[Double])

class ScoreTest extends AnyFunSuite with BeforeAndAfterAll {
  private lazy val spark = SparkSession.builder
    .master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1")
    .getOrCreate()
  private lazy val folder: LocalPath = Files.createTempDirectory("score")
  private lazy val golden: Row =
    spark.read.json(Paths.get(sys.props("gan_spark.root"), "tests", "golden", "lenet.json").toString).first()
  private lazy val rows: Seq[Golden] = golden.getAs[Seq[Row]]("rows").map(row =>
    Golden(
      row.getAs("id"),
      Base64.getDecoder.decode(row.getAs[String]("image")),
      row.getAs[Long]("prediction").toInt,
      row.getAs[Seq[Double]]("log_probabilities")
    ))
  private lazy val prefix: String = {
    for (kind <- Seq("bigdl", "bin"))
      Files.write(folder.resolve(s"lenet.$kind"), Base64.getDecoder.decode(golden.getAs[String](kind)))
    folder.resolve("lenet").toString
  }
  private lazy val shape: (Int, Int, Int) = golden.getAs[Seq[Long]]("shape").map(_.toInt) match {
    case Seq(height, width, channels) => (height, width, channels)
  }

  override def afterAll(): Unit = spark.stop()

  private def options(input: String, output: String, more: String*): Score.Options = {
    val (height, width, channels) = shape
    val given = List("--model", prefix, "--shape", s"$height,$width,$channels", "--input", input, "--output", output)
    Score.Options.parse(given ++ more)
  }

  private def write(name: String, images: (String, Array[Byte])*): String = {
    import spark.implicits._
    val path = folder.resolve(name).toString
    images.toDF("id", "image").coalesce(1).write.mode("append").parquet(path)
    path
  }

  private def read(output: String): Map[String, Row] =
    spark.read.parquet(output).collect().map(row => row.getAs[String]("id") -> row).toMap

  test("predictions are Python's") {
    val output = folder.resolve("golden-out").toString
    val input = write("golden", rows.map(row => row.id -> row.image): _*)
    val counts = Score.whole(spark, options(input, output))
    assert(counts.contains(s""""images":${rows.size}""") && counts.contains(""""rejected":0"""))
    val found = read(output)
    assert(found.size == rows.size && rows.map(_.prediction).distinct.size > 3)
    for (row <- rows) {
      assert(found(row.id).getAs[Int]("prediction") == row.prediction)
      val scores = found(row.id).getAs[Seq[Float]]("log_probabilities")
      assert(scores.size == row.logProbabilities.size)
      for ((here, there) <- scores.zip(row.logProbabilities)) assert(math.abs(here - there) < 1e-4)
    }
  }

  test("images that cannot be used are named and the rest are scored") {
    val good = rows.head.image
    val pickled = good.clone()
    val at = new String(good, "ISO-8859-1").indexOf("|u1")
    "|O8".getBytes.zipWithIndex.foreach { case (byte, place) => pickled(at + place) = byte }
    val bad = Map(
      "null" -> (null: Array[Byte]),
      "empty" -> Array.emptyByteArray,
      "text" -> "not an image".getBytes,
      "cut" -> good.dropRight(1),
      "header" -> good.take(30),
      "pickled" -> pickled
    )
    val output = folder.resolve("bad-out").toString
    Score.whole(spark, options(write("bad", (bad.toSeq :+ ("good" -> good)): _*), output))
    val found = read(output)
    assert(found.keySet == bad.keySet + "good")
    assert(found("good").getAs[Int]("prediction") == rows.head.prediction)
    assert(found("good").isNullAt(found("good").fieldIndex("reason")))
    for (id <- bad.keys) assert(found(id).isNullAt(found(id).fieldIndex("prediction")))
    assert(found("null").getAs[String]("reason") == "no image (null)")
    assert(found("text").getAs[String]("reason") == "not a raw image column of a dataset")
    assert(found("cut").getAs[String]("reason").contains("the model takes"))
    assert(found("pickled").getAs[String]("reason") == "not an image of uint8, height x width x channels")
  }

  test("files that arrive are scored once") {
    val (output, checkpoint) = (folder.resolve("stream-out").toString, folder.resolve("stream-checkpoint").toString)
    val input = write("stream", rows.take(5).map(row => row.id -> row.image): _*)
    def run() = Score.stream(spark, options(input, output, "--stream", "--checkpoint", checkpoint, "--available-now"))
    run()
    assert(spark.read.parquet(output).count() == 5)
    write("stream", rows.drop(5).map(row => row.id -> row.image): _*)
    run()
    assert(spark.read.parquet(output).count() == rows.size)
    for (row <- rows) assert(read(output)(row.id).getAs[Int]("prediction") == row.prediction)
    run()
    assert(spark.read.parquet(output).count() == rows.size)
  }

  test("requests that cannot be met are one clear error each") {
    def error(body: => Any) = intercept[UserError](body).getMessage
    val (input, output) = (write("errors", "a" -> rows.head.image), folder.resolve("errors-out").toString)
    assert(error(Score.Options.parse(List("--model", "m"))).startsWith("--shape is missing"))
    assert(error(Score.Options.parse(List("--modle", "m"))).startsWith("--modle"))
    assert(error(options(input, output, "--available-now")).contains("need --stream"))
    val flat = List("--model", "m", "--shape", "28", "--input", "i", "--output", "o")
    assert(error(Score.Options.parse(flat)).contains("--shape 28"))
    val none = options(input, output).copy(model = folder.resolve("none").toString)
    assert(error(Score.whole(spark, none)).contains("no such file"))
    val large = options(input, output).copy(shape = (40, 40, 3))
    assert(error(Score.whole(spark, large)).contains("does not take images of 40 x 40 x 3"))
    val streamed = List("--stream", "--checkpoint", folder.resolve("c").toString)
    val nowhere = options(folder.resolve("nothing").toString, output, streamed: _*)
    assert(error(Score.stream(spark, nowhere)).contains("no such folder"))
    for (kind <- Seq("bigdl", "bin")) Files.write(folder.resolve(s"other.$kind"), "no model".getBytes)
    val other = options(input, output).copy(model = folder.resolve("other").toString)
    assert(error(Score.whole(spark, other)).contains("not a model in BigDL's format"))
    import spark.implicits._
    val strings = folder.resolve("strings").toString
    Seq("a" -> "b").toDF("id", "image").write.parquet(strings)
    assert(error(Score.whole(spark, options(strings, output))).contains("expected a column image of BINARY"))
    assert(!Files.exists(folder.resolve("errors-out")))
  }
}
