package ganspark

import scala.util.control.NonFatal

import com.intel.analytics.bigdl.dllib.utils.Engine
import org.apache.hadoop.fs.Path
import org.apache.spark.sql.{DataFrame, Dataset, SaveMode, SparkSession}
import org.apache.spark.sql.functions.{col, count, lit}
import org.apache.spark.sql.streaming.Trigger
import org.apache.spark.sql.types.{BinaryType, StringType, StructType}

/** A scored row. `prediction` and `log_probabilities` are null where `reason` says why the image cannot be used. */
final case class Scored(
    id: String,
    prediction: Option[Int],
    log_probabilities: Option[Array[Float]],
    reason: Option[String]
)

/** Scores a dataset, or a folder of arriving Parquet files, with a LeNet that `jobs/lenet.py` trained.
  *
  * {{{
  * spark-submit --class ganspark.Score --jars $(gan-spark bigdl-jars) target/scala-2.12/gan-spark_2.12-0.1.0.jar
  *   --model <run>/checkpoints/step-00000020/checkpoint --shape 28,28,1 --input <dataset>/split=test --output <table>
  *   [--stream --checkpoint <folder> [--available-now]]
  * }}}
  */
object Score {
  private val batch = 256
  private val usage = "expected --model PREFIX --shape HEIGHT,WIDTH,CHANNELS --input FOLDER --output TABLE " +
    "[--stream --checkpoint FOLDER [--available-now]]"
  private val arriving = new StructType().add("id", StringType).add("image", BinaryType)

  def main(arguments: Array[String]): Unit = {
    try {
      val options = Options.parse(arguments.toList)
      val spark = SparkSession.builder.appName("score").getOrCreate()
      val stdout = System.out
      System.setOut(System.err) // BigDL prints; stdout is the result's.
      try stdout.println(if (options.stream) stream(spark, options) else whole(spark, options))
      finally spark.stop()
    } catch {
      case error: UserError => System.err.println(s"error: ${error.getMessage}"); sys.exit(2)
      case NonFatal(error)  => System.err.println(s"error: $error"); sys.exit(1)
    }
  }

  final case class Options(
      model: String,
      shape: (Int, Int, Int),
      input: String,
      output: String,
      checkpoint: String,
      stream: Boolean,
      availableNow: Boolean
  )

  object Options {
    private val flags = Set("--stream", "--available-now")
    private val values = Set("--model", "--shape", "--input", "--output", "--checkpoint")

    def parse(arguments: List[String]): Options = {
      def read(rest: List[String]): Map[String, String] = rest match {
        case Nil                                         => Map.empty
        case flag :: more if flags(flag)                 => read(more) + (flag -> "")
        case name :: value :: more if values(name)       => read(more) + (name -> value)
        case other :: _                                  => throw new UserError(s"$other: $usage")
      }
      val given = read(arguments)
      def need(name: String) = given.getOrElse(name, throw new UserError(s"$name is missing: $usage"))
      val shape = need("--shape").split(",").map(side => scala.util.Try(side.trim.toInt).getOrElse(0)) match {
        case Array(height, width, channels) if height > 0 && width > 0 && (channels == 1 || channels == 3) =>
          (height, width, channels)
        case _ =>
          throw new UserError(s"--shape ${given("--shape")}: expected HEIGHT,WIDTH,CHANNELS, for instance 28,28,1")
      }
      val stream = given.contains("--stream")
      if (!stream && (given.contains("--checkpoint") || given.contains("--available-now")))
        throw new UserError("--checkpoint and --available-now need --stream")
      val checkpoint = if (stream) need("--checkpoint") else ""
      val now = given.contains("--available-now")
      Options(need("--model"), shape, need("--input"), need("--output"), checkpoint, stream, now)
    }
  }

  /** Every row of `input` to `output`, which is replaced when all are scored; returns the result's JSON. */
  def whole(spark: SparkSession, options: Options): String = {
    exists(spark, options.input)
    val input = rows(options.input, spark.read.parquet(options.input))
    score(spark, options, input).write.mode(SaveMode.Overwrite).parquet(options.output)
    counts(spark.read.parquet(options.output), options)
  }

  /** Files as they arrive in `input`, each scored once; returns when the query ends, or with `--available-now` when
   * what is there is done.
   */
  def stream(spark: SparkSession, options: Options): String = {
    exists(spark, options.input)
    val scored = score(spark, options, spark.readStream.schema(arriving).parquet(options.input))
    val writer = scored.writeStream
      .format("parquet")
      .option("path", options.output)
      .option("checkpointLocation", options.checkpoint)
    (if (options.availableNow) writer.trigger(Trigger.AvailableNow()) else writer).start().awaitTermination()
    counts(spark.read.parquet(options.output), options)
  }

  private def exists(spark: SparkSession, folder: String): Unit = {
    val path = new Path(folder)
    if (!path.getFileSystem(spark.sparkContext.hadoopConfiguration).exists(path))
      throw new UserError(s"$folder: no such folder")
  }

  private def rows(name: String, frame: DataFrame): DataFrame = {
    val found = frame.schema.map(field => field.name -> field.dataType).toMap
    for (field <- arriving if !found.get(field.name).contains(field.dataType)) {
      val columns = frame.schema.map(other => s"${other.name} ${other.dataType.sql}").mkString(", ")
      throw new UserError(s"$name: expected a column ${field.name} of ${field.dataType.sql}; found $columns")
    }
    frame
  }

  /** `frame` of id and image, scored; each task builds one network. */
  def score(spark: SparkSession, options: Options, frame: DataFrame): Dataset[Scored] = {
    import spark.implicits._
    Engine.init
    val saved = spark.sparkContext.broadcast(SavedModel.load(options.model, spark.sparkContext.hadoopConfiguration))
    check(saved.value, options)
    val shape = options.shape
    frame.select(col("id"), col("image")).as[(String, Array[Byte])].mapPartitions { rows =>
      lazy val network = new LeNet(saved.value, shape)
      rows.grouped(batch).flatMap { part =>
        val pixels = part.map { case (_, image) => Pixels.decode(image, shape) }
        val good = pixels.collect { case Right(values) => values }
        val scores = (if (good.isEmpty) Nil else network.score(good)).iterator
        part.zip(pixels).map {
          case ((id, _), Right(_)) =>
            val values = scores.next()
            Scored(id, Some(values.indexOf(values.max)), Some(values), None)
          case ((id, _), Left(reason)) => Scored(id, None, None, Some(reason))
        }
      }
    }
  }

  private def check(saved: SavedModel, options: Options): Unit = {
    val (height, width, channels) = options.shape
    try new LeNet(saved, options.shape).score(Seq(new Array[Float](height * width * channels)))
    catch {
      case NonFatal(error) =>
        val images = s"images of $height x $width x $channels"
        throw new UserError(s"${options.model}: the model does not take $images: $error")
    }
    ()
  }

  private def counts(table: DataFrame, options: Options): String = {
    val rejected = table.where(col("reason").isNotNull)
    val reasons = rejected.groupBy("reason").count().orderBy(col("count").desc).limit(3).collect()
    val lines = reasons.map(row => s"${row.getLong(1)} x ${row.getString(0)}")
    if (reasons.nonEmpty) System.err.println(s"rejected: ${lines.mkString("; ")}")
    val frame = table
      .agg(count(lit(1)).as("images"))
      .select(col("images"), lit(rejected.count()).as("rejected"), lit(options.output).as("table"))
    frame.toJSON.head()
  }
}
