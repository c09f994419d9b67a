"""Work over a data set on a runner of Apache Beam; only `run` needs Beam itself."""
