package ganspark

import java.nio.charset.StandardCharsets.ISO_8859_1
import java.nio.file.{Files, Path => LocalPath}
import java.util.Comparator

import com.intel.analytics.bigdl.dllib.nn.Module
import com.intel.analytics.bigdl.dllib.nn.abstractnn.{AbstractModule, Activity}
import com.intel.analytics.bigdl.dllib.tensor.Tensor
import com.intel.analytics.bigdl.dllib.tensor.TensorNumericMath.TensorNumeric.NumericFloat
import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.Path

/** What cannot be done as it was asked for; the application ends with code 2. */
class UserError(message: String) extends Exception(message)

/** A saved LeNet as the bytes of its two files, `<prefix>.bigdl` and `<prefix>.bin`: small, and safe to broadcast. */
final case class SavedModel(layers: Array[Byte], weights: Array[Byte]) {

  /** A network of one's own, since one keeps its last activations and so serves one thread. */
  def build(): AbstractModule[Activity, Activity, Float] = {
    val folder = Files.createTempDirectory("lenet")
    try {
      val (model, bin) = (folder.resolve("model.bigdl"), folder.resolve("model.bin"))
      Files.write(model, layers)
      Files.write(bin, weights)
      Module.loadModule[Float](model.toUri.toString, bin.toUri.toString).evaluate()
    } finally SavedModel.delete(folder)
  }
}

object SavedModel {

  /** Reads the files at `prefix`, a path or URL of any filesystem that Hadoop knows, and builds the model once to see
   * that it is one.
   */
  def load(prefix: String, conf: Configuration): SavedModel = {
    val Seq(layers, weights) = Seq("bigdl", "bin").map(kind => read(s"$prefix.$kind", conf))
    val saved = SavedModel(layers, weights)
    try saved.build()
    catch { case error: Exception => throw new UserError(s"$prefix.bigdl: not a model in BigDL's format: $error") }
    saved
  }

  private def read(name: String, conf: Configuration): Array[Byte] = {
    val path = new Path(name)
    val fs = path.getFileSystem(conf)
    if (!fs.exists(path)) throw new UserError(s"$name: no such file; a model of BigDL is two, .bigdl and .bin")
    val stream = fs.open(path)
    try stream.readAllBytes()
    finally stream.close()
  }

  private def delete(folder: LocalPath): Unit =
    Files.walk(folder).sorted(Comparator.reverseOrder[LocalPath]()).forEach(path => Files.delete(path))
}

/** Pixels of a dataset's `image` column: a NumPy header, then uint8 height x width x channels. */
object Pixels {
  private val header = raw"""\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \}\s*""".r

  /** channels x height x width in [-1, 1], as Python's training computes them; or the reason why not. */
  def decode(image: Array[Byte], shape: (Int, Int, Int)): Either[String, Array[Float]] = {
    if (image == null) Left("no image (null)")
    else if (image.length < 10 || new String(image, 0, 6, ISO_8859_1) != "\u0093NUMPY" || image(6) != 1)
      Left("not a raw image column of a dataset")
    else {
      val start = 10 + (image(8) & 0xff) + 256 * (image(9) & 0xff)
      val text = if (start <= image.length) new String(image, 10, start - 10, ISO_8859_1) else ""
      val (height, width, channels) = shape
      text match {
        case header(h, w, c)
            if Seq(h, w, c) == Seq(height, width, channels).map(_.toString)
              && image.length == start + height * width * channels =>
          Right(Array.tabulate(channels * height * width) { place =>
            val (channel, pixel) = (place / (height * width), place % (height * width))
            (image(start + pixel * channels + channel) & 0xff) / 127.5f - 1f
          })
        case header(h, w, c) =>
          val found = s"image of $h x $w x $c in ${image.length - start} bytes"
          Left(s"$found; the model takes $height x $width x $channels")
        case _               => Left("not an image of uint8, height x width x channels")
      }
    }
  }
}

/** A network at work in one thread. */
final class LeNet(saved: SavedModel, shape: (Int, Int, Int)) {
  private val model = saved.build()

  /** Log-probabilities of each image. */
  def score(images: Seq[Array[Float]]): Seq[Array[Float]] = {
    val (height, width, channels) = shape
    val input = Tensor[Float](images.toArray.flatten, Array(images.length, channels, height, width))
    val output = model.forward(input).toTensor[Float].contiguous()
    val (values, start, classes) = (output.storage().array(), output.storageOffset() - 1, output.size(2))
    images.indices.map(row => values.slice(start + row * classes, start + (row + 1) * classes))
  }
}
