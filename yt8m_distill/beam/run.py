"""A work as a pipeline of Apache Beam."""

from typing import Any

import apache_beam as beam
from apache_beam.options import pipeline_options


class DoItem(beam.DoFn):
    """An item → its number of videos.

    Args:
        work: one of `works`.
    """

    def __init__(self, work: Any):
        self.work = work

    def process(self, item: Any):
        """Does the item; Beam may call this again for the same one."""
        yield self.work.do(item)


def make_options(arguments: list[str]) -> pipeline_options.PipelineOptions:
    """Beam's options from command-line words.

    The DirectRunner becomes the FnApiRunner, which is part of Beam's Python package:
    newer versions would first look for a program to download.
    """
    options = pipeline_options.PipelineOptions(arguments)
    standard = options.view_as(pipeline_options.StandardOptions)
    if (standard.runner or "direct").lower() in ("direct", "directrunner"):
        standard.runner = "FnApiRunner"
    return options


def run(work: Any, options: pipeline_options.PipelineOptions) -> None:
    """Does all items of a work, and waits for the last of them.

    Raises:
        RuntimeError: for an item that failed as often as the runner tries; the text
            holds the worker's error.
    """
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Items" >> beam.Create(work.items())
            # Without it one worker would have all of them in one bundle.
            | "Spread" >> beam.Reshuffle()
            | "Do" >> beam.ParDo(DoItem(work))
        )
