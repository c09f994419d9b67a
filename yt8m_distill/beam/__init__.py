"""Jobs over a data set on an Apache Beam runner; only `run` imports Beam."""
