"""Runs a job as an Apache Beam pipeline."""

from typing import Any

import apache_beam as beam
from apache_beam.options import pipeline_options


def make_options(arguments: list[str]) -> pipeline_options.PipelineOptions:
    """Beam's options from command-line arguments.

    Replaces the DirectRunner by the FnApiRunner, which is part of Beam's Python
    package; in newer versions the DirectRunner first tries to download a program.
    """
    options = pipeline_options.PipelineOptions(arguments)
    standard = options.view_as(pipeline_options.StandardOptions)
    if (standard.runner or "direct").lower() in ("direct", "directrunner"):
        standard.runner = "FnApiRunner"
    return options


def run(job: Any, options: pipeline_options.PipelineOptions) -> None:
    """Processes all items of a job and waits for them.

    Args:
        job: one of the classes of `jobs`; Beam may do an item more than once.
        options: of Beam.

    Raises:
        RuntimeError: if an item failed in every attempt of the runner; the message
            contains the worker's error.
    """
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Items" >> beam.Create(job.items())
            # Without a reshuffle, one worker would get all items in one bundle.
            | "Spread" >> beam.Reshuffle()
            | "Do" >> beam.Map(job.do)
        )
