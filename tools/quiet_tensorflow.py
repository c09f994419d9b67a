"""Loads TensorFlow without its native messages; to be imported before it.

They come before any logging can be configured (seen in 2.21) and would stand around the
one line of a tool's error.
"""

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()
