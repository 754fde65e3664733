"""gan_spark trains generative image models on Spark clusters, from images in a data lake to generated images back in
the lake.
"""

__version__ = "0.1.0"
